"""An operator that serves until terminated and runs whatever jobs are put before it, in a process of its own.

Engine and gateway as in the product, without a cluster. Manifests that appear in a folder are submitted; a file beside
each says what became of its job. What the process is like is in another file, which appears whole, four times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hack.bench.as_installed import hide_what_only_developers_have
from hack.bench.load.identities import CrowdRegister
from hack.bench.operator_process import write_whole
from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.filestores import FileAuthority, FileTokens
from pocketgrid.gateway.server import Gateway, Stores
from pocketgrid.local.run import read_plan
from pocketgrid.model.ids import JobUid
from pocketgrid.model.view import JobView
from pocketgrid.settings import GatewaySettings, Settings
from pocketgrid.telemetry.logs import configure_logs

REPORT_S = 0.25
GLANCE_S = 0.02


@dataclass(slots=True)
class Host:
    """One engine with its gateway, and what is to be told of them.

    Attributes:
        jobs: folder of manifests.
        longest_lag_s: by how much the event loop was late at most, since the last report.
    """

    engine: Engine
    gateway: Gateway
    jobs: Path
    state: Path
    known: dict[JobUid, Path] = field(default_factory=dict)
    first: dict[JobUid, tuple[float, int]] = field(default_factory=dict)
    longest_lag_s: float = 0.0

    async def report(self) -> None:
        """Say how this process is, for ever."""
        page = os.sysconf("SC_PAGE_SIZE")
        while True:
            write_whole(
                self.state,
                {
                    "at": time.monotonic(),
                    "sessions": self.gateway.sessions,
                    "cpu_s": time.process_time(),
                    "resident_bytes": int(Path("/proc/self/statm").read_text().split()[1]) * page,
                    "longest_lag_s": self.longest_lag_s,
                },
            )
            self.longest_lag_s = 0.0
            began = time.monotonic()
            await asyncio.sleep(REPORT_S)
            self.longest_lag_s = max(self.longest_lag_s, time.monotonic() - began - REPORT_S)

    async def run_jobs(self) -> None:
        """Submit what appears in the folder, for ever."""
        seen: set[Path] = set()
        while True:
            for manifest in set(self.jobs.glob("*.json")) - seen:
                seen.add(manifest)
                (spec,) = read_plan(manifest, time.time()).jobs
                self.known[spec.uid] = manifest.with_suffix(".done")
                self.engine.submit(spec)
            for uid in list(self.known):
                view = self.engine.job_view(uid)
                assert view is not None
                self._see(uid, view)
            await asyncio.sleep(GLANCE_S if self.known else REPORT_S)

    def _see(self, uid: JobUid, view: JobView) -> None:
        now = time.monotonic()
        if view.shards_done and uid not in self.first:
            self.first[uid] = (now, view.items_done)
        if (view.items and view.items_done == view.items) or view.stage.terminal:
            began, items = self.first.get(uid, (now, 0))
            report: dict[str, Any] = {
                "items": view.items_done - items,
                "seconds": now - began,
                "failed": view.items_failed,
                "stage": view.stage.value,
                "why": view.explanation.message if view.explanation else "",
            }
            write_whole(self.known.pop(uid), report)


def _stores(settings: Settings) -> Stores:
    folder = settings.state_dir / "gateway"
    return Stores(FileAuthority(folder), FileTokens(folder), CrowdRegister(folder))


async def serve(settings: Settings, jobs: Path, ready: Path, state: Path) -> None:
    """Serve until SIGTERM."""
    clock = SystemClock()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        Engine(settings.engine, clock, settings.state_dir / "models", nodes_from_facts=True) as engine,
        Gateway(engine, settings.gateway, clock, settings.state_dir / "gateway", _stores(settings)) as gateway,
    ):
        host = Host(engine, gateway, jobs, state)
        tasks = [asyncio.ensure_future(host.report()), asyncio.ensure_future(host.run_jobs())]
        where = {"address": gateway.address, "gateway_folder": str(settings.state_dir / "gateway")}
        write_whole(ready, where)
        stopping = asyncio.ensure_future(stop.wait())
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, *tasks):
            task.cancel()
        for task in done:
            task.result()


def main() -> None:
    """Serve devices and run jobs until terminated."""
    hide_what_only_developers_have()
    parser = argparse.ArgumentParser(prog="python -m hack.bench.host_process")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--jobs", type=Path, required=True, help="folder of manifests, one job each")
    parser.add_argument("--ready", type=Path, required=True, help="file that says where to connect")
    parser.add_argument("--state", type=Path, required=True, help="file that says how this process is")
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args()
    configure_logs(arguments.log_level)
    logging.captureWarnings(True)
    # One connection each, as the operator's own unit and Pod allow.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    settings = Settings(state_dir=arguments.state_dir, gateway=GatewaySettings(port=arguments.port))
    asyncio.run(serve(settings, arguments.jobs, arguments.ready, arguments.state))


if __name__ == "__main__":
    main()
