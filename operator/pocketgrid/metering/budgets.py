"""How much of a job's budget is left, and what that allows.

A job never spends more than its limit with action Stop if every hand-out is asked for here first and counted as
reserved until it is committed, refused or lost: spent and held grow only by what was reserved before, and a hand-out is
cut so that all three together stay within the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pocketgrid.model.money import Budget, BudgetAction


@dataclass(frozen=True, slots=True)
class Exposure:
    """What a job may have to pay, in micro-units.

    Attributes:
        earned: for good.
        held: for rows that are committed and not verified yet.
        reserved: for rows that are handed out, as first copies, second copies or checks, or wait to be written; each at
            the price of the device that has them.
    """

    earned: int = 0
    held: int = 0
    reserved: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.earned + self.held + self.reserved


class BudgetState(StrEnum):
    """How a job stands with its budget."""

    WITHIN = "Within"
    EXCEEDED = "Exceeded"
    """More than the limit is spent, held or reserved; the user asked to be warned only."""
    EXHAUSTED = "Exhausted"
    """Not one more row can be paid at the cheapest price on offer; nothing is handed out until something comes back."""


def affordable_rows(budget: Budget | None, exposure: Exposure, price: int, wanted: int) -> int:
    """How many of `wanted` rows may be handed out to a device of this price; never more, never less than none."""
    if budget is None or price <= 0 or budget.action is BudgetAction.WARN:
        return max(0, wanted)
    return max(0, min(wanted, (budget.limit_micro - exposure.total) // price))


def budget_state(budget: Budget | None, exposure: Exposure, cheapest: int) -> BudgetState:
    """How a job stands; `cheapest` is the lowest price of a row among the devices that could work on it."""
    if budget is None:
        return BudgetState.WITHIN
    if budget.action is BudgetAction.WARN:
        return BudgetState.EXCEEDED if exposure.total > budget.limit_micro else BudgetState.WITHIN
    exhausted = affordable_rows(budget, exposure, cheapest, 1) == 0
    return BudgetState.EXHAUSTED if exhausted else BudgetState.WITHIN
