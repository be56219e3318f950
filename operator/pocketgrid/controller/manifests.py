"""The Kubernetes objects the operator keeps for devices, as pure functions of what is known of a device.

Who may own which field decides what each of them contains:

- The taint is in the Node as it is created and is never applied later. A Node's list of taints has one owner as a
  whole in server-side apply, so applying ours again would take away those of administrators. (The taint of a device
  that was caught comes later; `distrust` says how.)
- Labels are applied server-side and never by force: a label that an administrator has changed stays as it is. They
  are not in the Node as it is created, because for server-side apply the creator is somebody else, even under the
  same name, and would have to be overruled when a label changes.
- Status belongs to whoever plays the kubelet, which for these Nodes is us.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pocketgrid.controller.client import Json
from pocketgrid.controller.leader import micro_time
from pocketgrid.model.device import (
    DEVICE_TAINT_KEY,
    LABEL_PREFIX,
    DeviceFacts,
    DeviceIdentity,
    NodeView,
    Restraint,
    device_labels,
)
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.selectors import Taint

KEPT_ANNOTATION = LABEL_PREFIX + "kept-by"
"""Marks the Nodes that have no kubelet and are kept by the gateway; nobody else's Node is ever written to, apart
from labels."""

KEPT_BY = "pocketgrid-gateway"
NODE_LEASE_NAMESPACE = "kube-node-lease"
NODE_LEASE_SECONDS = 40
NODE_LEASE_RENEWAL_S = 10.0
"""As kubelets do: a quarter of the Lease's duration."""

PAUSED_CONDITION = LABEL_PREFIX + "Paused"
"""Beside Kubernetes' own, so it bears our name."""

OWNER_LABEL = LABEL_PREFIX + "owner"


def node_labels(identity: DeviceIdentity, owner: str) -> dict[str, str]:
    """All labels of the Node of a device without a kubelet; `owner` is what the EdgeNode says."""
    return {**device_labels(identity), OWNER_LABEL: owner}


def real_node_labels(identity: DeviceIdentity, owner: str) -> dict[str, str]:
    """The labels a device may put on the Node of somebody else: our own, nothing that kubelets set."""
    return {key: value for key, value in node_labels(identity, owner).items() if key.startswith(LABEL_PREFIX)}


def build_node(identity: DeviceIdentity, taints: Sequence[Json] = ()) -> Json:
    """A new Node for a device without a kubelet, with `taints` beside its own."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": identity.name, "annotations": {KEPT_ANNOTATION: KEPT_BY}},
        "spec": {"taints": [{"key": DEVICE_TAINT_KEY, "effect": "NoSchedule"}, *taints]},
    }


def build_label_apply(node: str, uid: str, labels: Mapping[str, str]) -> Json:
    """What is applied to an existing Node. Its uid keeps the API server from creating one that was deleted."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node, "uid": uid, "labels": dict(labels)},
    }


def build_ready_condition(ready: bool, reason: str, message: str, since: str, now: str) -> Json:
    """A Node's Ready condition; times in RFC 3339."""
    return {
        "type": "Ready",
        "status": "True" if ready else "False",
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": since,
    }


def build_paused_condition(restraint: Restraint, since: str, now: str) -> Json:
    """A Node's condition about its owner's policy; times in RFC 3339."""
    return {
        "type": PAUSED_CONDITION,
        "status": "True" if restraint.paused else "False",
        "reason": restraint.reason or "WorkAllowed",
        "message": restraint.message or "its owner lets it work",
        "lastHeartbeatTime": now,
        "lastTransitionTime": since,
    }


def build_node_status(identity: DeviceIdentity, ready: Json, paused: Json) -> Json:
    """The status of a kept Node. No room for Pods, whatever they tolerate."""
    facts = identity.facts
    amounts = {"cpu": str(facts.cores), "memory": f"{facts.memory_bytes // 1024}Ki", "pods": "0"}
    return {
        "capacity": amounts,
        "allocatable": amounts,
        "addresses": [{"type": "Hostname", "address": identity.name}],
        "nodeInfo": _node_info(facts, identity.boot_id),
        "conditions": [ready, paused],
    }


def _node_info(facts: DeviceFacts, boot_id: str) -> dict[str, str]:
    return {
        "architecture": facts.arch,
        "bootID": boot_id,
        "containerRuntimeVersion": facts.engine.replace(" ", "://", 1),
        "kernelVersion": "",
        "kubeProxyVersion": "",
        # Tools that read versions expect them to look like this.
        "kubeletVersion": f"v{facts.agent_version}+pocketgrid" if facts.agent_version else "",
        "machineID": "",
        "operatingSystem": "linux" if facts.os == "android" else facts.os,
        "osImage": facts.model_name or facts.os,
        "systemUUID": "",
    }


def build_node_lease(node: str, uid: str, wall: float) -> Json:
    """A kept Node's Lease, renewed at `wall` (seconds since the Unix epoch). It vanishes with the Node."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": node, "namespace": NODE_LEASE_NAMESPACE, "ownerReferences": [owner]},
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": NODE_LEASE_SECONDS,
            "renewTime": micro_time(wall),
        },
    }


def build_edge_node(identity: DeviceIdentity) -> Json:
    """A new EdgeNode for a device that has attached for the first time."""
    spec = {"owner": identity.owner, **({"nodeName": identity.node_name} if identity.node_name else {})}
    return {
        "apiVersion": "pocketgrid.dev/v1alpha1",
        "kind": "EdgeNode",
        "metadata": {"name": identity.name},
        "spec": spec,
    }


def read_node(body: Mapping[str, Any]) -> NodeView:
    """What of a Node bears on work."""
    metadata, spec = body["metadata"], body.get("spec") or {}
    return NodeView(
        name=DeviceName(metadata["name"]),
        labels=dict(metadata.get("labels") or {}),
        taints=tuple(Taint(t["key"], t["effect"], t.get("value") or "") for t in spec.get("taints") or ()),
        unschedulable=bool(spec.get("unschedulable")),
        uid=metadata.get("uid") or "",
    )
