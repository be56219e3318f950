"""When finished results are sent: at once, or a few together. Pure: time goes in, a waiting time comes out.

Every message wakes threads on both sides while the model streams its weights through the caches they share, so a
wake-up then costs many times what it costs otherwise: with shards of a tenth of a second, sending each alone takes
several per cent of the processor. Results are safe in the journal meanwhile; only their delivery waits, never more than
`LONGEST_SECONDS`, and not at all when no more work is waiting here: then the job may be near its end, where the
operator takes silence for slowness.
"""

from __future__ import annotations

GROUP = 4
"""About so many results travel together while shards finish evenly."""

LONGEST_SECONDS = 1.0
SHORTEST_SECONDS = 0.02
"""Below it the journal's own grouping does the work."""


class DeliveryPacer:
    """Says how long results may wait for others. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._finished_at: float | None = None
        self._gap = 0.0
        self._sent_at = float("-inf")

    def finished(self, now: float) -> None:
        """A result has become ready to be sent."""
        if self._finished_at is not None:
            # Half new, half old: a single pause does not turn a stream of short shards into one of long ones.
            self._gap += 0.5 * (now - self._finished_at - self._gap)
        self._finished_at = now

    def sent(self, now: float) -> None:
        """All that was ready has been sent."""
        self._sent_at = now

    def wait(self, now: float, *, last: bool) -> float:
        """Seconds to wait before sending what is ready; 0 if it should go now. The first after a pause always does."""
        window = min(GROUP * self._gap, LONGEST_SECONDS)
        if last or window < SHORTEST_SECONDS:
            return 0.0
        return max(0.0, self._sent_at + window - now)
