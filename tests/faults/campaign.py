"""Runs schedules one after the other and judges each.

A run that ends well leaves nothing behind; one that does not keeps its folder: histories, logs, output, and what was
found, in `violation.txt`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.checker import Report, check_logs, check_run, count_evidence
from tests.faults.clock_library import clock_library
from tests.faults.nursery import Nursery
from tests.faults.schedule import AGENTS, Fault, Schedule
from tests.faults.world import Job, World

DEADLINE_S = 180.0
"""After the last fault is mended, the job must end within this. It takes seconds on a machine that has time for it."""

BEGIN_S = 10.0
"""Faults wait for the first commit, but not for longer than this."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run.

    Attributes:
        problem: empty if all is well.
        struck: kinds of faults that were made; those after the job's end are not.
        calm_s: from the mending of the last fault to the end of the job.
        folder: where everything is, if there was a problem.
        felt: what the logs show of the faults.
    """

    schedule: Schedule
    report: Report
    struck: tuple[str, ...]
    seconds: float
    calm_s: float
    folder: Path | None
    felt: Counter[str]

    @property
    def problem(self) -> str:
        """What was found; empty if nothing."""
        return self.report.problem

    def line(self) -> str:
        """In a line."""
        how = self.report.text(self.schedule.seed).splitlines()[0]
        return f"{self.seconds:5.1f} s, {self.calm_s:4.1f} s after the last fault  {how}  [{' '.join(self.struck)}]"


async def run_schedule(schedule: Schedule, job: Job, nursery: Nursery, folder: Path, *, keep: bool = False) -> Outcome:
    """Run one schedule to its end, in a fresh folder, which stays if there was a problem or if told to `keep` it."""
    begun = time.monotonic()
    rng = random.Random(schedule.seed)
    world = World(folder, job, nursery, rng, AGENTS)
    struck: list[str] = []
    calm = begun
    completed = False
    async with world.running():
        await world.begun(BEGIN_S)
        first = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in schedule.faults:
                group.create_task(_strike(world, fault, first, struck))
        calm = time.monotonic()
        await world.heal()
        completed = await world.completed(DEADLINE_S)
        ended = time.monotonic()
    if not completed:
        report = Report(f"progress: the job did not end within {DEADLINE_S:.0f} s after the last fault was mended")
    elif world.cut_histories:
        report = Report(f"void: a full disk cut {world.cut_histories[0]}; nothing can be said of this run")
    elif world.outcome()["stage"] != "Complete":
        report = Report(f"progress: the job ended as {world.outcome()}")
    else:
        report = await asyncio.to_thread(check_run, world.histories, world.expected)
        if not report.problem:
            report = replace(report, problem=check_logs(sorted(folder.glob("*.log"))))
    felt = count_evidence(folder.glob("*.log"))
    if report.problem:
        lines = "\n".join(str(fault) for fault in schedule.faults)
        (folder / "violation.txt").write_text(f"{report.text(schedule.seed)}\n\nfaults:\n{lines}\n")
    elif not keep:
        await asyncio.to_thread(shutil.rmtree, folder)
    return Outcome(
        schedule,
        report,
        tuple(struck),
        time.monotonic() - begun,
        max(0.0, ended - calm),
        folder if report.problem else None,
        felt,
    )


@contextlib.asynccontextmanager
async def nurseries(folder: Path) -> AsyncIterator[Callable[[Schedule], Nursery]]:
    """Where the processes of a schedule come from: one nursery for most, one with clocks that can be moved.

    The library that moves clocks makes each look at one slower, so that only those have it who need it.
    """
    library = clock_library()
    async with Nursery(folder / "nursery.log") as plain:
        if library is None:
            yield lambda _: plain
            return
        async with Nursery(folder / "nursery-clocks.log", library) as clocks:
            yield lambda schedule: clocks if schedule.moves_clocks else plain


def summary(outcomes: list[Outcome]) -> dict[str, object]:
    """What a campaign came to, for JSON."""
    kinds: Counter[str] = Counter()
    for outcome in outcomes:
        kinds.update(outcome.struck)
    work = [outcome.report.work for outcome in outcomes if not outcome.problem]
    calm = sorted(outcome.calm_s for outcome in outcomes)
    needed = sum(w.shards for w in work)
    return {
        "schedules": len(outcomes),
        "violations": [
            {"seed": o.schedule.seed, "problem": o.problem, "folder": str(o.folder)} for o in outcomes if o.problem
        ],
        "faults": dict(sorted(kinds.items())),
        "felt": dict(sum((outcome.felt for outcome in outcomes), Counter())),
        "seconds": round(sum(o.seconds for o in outcomes), 1),
        "secondsToEndAfterLastFault": {
            "median": round(calm[len(calm) // 2], 2) if calm else None,
            "most": round(calm[-1], 2) if calm else None,
        },
        "shards": needed,
        "shardsComputed": sum(w.computed for w in work),
        "wasted": round(sum(w.computed - w.shards for w in work) / needed, 4) if needed else None,
    }


async def _strike(world: World, fault: Fault, begun: float, struck: list[str]) -> None:
    await asyncio.sleep(max(0.0, begun + fault.at - time.monotonic()))
    if world.finished or (fault.kind == "clock_jumps" and clock_library() is None):
        return
    struck.append(fault.kind)
    await world.strike(fault)
