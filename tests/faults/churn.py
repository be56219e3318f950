"""A fleet that is never whole: every so often some devices are killed, and come back a while later.

Measures what that costs: how much was computed in vain, and how much longer the job took than the same fleet needs when
it is left alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.checker import check_run
from tests.faults.nursery import Nursery
from tests.faults.schedule import Fault
from tests.faults.world import Job, Timing, World

DEADLINE_S = 1200.0


@dataclass(frozen=True, slots=True)
class Churn:
    """How restless a fleet is.

    Attributes:
        devices: agents, of one thread each.
        share: of them, killed at a time.
        every_s: so often.
        away_s: for so long, at least and at most.
    """

    devices: int
    share: float
    every_s: float
    away_s: tuple[float, float]

    @property
    def victims(self) -> int:
        """How many are killed at a time; 0 for a fleet that is left alone."""
        return round(self.devices * self.share)


@dataclass(frozen=True, slots=True)
class ChurnResult:
    """What a run came to.

    Attributes:
        problem: what the checker found; empty if nothing.
        seconds: from the first commit to the end of the job.
        kills: devices killed in that time.
        shards, computed: needed, and computed altogether.
        wasted: shards computed in vain, as a share of those needed.
        lost, copies, duplicates: as the job's status tells them.
    """

    problem: str
    seconds: float
    kills: int
    shards: int
    computed: int
    wasted: float
    lost: int
    copies: int
    duplicates: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "seconds": round(self.seconds, 1), "wasted": round(self.wasted, 4)}


async def run_churn(
    churn: Churn, job: Job, nursery: Nursery, folder: Path, timing: Timing, rng: random.Random
) -> ChurnResult:
    """Run one job to its end on a restless fleet."""
    world = World(folder, job, nursery, rng, churn.devices, timing)
    kills: list[asyncio.Task[None]] = []
    async with world.running():
        await world.begun(DEADLINE_S)
        begun = time.monotonic()
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:

            async def killing() -> None:
                while churn.victims:
                    await asyncio.sleep(churn.every_s)
                    for device in rng.sample(range(churn.devices), churn.victims):
                        fault = Fault(0.0, "agent_killed", device, rng.uniform(*churn.away_s))
                        kills.append(group.create_task(world.strike(fault)))

            killer = group.create_task(killing())
            await world.ended()
            ended = time.monotonic()
            for task in (killer, *kills):
                # Whoever is away needs not come back any more.
                task.cancel()
    report = await asyncio.to_thread(check_run, world.histories, world.expected)
    outcome = world.outcome()
    counts = {name: outcome[name] for name in ("lost", "copies", "duplicates")}
    return ChurnResult(
        problem=report.text(0) if report.problem else "",
        seconds=ended - begun,
        kills=len(kills),
        shards=report.work.shards,
        computed=report.work.computed,
        wasted=report.work.wasted,
        **counts,
    )
