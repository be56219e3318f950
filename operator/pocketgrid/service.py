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
from pocketgrid.controller.client import Cluster as ApiCluster
from pocketgrid.controller.enrolment_stores import EdgeNodeRegister, SecretAuthority, SecretTokens, publish_gateway
from pocketgrid.controller.leader import LeaseTiming
from pocketgrid.controller.run import run_controller
from pocketgrid.engine.engine import Engine
from pocketgrid.engine.history import Recorder
from pocketgrid.errors import PeerError
from pocketgrid.gateway.authority import load_keyring
from pocketgrid.gateway.cachekeys import load_cache_keys
from pocketgrid.gateway.server import Gateway, Stores
from pocketgrid.settings import Settings

log = logging.getLogger(__name__)

RETRY_S = 1.0
TELL_S = 60.0


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
    register = EdgeNodeRegister()
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
                    register=register,
                    clock=clock,
                    timing=LeaseTiming.lasting(cluster.lease_seconds),
                ),
                name="controller",
            )
            await _first(ready, controller)
            if not stop.is_set() and not controller.done():
                await _serve_devices(engine, settings, cluster, register, clock, stop, controller)
            stop.set()
    finally:
        # The engine writes no more, however it ended: the lead may go.
        stop.set()
        idle.set()
        if controller is not None:
            await controller


async def _serve_devices(
    engine: Engine,
    settings: Settings,
    cluster: Cluster,
    register: EdgeNodeRegister,
    clock: Clock,
    stop: asyncio.Event,
    controller: asyncio.Task[None],
) -> None:
    folder = settings.state_dir / "gateway"
    async with ApiCluster.connect(cluster.kubeconfig, cluster.context) as api:
        authority = SecretAuthority(api, cluster.namespace)
        waiting = asyncio.create_task(_until_readable(authority, clock), name="authority")
        await _first(stop, controller, waiting)
        if not waiting.done():
            waiting.cancel()
            return
        waiting.result()
        stores = Stores(authority, SecretTokens(api, cluster.namespace), register)
        async with Gateway(engine, settings.gateway, clock, folder, stores, load_cache_keys(folder)) as gateway:
            log.info("ready gateway=%s join=%s", gateway.address, gateway.enrolment_address)
            telling = asyncio.create_task(_tell(api, cluster.namespace, gateway), name="gateway-tell")
            try:
                await _first(stop, controller)
            finally:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)


async def _until_readable(authority: SecretAuthority, clock: Clock) -> None:
    """Wait out an API server that is away, or rights that are still missing."""
    complaint = ""
    while True:
        try:
            await load_keyring(authority, clock.wall())
            return
        except PeerError as exc:
            if str(exc) != complaint:
                complaint = str(exc)
                log.warning("devices cannot connect yet cause=%s", exc)
            await asyncio.sleep(RETRY_S)


async def _tell(api: ApiCluster, namespace: str, gateway: Gateway) -> None:
    """Keep what `pocketgrid token` reads up to date."""
    told = None
    while True:
        wanted = gateway.public_enrolment_address, gateway.identity.ca_sha256
        try:
            if wanted != told:
                await publish_gateway(api, namespace, *wanted)
                told = wanted
        except PeerError as exc:
            log.warning("cannot say where devices join cause=%s", exc)
        await asyncio.sleep(RETRY_S if told is None else TELL_S)


async def _first(event: asyncio.Event, *tasks: asyncio.Task[None]) -> None:
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
