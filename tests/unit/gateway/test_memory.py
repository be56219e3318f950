"""What devices can make the gateway remember, measured from outside while they try."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from pocketgrid.gateway.inbox import AssemblyRoom
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.gateway.grid import DEADLINE_S, Device, Grid, a_hello
from tests.unit.gateway.raw import RawDevice, fragment, in_pieces, length_delimited

MOST_GROWTH_BYTES = 192 << 20
"""64 MiB of room for unfinished messages, one piece for each of those who wait, and what gRPC and malloc keep."""


@dataclass
class Process:
    grid: Grid
    process: asyncio.subprocess.Process

    def resident(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.unit.gateway.gateway_process", str(tmp_path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    address = (await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)).decode().strip()
    grid = Grid(None, SimpleNamespace(address=address), tmp_path)  # type: ignore[arg-type]
    try:
        yield Process(grid, process)
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), DEADLINE_S)


async def still_served(gateway: Process) -> None:
    async with Device(gateway.grid, a_hello("honest")) as honest:
        await honest.attach()
        await honest.say(heartbeat=pb.Heartbeat(sequence=5))
        assert (await honest.hear_of("pulse")).sequence == 5


async def test_messages_that_are_never_finished_take_no_more_room_than_there_is(gateway: Process) -> None:
    await still_served(gateway)
    before = gateway.resident()
    total = framing.MESSAGE_BYTES // framing.FRAGMENT_BYTES
    pieces = [fragment(n, total, bytes(framing.FRAGMENT_BYTES)) for n in range(40)]  # 10 MiB of 64
    async with AsyncExitStack() as stack:
        devices = [RawDevice(gateway.grid, a_hello(f"device-{n}")) for n in range(40)]
        for device in devices:
            await stack.enter_async_context(device)
            await device.attach()
        writing = [asyncio.ensure_future(d.write(*pieces)) for d in devices]
        await asyncio.wait(writing, timeout=3.0)
        grown = gateway.resident() - before
        print(f"grown by {grown >> 20} MiB")
        await still_served(gateway)
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
    assert grown < MOST_GROWTH_BYTES, "forty devices offered 400 MiB, and would have gone on to 2,560"


async def test_messages_of_millions_of_parts_are_not_parsed(gateway: Process) -> None:
    await still_served(gateway)
    before = gateway.resident()
    message = length_delimited(3, length_delimited(2, b"\x2a\x00" * (4 << 20)))  # 8 MiB; 220 MiB when parsed
    for number in range(4):
        async with RawDevice(gateway.grid, a_hello(f"device-{number}")) as device:
            await device.attach()
            await device.write(*in_pieces(message))
            refusal = await device.ending()
            assert refusal is not None
            assert "in more than" in refusal.message
    await still_served(gateway)
    assert gateway.resident() - before < MOST_GROWTH_BYTES / 2


async def test_whoever_stops_waiting_for_room_leaves_nothing_behind() -> None:
    size = framing.MESSAGE_BYTES
    room = AssemblyRoom(size)
    await room.reserve(size)
    waiting = [asyncio.ensure_future(room.reserve(size)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[2].cancel()
    room.release(size)  # granted to the second while the first is on its way out
    waiting[1].cancel()
    await asyncio.wait(waiting[:3])
    await asyncio.wait_for(waiting[3], DEADLINE_S)
    assert room.free_bytes == 0
    room.release(size)
    await asyncio.wait_for(waiting[4], DEADLINE_S)
    room.release(size)
    assert room.free_bytes == size
