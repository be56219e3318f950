"""What one device says, message by message, and no faster or larger than the gateway can bear.

Whatever a device sends, it holds only so much memory of the gateway and takes only so much of its time:

- Each message is weighed before it is parsed; what is too large, too heavy or unreadable ends the session.
- Each has a cost, and a device that costs more than its allowance is not read from until it has been earned again.
  Nothing is lost by that: what it sends waits on its own side.
- Unfinished messages of all devices together share one room. Who begins one waits until there is room for all of it,
  so that whoever has begun can also finish; and it must be finished in time.

Not here: what messages mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from grpc.aio import EOF  # type: ignore[attr-defined]  # grpc-stubs does not know it

from pocketgrid.clock import Clock
from pocketgrid.errors import ProtocolError, RefusedError
from pocketgrid.settings import GatewaySettings
from pocketgrid.wire.framing import MESSAGE_BYTES, Reassembler
from pocketgrid.wire.v1 import agent_pb2 as pb

MESSAGE_COST = 64
"""Of receiving any message at all, in the unit of `weigh_parts`: what the system and gRPC take for one."""

SLOWEST_BYTES_PER_S = 32 << 10
ASSEMBLY_SECONDS = 30.0
"""A message in pieces must be there within so many seconds, and as many more as its announced size takes at this speed,
that of a poor mobile link."""

MOST_WAITING = 256
"""Devices that wait for room for a message in pieces, each with its first piece in memory; more are sent away."""

Read = Callable[[], Awaitable[Any]]
"""The next serialised DeviceMessage of a stream, or EOF."""


class Allowance:
    """What a device may cost: `rate` a second in the long run, `burst` at once. Pure; times are monotonic seconds."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = now

    def spend(self, cost: float, now: float) -> float:
        """Take `cost`; how many seconds to wait before anything more may be taken."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - cost
        self._at = now
        return max(0.0, -self._left / self._rate)


class AssemblyRoom:
    """Memory for unfinished messages of all devices. First come, first served.

    Args:
        limit_bytes: of all together; at least one message of the largest size.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._left = max(limit_bytes, MESSAGE_BYTES)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free_bytes(self) -> int:
        """What nobody has reserved."""
        return self._left

    async def reserve(self, size: int) -> None:
        """Wait until there are `size` bytes, at most `MESSAGE_BYTES`, and take them.

        Raises:
            RefusedError: too many wait already.
        """
        if not self._waiting and size <= self._left:
            self._left -= size
            return
        if len(self._waiting) >= MOST_WAITING:
            raise RefusedError("Overloaded", "too many devices send large messages at once; come again", retry=True)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, granted))
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                # It is passed over when its turn comes, which may be now.
                self._grant()
            else:
                self.release(size)
            raise

    def release(self, size: int) -> None:
        """Give back what was reserved."""
        self._left += size
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            size, granted = self._waiting[0]
            if granted.done():
                self._waiting.popleft()
            elif size <= self._left:
                self._waiting.popleft()
                self._left -= size
                granted.set_result(None)
            else:
                return


class Inbox:
    """Reads one stream.

    Args:
        read: of the stream.
        room: shared by all streams.
        limit_bytes: largest message taken.

    Attributes:
        slowed: how often the device had to wait because it cost too much.
        on_heard: called when something arrives, whatever it is.
        on_held: called with True when the device is not listened to for a while, and with False when it is again.
    """

    def __init__(
        self,
        read: Read,
        room: AssemblyRoom,
        settings: GatewaySettings,
        clock: Clock,
        *,
        limit_bytes: int = MESSAGE_BYTES,
    ) -> None:
        self._read = read
        self._room = room
        self._clock = clock
        self._reassembler = Reassembler(pb.DeviceMessage, limit_bytes=limit_bytes)
        self._allowance = Allowance(settings.receive_rate, settings.receive_burst, clock.monotonic())
        self._reserved = 0
        self._due = 0.0
        self._wait = 0.0
        self.slowed = 0
        self.on_heard: Callable[[], None] = _nothing
        self.on_held: Callable[[bool], None] = _nothing_held

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished message."""
        return self._reassembler.pending_bytes

    async def next(self) -> pb.DeviceMessage | None:
        """The next whole message; None at the end of the stream.

        Raises:
            ProtocolError: what arrived is no message of this protocol, too large, too heavy or too slow.
            RefusedError: there is no room for a message in pieces.
        """
        self._release()
        while True:
            if self._wait:
                self.slowed += 1
                await self._held(asyncio.sleep(self._wait))
            piece = await self._read()
            if piece is EOF:
                return None
            self.on_heard()
            try:
                message = self._reassembler.take(piece)
            finally:
                self._wait = self._allowance.spend(MESSAGE_COST + self._reassembler.weight, self._clock.monotonic())
            if message is not None:
                return message
            await self._go_on_assembling()

    async def drain(self) -> None:
        """Read to the end of the stream without looking."""
        self.close()
        while await self._read() is not EOF:
            pass

    def close(self) -> None:
        """Forget what is unfinished."""
        self._reassembler = Reassembler(pb.DeviceMessage)
        self._release()

    async def _go_on_assembling(self) -> None:
        if not self._reserved:
            announced = self._reassembler.announced_bytes
            await self._held(self._room.reserve(announced))
            self._reserved = announced
            self._due = self._clock.monotonic() + ASSEMBLY_SECONDS + announced / SLOWEST_BYTES_PER_S
        elif self._clock.monotonic() > self._due:
            raise ProtocolError(
                f"a message of up to {self._reserved} bytes is still unfinished after "
                f"{ASSEMBLY_SECONDS + self._reserved / SLOWEST_BYTES_PER_S:.0f} s"
            )

    async def _held(self, waiting: Awaitable[None]) -> None:
        self.on_held(True)
        try:
            await waiting
        finally:
            self.on_held(False)

    def _release(self) -> None:
        if self._reserved and not self._reassembler.pending_bytes:
            self._room.release(self._reserved)
            self._reserved = 0


def _nothing() -> None:
    """Nobody wants to know."""


def _nothing_held(held: bool) -> None:
    """Nobody wants to know."""
