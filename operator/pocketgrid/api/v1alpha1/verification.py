"""How results are believed and what they may cost: the parts of an InferenceJob under ``verification`` and ``budget``.

What is done with these numbers is decided in the rooms `trust` and `metering`. Shares, tolerances and sums of money are
decimal texts, because the API has no floating-point numbers.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import Field

from pocketgrid.api.v1alpha1.meta import ApiModel, Decimal, Int32, Rule
from pocketgrid.model.money import BudgetAction
from pocketgrid.model.trust import VerificationMode

DEFAULT_QUORUM = 2

Share = Annotated[
    Decimal,
    Rule(
        reason="NotAShare",
        cel="double(self) > 0.0 && double(self) <= 1.0",
        message="must be above 0 and at most 1",
        holds=lambda text: 0.0 < float(text) <= 1.0,
    ),
]
"""A part of a whole."""

RelativeTolerance = Annotated[
    Decimal,
    Rule(
        reason="ToleratesEverything",
        cel="double(self) < 1.0",
        message="must be below 1, or a zero would be close to everything",
        holds=lambda text: float(text) < 1.0,
    ),
]

Money = Annotated[str, Field(max_length=16, pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$")]
"""A sum in the grid's one currency, down to a millionth of its unit."""

PositiveMoney = Annotated[
    Money,
    Rule(
        reason="NoMoney",
        cel="self.matches('[1-9]')",
        message="must be above 0",
        holds=lambda text: re.search("[1-9]", text) is not None,
    ),
]


def _tolerates_something(close: AllClose) -> bool:
    return float(close.rtol) > 0 or float(close.atol) > 0


class AllClose(ApiModel):
    """Every value b is close to the other result's value a: abs(b - a) <= atol + rtol * abs(a)."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="NoTolerance",
            cel="double(self.rtol) > 0.0 || double(self.atol) > 0.0",
            message="must have rtol or atol above 0; leave the comparator away to compare exactly",
            holds=_tolerates_something,
        ),
    )

    rtol: RelativeTolerance = "0"
    """Tolerance as a share of the value."""

    atol: Decimal = "0"
    """Tolerance in the output's own unit."""


class Cosine(ApiModel):
    """The angle between an item's two vectors is small."""

    minimum: Share
    """Least cosine of that angle, such as 0.999."""


class TopK(ApiModel):
    """The k highest classes are the same, in order."""

    k: Annotated[Int32, Field(ge=1, le=1024)] = 1
    """How many classes are compared."""

    margin: Decimal = "0"
    """Classes whose values lie this close together may change places. In the unit of the output."""


def _one_kind(comparator: Comparator) -> bool:
    return sum(kind is not None for kind in (comparator.all_close, comparator.cosine, comparator.top_k)) <= 1


class Comparator(ApiModel):
    """When two results for one item are the same. Empty: when every bit is."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="SeveralComparators",
            cel="[has(self.allClose), has(self.cosine), has(self.topK)].filter(given, given).size() <= 1",
            message="must have at most one of allClose, cosine and topK",
            holds=_one_kind,
        ),
    )

    all_close: AllClose | None = None
    """For numbers that may differ a little."""

    cosine: Cosine | None = None
    """For vectors, such as embeddings."""

    top_k: TopK | None = None
    """For scores of classes."""


def _quorum_is_asked_for(verification: Verification) -> bool:
    return verification.quorum is None or verification.mode is VerificationMode.QUORUM


class Verification(ApiModel):
    """How results of devices are verified before they are final and paid."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="QuorumOfAnotherMode",
            cel="!has(self.quorum) || self.mode == 'Quorum'",
            message="may have quorum only if its mode is Quorum",
            holds=_quorum_is_asked_for,
        ),
    )

    mode: VerificationMode = VerificationMode.NONE
    """None: not at all, for devices of one's own; nobody is paid. Audit: a random part of every device's items is
    computed again by another device. Quorum: every shard is computed by several devices of different owners until
    enough agree. Adaptive: as much is computed again as a device's history calls for."""

    quorum: Annotated[Int32, Field(ge=2, le=15)] | None = None
    """For Quorum: how many devices compute each shard; more than half of them must agree. Absent: 2."""

    comparator: Comparator = Comparator()
    """When two results for one item are the same. Absent: when every bit is, which holds only between devices whose
    arithmetic is the same."""

    max_error_rate: Share = "0.001"
    """Share of wrong rows the results may have. For Adaptive: the less, the longer a device is checked closely."""

    audit_floor: Share = "0.01"
    """For Audit, the share of every device's items that is computed again; for Adaptive, the least share, however
    good the device's history is."""


class Budget(ApiModel):
    """What a job may cost. May be changed while it runs."""

    limit: PositiveMoney
    """In the grid's currency, such as 12.50: pay for verified work, and what is set aside for work under way."""

    action: BudgetAction = BudgetAction.STOP
    """When the limit is reached. Stop: nothing more is handed out until the limit is raised. Warn: an Event is
    written, and the job goes on."""
