"""The objects kept for devices, as they are sent to the API server."""

from dataclasses import replace

from pocketgrid.controller.manifests import (
    KEPT_ANNOTATION,
    build_edge_node,
    build_label_apply,
    build_node,
    build_node_lease,
    build_node_status,
    build_paused_condition,
    build_ready_condition,
    node_labels,
    read_node,
    real_node_labels,
)
from pocketgrid.controller.records import read_node_record
from pocketgrid.model.device import (
    DEVICE_TAINT_KEY,
    Credits,
    DeviceFacts,
    DeviceIdentity,
    DeviceKind,
    Restraint,
    RestraintLevel,
)
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.selectors import Taint

FACTS = DeviceFacts(
    DeviceKind.PHONE,
    "arm64",
    "android",
    8,
    6 << 30,
    engine="onnxruntime 1.32.0",
    agent_version="0.1.0",
    model_name="P7",
)
PHONE = DeviceIdentity(
    DeviceName("phone-1"),
    "boot-1",
    "alice",
    FACTS,
    2,
    Credits(8, 1 << 20),
    labels={"pocketgrid.dev/site": "attic", "rack": "7"},
)


def test_a_new_node_keeps_pods_away_and_says_who_keeps_it() -> None:
    node = build_node(PHONE)
    assert node["spec"]["taints"] == [{"key": DEVICE_TAINT_KEY, "effect": "NoSchedule"}]
    assert node["metadata"]["annotations"] == {KEPT_ANNOTATION: "pocketgrid-gateway"}


def test_a_new_node_has_no_labels_because_its_creator_would_own_them() -> None:
    assert "labels" not in build_node(PHONE)["metadata"]


def test_labels_are_applied_with_the_uid_and_nothing_else() -> None:
    applied = build_label_apply("phone-1", "u1", {"a": "b"})
    assert applied["metadata"] == {"name": "phone-1", "uid": "u1", "labels": {"a": "b"}}
    assert set(applied) == {"apiVersion", "kind", "metadata"}


def test_the_edge_nodes_owner_counts_and_android_is_linux_for_kubernetes() -> None:
    labels = node_labels(PHONE, "bob")
    assert labels["pocketgrid.dev/owner"] == "bob"
    assert labels["kubernetes.io/os"] == "linux"
    assert labels["pocketgrid.dev/os"] == "android"
    assert labels["rack"] == "7"


def test_on_a_real_node_only_our_own_labels_are_touched() -> None:
    labels = real_node_labels(PHONE, "alice")
    assert labels["pocketgrid.dev/site"] == "attic"
    assert all(key.startswith("pocketgrid.dev/") for key in labels)


def test_a_kept_nodes_status_has_room_for_no_pod() -> None:
    ready = build_ready_condition(True, "DeviceAttached", "there", "t0", "t1")
    paused = build_paused_condition(Restraint(RestraintLevel.PAUSED, "BatteryLow", "battery at 9 %"), "t0", "t1")
    status = build_node_status(PHONE, ready, paused)
    assert status["capacity"] == status["allocatable"] == {"cpu": "8", "memory": "6291456Ki", "pods": "0"}
    assert status["conditions"] == [ready, paused]
    assert (paused["type"], paused["status"], paused["reason"]) == ("pocketgrid.dev/Paused", "True", "BatteryLow")
    assert build_paused_condition(Restraint(), "t0", "t1")["reason"] == "WorkAllowed"
    assert status["nodeInfo"]["kubeletVersion"] == "v0.1.0+pocketgrid"
    assert status["nodeInfo"]["operatingSystem"] == "linux"
    assert all(isinstance(value, str) for value in status["nodeInfo"].values())
    assert (ready["status"], ready["lastTransitionTime"], ready["lastHeartbeatTime"]) == ("True", "t0", "t1")


def test_a_lease_goes_with_its_node() -> None:
    lease = build_node_lease("phone-1", "u1", 1_700_000_000.25)
    assert lease["metadata"]["namespace"] == "kube-node-lease"
    assert lease["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "phone-1", "uid": "u1"}
    ]
    assert lease["spec"] == {
        "holderIdentity": "phone-1",
        "leaseDurationSeconds": 40,
        "renewTime": "2023-11-14T22:13:20.250000Z",
    }


def test_an_edge_node_names_a_node_only_if_the_device_has_one() -> None:
    assert build_edge_node(PHONE)["spec"] == {"owner": "alice"}
    assert build_edge_node(replace(PHONE, node_name="k3s-1"))["spec"] == {"owner": "alice", "nodeName": "k3s-1"}


def test_what_is_read_of_a_node_is_what_bears_on_work() -> None:
    body = {
        "metadata": {"name": "n", "uid": "u", "resourceVersion": "12", "labels": {"a": "b"}},
        "spec": {"unschedulable": True, "taints": [{"key": "k", "effect": "NoExecute", "timeAdded": "now"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}]},
    }
    view = read_node(body)
    assert (view.name, view.labels, view.taints, view.unschedulable) == (
        "n",
        {"a": "b"},
        (Taint("k", "NoExecute"),),
        True,
    )
    record = read_node_record(body)
    assert (record.version, record.kept, record.ready) == (12, False, {"type": "Ready", "status": "True"})
    bare = read_node({"metadata": {"name": "n", "uid": "u"}})
    assert (bare.labels, bare.taints, bare.unschedulable) == ({}, (), False)
