"""Writes: one at a time for each object, with pauses after failures, never waited for."""

import asyncio
import logging
import random

import pytest

from pocketgrid.clock import ManualClock
from pocketgrid.controller.client import UnavailableError
from pocketgrid.controller.lanes import FIRST_PAUSE_S, LONGEST_PAUSE_S, Lanes

PATIENCE_S = 5.0


class Write:
    """A write that ends when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.begun += 1
        self.started.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def make(clock: ManualClock, permitted: bool = True) -> Lanes:
    return Lanes(clock, random.Random(1), lambda: permitted)


async def test_a_busy_lane_takes_nothing_and_others_are_not_held_up(clock: ManualClock) -> None:
    async with make(clock) as lanes:
        slow, other = Write(), Write()
        assert lanes.start("a", slow)
        assert not lanes.start("a", slow)
        assert lanes.start("b", other)
        await asyncio.wait_for(other.started.wait(), PATIENCE_S)
        slow.go.set()
        other.go.set()
        await lanes.idle(PATIENCE_S)
        assert lanes.free("a")
        assert slow.begun == 1


async def test_pauses_after_failures_grow_to_a_limit(clock: ManualClock) -> None:
    async with make(clock) as lanes:
        write = Write()
        write.error = UnavailableError("away")
        write.go.set()
        pauses = []
        for _ in range(12):
            assert lanes.start("a", write)
            await lanes.idle(PATIENCE_S)
            began = clock.monotonic()
            while not lanes.free("a"):
                clock.advance(0.05)
            pauses.append(clock.monotonic() - began)
        assert FIRST_PAUSE_S / 2 <= pauses[0] <= FIRST_PAUSE_S + 0.1
        assert pauses[4] > pauses[0]
        assert LONGEST_PAUSE_S / 2 <= max(pauses) <= LONGEST_PAUSE_S + 0.1
        write.error = None
        assert lanes.start("a", write)
        await lanes.idle(PATIENCE_S)
        assert lanes.free("a")


async def test_a_fault_of_our_own_is_logged_and_contained(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    async with make(clock) as lanes:
        write = Write()
        write.error = ZeroDivisionError()
        write.go.set()
        with caplog.at_level(logging.ERROR):
            lanes.start("a", write)
            await lanes.idle(PATIENCE_S)
        assert "write failed object=a" in caplog.text
        assert not lanes.free("a")


async def test_nothing_is_written_while_another_may_lead(clock: ManualClock) -> None:
    async with make(clock, permitted=False) as lanes:
        write = Write()
        assert not lanes.start("a", write)
        assert write.begun == 0


async def test_leaving_cancels_what_is_under_way(clock: ManualClock) -> None:
    async with make(clock) as lanes:
        write = Write()
        lanes.start("a", write)
        await asyncio.wait_for(write.started.wait(), PATIENCE_S)
    assert lanes.free("a")
