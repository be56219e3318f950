"""A device that lies is found out, and the cluster shows it: taint, Events, conditions; who is pardoned, and how."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from hack.controlplane import ControlPlane
from pocketgrid.controller.client import EDGE_NODES, JOBS, NODES, ConflictError
from pocketgrid.controller.distrust import build_taint_patch
from pocketgrid.controller.records import read_node_record
from pocketgrid.model.device import DISTRUSTED_TAINT_KEY
from pocketgrid.model.money import read_money
from tests.fakes.devices import FakeDevice, identity
from tests.integration.controller_world import Operator, World, a_world, eventually, has_condition
from tests.unit.engine.test_engine_verification import Liar

pytestmark = pytest.mark.cluster

ITEMS = 400
DEVICE_TAINT = {"key": "pocketgrid.dev/device", "effect": "NoSchedule"}


@pytest.fixture
async def world(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(control_plane, tmp_path) as made:
        yield made


def device(operator: Operator, owner: str, kind: type[FakeDevice] = FakeDevice, **changes: Any) -> FakeDevice:
    """Attached, of an owner of its own."""
    made = kind(operator.engine, operator.world.name(owner), items_per_second=4000.0)
    made.identity = replace(identity(made.name, owner=owner), **changes)
    operator.devices.append(made)
    made.attach()
    return made


def reason_of(operator: Operator, who: FakeDevice) -> str:
    view = operator.engine.device_views()[who.identity.name]
    assert view.distrusted == operator.engine.distrusted().get(who.identity.name, "")
    return view.distrusted


async def submit(world: World, **spec: Any) -> None:
    body = world.job(items=ITEMS, per_shard=10, placement={}, verification={"mode": "Quorum"}, **spec)
    await world.kubectl("create", "--validate=false", "--filename=-", stdin=body)


def priced(world: World) -> dict[str, Any]:
    spec = {"nodeSelector": {"matchLabels": {"pocketgrid.dev/kind": "sbc"}}, "price": {"perItem": "0.000007"}}
    name = world.name("boards")
    return {"apiVersion": "pocketgrid.dev/v1alpha1", "kind": "HardwareClass", "metadata": {"name": name}, "spec": spec}


def taints(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {taint["key"]: taint for taint in node["spec"].get("taints", ())}


def is_tainted(node: dict[str, Any]) -> bool:
    return DISTRUSTED_TAINT_KEY in taints(node)


async def events_about(world: World, name: str) -> list[dict[str, Any]]:
    found = await world.kubectl("get", "events", "-A", f"--field-selector=involvedObject.name={name}", "--output=json")
    return json.loads(found)["items"]


def told(events: list[dict[str, Any]], kind: str, reason: str) -> list[dict[str, Any]]:
    return [e for e in events if (e["involvedObject"]["kind"], e["reason"]) == (kind, reason)]


async def until_caught(operator: Operator, liar: FakeDevice) -> dict[str, Any]:
    """The EdgeNode of the liar, once it and the Node say that it was caught."""
    world = operator.world
    node, _ = await eventually(lambda: world.get(NODES, liar.name), is_tainted)
    edge, _ = await eventually(
        lambda: world.get(EDGE_NODES, liar.name),
        lambda e: (e.get("status", {}).get("trust") or {}).get("taintedNodeUID") == node["metadata"]["uid"],
    )
    return edge


def check_output(world: World) -> None:
    table = ds.dataset(world.folder / "out-job", format="parquet").to_table()
    assert table["row"].to_pylist() == list(range(ITEMS))
    x = np.load(world.folder / "job.npy")
    np.testing.assert_array_equal(np.array(table["y"].to_pylist(), np.float32), x * 2 + 1)


async def test_a_liar_is_shown_and_an_administrator_has_the_last_word(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketgrid.controller.publisher.EDGE_PERIOD_S", 0.5)
    async with world.operator() as operator:
        ada, *_ = (device(operator, owner) for owner in ("ada", "bob", "cyd"))
        eve = device(operator, "eve", Liar)
        await world.kubectl("create", "--filename=-", stdin=priced(world))
        await world.kubectl("wait", f"hardwareclass/{world.name('boards')}", "--for=condition=Ready", "--timeout=10s")
        await submit(world)
        job = await world.job_with("job", Complete="True", Reconciling="False", Stalled="False")
        check_output(world)
        assert eve.told > 0
        verification = job["status"]["verification"]
        assert verification["rowsVerified"] == ITEMS
        assert float(verification["disagreementRate"]) > 0
        assert float(verification["redundancy"]) >= 2

        edge = await until_caught(operator, eve)
        assert has_condition(edge, "Trusted", "False/Distrusted")
        assert edge["status"]["trust"]["timesCaught"] == 1
        assert "histories" not in edge["status"]["trust"], "its trust begins anew"
        node = await world.get(NODES, eve.name)
        assert taints(node)[DISTRUSTED_TAINT_KEY] == {
            "key": DISTRUSTED_TAINT_KEY, "value": "WrongResults", "effect": "NoSchedule",
        }  # fmt: skip
        assert DEVICE_TAINT["key"] in taints(node)
        await eventually(
            lambda: world.get(EDGE_NODES, ada.name), lambda e: has_condition(e, "Trusted", "True/Confirmed"), 15
        )
        assert not is_tainted(await world.get(NODES, ada.name))

        spent = read_money(job["status"]["cost"]["spent"])
        assert spent >= 2 * ITEMS * 7
        honest = [world.name(owner) for owner in ("ada", "bob", "cyd")]

        async def earned() -> list[int]:
            nodes = [await world.get(EDGE_NODES, name) for name in honest]
            return [read_money((n["status"].get("earnings") or {}).get("earned", "0")) for n in nodes]

        await eventually(earned, lambda sums: sum(sums) == spent and min(sums) > 0)
        assert edge["status"].get("earnings", {}).get("earned", "0.00") == "0.00"

        about_eve, _ = await eventually(
            lambda: events_about(world, eve.name),
            lambda e: told(e, "EdgeNode", "Distrusted") and told(e, "Node", "Distrusted"),
        )
        assert {e["type"] for e in about_eve} == {"Warning"}
        about_job, _ = await eventually(
            lambda: events_about(world, "job"), lambda found: told(found, "InferenceJob", "DeviceDistrusted")
        )
        (accusation,) = told(about_job, "InferenceJob", "DeviceDistrusted")
        assert eve.name in accusation["message"]

        eve.honest = 1 << 30
        await world.kubectl("taint", "node", eve.name, f"{DISTRUSTED_TAINT_KEY}-")
        await eventually(
            lambda: world.get(EDGE_NODES, eve.name), lambda e: has_condition(e, "Trusted", "Unknown/Unproven"), 5
        )
        assert reason_of(operator, eve) == ""
        assert operator.engine.device_views()[eve.identity.name].schedulable
        await eventually(lambda: events_about(world, eve.name), lambda e: told(e, "EdgeNode", "Pardoned"))
        edge, _ = await eventually(
            lambda: world.get(EDGE_NODES, eve.name), lambda e: "taintedNodeUID" not in e["status"]["trust"]
        )
        assert edge["status"]["trust"]["timesCaught"] == 1, "that is not forgotten"
        assert not is_tainted(await world.get(NODES, eve.name))

        await world.kubectl("taint", "node", ada.name, f"{DISTRUSTED_TAINT_KEY}=broken:NoSchedule")
        edge, _ = await eventually(
            lambda: world.get(EDGE_NODES, ada.name), lambda e: has_condition(e, "Trusted", "False/Distrusted"), 5
        )
        assert "administrator" in edge["status"]["trust"]["distrusted"]
        assert "histories" in edge["status"]["trust"], "nobody caught it"
        assert taints(await world.get(NODES, ada.name))[DISTRUSTED_TAINT_KEY]["value"] == "broken"


async def test_restarts_neither_pardon_nor_forget(world: World) -> None:
    async with world.operator() as first:
        ada, *_ = (device(first, owner) for owner in ("ada", "bob", "cyd"))
        eve = device(first, "eve", Liar)
        await submit(world)
        await world.job_with("job", Complete="True")
        await until_caught(first, eve)
        why = reason_of(first, eve)
        known = first.engine.device_views()[ada.identity.name].trust
    async with world.operator() as second:
        eve, ada = device(second, "eve"), device(second, "ada")
        assert reason_of(second, eve) == why
        view = second.engine.device_views()[ada.identity.name]
        assert known is not None
        assert view.trust is not None
        assert view.trust.verified_items == known.verified_items > 0
        assert [h.fingerprint for h in view.trust.histories] == [h.fingerprint for h in known.histories]
    # A Node made anew says nothing of what its predecessor's taint was there for.
    await world.kubectl("delete", "node", eve.name)
    async with world.operator() as third:
        eve = device(third, "eve", boot_id="boot-2")
        assert reason_of(third, eve) == why
        await until_caught(third, eve)
    await world.kubectl("taint", "node", eve.name, f"{DISTRUSTED_TAINT_KEY}-")
    await world.kubectl("taint", "node", ada.name, f"{DISTRUSTED_TAINT_KEY}:NoSchedule")
    async with world.operator() as fourth:
        eve, ada = device(fourth, "eve", boot_id="boot-2"), device(fourth, "ada")
        assert reason_of(fourth, eve) == "", "somebody removed the taint while no operator looked"
        assert "administrator" in reason_of(fourth, ada)
        await eventually(lambda: world.get(EDGE_NODES, eve.name), lambda e: has_condition(e, "Trusted", "Unknown"), 5)


async def test_a_real_node_keeps_its_other_taints(world: World) -> None:
    real = world.name("board")
    gpu = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
    manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": real}, "spec": {"taints": [gpu]}}
    await world.kubectl("create", "--filename=-", stdin=manifest)
    async with world.operator() as operator:
        agent = device(operator, "agent", node_name=real)
        await eventually(lambda: world.get(EDGE_NODES, agent.name), lambda e: has_condition(e, "NodeBound", "True"))
        await world.kubectl("taint", "node", real, "repair=now:PreferNoSchedule")
        operator.engine.distrust(agent.identity.name, "wrong on an item")
        node, _ = await eventually(lambda: world.get(NODES, real), is_tainted, 5)
        assert taints(node).keys() >= {"gpu", "repair", DISTRUSTED_TAINT_KEY}
        assert taints(node)["gpu"] == gpu
        edge, _ = await eventually(
            lambda: world.get(EDGE_NODES, agent.name), lambda e: has_condition(e, "Trusted", "False"), 5
        )
        assert "wrong on an item" in edge["status"]["trust"]["distrusted"]
        await world.kubectl("taint", "node", real, f"{DISTRUSTED_TAINT_KEY}-")
        await eventually(lambda: asyncio.sleep(0, reason_of(operator, agent)), lambda why: why == "", 5)
        node = await world.get(NODES, real)
        assert taints(node).keys() >= {"gpu", "repair"}
        assert not is_tainted(node)


async def test_a_taint_set_meanwhile_is_not_overwritten(world: World) -> None:
    name = world.name("board")
    await world.kubectl(
        "create", "--filename=-", stdin={"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    )
    read = read_node_record(await world.get(NODES, name))
    await world.kubectl("taint", "node", name, "repair=now:NoSchedule")
    with pytest.raises(ConflictError):
        await world.cluster.patch(NODES, name, build_taint_patch(read, "wrong on an item"))
    assert taints(await world.get(NODES, name)).keys() >= {"repair"}
    read = read_node_record(await world.get(NODES, name))
    await world.cluster.patch(NODES, name, build_taint_patch(read, "wrong on an item"))
    assert taints(await world.get(NODES, name)).keys() >= {"repair", DISTRUSTED_TAINT_KEY}


async def test_a_job_that_nobody_may_check_is_stalled_until_somebody_comes(world: World) -> None:
    async with world.operator() as operator:
        device(operator, "ada")
        await submit(world)
        job = await world.job_with("job", Stalled="True/NoVerifier", Reconciling="False", Progressing="False")
        assert "another owner" in json.dumps(job["status"]["conditions"])
        device(operator, "bob")
        await world.job_with("job", Complete="True", Stalled="False")
        check_output(world)
        assert (await world.get(JOBS, "job"))["status"]["verification"]["rowsVerified"] == ITEMS
