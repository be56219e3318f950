"""One device's stream: the engine's `DeviceLink`, with a single sender.

Two writers on one gRPC stream lose messages without any error, so everything to be sent goes through one queue and
one task. Overflow rule: the queue is bounded by a number of messages and by a number of bytes, which follows from what
the device agreed to hold (its credits); a device that stops reading until either is exceeded has its link closed, and
its work goes elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence

from pocketgrid.engine.links import LeasedShard, Settlement
from pocketgrid.gateway.cachekeys import CacheKeys
from pocketgrid.gateway.convert import weigh, write_leases, write_order, write_settled
from pocketgrid.gateway.pacing import Paces
from pocketgrid.model.device import DeviceIdentity
from pocketgrid.model.ids import JobUid, LeaseId
from pocketgrid.model.job import WorkOrder
from pocketgrid.wire.framing import MESSAGE_BYTES, serialise
from pocketgrid.wire.v1 import agent_pb2 as pb

log = logging.getLogger(__name__)

SETTLED_TOKENS = 4096
"""Tokens named in one message about results or attempts; more go into several."""

UNASKED_BEATS = 1.5
"""Intervals between heartbeats after which a device from which something arrives is answered without a heartbeat."""

Write = Callable[[bytes], Awaitable[None]]
"""Sends one serialised GatewayMessage."""


class DeviceSession:
    """An attached device, from Hello to the end of its stream.

    Args:
        session_id: unguessable; names the session in calls beside the stream.
        limit: messages waiting beyond which the device has stopped reading.
        now: monotonic seconds at which the device was last heard.
        paces: how often devices are to report; read whenever one is told something.
        cache_keys: of the models it is to keep encrypted; None: it keeps them as they are.

    Attributes:
        held_up: nothing is read from the device at the moment, because the engine has no room for its results.
        beat: sequence number of the device's last heartbeat.
        pace: how often it was asked to report.
        working: it was given work, and has not said since that it has none.
        quickened: it was asked to report more often, and cannot have done so before it hears of it.
        fetches: how many models it is fetching.
        ignored: what it sent that had no effect, by what it was.
        ending: set once the session is over.
        farewell: whether what is still queued then is worth sending.
    """

    def __init__(
        self,
        identity: DeviceIdentity,
        session_id: str,
        *,
        limit: int,
        now: float,
        paces: Paces,
        cache_keys: CacheKeys | None = None,
    ) -> None:
        self._identity = identity
        self._cache_keys = cache_keys
        self.session_id = session_id
        self.last_heard = now
        self._answered_at = now
        self.held_up = False
        self.fetches = 0
        self.ignored: Counter[str] = Counter()
        self.beat = 0
        self._paces = paces
        self.pace = paces.idle
        self.working = False
        self.quickened = False
        self._idle_from = 0
        self._limit = limit
        # Leases that ran out may still wait here while their shards have been handed out again: hence twice.
        self._limit_bytes = 2 * max(identity.credits.bytes, MESSAGE_BYTES)
        self._queue: deque[tuple[pb.GatewayMessage, int]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self.ending = asyncio.Event()
        self.farewell = False
        self.close_reason = ""

    @property
    def identity(self) -> DeviceIdentity:
        """Who is at the other end."""
        return self._identity

    def heard(self, now: float) -> None:
        """Something arrived. While a large result is on its way, heartbeats wait behind it and nobody answers them."""
        self.last_heard = now
        if now - self._answered_at >= UNASKED_BEATS * self.pace.heartbeat_s:
            self._answered_at = now
            self.send_pulse()

    def hold(self, held_up: bool) -> None:
        """Nothing is read from the device for a while, or it is again."""
        self.held_up = held_up

    @property
    def queued(self) -> int:
        """How many messages wait to be sent."""
        return len(self._queue)

    def send(self, message: pb.GatewayMessage, weight: int = 0) -> None:
        """Queue one message of about `weight` bytes; without effect once the session is over."""
        if self.ending.is_set():
            return
        if len(self._queue) >= self._limit or self._queued_bytes + weight > self._limit_bytes:
            log.warning(
                "link stalled device=%s queued=%d bytes=%d", self._identity.name, len(self._queue), self._queued_bytes
            )
            self.drop("Stalled")
            return
        self._queue.append((message, weight))
        self._queued_bytes += weight
        self._wake.set()

    def send_order(self, order: WorkOrder) -> None:
        """Let the device prepare for a job."""
        self._give_work()
        keys = self._cache_keys
        key = keys.key_for(self.identity.name, order.model) if keys is not None else b""
        self.send(pb.GatewayMessage(work_order=write_order(order, key)))

    def send_lease(self, job: JobUid, lease: LeaseId, ttl_s: float, shards: Sequence[LeasedShard]) -> None:
        """Hand over shards.

        Raises:
            InvalidSpecError: a shard is larger than any message may be; then none of them is sent.
        """
        self._give_work()
        for message in write_leases(job, lease, ttl_s, shards):
            self.send(pb.GatewayMessage(lease=message), weigh(message))

    def send_revoke(self, job: JobUid, tokens: Sequence[bytes]) -> None:
        """Ask for what has not been begun."""
        self.send(pb.GatewayMessage(revoke=pb.Revoke(job=job, tokens=tokens)))

    def send_cancel(self, job: JobUid, tokens: Sequence[bytes]) -> None:
        """Stop these attempts, or all of the job."""
        self.send(pb.GatewayMessage(cancel=pb.Cancel(job=job, tokens=tokens)))

    def send_settled(self, job: JobUid, settlement: Settlement) -> None:
        """Results the device may forget."""
        step = SETTLED_TOKENS
        longest = max(len(settlement.committed), len(settlement.superseded), len(settlement.refused))
        for start in range(0, longest, step):
            part = Settlement(
                settlement.committed[start : start + step],
                settlement.superseded[start : start + step],
                settlement.refused[start : start + step],
            )
            self.send(pb.GatewayMessage(settled=write_settled(job, part)), _weight(part))

    def send_pulse(self) -> None:
        """Show the device that somebody is still here, and tell it its pace if that has changed."""
        pulse = pb.Pulse(sequence=self.beat)
        wanted = self._paces.working if self.working else self._paces.idle
        if wanted != self.pace:
            self.quickened = self.quickened or wanted.silence_s < self.pace.silence_s
            self.pace = wanted
            pulse.heartbeat_interval_ms = round(wanted.heartbeat_s * 1000)
            pulse.silence_limit_ms = round(wanted.silence_s * 1000)
            pulse.reconnect_spread_ms = round(wanted.spread_s * 1000)
        self.send(pb.GatewayMessage(pulse=pulse))

    def hear_beat(self, beat: int, *, busy: bool) -> None:
        """A heartbeat has come; `busy` if the device says that it has work."""
        self.beat = beat
        self._answered_at = self.last_heard
        if busy:
            self.working = True
        elif beat >= self._idle_from:
            self.working = False
        self.send_pulse()

    def close(self, reason: str, message: str, *, retry: bool, retry_after_s: float = 0.0) -> None:
        """End the session after telling the device why."""
        refusal = pb.Refusal(reason=reason, message=message, retry=retry, retry_after_ms=int(retry_after_s * 1000))
        self.send(pb.GatewayMessage(refusal=refusal))
        self.end(reason)

    def end(self, reason: str) -> None:
        """End the session once what is queued has been sent, if the device takes it."""
        self._end(reason, farewell=True)

    def drop(self, reason: str) -> None:
        """End the session at once: nobody is listening."""
        self._queue.clear()
        self._queued_bytes = 0
        self._end(reason, farewell=False)

    async def send_all(self, write: Write) -> None:
        """The stream's only sender: returns when the session is over and all that was queued before is written."""
        while True:
            while self._queue:
                message, weight = self._queue.popleft()
                for piece in serialise(message):
                    await write(piece)
                self._queued_bytes = max(0, self._queued_bytes - weight)
            if self.ending.is_set():
                return
            self._wake.clear()
            await self._wake.wait()

    def _give_work(self) -> None:
        # Of the next heartbeat one cannot tell whether it was sent before the work arrived.
        self._idle_from = self.beat + 2
        if not self.working:
            self.working = True
            if self.pace != self._paces.working:
                self.send_pulse()

    def _end(self, reason: str, *, farewell: bool) -> None:
        if not self.ending.is_set():
            self.close_reason = reason
            self.farewell = farewell
            self.ending.set()
        self._wake.set()


def _weight(part: Settlement) -> int:
    # Words of ours, about tokens that may be anybody's.
    echoed = sum(map(len, part.committed)) + sum(map(len, part.superseded))
    return echoed + sum(len(token) + len(reason) + len(message) for token, reason, message in part.refused)
