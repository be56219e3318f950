"""What the entries of a commit log mean for money, added up while they are folded.

Responsible for running sums only: how many rows are held back for each worker until somebody has believed them, and how
many it has earned. An amount is rows times the price under which the worker was introduced, so a commit needs no field
for it, and a result that counts and a result that is paid cannot be two things. `pocketgrid.metering` has the accounts
and recomputes the same from single postings. Pure.

Rules: a commit holds; `verified` turns what is held into earnings; `reopened` lets go of what is held. Earnings never
shrink, since they may have been paid out: what we lose after it was verified is done again and paid again, to whoever
does it again. A log whose plan does not verify holds and pays nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class RunningPay:
    """Rows by worker number; amounts in micro-units.

    Attributes:
        held: rows committed and not verified yet.
        earned: rows verified, and rows of checks that agreed.
        held_micro, earned_micro: what they come to at the workers' prices.
    """

    held: dict[int, int] = field(default_factory=dict)
    earned: dict[int, int] = field(default_factory=dict)
    held_micro: int = 0
    earned_micro: int = 0
    _prices: dict[int, int] = field(default_factory=dict)

    def introduce(self, worker: int, price: int) -> None:
        """Fix the price of a worker; the first one said counts."""
        if worker in self._prices:
            return
        self._prices[worker] = price
        self.held_micro += price * self.held.get(worker, 0)
        self.earned_micro += price * self.earned.get(worker, 0)

    def hold(self, worker: int, rows: int) -> None:
        """Hold `rows` rows; fewer than none lets go of some."""
        _add(self.held, worker, rows)
        self.held_micro += rows * self._prices.get(worker, 0)

    def earn(self, worker: int, rows: int) -> None:
        """Let a worker earn `rows` rows; fewer than none is for what is said again by a better witness."""
        _add(self.earned, worker, rows)
        self.earned_micro += rows * self._prices.get(worker, 0)

    def release(self, worker: int, rows: int) -> None:
        """What was held is earned."""
        self.hold(worker, -rows)
        self.earn(worker, rows)

    def amounts(self) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Micro-units held and earned by worker number."""
        prices = self._prices
        # Copied first, which is one step: it may be looked at while the thread that writes the log goes on.
        return (
            {worker: rows * prices.get(worker, 0) for worker, rows in self.held.copy().items()},
            {worker: rows * prices.get(worker, 0) for worker, rows in self.earned.copy().items()},
        )


def _add(sums: dict[int, int], worker: int, rows: int) -> None:
    total = sums.get(worker, 0) + rows
    if total:
        sums[worker] = total
    else:
        sums.pop(worker, None)
