"""The operator of a benchmark: engine and gateway on one job, in a process of their own, as in the product.

`pocketgrid run` does the same and starts its agents as well; here they are started from outside, so that they can be
given a micro-batch and be killed, and so that this process's processor time is the coordinator's and nobody else's.
What it sees goes into three JSON files, each of which appears whole: where devices may connect, that the first shard is
committed, and what happened.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hack.bench.as_installed import hide_what_only_developers_have
from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.server import Gateway
from pocketgrid.local.run import LocalPlan, read_plan
from pocketgrid.model.view import JobView, Stage
from pocketgrid.settings import Settings
from pocketgrid.worktimes import Work

NEAR_THE_END = 0.9
"""Share of the items after which every commit is looked at, for the last one's time matters."""

GLANCE_S = 0.125
"""Between looks before that, as `pocketgrid run` does for its progress bar."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the job was at one moment.

    Attributes:
        at: seconds of the system's monotonic clock, which is the same for all processes.
        cpu_s: processor time of all threads of this process so far.
        work: the part of it of which the engine knows what it was for, seconds by kind of work.
    """

    at: float
    cpu_s: float
    items: int
    shards: int
    work: dict[str, float]


@dataclass(slots=True)
class Watcher:
    """What is remembered of a job: its first commit, its last, its end, and what the engine logged.

    Attributes:
        begun: file that appears with the first commit.
    """

    begun: Path
    first: Mark | None = None
    last: Mark | None = None
    lines: list[tuple[float, str]] = field(default_factory=list)

    def see(self, view: JobView, work: Mapping[Work, float]) -> None:
        """Look at the job."""
        if not view.shards_done:
            return
        spent = {kind.value: seconds for kind, seconds in work.items()}
        now = Mark(time.monotonic(), time.process_time(), view.items_done, view.shards_done, spent)
        if self.first is None:
            self.first = now
            write_whole(self.begun, asdict(now))
        if self.last is None and view.items_done == view.items:
            self.last = now


class _Recorder(logging.Handler):
    def __init__(self, watcher: Watcher) -> None:
        super().__init__(logging.DEBUG)
        self._watcher = watcher

    def emit(self, record: logging.LogRecord) -> None:
        self._watcher.lines.append((time.monotonic(), record.getMessage()))


async def serve(plan: LocalPlan, settings: Settings, watcher: Watcher, ready: Path) -> JobView:
    """Carry out the one job of `plan` with whatever devices connect."""
    clock = SystemClock()
    (spec,) = plan.jobs
    async with (
        Engine(settings.engine, clock, settings.state_dir / "models", nodes_from_facts=True) as engine,
        Gateway(engine, settings.gateway, clock, settings.state_dir / "gateway") as gateway,
    ):
        write_whole(
            ready,
            {
                "address": gateway.address,
                "gateway_folder": str(settings.state_dir / "gateway"),
            },
        )
        engine.set_classes(plan.classes)
        engine.submit(spec)
        revision = 0
        while True:
            revision = await engine.changed(revision, 1.0)
            view = engine.job_view(spec.uid)
            assert view is not None
            watcher.see(view, engine.work_times())
            if view.stage.terminal:
                return view
            if watcher.first is not None and view.items_done < NEAR_THE_END * view.items:
                await asyncio.sleep(GLANCE_S)


def main() -> None:
    """Run one job and report."""
    hide_what_only_developers_have()
    parser = argparse.ArgumentParser(prog="python -m hack.bench.operator_process")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True, help="file that says where to connect")
    parser.add_argument("--begun", type=Path, required=True, help="file that appears with the first commit")
    parser.add_argument("--report", type=Path, required=True, help="file that says what happened")
    parser.add_argument("--record-log", action="store_true", help="with the engine's log lines in the report")
    arguments = parser.parse_args()
    watcher = Watcher(arguments.begun)
    if arguments.record_log:
        engine_log = logging.getLogger("pocketgrid.engine")
        engine_log.setLevel(logging.DEBUG)
        engine_log.addHandler(_Recorder(watcher))
    plan = read_plan(arguments.manifest, time.time())
    view = asyncio.run(serve(plan, Settings(state_dir=arguments.state_dir), watcher, arguments.ready))
    why = view.explanation.message if view.explanation else ""
    write_whole(
        arguments.report,
        {
            "first": asdict(watcher.first) if watcher.first else None,
            "last": asdict(watcher.last) if watcher.last else None,
            "ended_at": time.monotonic(),
            "complete": view.stage is Stage.COMPLETE and not view.items_failed,
            "why": why or f"{view.stage.value}, {view.items_failed} rows failed",
            "per_shard": view.items_per_shard,
            "shards": view.shards,
            "lines": watcher.lines,
        },
    )


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that appears whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


if __name__ == "__main__":
    main()
