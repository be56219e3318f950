"""`python -m tests.chaos`: many random schedules of faults, each judged by the history checker.

Ends with status 0 if none violated anything. The last line is a summary in JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.campaign import Outcome, nurseries, run_schedule, summary
from tests.faults.churn import Churn, run_churn
from tests.faults.clock_library import fetch_clock_library
from tests.faults.nursery import Nursery
from tests.faults.schedule import KINDS, Schedule, draw_schedule
from tests.faults.world import AS_SHIPPED, make_job

SHARDS = 120
CHURN_SHARDS = 6000
"""Of some 8 ms each on one core, so that two cores take half a minute."""


async def campaign(seeds: list[int], folder: Path, at_once: int, *, keep: bool) -> list[Outcome]:
    """Run a schedule for each seed and say how it went."""
    job = make_job(folder / "job", shards=SHARDS)
    outcomes: list[Outcome] = []
    waiting = iter(seeds)

    async def work(nursery_of: Callable[[Schedule], Nursery]) -> None:
        for seed in waiting:
            schedule = draw_schedule(seed)
            outcome = await run_schedule(schedule, job, nursery_of(schedule), folder / f"seed-{seed}", keep=keep)
            outcomes.append(outcome)
            print(f"{len(outcomes):4}/{len(seeds)} {outcome.line()}", flush=True)
            if outcome.problem:
                print(outcome.report.text(seed), f"\n  kept in {outcome.folder}", flush=True)

    async with nurseries(folder) as nursery_of, asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work(nursery_of))
    return outcomes


async def churn(folder: Path, devices: int, shards: int) -> bool:
    """Kill a tenth of a fleet every 10 s and compare with the same fleet left alone; whether all is well."""
    job = make_job(folder / "job", shards=shards, inner=1024, loops=12)
    results = {}
    async with nurseries(folder) as nursery_of:
        for name, share in (("alone", 0.0), ("churn", 0.1)):
            fleet = Churn(devices, share, every_s=10.0, away_s=(5.0, 20.0))
            nursery = nursery_of(Schedule(0, ()))
            result = await run_churn(fleet, job, nursery, folder / name, AS_SHIPPED, random.Random(1))
            results[name] = result
            print(f"{name}: {json.dumps(result.as_dict())}", flush=True)
    return not any(result.problem for result in results.values())


def main() -> int:
    """Run a campaign."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--schedules", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, help="of the first schedule; each next one adds 1. Default: a fresh one")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="schedules run side by side")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this one schedule only")
    parser.add_argument("--having", metavar="KIND", help="only schedules with this kind of fault, such as log_torn")
    parser.add_argument("--keep", action="store_true", help="keep logs and histories of what went well, too")
    parser.add_argument("--folder", type=Path, help="for logs and histories of what failed. Default: a fresh one")
    parser.add_argument(
        "--churn", type=int, metavar="DEVICES", help="instead: so many, a tenth of them killed every 10 s"
    )
    parser.add_argument("--churn-shards", type=int, default=CHURN_SHARDS, metavar="N", help="of --churn's job")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="pocketgrid-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    if fetch_clock_library() is None:
        print("libfaketime cannot be had, so no clock will jump", flush=True)
    if arguments.churn:
        return 0 if asyncio.run(churn(folder.resolve(), arguments.churn, arguments.churn_shards)) else 1
    first = arguments.seed if arguments.seed is not None else random.randrange(1 << 30)
    kinds = {draw(random.Random(0), 0.0).kind for _, draw in KINDS}
    if arguments.having and arguments.having not in kinds:
        parser.error(f"--having: no fault is called {arguments.having!r}; there are {', '.join(sorted(kinds))}")
    fitting = (seed for seed in itertools.count(first) if _has(seed, arguments.having))
    seeds = [arguments.replay] if arguments.replay is not None else list(itertools.islice(fitting, arguments.schedules))
    if arguments.replay is not None:
        print("\n".join(str(fault) for fault in draw_schedule(arguments.replay).faults), flush=True)
    outcomes = asyncio.run(campaign(seeds, folder.resolve(), arguments.at_once, keep=arguments.keep))
    print(json.dumps(summary(outcomes)))
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def _has(seed: int, kind: str | None) -> bool:
    return not kind or any(fault.kind == kind for fault in draw_schedule(seed).faults)


if __name__ == "__main__":
    sys.exit(main())
