"""The operator process: controller, engine and gateway on one loop, in the order that keeps promises.

Starting: the controller leads and has told the engine of every job before the first device may connect. Stopping: the
gateway goes first, then the engine writes what it has, and only then is the lead handed over.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.clock import Clock
from pocketgrid.controller.leader import LeaseTiming
from pocketgrid.controller.run import run_controller
from pocketgrid.engine.engine import Engine
from pocketgrid.engine.history import Recorder
from pocketgrid.gateway.cachekeys import load_cache_keys
from pocketgrid.gateway.server import Gateway
from pocketgrid.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which cluster, and how this operator appears in it."""

    kubeconfig: Path | None
    context: str | None
    namespace: str
    liveness_endpoint: str | None
    lease_seconds: int


async def serve(settings: Settings, cluster: Cluster, clock: Clock, recorder: Recorder | None = None) -> None:
    """Run until SIGINT or SIGTERM.

    Raises:
        PocketGridError: there is no cluster, the address is taken, or another operator has taken the lead.
    """
    stop, ready, idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # Whoever still holds a job's store has lost the election that this process has won: the epoch fences it off.
    engine = Engine(
        settings.engine,
        clock,
        settings.state_dir / "models",
        nodes_from_facts=False,
        take_over=True,
        recorder=recorder,
    )
    controller: asyncio.Task[None] | None = None
    try:
        async with engine:
            controller = asyncio.create_task(
                run_controller(
                    engine,
                    kubeconfig=cluster.kubeconfig,
                    context=cluster.context,
                    namespace=cluster.namespace,
                    liveness_endpoint=cluster.liveness_endpoint,
                    stop=stop,
                    ready=ready,
                    idle=idle,
                    clock=clock,
                    timing=LeaseTiming.lasting(cluster.lease_seconds),
                ),
                name="controller",
            )
            await _first(ready, controller)
            if not stop.is_set() and not controller.done():
                await _serve_devices(engine, settings, clock, stop, controller)
            stop.set()
    finally:
        # The engine writes no more, however it ended: the lead may go.
        stop.set()
        idle.set()
        if controller is not None:
            await controller


async def _serve_devices(
    engine: Engine, settings: Settings, clock: Clock, stop: asyncio.Event, controller: asyncio.Task[None]
) -> None:
    folder = settings.state_dir / "gateway"
    async with Gateway(engine, settings.gateway, clock, folder, cache_keys=load_cache_keys(folder)) as gateway:
        log.info(
            "ready gateway=%s ca_file=%s join_secret_file=%s",
            gateway.address, gateway.identity.ca_file, gateway.identity.join_secret_file,
        )  # fmt: skip
        await _first(stop, controller)


async def _first(event: asyncio.Event, task: asyncio.Task[None]) -> None:
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
