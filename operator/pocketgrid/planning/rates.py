"""Rate of events over a sliding window, in constant memory."""

from __future__ import annotations

from collections import deque


class RateWindow:
    """Counts per second over the last `window` seconds, in buckets of one second.

    The window shrinks to what has passed since the first count, so that a job's rate is right from its first
    seconds on.
    """

    __slots__ = ("_buckets", "_first", "_total", "_window")

    def __init__(self, window: int = 30) -> None:
        self._window = window
        self._buckets: deque[tuple[int, int]] = deque()
        self._total = 0
        self._first: float | None = None

    def add(self, count: int, now: float) -> None:
        """`count` more at `now` (monotonic seconds)."""
        if self._first is None:
            self._first = now
        second = int(now)
        if self._buckets and self._buckets[-1][0] == second:
            self._buckets[-1] = (second, self._buckets[-1][1] + count)
        else:
            self._buckets.append((second, count))
        self._total += count
        self._forget(now)

    def rate(self, now: float) -> float:
        """Counts per second at `now`; 0 before the first count."""
        self._forget(now)
        if self._first is None or not self._buckets:
            return 0.0
        span = min(float(self._window), now - self._first)
        return self._total / max(span, 1.0)

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] < int(now) - self._window:
            self._total -= self._buckets.popleft()[1]
