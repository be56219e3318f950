"""Nodes, Leases and EdgeNodes of devices on a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hack.controlplane import ControlPlane
from pocketgrid.controller.client import EDGE_NODES, JOBS, LEASES, NODES, NotFoundError
from pocketgrid.errors import RefusedError
from pocketgrid.model.ids import DeviceName
from tests.integration.controller_world import (
    Operator,
    World,
    a_world,
    eventually,
    has_condition,
    ready_condition,
)

pytestmark = pytest.mark.cluster

PROMISE_S = 2.0
"""Within which cordon, taints, labels and deletion of a Node act, and a lost device's Node is NotReady."""


@pytest.fixture
async def world(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(control_plane, tmp_path) as made:
        yield made


@pytest.fixture
async def operator(world: World) -> AsyncIterator[Operator]:
    async with world.operator() as running:
        yield running


async def until_schedulable(operator: Operator, name: str, wanted: bool, within: float = PROMISE_S) -> float:
    async def probe() -> bool:
        view = operator.engine.device_views().get(DeviceName(name))
        return view is not None and view.schedulable is wanted

    return (await eventually(probe, bool, within))[1]


async def attached_phone(operator: Operator, **changes):
    phone = operator.device(**changes)
    phone.attach()
    await until_schedulable(operator, phone.name, True, within=10)
    await eventually(
        lambda: operator.world.get(NODES, phone.name), lambda n: ready_condition(n).get("status") == "True"
    )
    return phone


async def test_a_device_without_kubelet_gets_node_lease_and_edge_node(operator: Operator) -> None:
    world, phone = operator.world, await attached_phone(operator)
    node = await world.get(NODES, phone.name)
    labels = node["metadata"]["labels"]
    assert labels["pocketgrid.dev/kind"] == "phone"
    assert labels["pocketgrid.dev/owner"] == world.mark
    assert labels["kubernetes.io/arch"] == "arm64"
    assert {"key": "pocketgrid.dev/device", "effect": "NoSchedule"} in node["spec"]["taints"]
    assert node["status"]["capacity"] == {"cpu": "4", "memory": "4Gi", "pods": "0"}
    assert node["status"]["nodeInfo"]["bootID"] == "boot-1"
    assert ready_condition(node)["reason"] == "DeviceAttached"

    lease, _ = await eventually(lambda: world.cluster.get(LEASES, phone.name, "kube-node-lease"), bool)
    assert lease["spec"]["leaseDurationSeconds"] == 40
    assert lease["spec"]["holderIdentity"] == phone.name
    assert lease["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]
    renewed = datetime.fromisoformat(lease["spec"]["renewTime"])
    assert abs((datetime.now(UTC) - renewed).total_seconds()) < 30

    edge, _ = await eventually(
        lambda: world.get(EDGE_NODES, phone.name),
        lambda e: has_condition(e, "NodeBound", "True") and "bootID" in e["status"],
    )
    assert edge["spec"] == {"owner": world.mark, "tier": "Public", "revoked": False}
    assert edge["status"]["presence"] == "Connected"
    assert has_condition(edge, "Ready", "True/Attached")


async def test_leases_are_renewed_only_while_the_device_is_there(operator: Operator) -> None:
    world, phone = operator.world, await attached_phone(operator)

    async def renewed() -> str:
        return (await world.cluster.get(LEASES, phone.name, "kube-node-lease"))["spec"]["renewTime"]

    first, _ = await eventually(renewed, bool)
    await eventually(renewed, lambda now: now != first, within=25)


async def test_a_lost_device_is_not_ready_within_two_seconds_and_ready_again_when_it_returns(
    operator: Operator,
) -> None:
    world, phone = operator.world, await attached_phone(operator)
    await phone.vanish()
    lost = operator.engine.device_views
    await eventually(lambda: asyncio.sleep(0, lost()[phone.identity.name].presence), lambda p: p == "Lost", 5)
    node, _ = await eventually(
        lambda: world.get(NODES, phone.name), lambda n: ready_condition(n)["status"] == "False", PROMISE_S
    )
    assert ready_condition(node)["reason"] == "DeviceLost"
    await eventually(lambda: world.get(EDGE_NODES, phone.name), lambda e: has_condition(e, "Ready", "False/Lost"), 5)
    phone.attach()
    await eventually(lambda: world.get(NODES, phone.name), lambda n: ready_condition(n)["status"] == "True", 5)


async def test_a_node_declared_unknown_while_its_device_is_there_is_ready_again(operator: Operator) -> None:
    world, phone = operator.world, await attached_phone(operator)
    node = await world.get(NODES, phone.name)
    # What a controller manager does when it has missed renewals.
    unknown = {**ready_condition(node), "status": "Unknown", "reason": "NodeStatusUnknown"}
    await world.cluster.patch_node_status(phone.name, {"conditions": [unknown]}, uid=node["metadata"]["uid"])
    await eventually(lambda: world.get(NODES, phone.name), lambda n: ready_condition(n)["status"] == "True", 5)


async def test_labels_kubernetes_does_not_take_are_reported(operator: Operator) -> None:
    world, phone = operator.world, operator.device(labels={"not a label!": "x"})
    phone.attach()
    edge, _ = await eventually(
        lambda: world.get(EDGE_NODES, phone.name), lambda e: has_condition(e, "NodeBound", "False/NodeRefused")
    )
    assert any("not a label!" in c["message"] for c in edge["status"]["conditions"] if c["type"] == "NodeBound")


async def test_cordon_acts_within_two_seconds(operator: Operator) -> None:
    world, phone = operator.world, await attached_phone(operator)
    await world.kubectl("cordon", phone.name)
    await until_schedulable(operator, phone.name, False)
    await eventually(
        lambda: world.get(EDGE_NODES, phone.name), lambda e: has_condition(e, "Ready", "True/NotSchedulable"), 5
    )
    await world.kubectl("uncordon", phone.name)
    await until_schedulable(operator, phone.name, True)


async def test_taints_and_labels_take_leases_away_within_two_seconds(operator: Operator) -> None:
    world, phone = operator.world, await attached_phone(operator, items_per_second=20.0)
    await world.kubectl("create", "--filename=-", stdin=world.job(items=2000))

    async def leased() -> int:
        return operator.engine.device_views()[phone.identity.name].leased_shards

    await eventually(leased, bool)
    await world.kubectl("taint", "node", phone.name, "repair=yes:NoExecute")
    await eventually(leased, lambda n: n == 0, PROMISE_S)
    await world.job_with("job", Placed="False/NoReadyNodes")
    await world.kubectl("taint", "node", phone.name, "repair-")
    await eventually(leased, bool, 5)
    await world.kubectl("label", "node", phone.name, "pocketgrid.dev/owner=nobody", "--overwrite")
    await eventually(leased, lambda n: n == 0, PROMISE_S)


async def test_what_an_administrator_set_survives_our_writes(operator: Operator) -> None:
    world, phone = operator.world, await attached_phone(operator)
    await world.kubectl("cordon", phone.name)
    await world.kubectl("taint", "node", phone.name, "repair=yes:NoSchedule")
    await world.kubectl("label", "node", phone.name, "rack=7")
    await world.kubectl("label", "node", phone.name, "pocketgrid.dev/kind=tablet", "--overwrite")
    await phone.vanish()
    await eventually(lambda: world.get(NODES, phone.name), lambda n: ready_condition(n)["status"] == "False", 5)
    phone.identity = replace(phone.identity, boot_id="boot-2", labels={"site": "attic"})
    phone.attach()
    # The new label shows that the labels were applied again.
    node, _ = await eventually(
        lambda: world.get(NODES, phone.name),
        lambda n: n["metadata"]["labels"].get("site") == "attic" and ready_condition(n)["status"] == "True",
    )
    assert node["spec"]["unschedulable"] is True
    assert {t["key"] for t in node["spec"]["taints"]} >= {"repair", "pocketgrid.dev/device"}
    assert node["metadata"]["labels"]["rack"] == "7"
    assert node["metadata"]["labels"]["pocketgrid.dev/kind"] == "tablet"


async def test_an_edited_owner_reaches_the_node(operator: Operator) -> None:
    world, phone = operator.world, await attached_phone(operator)
    await eventually(lambda: world.get(EDGE_NODES, phone.name), bool)
    await world.kubectl("patch", "edgenode", phone.name, "--type=merge", '--patch={"spec":{"owner":"bob"}}')
    await eventually(
        lambda: world.get(NODES, phone.name), lambda n: n["metadata"]["labels"]["pocketgrid.dev/owner"] == "bob", 5
    )


async def test_deleting_the_node_puts_the_device_out_until_its_agent_is_started_anew(operator: Operator) -> None:
    world, phone = operator.world, await attached_phone(operator)
    await eventually(lambda: world.get(EDGE_NODES, phone.name), lambda e: e.get("status", {}).get("bootID") == "boot-1")
    await world.kubectl("delete", "node", phone.name, "--wait=false")

    async def closed() -> bool:
        return phone.closed == ("Deregistered", False)

    await eventually(closed, bool, PROMISE_S)
    with pytest.raises(RefusedError, match="restart the agent"):
        phone.attach()
    edge, _ = await eventually(
        lambda: world.get(EDGE_NODES, phone.name),
        lambda e: e.get("status", {}).get("deregisteredBootID") == "boot-1",
        5,
    )
    with pytest.raises(NotFoundError):
        await world.get(NODES, phone.name)

    phone.identity = replace(phone.identity, boot_id="boot-2")
    phone.attach()
    await until_schedulable(operator, phone.name, True, within=10)
    node = await world.get(NODES, phone.name)
    assert node["metadata"]["name"] == phone.name
    assert edge["metadata"]["uid"] == (await world.get(EDGE_NODES, phone.name))["metadata"]["uid"]


@pytest.mark.parametrize("while_stopped", [False, True], ids=["deleted before the restart", "deleted during it"])
async def test_a_restarted_operator_remembers_who_was_put_out(world: World, while_stopped: bool) -> None:
    async with world.operator() as first:
        phone = await attached_phone(first)
        await eventually(
            lambda: world.get(EDGE_NODES, phone.name), lambda e: e.get("status", {}).get("bootID") == "boot-1"
        )
        if not while_stopped:
            await world.kubectl("delete", "node", phone.name, "--wait=false")
            await eventually(
                lambda: world.get(EDGE_NODES, phone.name),
                lambda e: e.get("status", {}).get("deregisteredBootID") == "boot-1",
            )
    if while_stopped:
        await world.kubectl("delete", "node", phone.name, "--wait=false")
    async with world.operator() as second:
        again = second.device()
        with pytest.raises(RefusedError, match="restart the agent"):
            again.attach()
        again.identity = replace(again.identity, boot_id="boot-2")
        again.attach()
        await until_schedulable(second, again.name, True, within=10)


async def test_a_node_deleted_while_its_device_is_away_stays_deleted(operator: Operator) -> None:
    world, phone = operator.world, await attached_phone(operator)
    await phone.vanish()
    await eventually(lambda: world.get(NODES, phone.name), lambda n: ready_condition(n)["status"] == "False", 5)
    await world.kubectl("delete", "node", phone.name, "--wait=false")

    async def put_out() -> bool:
        return operator.engine.deregistered_boot(phone.identity.name) == "boot-1"

    await eventually(put_out, bool, PROMISE_S)
    with pytest.raises(RefusedError):
        phone.attach()


async def test_a_real_node_is_labelled_and_never_taken_over(operator: Operator) -> None:
    world = operator.world
    real = world.name("board")
    manifest = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": real, "labels": {"kubernetes.io/arch": "riscv64"}},
    }
    await world.kubectl("create", "--filename=-", stdin=manifest)
    before = await world.get(NODES, real)
    agent = operator.device("agent", node_name=real)
    agent.attach()
    node, _ = await eventually(
        lambda: world.get(NODES, real), lambda n: "pocketgrid.dev/kind" in n["metadata"]["labels"]
    )
    await until_schedulable(operator, agent.name, True, within=10)
    assert node["metadata"]["labels"]["kubernetes.io/arch"] == "riscv64"
    assert node["spec"] == before["spec"]
    assert node.get("status", {}).get("conditions") == before.get("status", {}).get("conditions")
    assert "annotations" not in node["metadata"]
    edge, _ = await eventually(
        lambda: world.get(EDGE_NODES, agent.name), lambda e: has_condition(e, "NodeBound", "True")
    )
    assert edge["spec"]["nodeName"] == real
    for name in (real, agent.name):
        with pytest.raises(NotFoundError):
            await world.cluster.get(LEASES, name, "kube-node-lease")
    with pytest.raises(NotFoundError):
        await world.get(NODES, agent.name)


async def test_of_two_devices_that_name_one_node_the_first_labels_it(operator: Operator) -> None:
    world = operator.world
    real = world.name("board")
    await world.kubectl(
        "create", "--filename=-", stdin={"apiVersion": "v1", "kind": "Node", "metadata": {"name": real}}
    )
    first, second = (operator.device(name, node_name=real, owner=name) for name in ("one", "another"))
    first.attach()

    async def owner() -> str:
        return (await world.get(NODES, real))["metadata"].get("labels", {}).get("pocketgrid.dev/owner", "")

    await eventually(owner, lambda name: name == "one")
    second.attach()
    edge, _ = await eventually(
        lambda: world.get(EDGE_NODES, second.name), lambda e: has_condition(e, "NodeBound", "False/NodeConflict")
    )
    said = next(c["message"] for c in edge["status"]["conditions"] if c["type"] == "NodeBound")
    assert first.name in said
    assert real in said
    assert await owner() == "one"
    assert has_condition(await world.get(EDGE_NODES, first.name), "NodeBound", "True")
    await first.vanish(forget=True)
    await eventually(owner, lambda name: name == "another")
    await eventually(lambda: world.get(EDGE_NODES, second.name), lambda e: has_condition(e, "NodeBound", "True"))


async def test_a_name_longer_than_a_label_gets_a_node_all_the_same(operator: Operator) -> None:
    world = operator.world
    phone = operator.device(f"{'phone-of-somebody-who-likes-long-names-' * 2}x")
    assert len(phone.name) > 63
    phone.attach()
    node, _ = await eventually(
        lambda: world.get(NODES, phone.name), lambda n: "kubernetes.io/hostname" in n["metadata"].get("labels", {})
    )
    assert phone.name.startswith(node["metadata"]["labels"]["kubernetes.io/hostname"])
    await eventually(lambda: world.get(EDGE_NODES, phone.name), lambda e: has_condition(e, "NodeBound", "True"))
    await eventually(lambda: world.get(NODES, phone.name), lambda n: ready_condition(n).get("status") == "True")
    await until_schedulable(operator, phone.name, True, within=5)


async def test_a_missing_real_node_is_reported_and_not_created(operator: Operator) -> None:
    world = operator.world
    agent = operator.device("agent", node_name=world.name("nowhere"))
    agent.attach()
    edge, _ = await eventually(
        lambda: world.get(EDGE_NODES, agent.name), lambda e: has_condition(e, "NodeBound", "False/NodeNotFound")
    )
    assert any(world.name("nowhere") in c["message"] for c in edge["status"]["conditions"] if c["type"] == "NodeBound")
    with pytest.raises(NotFoundError):
        await world.get(NODES, world.name("nowhere"))
    manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": world.name("nowhere")}}
    await world.kubectl("create", "--filename=-", stdin=manifest)
    await until_schedulable(operator, agent.name, True, within=5)


async def test_somebody_elses_node_of_the_same_name_is_left_alone(operator: Operator) -> None:
    world, phone = operator.world, operator.device()
    await world.kubectl(
        "create", "--filename=-", stdin={"apiVersion": "v1", "kind": "Node", "metadata": {"name": phone.name}}
    )
    phone.attach()
    await eventually(
        lambda: world.get(EDGE_NODES, phone.name), lambda e: has_condition(e, "NodeBound", "False/NodeConflict")
    )
    node = await world.get(NODES, phone.name)
    assert not node["metadata"].get("labels")
    assert not operator.engine.device_views()[phone.identity.name].schedulable
    await world.kubectl("delete", "node", phone.name, "--wait=false")
    await until_schedulable(operator, phone.name, True, within=10)


async def test_devices_that_do_not_return_after_a_restart_are_marked_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.operator() as first:
        phone = await attached_phone(first)
        await eventually(lambda: world.get(EDGE_NODES, phone.name), lambda e: has_condition(e, "Ready", "True"))
        first.task.cancel()  # As good as SIGKILL: nothing is written any more.
        first.failure_expected = True
        await asyncio.wait({first.task})
    monkeypatch.setattr("pocketgrid.controller.nodes.RETURN_GRACE_S", 0.5)
    monkeypatch.setattr("pocketgrid.controller.publisher.ATTACHED_GRACE_S", 0.5)
    async with world.operator():
        await eventually(lambda: world.get(NODES, phone.name), lambda n: ready_condition(n)["status"] == "False")
        await eventually(lambda: world.get(EDGE_NODES, phone.name), lambda e: has_condition(e, "Ready", "False/Lost"))


async def test_hardware_classes_count_their_nodes(operator: Operator) -> None:
    world, name = operator.world, operator.world.name("phones")
    spec = {"nodeSelector": {"matchLabels": {"pocketgrid.dev/owner": world.mark}}}
    body = {"apiVersion": "pocketgrid.dev/v1alpha1", "kind": "HardwareClass", "metadata": {"name": name}, "spec": spec}
    await world.kubectl("create", "--filename=-", stdin=body)
    await world.kubectl("wait", f"hardwareclass/{name}", "--for=condition=Ready=false", "--timeout=10s")
    phone = await attached_phone(operator)
    await world.kubectl("wait", f"hardwareclass/{name}", "--for=condition=Ready", "--timeout=10s")
    await world.kubectl("cordon", phone.name)
    await world.kubectl("wait", f"hardwareclass/{name}", "--for=condition=Ready=false", "--timeout=10s")
    await world.kubectl("create", "--filename=-", stdin=world.job(placement={"hardwareClasses": [name]}))
    await world.job_with("job", Accepted="True")
    await world.kubectl("delete", "hardwareclass", name)
    assert (await world.get(JOBS, "job"))["metadata"]["name"] == "job"


async def test_a_deletion_the_watch_has_missed_is_found_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketgrid.controller.run.RESYNC_S", 0.5)
    monkeypatch.setattr("pocketgrid.controller.nodes.NodeKeeper.gone", lambda self, body: None)
    async with world.operator() as operator:
        phone = await attached_phone(operator)
        await world.kubectl("delete", "node", phone.name, "--wait=false")

        async def put_out() -> bool:
            return operator.engine.deregistered_boot(phone.identity.name) == "boot-1"

        await eventually(put_out, bool, 5)
        with pytest.raises(NotFoundError):
            await world.get(NODES, phone.name)
