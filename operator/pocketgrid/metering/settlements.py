"""Settlements: what is to be paid out now, so that nothing is ever paid out twice.

A settlement carries a **mark** for each job and owner: how much of what that owner has earned there is paid out, all
settlements so far included. The next one pays what lies above the marks and raises them; marks never fall. So it does
not matter how often a log is settled, in which order, from which copy, or whether it grew in between.

Nothing here depends on the time or the place of the export: the same statements give the same settlement, and `id` is a
digest of all it says.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.money import write_money

FORMAT = "pocketgrid-settlement"
VERSION = 1
_ID_CHARACTERS = 32

Marks = Mapping[str, Mapping[str, int]]
"""job -> owner -> micro-units that are paid out, this settlement included."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What one job's log says.

    Attributes:
        job: uid.
        name: ``namespace/name``, for people; empty if nobody has said.
        digest: SHA-256 of the bytes of the log that count.
        earned: micro-units by owner; "" for those that nobody answers for.
    """

    job: str
    name: str
    digest: str
    earned: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Line:
    """One payment.

    Attributes:
        payee: what the payout provider calls the owner; empty if it is to look that up itself.
        amount: micro-units, above 0.
        spans: job -> from which mark to which this pays.
    """

    owner: str
    payee: str
    amount: int
    spans: Mapping[str, tuple[int, int]]

    def payment_id(self, currency: str) -> str:
        """The same for the same payment, whatever else is settled with it; a provider pays an id once."""
        spans = [[job, *span] for job, span in sorted(self.spans.items())]
        return _digest([self.owner, self.payee, currency, spans])


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is to be paid out.

    Attributes:
        period: text for people; nothing is derived from it.
        previous: id of the settlement this one follows, empty for the first.
        lines: payments, by owner.
        marks: of all jobs so far, those of earlier settlements included.
        evidence: the logs this rests on.
        withheld: micro-units earned and not paid out, by owner: no payee is known, or nobody answers for the device.
            Their marks are not raised, so that they are paid as soon as there is one.
        behind: job -> owner -> by how much its log now says less than is paid out already; its lines were damaged.
            Nothing is asked back; the next earnings there count against it.
    """

    currency: str
    period: str = ""
    previous: str = ""
    lines: tuple[Line, ...] = ()
    marks: Marks = field(default_factory=dict)
    evidence: tuple[Statement, ...] = ()
    withheld: Mapping[str, int] = field(default_factory=dict)
    behind: Marks = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Micro-units of all lines."""
        return sum(line.amount for line in self.lines)

    def content(self) -> dict[str, Any]:
        """All of it but `id`, as JSON values; no number in it has a fraction."""
        memo = f"PocketGrid {self.period}".strip()
        return {
            "format": FORMAT,
            "version": VERSION,
            "currency": self.currency,
            "period": self.period,
            "previous": self.previous or None,
            "total_micro": self.total,
            "lines": [_line_document(line, self.currency, memo) for line in self.lines],
            "marks": {job: dict(owners) for job, owners in self.marks.items()},
            "evidence": [{"job": s.job, "name": s.name, "log_sha256": s.digest} for s in self.evidence],
            "withheld": [
                {"owner": owner, "amount_micro": amount, "reason": "NoPayee" if owner else "NoOwner"}
                for owner, amount in sorted(self.withheld.items())
            ],
            "behind": {job: dict(owners) for job, owners in self.behind.items()},
        }

    def document(self) -> dict[str, Any]:
        """`content` with its `id`."""
        content = self.content()
        return {**content, "id": _digest(content)}


def settle(
    statements: Iterable[Statement],
    *,
    currency: str,
    period: str = "",
    payees: Mapping[str, str] | None = None,
    previous: Mapping[str, Any] | None = None,
) -> Settlement:
    """What is to be paid out of `statements`.

    Args:
        payees: owner -> payee. Without it everybody is paid, and the provider knows by whose name.
        previous: `document` of the last settlement, whose marks are gone on from.

    Raises:
        InvalidSpecError: two statements are of one job (reason DuplicateLog), or the last settlement is of another
            currency (CurrencyChanged) or cannot be understood (InvalidSettlement).
    """
    known = sorted(statements, key=lambda s: s.job)
    for one, other in itertools.pairwise(known):
        if one.job == other.job:
            raise InvalidSpecError("DuplicateLog", f"two of the logs are of job {one.job}; name one of them only")
    id_, before = _last(previous, currency)
    marks = {job: dict(owners) for job, owners in before.items()}
    spans: dict[str, dict[str, tuple[int, int]]] = {}
    withheld: Counter[str] = Counter()
    behind: dict[str, dict[str, int]] = {}
    for statement in known:
        of_job = marks.setdefault(statement.job, {})
        for owner in sorted({*statement.earned, *of_job}):
            earned, mark = statement.earned.get(owner, 0), of_job.get(owner, 0)
            if earned < mark:
                behind.setdefault(statement.job, {})[owner] = mark - earned
            elif earned > mark and (not owner or (payees is not None and not payees.get(owner))):
                withheld[owner] += earned - mark
            elif earned > mark:
                spans.setdefault(owner, {})[statement.job] = (mark, earned)
                of_job[owner] = earned
    lines = tuple(
        Line(owner, (payees or {}).get(owner, ""), sum(stop - start for start, stop in of_owner.values()), of_owner)
        for owner, of_owner in sorted(spans.items())
    )
    settled = {job: owners for job, owners in marks.items() if owners}
    return Settlement(currency, period, id_, lines, settled, tuple(known), dict(withheld), behind)


def canonical(document: Any) -> bytes:
    """The one way `document` is written, so that equal ones have equal bytes: sorted keys, no spaces, ASCII, a newline.

    Raises:
        ValueError: it holds a number with a fraction.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    json.loads(text, parse_float=_refuse_fraction)
    return text.encode("ascii") + b"\n"


def claimed_id(document: Mapping[str, Any]) -> str:
    """The id that the rest of `document` has, whatever it claims."""
    return _digest({name: value for name, value in document.items() if name not in ("id", "signature")})


COLUMNS = (
    "settlement_id", "payment_id", "owner", "payee", "amount", "amount_micro", "currency", "period", "jobs",
)  # fmt: skip


def table(document: Mapping[str, Any]) -> list[Sequence[str]]:
    """The lines of a settlement's document as rows of a CSV file, below `COLUMNS`."""
    return [
        COLUMNS,
        *(
            (
                document["id"], line["payment_id"], line["owner"], line["payment"]["uid"], line["payment"]["amount"],
                str(line["amount_micro"]), document["currency"], document["period"], str(len(line["jobs"])),
            )
            for line in document["lines"]
        ),
    ]  # fmt: skip


def _line_document(line: Line, currency: str, memo: str) -> dict[str, Any]:
    payment_id = line.payment_id(currency)
    return {
        "owner": line.owner,
        "payment_id": payment_id,
        "amount_micro": line.amount,
        "jobs": {job: {"from_micro": start, "to_micro": stop} for job, (start, stop) in line.spans.items()},
        # The four fields of a payment of the Pi platform's API; the amount is text, since it must stay exact.
        "payment": {
            "amount": write_money(line.amount),
            "memo": memo,
            "metadata": {"payment_id": payment_id},
            "uid": line.payee,
        },
    }


def _last(previous: Mapping[str, Any] | None, currency: str) -> tuple[str, Marks]:
    if previous is None:
        return "", {}
    try:
        marks: Marks = {job: {owner: int(m) for owner, m in o.items()} for job, o in previous["marks"].items()}
        id_, of_currency = str(previous["id"]), str(previous["currency"])
        understood = (previous["format"], previous["version"]) == (FORMAT, VERSION) and id_ == claimed_id(previous)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InvalidSpecError("InvalidSettlement", f"the previous settlement is none: {error!r}") from error
    if not understood:
        raise InvalidSpecError(
            "InvalidSettlement", "the previous settlement was changed, or is of another version; give it as exported"
        )
    if of_currency != currency:
        message = f"the previous settlement is in {of_currency}, not in {currency}; begin a new one without it"
        raise InvalidSpecError("CurrencyChanged", message)
    return id_, marks


def _digest(document: Any) -> str:
    return hashlib.sha256(canonical(document)).hexdigest()[:_ID_CHARACTERS]


def _refuse_fraction(text: str) -> None:
    raise ValueError(f"{text} has a fraction; sums are whole micro-units")
