"""The controller as a whole: elected, then told what there is, then following it until it is asked to stop.

The order at the start matters. Nothing is done before this process leads. Runs of agents that were put out, classes
and Nodes are known before jobs are submitted, and all jobs before results of unknown ones may be refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from pocketgrid.clock import Clock, Rng, SystemClock, system_rng
from pocketgrid.controller.client import CLASSES, EDGE_NODES, JOBS, NODES, PROFILES, Cluster, NotFoundError
from pocketgrid.controller.distrust import Distrust
from pocketgrid.controller.enrolment_stores import EdgeNodeRegister
from pocketgrid.controller.intake import Intake
from pocketgrid.controller.lanes import Lanes
from pocketgrid.controller.leader import Election, LeaseTiming
from pocketgrid.controller.liveness import serve_liveness
from pocketgrid.controller.nodes import NodeKeeper
from pocketgrid.controller.publisher import LOOK_S, QUIET_S, Publisher
from pocketgrid.controller.records import Records
from pocketgrid.engine.engine import Engine
from pocketgrid.errors import PeerError

log = logging.getLogger(__name__)

RESYNC_S = 60.0
"""How often everything is listed at the latest. What watches miss by their nature (what was deleted before a list with
which one of them began anew) is looked for right after such a list; this is for a kind of which nothing is left."""

GATHER_S = 1.0
"""Lists come in groups, when an API server has been restarted; one look serves them all."""

RETRY_S = 1.0
FLUSH_S = 5.0
IDLE_S = 30.0


async def run_controller(
    engine: Engine,
    *,
    kubeconfig: Path | None = None,
    context: str | None = None,
    namespace: str = "pocketgrid-system",
    identity: str | None = None,
    stop: asyncio.Event,
    ready: asyncio.Event,
    idle: asyncio.Event | None = None,
    register: EdgeNodeRegister | None = None,
    liveness_endpoint: str | None = None,
    clock: Clock | None = None,
    rng: Rng | None = None,
    timing: LeaseTiming | None = None,
) -> None:
    """Lead, and keep the engine and the cluster in step until `stop` is set.

    Args:
        engine: running, made with ``nodes_from_facts=False``; on this loop.
        kubeconfig: see `Cluster.connect`; None: the service account or the user's own file.
        context: context of that file; None: its current one.
        namespace: of the Lease by which operators elect their leader; must exist.
        identity: of this process; None makes one from host name, process id and chance.
        stop: ends this. Also set by SIGINT and SIGTERM, once watching has begun.
        ready: set when this process leads, all objects have been taken in and watching has begun.
        idle: set by the caller when the engine works no more, some time after `stop`. The lead is kept until then
            (at most 30 s), so that a successor never meets an engine that still writes. None: there is no need.
        register: of the gateway that runs beside this; serves it once `ready` is set. None: there is none.
        liveness_endpoint: URL to serve for liveness probes.

    Raises:
        LeadershipLostError: another operator leads; the process must end at once.
        UnavailableError: there are no credentials.
    """
    clock, rng = clock or SystemClock(), rng or system_rng()
    # Seconds on a small board: not on the loop, and not while a Lease has to be renewed.
    await asyncio.to_thread(_load_libraries)
    # The election has connections of its own: it can try again at once when one is half open, while a pool of them may
    # have many such, each of which has to be found out.
    async with (
        Cluster.connect(kubeconfig, context) as cluster,
        Cluster.connect(kubeconfig, context) as electorate,
    ):
        election = Election(electorate, namespace, identity or _identity(), clock, timing)
        async with serve_liveness(liveness_endpoint, lambda: election.certain):
            if not await _unless(stop, election.acquire()):
                return
            await _lead(engine, cluster, election, register or EdgeNodeRegister(), stop, ready, idle, clock, rng)
        # Only a stop that was asked for hands over at once: after anything else, the engine may still be writing.
        await election.release()


async def _lead(
    engine: Engine,
    cluster: Cluster,
    election: Election,
    register: EdgeNodeRegister,
    stop: asyncio.Event,
    ready: asyncio.Event,
    idle: asyncio.Event | None,
    clock: Clock,
    rng: Rng,
) -> None:
    holding = asyncio.create_task(election.hold(), name="controller-lead")
    working = asyncio.create_task(
        _work(engine, cluster, election, register, stop, ready, clock, rng), name="controller-work"
    )
    try:
        await asyncio.wait({holding, working}, return_when=asyncio.FIRST_COMPLETED)
        if not holding.done() and idle is not None and working.exception() is None:
            waiting = asyncio.create_task(idle.wait(), name="controller-idle")
            await asyncio.wait({holding, waiting}, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        for task in (holding, working):
            if task.done():
                task.result()
    finally:
        await _cancel(holding, working)


async def _work(
    engine: Engine,
    cluster: Cluster,
    election: Election,
    register: EdgeNodeRegister,
    stop: asyncio.Event,
    ready: asyncio.Event,
    clock: Clock,
    rng: Rng,
) -> None:
    from pocketgrid.controller.handlers import build_registry, build_settings
    from pocketgrid.controller.watching import watch

    records = register.records
    intake = Intake(engine, records, register.tell)
    async with Lanes(clock, rng, lambda: election.certain) as lanes:
        writer = cluster.fenced(lambda: election.certain)
        register.serve(writer, intake.take_edge_node)
        nodes = NodeKeeper(writer, engine, records, lanes, clock, rng)
        distrust = Distrust(writer, engine, records, lanes)
        publisher = Publisher(writer, engine, records, nodes, distrust, lanes, clock)
        if not await _unless(stop, _read_everything(cluster, engine, intake, nodes, distrust)):
            return

        listed = asyncio.Event()
        tasks = [
            asyncio.create_task(
                watch(
                    lambda: cluster.require(JOBS, CLASSES, PROFILES, EDGE_NODES, NODES),
                    lambda: build_registry(cluster, intake, nodes, listed.set),
                    build_settings,
                    listed.set,
                    stop,
                    ready,
                ),
                name="controller-watch",
            ),
            asyncio.create_task(_follow(engine, publisher), name="controller-publish"),
            asyncio.create_task(
                _resync_often(cluster, intake, nodes, records, listed, ready), name="controller-resync"
            ),
        ]
        asked = asyncio.create_task(stop.wait(), name="controller-stop")
        try:
            done, _ = await asyncio.wait({asked, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _cancel(asked, *tasks)
        _look(publisher, everything=True)
        await lanes.idle(FLUSH_S)


async def _read_everything(
    cluster: Cluster, engine: Engine, intake: Intake, nodes: NodeKeeper, distrust: Distrust
) -> None:
    complaint = ""
    while True:
        try:
            for body in (await cluster.list(EDGE_NODES))[0]:
                intake.take_edge_node(body)
            found, version = await cluster.list(NODES)
            nodes.listed(found, int(version))
            nodes.forbid_deregistered()
            distrust.restore()
            for body in (await cluster.list(CLASSES))[0]:
                intake.take_class(body)
            for body in (await cluster.list(PROFILES))[0]:
                intake.take_profile(body)
            for body in (await cluster.list(JOBS))[0]:
                if not body["metadata"].get("deletionTimestamp"):
                    intake.take_job(body)
            engine.jobs_listed()
            return
        except PeerError as exc:
            if str(exc) != complaint:
                complaint = str(exc)
                remedy = "; apply the CustomResourceDefinitions first" if isinstance(exc, NotFoundError) else ""
                log.error("cannot read what there is cause=%s%s", exc, remedy)
        await asyncio.sleep(RETRY_S)


async def _follow(engine: Engine, publisher: Publisher) -> None:
    revision = -1
    while True:
        revision = await engine.changed(revision, QUIET_S)
        _look(publisher)
        await asyncio.sleep(LOOK_S)


def _look(publisher: Publisher, *, everything: bool = False) -> None:
    try:
        publisher.look(everything=everything)
    except Exception:
        # A fault in this comparison must not end the jobs; the next look may succeed.
        log.exception("cannot compare the cluster with the engine")


async def _resync_often(
    cluster: Cluster, intake: Intake, nodes: NodeKeeper, records: Records, listed: asyncio.Event, ready: asyncio.Event
) -> None:
    await ready.wait()
    # The first lists are of what has been read already.
    listed.clear()
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(RESYNC_S):
                await listed.wait()
        await asyncio.sleep(GATHER_S)
        listed.clear()
        complaint = ""
        while True:
            try:
                await _resync(cluster, intake, nodes, records)
                break
            except PeerError as exc:
                if str(exc) != complaint:
                    complaint = str(exc)
                    log.info("cannot list what there is, watches go on cause=%s", exc)
            await asyncio.sleep(RETRY_S)


async def _resync(cluster: Cluster, intake: Intake, nodes: NodeKeeper, records: Records) -> None:
    found, version = await cluster.list(NODES)
    nodes.listed(found, int(version))
    classes, version = await cluster.list(CLASSES)
    for body in classes:
        intake.take_class(body)
    for name, record in _missing(records.classes, classes, int(version)):
        intake.drop_class(name, record.uid)
    profiles, version = await cluster.list(PROFILES)
    for body in profiles:
        intake.take_profile(body)
    for name, record in _missing(records.profiles, profiles, int(version)):
        intake.drop_profile(name, record.uid)
    edge_nodes, version = await cluster.list(EDGE_NODES)
    for body in edge_nodes:
        intake.take_edge_node(body)
    for name, record in _missing(records.edge_nodes, edge_nodes, int(version)):
        intake.drop_edge_node(name, record.uid)
    listed, version = await cluster.list(JOBS)
    uids = {body["metadata"]["uid"] for body in listed}
    for uid, job in list(records.jobs.items()):
        if uid not in uids and job.version <= int(version):
            await intake.drop_job(uid)


def _missing(known: dict[str, Any], bodies: list[dict[str, Any]], version: int) -> list[tuple[str, Any]]:
    uids = {body["metadata"]["uid"] for body in bodies}
    return [(name, record) for name, record in known.items() if record.uid not in uids and record.version <= version]


def _load_libraries() -> None:
    import kopf  # noqa: F401
    from kubernetes.aio import client, config  # noqa: F401


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work` to its end, unless `stop` is set before; whether it ended."""
    task = asyncio.create_task(work, name="controller-start")
    asked = asyncio.create_task(stop.wait(), name="controller-stop")
    try:
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        await _cancel(task, asked)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task


def _identity() -> str:
    return f"{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}"
