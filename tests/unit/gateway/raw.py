"""A device that says whatever it likes, byte by byte, and an honest one at work beside it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.gateway.grid import (
    DEADLINE_S,
    ENGINE,
    Device,
    Grid,
    a_grid,
    a_hello,
    a_job,
    background,
    check_output,
    until,
)

GONE = (grpc.aio.AioRpcError, asyncio.InvalidStateError)


class RawDevice(Device):
    """Writes bytes as they are, and fails at nothing."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.call.cancel()
        attach = self.channel.stream_stream(
            "/pocketgrid.wire.v1.DeviceGateway/Attach", response_deserializer=pb.GatewayMessage.FromString
        )
        self.call = attach()
        return self

    async def say(self, **body: Any) -> None:
        async with self._lock:
            for piece in framing.serialise(pb.DeviceMessage(**body)):
                await self.call.write(piece)

    async def write(self, *pieces: bytes) -> int:
        """Write until the stream breaks; how many were taken."""
        async with self._lock:
            for number, piece in enumerate(pieces):
                try:
                    await self.call.write(piece)
                except GONE:
                    return number
        return len(pieces)

    async def stay(self) -> None:
        """Look alive and do nothing."""
        async with background(self.beat()):
            while await self.hear() is not None:
                pass

    async def ending(self) -> pb.Refusal | None:
        """How the gateway ended the stream; None if without a word."""
        with suppress(*GONE):
            while (message := await self.hear()) is not None:
                if message.HasField("refusal"):
                    return message.refusal
        return None


@asynccontextmanager
async def beside_an_honest_device(
    folder: Path, *, stays: bool = False, items: int = 200, hello: pb.Hello | None = None, **gateway: Any
) -> AsyncIterator[tuple[Grid, RawDevice]]:
    """A grid with an attached hostile device; when the test is through with it, an honest one must still be served.

    The job is there from the start, so the hostile one may take part in it.

    Args:
        stays: the hostile device is still attached while the honest one works, and does nothing.
    """
    spec = a_job(folder, items=items, per_shard=10)
    hello = hello if hello is not None else a_hello("hostile")
    engine = replace(ENGINE, lease_minimum_seconds=1.0)
    gateway.setdefault("silence_seconds", 3.0)  # a message of a megabyte takes its time on a busy machine
    async with a_grid(folder, engine=engine, **gateway) as grid:
        async with RawDevice(grid, hello) as hostile:
            grid.engine.submit(spec)
            await hostile.attach()
            yield grid, hostile
            if stays:
                async with background(hostile.stay()):
                    await _work_honestly(grid)
        if not stays:
            await _work_honestly(grid)
        await grid.finished(spec)
        await until(lambda: grid.gateway.sessions == 0, "nobody is left")
        machine = grid.engine._grid.jobs[spec.uid].machine
        assert machine is not None
        machine.validate()
    check_output(spec, items)


async def _work_honestly(grid: Grid) -> None:
    async with Device(grid, a_hello("honest")) as honest:
        await honest.attach()
        async with background(honest.beat()):
            await asyncio.wait_for(honest.work_until_cancelled(), DEADLINE_S)


def length_delimited(number: int, body: bytes) -> bytes:
    """One field of a serialised message."""
    length, written = len(body), b""
    while length > 0x7F:
        written += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + written + bytes([length]) + body


def in_pieces(message: bytes) -> list[bytes]:
    """A serialised message, cut as large ones travel."""
    step = framing.FRAGMENT_BYTES
    total = -(-len(message) // step)
    return [fragment(n, total, message[n * step : (n + 1) * step]) for n in range(total)]


def fragment(index: int, total: int, data: bytes = b"x") -> bytes:
    """A serialised piece."""
    return pb.DeviceMessage(fragment=pb.Fragment(index=index, total=total, data=data)).SerializeToString()
