"""Who gets what next: cases that once went wrong, or easily could."""

from dataclasses import replace

import pytest

from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.planning.dispatch import (
    DeviceLoad,
    Grant,
    JobDemand,
    Prepare,
    choose_items_per_shard,
    decide,
    is_hungry,
)
from pocketgrid.planning.speed import SpeedEstimate

IDLE = DeviceLoad(DeviceName("d"), 0.0, 0, 0.0, 64, 32 << 20, 1, frozenset())
FAST = SpeedEstimate.measured(100.0)
JOB = JobDemand(
    uid=JobUid("a"),
    priority=0,
    created=1.0,
    lease_seconds=5.0,
    pending_shards=1000,
    active_shards=0,
    items_per_shard=10,
    bytes_per_shard=1000.0,
    working=0,
    total_speed=100.0,
    max_nodes=0,
    speed=FAST,
)
OTHER = replace(JOB, uid=JobUid("b"), created=2.0)


def busy(backlog_s: float, shards: int, *jobs: str, nbytes: float = 0.0) -> DeviceLoad:
    return replace(
        IDLE,
        backlog_s=backlog_s,
        leased_shards=shards,
        leased_bytes=nbytes,
        jobs=frozenset(JobUid(j) for j in jobs),
    )


@pytest.mark.parametrize(
    ("load", "jobs", "decision"),
    [
        pytest.param(IDLE, [JOB], Grant(JOB.uid, 50), id="a lease is its seconds of work"),
        pytest.param(IDLE, [replace(JOB, pending_shards=7)], Grant(JOB.uid, 7), id="no more than there is"),
        pytest.param(IDLE, [replace(JOB, speed=None)], Prepare(JOB.uid), id="the model comes first"),
        pytest.param(busy(0, 0, "a"), [replace(JOB, speed=None)], None, id="a device preparing is waited for"),
        pytest.param(
            busy(0, 0, "a"), [replace(JOB, speed=None), OTHER], Grant(OTHER.uid, 50), id="and works elsewhere meanwhile"
        ),
        pytest.param(
            IDLE,
            [replace(JOB, pending_shards=20, total_speed=400.0)],
            Grant(JOB.uid, 5),
            id="near the end, its share by speed",
        ),
        pytest.param(
            IDLE, [JOB, replace(OTHER, priority=1)], Grant(OTHER.uid, 50), id="the more important job comes first"
        ),
        pytest.param(IDLE, [OTHER, JOB], Grant(JOB.uid, 50), id="among equals, the older one"),
        pytest.param(IDLE, [replace(JOB, working=1), OTHER], Grant(OTHER.uid, 50), id="or the one with fewer devices"),
        pytest.param(
            busy(1.0, 10, "a"),
            [replace(JOB, working=1), OTHER],
            Grant(JOB.uid, 40),
            id="itself does not count",
        ),
        pytest.param(IDLE, [replace(JOB, working=2, max_nodes=2)], None, id="no seat is free"),
        pytest.param(
            busy(1.0, 10, "a"), [replace(JOB, working=2, max_nodes=2)], Grant(JOB.uid, 40), id="it has one of the seats"
        ),
        pytest.param(IDLE, [replace(JOB, bytes_per_shard=64 << 20)], Grant(JOB.uid, 1), id="one giant shard at a time"),
        pytest.param(
            busy(9.0, 1, "a"), [replace(JOB, items_per_shard=900)], Grant(JOB.uid, 1), id="one waits behind a long one"
        ),
        pytest.param(busy(3.0, 30, "a"), [JOB], None, id="more than half a lease is left"),
    ],
)
def test_decisions(load: DeviceLoad, jobs: list[JobDemand], decision) -> None:
    assert decide(load, jobs) == decision


@pytest.mark.parametrize(
    ("load", "first", "second"),
    [
        pytest.param(
            replace(busy(8.0, 80, "b"), credit_shards=1000),
            replace(JOB, priority=1),
            replace(OTHER, lease_seconds=30.0),
            id="the second has longer leases",
        ),
        pytest.param(
            replace(busy(0.4, 40, "b", nbytes=16e6), credit_shards=1000),
            replace(JOB, priority=1, bytes_per_shard=20e6),
            OTHER,
            id="the first has heavier shards than there is room for",
        ),
        pytest.param(
            replace(busy(1.0, 30, "b"), credit_shards=1000),
            replace(JOB, priority=1, pending_shards=2, total_speed=300.0),
            OTHER,
            id="what it has of the second fills its share of the first",
        ),
    ],
)
def test_refills_of_the_next_job_never_keep_the_first_waiting(load, first, second) -> None:
    assert decide(load, [second]) is not None
    decision = decide(load, [first, second])
    assert decision is None or decision.job == first.uid


def test_tiny_shards_of_one_job_do_not_fill_the_share_of_another() -> None:
    load = busy(0.1, 20, "b")
    decision = decide(load, [replace(JOB, pending_shards=30, total_speed=300.0)])
    assert decision == Grant(JOB.uid, 9)


def test_a_device_with_nothing_is_always_hungry_and_a_full_one_never() -> None:
    assert is_hungry(IDLE, 0.1)
    assert not is_hungry(replace(IDLE, leased_shards=64), 1000.0)
    assert not is_hungry(replace(IDLE, leased_shards=33), 1000.0), "more than half of its credit is used"
    assert not is_hungry(busy(0.0, 1, nbytes=17 << 20), 1000.0), "more than half of its bytes are used"


@pytest.mark.parametrize(
    ("speed", "weight", "items", "slots", "per_shard"),
    [
        pytest.param(1000.0, 100.0, 10**6, 1, 250, id="a quarter of a second"),
        pytest.param(1e6, 1000.0, 10**6, 1, 786, id="at most 768 KiB"),
        pytest.param(1000.0, 100.0, 160, 1, 10, id="at least 16 for each slot"),
        pytest.param(1000.0, 100.0, 5, 4, 1, id="but never less than one item"),
        pytest.param(0.01, 100.0, 10**6, 1, 1, id="a slow device"),
    ],
)
def test_cut(speed: float, weight: float, items: int, slots: int, per_shard: int) -> None:
    assert choose_items_per_shard(SpeedEstimate.measured(speed), weight, items, slots) == per_shard
