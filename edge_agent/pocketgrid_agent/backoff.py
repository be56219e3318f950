"""How long to wait before dialling again. Pure; chance is an argument."""

from __future__ import annotations

from pocketgrid.clock import Rng

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 5.0


class Backoff:
    """Exponential with full jitter: uniform in [0, min(longest, first * 2**n)].

    Full jitter spreads a fleet that lost its gateway at one moment better than jitter around a fixed delay does.
    The first try after a loss is nearly immediate, because most losses are a passing matter.
    """

    def __init__(self, rng: Rng, *, first_s: float = FIRST_SECONDS, longest_s: float = LONGEST_SECONDS) -> None:
        self._rng = rng
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait before the next try."""
        ceiling = min(self._longest_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return self._rng.random() * ceiling

    def reset(self) -> None:
        """A try succeeded."""
        self._failures = 0
