"""Sums of money as the grid reckons them: whole millionths of the unit of one currency, never a fraction of one.

What is owed to whom is for the room `metering`; here are the words only, and how sums are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pocketgrid.model.ids import ModelDigest

MICRO = 1_000_000
"""Micro-units in a unit of the currency."""

_PLACES = 6


def read_money(text: str) -> int:
    """Micro-units of a decimal text such as ``12.5``.

    Raises:
        ValueError: it is no such text, or has more than six places.
    """
    whole, point, fraction = text.partition(".")
    if not text.isascii() or not whole.isdigit() or (point and not fraction.isdigit()):
        raise ValueError(f"{text!r} is no sum of money; write digits, such as 12.50")
    if len(fraction) > _PLACES:
        raise ValueError(f"{text!r} has more than {_PLACES} places")
    return int(whole) * MICRO + int(fraction.ljust(_PLACES, "0"))


def write_money(micro: int) -> str:
    """The shortest text with at least two places that `read_money` reads as `micro`; negative sums get a minus."""
    whole, rest = divmod(abs(micro), MICRO)
    fraction = f"{rest:0{_PLACES}}".rstrip("0").ljust(2, "0")
    return f"{'-' if micro < 0 else ''}{whole}.{fraction}"


class BudgetAction(StrEnum):
    """What happens when a job's budget is used up."""

    STOP = "Stop"
    WARN = "Warn"


@dataclass(frozen=True, slots=True)
class Budget:
    """What a job may cost.

    Attributes:
        limit_micro: micro-units, above 0: pay, and what is set aside for work under way.
    """

    limit_micro: int
    action: BudgetAction = BudgetAction.STOP


@dataclass(frozen=True, slots=True)
class PriceList:
    """What devices of a hardware class are paid for a verified item.

    Attributes:
        per_item_micro: micro-units for an item of a model that has no price of its own.
        models: micro-units for an item, by model.
    """

    per_item_micro: int = 0
    models: Mapping[ModelDigest, int] = field(default_factory=dict)

    def price_micro(self, model: ModelDigest) -> int:
        """Micro-units for one item of `model`."""
        return self.models.get(model, self.per_item_micro)
