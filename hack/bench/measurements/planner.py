"""How long does a turn of planning take, over fleets far larger than any gateway holds?

A turn is what the engine does four times a second: find the devices for which something may have changed, and decide
for each of them, for all jobs, with classes, selectors, taints, credits, seats, priorities and pauses. Here the fleet
is busy: of a hundred devices ninety-five have enough to do, which is found out, and five want more, which is decided.
Beside it stands the worst turn there is: nobody has anything to do and everybody is decided about.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hack.bench.figures import Definition, Figure
from hack.bench.measurements.base import Conditions, Measurement, median
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.planning.columns import READY, FleetColumns, JobColumns
from pocketgrid.planning.rounds import JobState, plan_round

JOBS = 10
PROFILES = 200
"""As of 20 classes, some of their Nodes tainted, cordoned or labelled otherwise."""

CLASSES_ADMITTED = 0.6
HUNGRY = 0.05
TURNS = 7
NOW = 1000.0

_GOALS = {1_000: 2.0, 10_000: 4.0, 100_000: 10.0, 1_000_000: 60.0}
_ORIGIN = "a fortieth, or a quarter, of the quarter second between two turns; numpy alone places 1 M nodes in 25 ms"

DEFINITIONS = tuple(
    Definition(
        name=f"planner_turn_ms_{devices}",
        unit="ms",
        goal=goal,
        at_least=False,
        meaning=f"A turn of the planner over {devices:,} devices and {JOBS} jobs with constraints, 5 % of the devices "
        "in want of work",
        origin=_ORIGIN,
    )
    for devices, goal in _GOALS.items()
)


def _run(conditions: Conditions) -> Sequence[Figure]:
    figures = []
    for definition, devices in zip(DEFINITIONS, _GOALS, strict=True):
        if conditions.quick and devices > 100_000:
            continue
        columns, states = a_busy_fleet(devices)
        turns = [_turn_ms(columns, states) for _ in range(TURNS * conditions.rounds)]
        decided = len(plan_round(columns, states, columns.needy(), NOW).decisions())
        for job in columns.jobs.values():
            job.held[:] = 0
        columns.held[:] = 0
        idle = [_turn_ms(columns, states) for _ in range(conditions.rounds)]
        speeds = [_speeds_ms(columns, states) for _ in range(conditions.rounds)]
        conditions.progress.say(f"{devices:,} devices: {median(turns):.2f} ms, all idle {median(idle):.1f} ms")
        baseline = {"decisions": float(decided), "all_idle_ms": median(idle), "speeds_ms": median(speeds)}
        figures.append(Figure(definition, tuple(turns), baseline))
    return figures


def _turn_ms(columns: FleetColumns, states: Sequence[JobState]) -> float:
    began = time.process_time()
    plan_round(columns, states, columns.needy(), NOW).decisions()
    return 1e3 * (time.process_time() - began)


def _speeds_ms(columns: FleetColumns, states: Sequence[JobState]) -> float:
    """How long it takes to find out what all devices deliver together at each job."""
    began = time.process_time()
    for state in states:
        columns.total_speed(state.uid, NOW)
    return 1e3 * (time.process_time() - began)


def a_busy_fleet(devices: int, seed: int = 1) -> tuple[FleetColumns, list[JobState]]:
    """A fleet in the middle of its work: devices of very different speed, prepared for about three jobs each."""
    rng = np.random.default_rng(seed)
    columns = FleetColumns()
    for number in range(devices):
        columns.row_of(DeviceName(f"device-{number}"))
    columns.canonical()
    some = slice(0, devices)
    columns.present[some] = rng.random(devices) < 0.98
    columns.profile[some] = rng.integers(0, PROFILES, devices)
    columns.slots[some] = rng.choice([1, 2, 4], devices)
    columns.credit_shards[some] = 64
    columns.credit_bytes[some] = 32 << 20
    busy = rng.random(devices) >= HUNGRY
    first = rng.integers(0, JOBS, devices)
    states = []
    for index in range(JOBS):
        uid = JobUid(f"job-{index}")
        state = JobState(
            uid=uid,
            priority=index % 3,
            created=float(index),
            lease_seconds=10.0,
            pending_shards=5 * devices,
            active_shards=2 * devices,
            items_per_shard=100,
            bytes_per_shard=100_000.0,
            working=0,
            total_speed=0.0,
            max_nodes=devices // 4 if index % 4 == 0 else 0,
            wants_devices=True,
            admits=rng.random(PROFILES) < CLASSES_ADMITTED,
        )
        job = columns.job(uid)
        prepared = (first == index) | (rng.random(devices) < 0.2)
        job.order[some] = np.where(prepared & state.admits[columns.profile[some]], READY, 0)
        ready = job.order[some] == READY
        job.seconds[some] = np.where(ready, 10.0 ** rng.uniform(-4, -1, devices), np.nan)
        job.paused[some] = np.where(rng.random(devices) < 0.01, NOW + 10, 0.0)
        _hand_out(columns, job, ready & busy & (first == index), devices)
        working = int((job.held[some] > 0).sum())
        states.append(_at_work(state, working, columns.total_speed(uid, NOW)))
    # Whoever could not be prepared for its job is busy with another.
    idle = busy & (columns.held[some] == 0)
    columns.held[some] = np.where(idle, 2 * columns.slots[some], columns.held[some])
    columns.job(JobUid("job-0")).held[some] += np.where(idle, 2 * columns.slots[some], 0).astype(np.int32)
    return columns, states


def _hand_out(columns: FleetColumns, job: JobColumns, to: np.ndarray, devices: int) -> None:
    job.held[:devices] = np.where(to, 3 * columns.slots[:devices], 0)
    columns.held[:devices] += job.held[:devices]


def _at_work(state: JobState, working: int, total_speed: float) -> JobState:
    from dataclasses import replace

    return replace(state, working=working, total_speed=total_speed)


MEASUREMENT = Measurement("planner", DEFINITIONS, _run)
