"""How long to wait before dialling again, and how long for an answer. Pure; chance is an argument."""

from __future__ import annotations

from pocketgrid.clock import Rng

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 5.0

CROWDED_FIRST_SECONDS = 10.0
CROWDED_LONGEST_SECONDS = 60.0
"""Of patience, and of the wait after it has run out."""


class Backoff:
    """Exponential with full jitter: uniform in [0, min(longest, first * 2**n)].

    Full jitter spreads a fleet that lost its gateway at one moment better than jitter around a fixed delay does.
    The first try after a loss is nearly immediate, because most losses are a passing matter.

    A gateway that can be dialled and does not answer is overrun. What each try costs it is spent before it can answer,
    so devices that give up and try again keep it from ever answering anybody. Hence both the wait before the next try
    and the patience with it grow, until everyone is waited for.

    Of a large fleet the gateway says over how long a time its devices are to spread, so that it does not come to that.
    """

    def __init__(self, rng: Rng, *, first_s: float = FIRST_SECONDS, longest_s: float = LONGEST_SECONDS) -> None:
        self._rng = rng
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures = 0
        self._crowded = 0
        self._spread_s = 0.0

    @property
    def patience_s(self) -> float:
        """How long to wait for an answer to the next try."""
        return min(CROWDED_LONGEST_SECONDS, CROWDED_FIRST_SECONDS * 2.0 ** min(self._crowded, 30))

    def next(self, *, crowded: bool = False) -> float:
        """Seconds to wait before the next try; `crowded` if the last one found nobody with time for it."""
        ceiling = min(self._longest_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        if crowded:
            ceiling = self.patience_s
            self._crowded += 1
        if self._spread_s <= ceiling:
            return self._rng.random() * ceiling
        # From the second try on at least half, or a fleet would try twice as often as it was asked to.
        least = 0.0 if self._failures == 1 else 0.5
        return self._spread_s * (least + (1 - least) * self._rng.random())

    def reset(self, spread_s: float = 0.0) -> None:
        """A try succeeded; if the gateway is lost, others are, and all spread over `spread_s`."""
        self._failures = self._crowded = 0
        self._spread_s = spread_s
