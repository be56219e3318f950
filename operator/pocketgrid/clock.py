"""Time and randomness as arguments: the two protocols that let every decision be replayed.

The real ones are made in the composition root. Pure rooms take `now` or an `Rng`, never a clock.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """What may be asked about time."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back. For durations and deadlines."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch; may jump. For people and for records only, never for decisions."""
        ...


class Rng(Protocol):
    """What may be asked of chance; `random.Random` satisfies it."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...


class SystemClock:
    """The clock of this machine."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()


@dataclass
class ManualClock:
    """A clock that moves only when told; for simulations and tests."""

    seconds: float = 0.0
    wall_offset: float = field(default=1_700_000_000.0)

    def monotonic(self) -> float:
        """Seconds since the simulation began."""
        return self.seconds

    def wall(self) -> float:
        """Simulated seconds since the Unix epoch."""
        return self.wall_offset + self.seconds

    def advance(self, seconds: float) -> None:
        """Let `seconds` (>= 0) pass."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        self.seconds += seconds


class ForwardWall:
    """Wall-clock time that never goes back and follows jumps forward, for those who read progress from it.

    While the wall clock is behind what was told before, time goes on at the pace of the monotonic clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told = clock.wall()
        self._at = clock.monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch, never less than the last answer."""
        at = self._clock.monotonic()
        self._told = max(self._clock.wall(), self._told + max(0.0, at - self._at))
        self._at = at
        return self._told


def system_rng() -> Rng:
    """A generator seeded from the operating system."""
    return random.Random()
