"""A few random schedules of faults on real processes; `make chaos` runs hundreds.

Five seeds are always the same, and one is fresh each time: if it finds something, `python -m tests.chaos --replay SEED`
runs it again.
"""

import asyncio
import random

import pytest

from tests.faults.campaign import Outcome, nurseries, run_schedule
from tests.faults.schedule import KINDS, WINDOW_S, draw_schedule
from tests.faults.world import World, make_job

SHARDS = 80
AT_ONCE = 3
SEEDS = (151, 731, 129, 104, 113)
"""Chosen so that together they make every kind of fault, which a test below holds."""


@pytest.mark.timeout(600)
async def test_schedules_of_faults_lose_and_double_nothing(tmp_path, capsys) -> None:
    fresh = random.randrange(1 << 30)
    job = make_job(tmp_path / "job", shards=SHARDS)
    outcomes: list[Outcome] = []
    waiting = iter([*SEEDS, fresh])
    async with nurseries(tmp_path) as nursery_of:

        async def work() -> None:
            for seed in waiting:
                schedule = draw_schedule(seed)
                outcomes.append(await run_schedule(schedule, job, nursery_of(schedule), tmp_path / f"seed-{seed}"))

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
    with capsys.disabled():
        print(f"\n(fresh seed {fresh})", end=" ")
    problems = [outcome.report.text(outcome.schedule.seed) for outcome in outcomes if outcome.problem]
    assert not problems, "\n".join(problems)
    assert all(outcome.report.work.computed >= SHARDS for outcome in outcomes)


def test_a_seed_always_gives_the_same_schedule() -> None:
    assert draw_schedule(7) == draw_schedule(7)
    assert draw_schedule(7) != draw_schedule(8)
    assert all(0 <= fault.at <= WINDOW_S for fault in draw_schedule(7).faults)


def test_every_kind_of_fault_can_be_made() -> None:
    rng = random.Random(0)
    kinds = {draw(rng, 0.0).kind for _, draw in KINDS}
    assert len(kinds) == len(KINDS)
    assert all(hasattr(World, f"_{kind}") for kind in kinds)


def test_the_fixed_seeds_make_every_kind_of_fault() -> None:
    rng = random.Random(0)
    made = {fault.kind for seed in SEEDS for fault in draw_schedule(seed).faults}
    assert made == {draw(rng, 0.0).kind for _, draw in KINDS}
