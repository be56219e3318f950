"""An operator without Kubernetes, to be killed: engine and gateway on one job, on a fixed port, with a history.

As `pocketgrid operator` it takes over whatever output it is given, and as there the epoch decides who may write.
Ends with status 0 once the job is complete and a file says so; with 3 if another operator has taken over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.server import Gateway
from pocketgrid.history import HistoryFile
from pocketgrid.local.run import read_plan
from pocketgrid.model.view import JobView, Stage
from pocketgrid.settings import EngineSettings, GatewaySettings
from pocketgrid.telemetry.logs import configure_logs

COMPLETE, FAILED, FENCED = 0, 1, 3
LINGER_S = 0.5
"""The last settlements reach the devices before the gateway says goodbye."""


async def serve(arguments: argparse.Namespace) -> int:
    """Run the job of the manifest until it ends."""
    clock = SystemClock()
    (spec,) = read_plan(arguments.manifest, time.time()).jobs
    history = HistoryFile(arguments.history, {"role": "operator", "name": arguments.name})
    engine_settings = EngineSettings(
        tick_seconds=0.1,
        reconnect_grace_seconds=arguments.grace,
        lease_minimum_seconds=arguments.lease_minimum,
        model_retry_seconds=0.5,
    )
    gateway_settings = GatewaySettings(
        port=arguments.port, heartbeat_seconds=arguments.silence / 4, silence_seconds=arguments.silence
    )
    state = arguments.state_dir
    async with (
        Engine(
            engine_settings, clock, state / "models", nodes_from_facts=True, take_over=True, recorder=history
        ) as engine,
        Gateway(engine, gateway_settings, clock, state / "gateway"),
    ):
        engine.submit(spec)
        revision = 0
        while True:
            revision = await engine.changed(revision, 0.5)
            view = engine.job_view(spec.uid)
            assert view is not None
            if view.trouble is not None and view.trouble.reason == "TakenOver":
                return FENCED
            if view.stage.terminal:
                _appear(arguments.report, _report(view))
                await asyncio.sleep(LINGER_S)
                return COMPLETE if view.stage is Stage.COMPLETE else FAILED


def main(arguments: Sequence[str]) -> int:
    """Run one operator; returns its status."""
    parser = argparse.ArgumentParser(prog="operator_process")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True, help="file that says how the job ended")
    parser.add_argument("--silence", type=float, required=True, help="seconds until a silent link is dropped")
    parser.add_argument("--grace", type=float, required=True, help="seconds a lost device keeps its leases")
    parser.add_argument("--lease-minimum", type=float, required=True, help="shortest deadline of a lease, seconds")
    parsed = parser.parse_args(arguments)
    configure_logs("info")
    return asyncio.run(serve(parsed))


def _report(view: JobView) -> dict[str, object]:
    return {
        "stage": view.stage.value,
        "why": view.explanation.message if view.explanation else "",
        "items": view.items,
        "failed": view.items_failed,
        "shards": view.shards,
        "lost": view.attempts_lost,
        "copies": view.copies,
        "duplicates": view.duplicates,
    }


def _appear(path: Path, content: dict[str, object]) -> None:
    temporary = path.with_suffix(f".{time.monotonic_ns()}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
