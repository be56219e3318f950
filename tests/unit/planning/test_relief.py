"""What idle devices do near the end of a job."""

import pytest

from pocketgrid.model.ids import DeviceName
from pocketgrid.planning.relief import BusyDevice, BusyShard, Copy, IdleDevice, TakeBack, relieve

FAST, SLOW, OTHER = DeviceName("fast"), DeviceName("slow"), DeviceName("other")


def idle(seconds: float = 1.0, name: DeviceName = FAST) -> IdleDevice:
    return IdleDevice(name, seconds)


def busy(
    seconds: float,
    waiting: tuple[int, ...] = (),
    running: float = 0.0,
    *,
    attempts: int = 1,
    name: DeviceName = SLOW,
    shard: int = 100,
) -> BusyDevice:
    return BusyDevice(name, seconds, 1, (BusyShard(shard, attempts, running),), waiting)


@pytest.mark.parametrize(
    ("helpers", "workers", "moves"),
    [
        pytest.param([idle()], [], [], id="nobody is at work"),
        pytest.param([], [busy(1.0, (1, 2))], [], id="nobody is idle"),
        pytest.param(
            [idle(1.0)], [busy(1.0, (1, 2, 3, 4))], [TakeBack(SLOW, (3, 4))], id="equals share, the last shards move"
        ),
        pytest.param(
            [idle(1.0)], [busy(3.0, (1, 2, 3, 4))], [TakeBack(SLOW, (2, 3, 4))], id="the faster one takes more"
        ),
        pytest.param([idle(100.0)], [busy(1.0, (1, 2))], [], id="too slow to be of help"),
        pytest.param(
            [idle(1.0)],
            [busy(1.0, (1,)), busy(1.0, (2, 3, 4), name=OTHER, shard=101)],
            [TakeBack(OTHER, (3, 4))],
            id="the one who needs longest is relieved",
        ),
        pytest.param([idle(1.0)], [busy(10.0, (), 2.0)], [Copy(FAST, 100)], id="a straggler is raced"),
        pytest.param([idle(1.0)], [busy(2.0, (), 1.0)], [], id="not one that will be done as soon"),
        pytest.param([idle(1.0)], [busy(1.0, (), 10.0)], [Copy(FAST, 100)], id="one long overdue is raced"),
        pytest.param([idle(1.0)], [busy(1.0, (), 1.9)], [], id="a little late is no straggler yet"),
        pytest.param([idle(1.0)], [busy(10.0, (), 2.0, attempts=2)], [], id="two at a shard are enough"),
        pytest.param([idle(1.0, SLOW)], [busy(10.0, (), 2.0)], [], id="nobody races itself"),
        pytest.param(
            [idle(2.0, OTHER), idle(1.0)],
            [busy(10.0, (), 2.0)],
            [Copy(FAST, 100)],
            id="the fastest goes first and one copy is enough",
        ),
        pytest.param(
            [idle(1.0)],
            [busy(10.0, (), 1.0), busy(30.0, (), 1.0, name=OTHER, shard=101)],
            [Copy(FAST, 101)],
            id="the copy that saves most",
        ),
    ],
)
def test_moves(helpers: list[IdleDevice], workers: list[BusyDevice], moves: list) -> None:
    assert relieve(helpers, workers) == moves
