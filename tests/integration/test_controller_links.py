"""The controller behind a link to the API server that is cut, hangs, is left half open, or comes back too late."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hack.controlplane import ControlPlane
from pocketgrid.controller.client import JOBS, LEASES, NODES
from pocketgrid.controller.handlers import SILENCE_S
from pocketgrid.controller.leader import LEASE_NAME
from pocketgrid.model.view import JobView
from pocketgrid.storage.results import verify
from tests.faults.proxy import FaultProxy
from tests.integration.api_link import port_of, proxy_to, sever, through
from tests.integration.controller_world import Operator, World, a_world, eventually

pytestmark = pytest.mark.cluster

OUTAGE_S = float(os.environ.get("POCKETGRID_TEST_OUTAGE_S", "8"))
"""Longer than the lead lasts. `make chaos` has longer ones."""

RIGHT_S = 5.0
"""What is promised of an outage that is over: the status of what ran meanwhile."""

NOTICED_S = SILENCE_S + 3.0
"""What is promised of a half-open watch: its silence, and a reconnect."""


@pytest.fixture
async def world(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(control_plane, tmp_path) as made:
        yield made


@pytest.fixture
async def link(control_plane: ControlPlane) -> AsyncIterator[FaultProxy]:
    async with proxy_to(port_of(control_plane.kubeconfig)).serving() as made:
        yield made


@pytest.fixture
async def operator(world: World, link: FaultProxy) -> AsyncIterator[Operator]:
    kubeconfig = through(world.control_plane.kubeconfig, link, world.folder / "through")
    async with world.operator(kubeconfig=kubeconfig, identity="me") as running:
        yield running
        # Whatever was done to it: it can say goodbye.
        await link.listen()


async def create(world: World, *bodies: dict[str, Any]) -> None:
    for body in bodies:
        await world.kubectl("create", "--validate=false", "--filename=-", stdin=body)


async def edit(world: World, name: str, **spec: Any) -> None:
    patch = "--patch=" + json.dumps({"spec": spec})
    await world.kubectl("patch", "ij", name, f"--namespace={world.namespace}", "--type=merge", patch)


def hardware_class(world: World, name: str) -> dict[str, Any]:
    selector = {"matchLabels": {"pocketgrid.dev/owner": world.mark}}
    return {
        "apiVersion": "pocketgrid.dev/v1alpha1",
        "kind": "HardwareClass",
        "metadata": {"name": world.name(name)},
        "spec": {"nodeSelector": selector},
    }


def view_of(operator: Operator, name: str) -> JobView | None:
    views = operator.engine.job_views().values()
    return next((view for view in views if view.spec.name == name), None)


async def until(probe: Any, within: float) -> float:
    """How long it took until `probe` was true."""
    return (await eventually(lambda: asyncio.sleep(0, probe()), bool, within))[1]


async def test_an_outage_stops_no_job_and_is_over_soon_after(operator: Operator, link: FaultProxy) -> None:
    world, phone = operator.world, operator.device(items_per_second=400.0)
    phone.attach()
    await create(
        world, world.job("long", items=int(400 * (OUTAGE_S + 30))), world.job("later", suspend=True, priority=9)
    )
    await world.job_with("long", Progressing="True/Working")
    await world.job_with("later", Suspended="True")
    lease = await world.cluster.get(LEASES, LEASE_NAME, world.namespace)
    await sever(link)
    began, before = time.monotonic(), view_of(operator, "long").items_done
    # What users do meanwhile, through another way to the same API server.
    await create(world, world.job("new", priority=9))
    await edit(world, "later", suspend=False)
    await asyncio.sleep(OUTAGE_S)
    committed = view_of(operator, "long").items_done - before
    assert committed >= 0.5 * 400 * (time.monotonic() - began)
    await link.listen()
    _, seconds = await eventually(
        lambda: world.get(JOBS, "long"), lambda b: b["status"]["items"]["done"] >= before + committed
    )
    assert seconds <= RIGHT_S, f"the status was right only {seconds:.1f} s after the outage"
    await world.job_with("new", Complete="True", within=15)
    await world.job_with("later", Complete="True", within=15)
    now = await world.cluster.get(LEASES, LEASE_NAME, world.namespace)
    for kept in ("holderIdentity", "leaseTransitions", "acquireTime"):
        assert now["spec"][kept] == lease["spec"][kept]
    assert len(phone.computed) == len(set(phone.computed)), "a shard was computed twice"
    for name in ("new", "later"):
        assert verify(f"file://{world.folder}/out-{name}") == []
    assert not operator.task.done()


async def test_a_half_open_watch_is_noticed(operator: Operator, link: FaultProxy) -> None:
    world, phone = operator.world, operator.device()
    phone.attach()
    await create(world, hardware_class(world, "mine"), world.job("held", suspend=True))
    await world.job_with("held", Suspended="True")
    await eventually(lambda: world.get(NODES, phone.name), bool)
    assert link.half_open() >= 4
    await edit(world, "held", suspend=False)
    await create(world, world.job("new"))
    await world.kubectl("delete", "node", phone.name)
    seconds = await until(lambda: phone.closed is not None, NOTICED_S)
    seconds = max(seconds, await until(lambda: view_of(operator, "new") is not None, NOTICED_S - seconds))
    held = await until(lambda: not view_of(operator, "held").spec.suspend, NOTICED_S - seconds)
    print(f"noticed after {seconds + held:.1f} s")
    assert phone.closed == ("Deregistered", False)
    # And what is to be said is said.
    other = operator.device("other")
    other.attach()
    await world.job_with("held", Complete="True")
    await world.job_with("new", Complete="True")


async def test_what_happened_while_a_watch_expired_is_found_out(
    operator: Operator, link: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    world, phone, board = operator.world, operator.device(), operator.device("board")
    phone.attach()
    board.attach()
    await create(world, hardware_class(world, "mine"), hardware_class(world, "other"))
    await create(world, world.job("held", suspend=True))
    await world.job_with("held", Suspended="True")
    for device in (phone, board):
        await eventually(lambda d=device: world.get(NODES, d.name), bool)

    def classes() -> set[str]:
        return set(operator.engine.device_views()[board.identity.name].classes)

    await until(lambda: classes() == {world.name("mine"), world.name("other")}, 10)
    await sever(link)
    await world.kubectl("delete", "node", phone.name)
    await world.kubectl("cordon", board.name)
    await world.kubectl("delete", "hardwareclass", world.name("mine"))
    await edit(world, "held", suspend=False)
    await create(world, world.job("new"))
    # A new server's memory of events begins with its start: what a watch asks for from before is gone.
    await asyncio.to_thread(world.control_plane.restart_apiserver)
    logging.getLogger("kopf._cogs.clients").setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG, "kopf._cogs.clients"):
        await link.listen()
        await until(lambda: phone.closed is not None, 15)
        await until(lambda: view_of(operator, "new") is not None, 15)
        await until(lambda: not view_of(operator, "held").spec.suspend, 15)
    expired = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Restarting the watch-stream")]
    assert any("nodes" in message for message in expired), "no watch has expired; this test shows nothing"
    assert phone.closed == ("Deregistered", False)
    assert not operator.engine.device_views()[board.identity.name].schedulable
    await until(lambda: classes() == {world.name("other")}, 10)
    await world.kubectl("uncordon", board.name)
    await world.job_with("held", Complete="True")
    await world.job_with("new", Complete="True")
