"""Laws of placement: leases fit, decisions do not depend on the order of devices or jobs."""

import math
import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.planning.dispatch import (
    SHARD_BYTES,
    SHARD_SECONDS,
    DeviceLoad,
    Grant,
    JobDemand,
    Prepare,
    choose_items_per_shard,
    decide,
    lease_shards,
)
from pocketgrid.planning.relief import MAX_COPIES, BusyDevice, BusyShard, Copy, IdleDevice, TakeBack, relieve
from pocketgrid.planning.speed import SpeedEstimate

speeds = st.floats(0.01, 1e7).map(SpeedEstimate.measured)
uids = st.sampled_from([JobUid(f"job-{i}") for i in range(6)])


@st.composite
def loads(draw: st.DrawFn) -> DeviceLoad:
    credit_shards = draw(st.integers(1, 200))
    credit_bytes = draw(st.integers(1, 1 << 26))
    return DeviceLoad(
        name=DeviceName("d"),
        backlog_s=draw(st.floats(0, 20)),
        leased_shards=draw(st.integers(0, credit_shards)),
        leased_bytes=draw(st.floats(0, credit_bytes)),
        credit_shards=credit_shards,
        credit_bytes=credit_bytes,
        slots=draw(st.integers(1, 8)),
        jobs=frozenset(draw(st.sets(uids))),
    )


@st.composite
def demands(draw: st.DrawFn) -> JobDemand:
    planned = draw(st.booleans())
    return JobDemand(
        uid=draw(uids),
        priority=draw(st.integers(-2, 2)),
        created=draw(st.floats(0, 10)),
        lease_seconds=draw(st.floats(1, 30)),
        pending_shards=draw(st.integers(0, 1000)) if planned else None,
        active_shards=draw(st.integers(0, 1000)),
        items_per_shard=draw(st.integers(1, 4096)) if planned else 0,
        bytes_per_shard=draw(st.floats(0, 1 << 24)),
        working=draw(st.integers(0, 5)),
        total_speed=draw(st.floats(0, 1e8)),
        max_nodes=draw(st.integers(0, 4)),
        speed=draw(st.one_of(st.none(), speeds)),
        leased_shards=draw(st.integers(0, 5)),
    )


job_lists = st.lists(demands(), max_size=6, unique_by=lambda d: d.uid)


@given(loads(), job_lists)
def test_no_lease_exceeds_what_the_device_will_hold_or_the_job_has(load: DeviceLoad, jobs: list[JobDemand]) -> None:
    decision = decide(load, jobs)
    if not isinstance(decision, Grant):
        return
    job = next(j for j in jobs if j.uid == decision.job)
    assert job.pending_shards is not None
    assert 0 <= decision.shards <= job.pending_shards
    assert load.leased_shards + decision.shards <= load.credit_shards
    after = load.leased_bytes + decision.shards * job.bytes_per_shard
    alone = load.leased_shards == 0 and decision.shards == 1
    assert after <= load.credit_bytes * (1 + 1e-9) or alone or decision.shards == 0


@given(loads(), job_lists, st.randoms(use_true_random=False))
def test_the_order_of_jobs_does_not_matter(load: DeviceLoad, jobs: list[JobDemand], rng: random.Random) -> None:
    shuffled = list(jobs)
    rng.shuffle(shuffled)
    assert decide(load, jobs) == decide(load, shuffled)


def has_seat(load: DeviceLoad, job: JobDemand) -> bool:
    return not job.max_nodes or job.uid in load.jobs or job.working < job.max_nodes


@given(loads(), job_lists)
def test_a_more_important_job_is_passed_over_only_if_the_device_has_its_share_of_it(
    load: DeviceLoad, jobs: list[JobDemand]
) -> None:
    decision = decide(load, jobs)
    if not isinstance(decision, Grant):
        return
    chosen = next(j for j in jobs if j.uid == decision.job)
    for other in jobs:
        if other.priority > chosen.priority and other.pending_shards and other.speed and has_seat(load, other):
            assert other.leased_shards > 0
            assert lease_shards(load, other, other.speed) == 0


@given(loads(), job_lists)
def test_a_model_is_ordered_once_and_only_where_there_is_a_seat(load: DeviceLoad, jobs: list[JobDemand]) -> None:
    decision = decide(load, jobs)
    if not isinstance(decision, Prepare):
        return
    chosen = next(j for j in jobs if j.uid == decision.job)
    assert chosen.speed is None
    assert chosen.uid not in load.jobs
    assert has_seat(load, chosen)


@given(loads(), job_lists)
def test_an_idle_device_gets_something_if_anything_is_to_be_had(load: DeviceLoad, jobs: list[JobDemand]) -> None:
    idle = DeviceLoad(load.name, 0.0, 0, 0.0, load.credit_shards, load.credit_bytes, load.slots, load.jobs)
    own = [replace(job, leased_shards=0) for job in jobs]
    if any(job.pending_shards and job.speed and has_seat(idle, job) for job in own):
        assert decide(idle, own) is not None


@given(loads(), demands().filter(lambda d: d.pending_shards and d.speed))
def test_an_idle_device_is_never_left_without_work(load: DeviceLoad, job: JobDemand) -> None:
    idle = DeviceLoad(load.name, 0.0, 0, 0.0, load.credit_shards, load.credit_bytes, load.slots, load.jobs)
    assert job.speed is not None
    assert lease_shards(idle, job, job.speed) >= 1


@given(speeds, st.floats(0.1, 1e7), st.integers(1, 10**8), st.integers(1, 100))
def test_the_cut_is_a_cut(speed: SpeedEstimate, weight: float, items: int, slots: int) -> None:
    per_shard = choose_items_per_shard(speed, weight, items, slots)
    assert per_shard >= 1
    assert per_shard == 1 or per_shard * weight <= SHARD_BYTES
    assert per_shard == 1 or per_shard <= speed.items_per_second * SHARD_SECONDS * (1 + 1e-9)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[IdleDevice], list[BusyDevice]]:
    idle = [IdleDevice(DeviceName(f"idle-{i}"), draw(st.floats(0.01, 10))) for i in range(draw(st.integers(0, 4)))]
    numbers = iter(range(10_000))
    busy = []
    for i in range(draw(st.integers(0, 4))):
        slots = draw(st.integers(1, 3))
        begun = tuple(
            BusyShard(next(numbers), draw(st.integers(1, MAX_COPIES)), draw(st.floats(0, 30)))
            for _ in range(draw(st.integers(0, slots)))
        )
        waiting = tuple(next(numbers) for _ in range(draw(st.integers(0, 12))))
        busy.append(BusyDevice(DeviceName(f"busy-{i}"), draw(st.floats(0.01, 10)), slots, begun, waiting))
    return idle, busy


@given(fleets(), st.randoms(use_true_random=False))
def test_relief_does_not_depend_on_the_order_of_devices(fleet, rng: random.Random) -> None:
    idle, busy = fleet
    shuffled_idle, shuffled_busy = list(idle), list(busy)
    rng.shuffle(shuffled_idle)
    rng.shuffle(shuffled_busy)
    assert relieve(idle, busy) == relieve(shuffled_idle, shuffled_busy)


@given(fleets())
def test_relief_takes_only_what_waits_and_copies_only_what_runs(fleet) -> None:
    idle, busy = fleet
    moves = relieve(idle, busy)
    assert len(moves) <= len(idle)
    waiting = {d.name: set(d.waiting) for d in busy}
    attempts = {s.shard: s.attempts for d in busy for s in d.begun}
    for move in moves:
        match move:
            case TakeBack(device=name, shards=shards):
                assert shards
                assert set(shards) <= waiting[name]
                waiting[name] -= set(shards)
            case Copy(device=name, shard=shard):
                assert name in {d.name for d in idle}
                attempts[shard] += 1
                assert attempts[shard] <= MAX_COPIES


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(1e-4, 10)), min_size=1, max_size=50))
def test_a_speed_estimate_stays_within_what_was_seen(samples: list[tuple[int, float]]) -> None:
    first = SpeedEstimate.measured(100.0)
    estimate = first
    for items, seconds in samples:
        estimate = estimate.observe(items, seconds)
    seen = [0.01, *(seconds / items for items, seconds in samples)]
    assert min(seen) * (1 - 1e-9) <= estimate.seconds_per_item <= max(seen) * (1 + 1e-9)
    assert estimate.variance >= 0
    assert math.isfinite(estimate.deviation)


def test_throttling_is_felt_within_a_minute() -> None:
    estimate = SpeedEstimate.measured(100.0)
    for _ in range(600):
        estimate = estimate.observe(10, 0.1)
    for _ in range(300):  # a minute of computing at half the speed
        estimate = estimate.observe(10, 0.2)
    assert estimate.items_per_second < 60
