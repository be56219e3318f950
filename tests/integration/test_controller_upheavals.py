"""The ground goes away under a running operator: a namespace, the CustomResourceDefinitions, the rights."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hack.controlplane import ControlPlane, ControlPlaneError, Kind
from pocketgrid.controller.client import EDGE_NODES, JOBS, NotFoundError
from pocketgrid.storage.results import verify
from tests.integration.controller_world import Operator, World, a_world, eventually

pytestmark = pytest.mark.cluster


@pytest.fixture
async def world(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(control_plane, tmp_path) as made:
        yield made


@pytest.fixture
async def operator(world: World) -> AsyncIterator[Operator]:
    async with world.operator() as running:
        yield running


async def create(world: World, body: dict[str, Any]) -> None:
    await world.kubectl("create", "--validate=false", "--filename=-", stdin=body)


def working(operator: Operator) -> set[str]:
    return {view.spec.name for view in operator.engine.job_views().values()}


async def test_a_namespace_deleted_under_a_running_job(operator: Operator, caplog: pytest.LogCaptureFixture) -> None:
    world, doomed = operator.world, operator.world.name("doomed")
    phone = operator.device(items_per_second=200.0)
    phone.attach()
    await world.kubectl("create", "namespace", doomed)
    for name, namespace in (("lost", doomed), ("kept", world.namespace)):
        body = world.job(name, items=2000)
        body["metadata"]["namespace"] = namespace
        await create(world, body)
    await eventually(lambda: asyncio.sleep(0, working(operator)), lambda names: names == {"lost", "kept"})
    await eventually(
        lambda: world.cluster.get(JOBS, "lost", doomed), lambda b: b.get("status", {}).get("shards", {}).get("done")
    )
    with caplog.at_level(logging.INFO):
        # From here on nothing can be created there, Events included; only then its contents go, as the namespace
        # controller does it, which does not run beside this API server.
        await world.kubectl("delete", "namespace", doomed, "--wait=false")
        await asyncio.sleep(1.5)
        await world.kubectl(
            "patch", "ij", "lost", f"--namespace={doomed}", "--type=merge", '--patch={"spec":{"suspend":true}}'
        )
        await world.kubectl("wait", "ij/lost", f"--namespace={doomed}", "--for=condition=Suspended", "--timeout=10s")
        await world.kubectl("delete", "ij", "--all", f"--namespace={doomed}", "--timeout=15s")
        body = json.loads(await world.kubectl("get", "namespace", doomed, "--output=json"))
        body["spec"]["finalizers"] = []
        await world.kubectl("replace", f"--raw=/api/v1/namespaces/{doomed}/finalize", "--filename=-", stdin=body)
        with pytest.raises(ControlPlaneError, match="not found"):
            await world.kubectl("get", "namespace", doomed)
        await eventually(lambda: asyncio.sleep(0, working(operator)), lambda names: names == {"kept"})
        phone.items_per_second = 50_000.0
        await world.job_with("kept", Complete="True")
    assert verify(f"file://{world.folder}/out-kept") == []
    assert any((world.folder / "out-lost").rglob("*")), "what was committed stays"
    assert not operator.task.done()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "pocketgrid" in r.name] == []


async def test_definitions_deleted_and_applied_again(operator: Operator, caplog: pytest.LogCaptureFixture) -> None:
    world = operator.world
    if world.control_plane.source.kind is Kind.CLUSTER:
        pytest.skip("it would delete every job of your cluster")
    phone = operator.device(items_per_second=200.0)
    phone.attach()
    await create(world, world.job("before", items=4000))
    await eventually(lambda: world.get(EDGE_NODES, phone.name), bool)
    await world.job_with("before", Progressing="True/Working")
    with caplog.at_level(logging.WARNING, "pocketgrid"):
        await world.kubectl("delete", "--filename=crds", "--timeout=30s")
        await eventually(lambda: asyncio.sleep(0, working(operator)), lambda names: not names)
        await eventually(lambda: asyncio.sleep(0, caplog.text), lambda text: "apply the CustomResource" in text, 25)
    assert phone.attached, "a device has nothing to do with it"
    await world.kubectl("apply", "--filename=crds", "--validate=false")
    await world.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    await eventually(lambda: world.cluster.list(JOBS), lambda _: True)
    await create(world, world.job("after"))
    await world.job_with("after", Complete="True", within=20)
    # With its EdgeNode went the device's right to be here; only joining makes another.
    with pytest.raises(NotFoundError):
        await world.get(EDGE_NODES, phone.name)
    assert verify(f"file://{world.folder}/out-after") == []
    # The same object again, by the same name and with the same output, goes on where the first one stopped.
    phone.items_per_second = 50_000.0
    assert not operator.task.done()
