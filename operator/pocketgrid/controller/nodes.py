"""Nodes: what the cluster says of them goes to the engine, and devices without a kubelet have theirs kept here.

For such a device the gateway plays the kubelet: it creates the Node, keeps its labels and status, and renews its
Lease. A device on a Node of its own gets that Node labelled and nothing else. What the engine knows of Nodes comes
from the watch alone, never from the answer to a write: the watch tells things in the order in which they happened.

Deleting a Node takes its device off the grid until its agent is started anew. Three things could undo that, and
are ruled out:

- a write that was under way when the Node went: updates carry the Node's uid, so they cannot create it again;
- the next look, which finds no Node: a run of an agent (its boot id) has a Node created once in its life;
- a restart of the operator: the EdgeNode records the run that was put out, and a run whose EdgeNode is there while
  its Node is not was put out while nobody watched.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pocketgrid.clock import Clock, ForwardWall, Rng
from pocketgrid.controller.client import LEASES, NODES, Cluster, ConflictError, Json, NotFoundError
from pocketgrid.controller.distrust import distrusted_taint
from pocketgrid.controller.lanes import Lanes
from pocketgrid.controller.manifests import (
    NODE_LEASE_NAMESPACE,
    NODE_LEASE_RENEWAL_S,
    build_label_apply,
    build_node,
    build_node_lease,
    build_node_status,
    build_paused_condition,
    build_ready_condition,
    node_labels,
    real_node_labels,
)
from pocketgrid.controller.records import NodeRecord, Records, read_node_record
from pocketgrid.engine.engine import Engine
from pocketgrid.errors import RefusedError
from pocketgrid.model.device import LABEL_PREFIX, DeviceFacts, DeviceIdentity, NodeView, Restraint, RestraintLevel
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.view import DeviceView, Explanation, Presence

log = logging.getLogger(__name__)

RETURN_GRACE_S = 15.0
"""How long devices have after the operator's start until Nodes left Ready by a predecessor turn NotReady."""

ECHO_S = 10.0
"""How long the watch may take to show a Node that was created."""


@dataclass(slots=True)
class _Kept:
    """What was done for one run of a device's agent.

    Attributes:
        created_at: monotonic seconds when its Node was created or first found.
        labels, status: what was last written to the Node with `uid`; None if nothing was.
        lease_due: monotonic seconds when its Lease is to be renewed.
    """

    boot_id: str
    created_at: float
    uid: str = ""
    labels: Mapping[str, str] | None = None
    status: tuple[bool, DeviceFacts, str, RestraintLevel, str] | None = None
    lease_due: float = 0.0


class NodeKeeper:
    """Owns all that is done about Nodes. Belongs on the engine's loop."""

    def __init__(
        self, cluster: Cluster, engine: Engine, records: Records, lanes: Lanes, clock: Clock, rng: Rng
    ) -> None:
        self._cluster = cluster
        self._engine = engine
        self._records = records
        self._lanes = lanes
        self._clock = clock
        self._rng = rng
        self._kept: dict[DeviceName, _Kept] = {}
        self._named: set[str] = set()
        self._stands_for: dict[str, DeviceName] = {}
        self._refused: dict[DeviceName, Explanation] = {}
        self._began = clock.monotonic()
        # A node controller takes a renewal for one only if its time is later than the last one's.
        self._renewals = ForwardWall(clock)
        self.obstacles: dict[DeviceName, Explanation] = {}
        """By device, why it has no Node that could represent it."""

    # ---- what the cluster says ----

    def seen(self, body: Mapping[str, Any]) -> None:
        """A Node appeared or changed."""
        new = read_node_record(body)
        old = self._records.nodes.get(new.name)
        if old is not None and new.version and new.version < old.version:
            return
        self._records.nodes[new.name] = new
        self._tell_engine(new)

    def gone(self, body: Mapping[str, Any]) -> None:
        """A Node was deleted."""
        name, uid = body["metadata"]["name"], body["metadata"]["uid"]
        record = self._records.nodes.get(name)
        # Of a Node that was made anew under its name, the watch may tell in either order.
        if record is None or record.uid == uid:
            self._forget(name)

    def listed(self, bodies: list[Json], version: int) -> None:
        """All Nodes there were at resource version `version`: find out what the watch has missed."""
        names = {body["metadata"]["name"] for body in bodies}
        for body in bodies:
            self.seen(body)
        for name, record in list(self._records.nodes.items()):
            if name not in names and record.version <= version:
                self._forget(name)
        for device, kept in list(self._kept.items()):
            overdue = self._clock.monotonic() > kept.created_at + ECHO_S
            if device not in self._records.nodes and device not in names and overdue:
                self._forget(device)

    def forbid_deregistered(self) -> None:
        """Before any device attaches: keep out the runs that were put out before this process began."""
        for name, edge in self._records.edge_nodes.items():
            recorded = str(edge.status.get("deregisteredBootID") or "")
            missing = not edge.node_name and name not in self._records.nodes
            # One that was put out before the run that came last is history.
            if edge.boot_id and (missing or recorded == edge.boot_id):
                self._engine.forbid_boot(DeviceName(name), edge.boot_id)
            elif recorded and not edge.boot_id:
                self._engine.forbid_boot(DeviceName(name), recorded)

    def _tell_engine(self, record: NodeRecord) -> None:
        ours = record.kept or any(label.startswith(LABEL_PREFIX) for label in record.view.labels)
        if ours or record.name in self._named:
            self._engine.set_node(record.view)

    def _forget(self, name: str) -> None:
        record = self._records.nodes.pop(name, None)
        node = DeviceName(name)
        on_it = {DeviceName(d) for d, edge in self._records.edge_nodes.items() if (edge.node_name or d) == name}
        on_it |= {d for d, view in self._engine.device_views().items() if (view.identity.node_name or d) == name}
        named = any(view.identity.node_name == name for view in self._engine.device_views().values())
        # A stranger's Node that only has a device's name says nothing of the device.
        deregister = record is None or record.kept or named
        # The engine may have been told nothing of it yet, and forgets only what it knows.
        self._engine.set_node(record.view if record is not None else NodeView(node, {}))
        self._engine.remove_node(node, deregister=deregister)
        if not deregister:
            return
        for device in on_it:
            edge = self._records.edge_nodes.get(device)
            if not self._engine.deregistered_boot(device) and edge is not None and edge.boot_id:
                self._engine.forbid_boot(device, edge.boot_id)
            self._kept.pop(device, None)
        if on_it:
            log.info("node deleted node=%s devices=%s", name, ",".join(sorted(on_it)))

    # ---- what is to be done ----

    def look(self, views: Mapping[DeviceName, DeviceView]) -> None:
        """Compare all devices with their Nodes and begin the writes that are due. Never blocks."""
        self._look_who_stands_for_what(views)
        for name, view in views.items():
            if self._engine.deregistered_boot(name) == view.identity.boot_id:
                self.obstacles[name] = Explanation(
                    "Deregistered", "its Node was deleted; restart the agent to join again"
                )
            elif view.identity.node_name:
                self._look_at_real(view)
            else:
                self._look_at_kept(view)
        self._look_at_left_over(views)

    def _look_who_stands_for_what(self, views: Mapping[DeviceName, DeviceView]) -> None:
        """Of several devices that name one Node, the one that was first goes on to label it, as long as it is there."""
        for node, device in list(self._stands_for.items()):
            view = views.get(device)
            if view is None or view.identity.node_name != node or view.presence is Presence.LOST:
                del self._stands_for[node]
        for name in sorted(views):
            node, present = views[name].identity.node_name, views[name].presence is Presence.CONNECTED
            if node and present and self._engine.deregistered_boot(name) != views[name].identity.boot_id:
                self._stands_for.setdefault(node, name)

    def _look_at_real(self, view: DeviceView) -> None:
        identity = view.identity
        if identity.node_name not in self._named:
            self._named.add(identity.node_name)
            if (known := self._records.nodes.get(identity.node_name)) is not None:
                self._tell_engine(known)
        record = self._records.nodes.get(identity.node_name)
        if record is None:
            self.obstacles[identity.name] = Explanation(
                "NodeNotFound",
                f"there is no Node {identity.node_name}; start the agent with the name of the Node it runs on, "
                "or with none",
            )
            return
        first = self._stands_for.get(record.name, identity.name)
        if first != identity.name:
            self.obstacles[identity.name] = Explanation(
                "NodeConflict",
                f"device {first} runs on Node {record.name} as well, and the Node has its labels; start this agent "
                "with the name of the Node it runs on, or with none",
            )
            return
        self._note_refusal(identity.name)
        kept = self._of_this_run(identity, record)
        labels = real_node_labels(identity, self._owner(identity))
        if kept.labels != labels:
            self._lanes.start(f"node/{record.name}", partial(self._label, identity.name, kept, record, labels))

    def _look_at_kept(self, view: DeviceView) -> None:
        identity, connected = view.identity, view.presence is Presence.CONNECTED
        record = self._records.nodes.get(identity.name)
        if record is None:
            self._note_refusal(identity.name)
            known = self._kept.get(identity.name)
            if connected and (known is None or known.boot_id != identity.boot_id):
                self._lanes.start(f"node/{identity.name}", partial(self._create, identity))
            return
        if not record.kept:
            self.obstacles[identity.name] = Explanation(
                "NodeConflict",
                f"Node {identity.name} belongs to somebody else; start the agent with that node name if it runs "
                "there, or under another device name",
            )
            return
        self._note_refusal(identity.name)
        kept = self._of_this_run(identity, record)
        labels = node_labels(identity, self._owner(identity))
        ready = view.presence is not Presence.LOST
        restraint = view.restraint
        status = (ready, identity.facts, identity.boot_id, restraint.level, restraint.reason)
        if kept.labels != labels and connected:
            self._lanes.start(f"node/{record.name}", partial(self._label, identity.name, kept, record, labels))
        # A controller manager that has missed renewals, while the API server was away, says Unknown and leaves it at
        # that. Of a device that is lost it says so as well, and is right.
        contradicted = ready and record.ready.get("status") != "True"
        if kept.status != status or contradicted:
            self._lanes.start(f"node-status/{record.name}", partial(self._report, kept, record, view, status))
        if ready and self._clock.monotonic() >= kept.lease_due:
            self._lanes.start(f"lease/{record.name}", partial(self._renew, kept, record))

    def _look_at_left_over(self, views: Mapping[DeviceName, DeviceView]) -> None:
        if self._clock.monotonic() < self._began + RETURN_GRACE_S:
            return
        # Also of a device that has moved to a Node of its own.
        represented = {name for name, view in views.items() if not view.identity.node_name}
        for name, record in self._records.nodes.items():
            if record.kept and name not in represented and record.ready.get("status") == "True":
                self._lanes.start(f"node-status/{name}", partial(self._report_absent, record))

    def _of_this_run(self, identity: DeviceIdentity, record: NodeRecord) -> _Kept:
        kept = self._kept.get(identity.name)
        if kept is None or kept.boot_id != identity.boot_id or (kept.uid and kept.uid != record.uid):
            kept = self._kept[identity.name] = _Kept(identity.boot_id, self._clock.monotonic())
        kept.uid = record.uid
        return kept

    def _note_refusal(self, device: DeviceName) -> None:
        refusal = self._refused.get(device)
        if refusal is None:
            self.obstacles.pop(device, None)
        else:
            self.obstacles[device] = refusal

    def _owner(self, identity: DeviceIdentity) -> str:
        edge = self._records.edge_nodes.get(identity.name)
        return edge.owner if edge is not None and edge.owner else identity.owner

    # ---- writes ----

    async def _create(self, identity: DeviceIdentity) -> None:
        if self._engine.deregistered_boot(identity.name) == identity.boot_id:
            return
        try:
            distrusted = self._engine.distrusted().get(identity.name)
            taints = [distrusted_taint(distrusted)] if distrusted is not None else []
            node = await self._cluster.create(NODES, build_node(identity, taints))
        except ConflictError:
            return  # It is there already; the watch will show it.
        except RefusedError as exc:
            self._refused[identity.name] = Explanation("NodeRefused", str(exc))
            raise
        self._kept[identity.name] = _Kept(identity.boot_id, self._clock.monotonic(), node["metadata"]["uid"])
        log.info("node created node=%s", identity.name)

    async def _label(self, device: DeviceName, kept: _Kept, record: NodeRecord, labels: Mapping[str, str]) -> None:
        wanted = dict(labels)
        try:
            try:
                await self._cluster.apply(NODES, build_label_apply(record.name, record.uid, wanted))
            except ConflictError as exc:
                taken = {key for key in wanted if any(f.endswith(f".labels.{key}") for f in exc.fields)}
                if not taken:
                    raise
                # An administrator gave these another value, which counts.
                wanted = {key: value for key, value in wanted.items() if key not in taken}
                await self._cluster.apply(NODES, build_label_apply(record.name, record.uid, wanted))
        except (NotFoundError, ConflictError) as exc:
            if self._is_current(record):
                raise
            log.debug("labels not needed any more node=%s cause=%s", record.name, exc)
            return
        except RefusedError as exc:
            self._refused[device] = Explanation("NodeRefused", str(exc))
            raise
        kept.labels = labels
        self._refused.pop(device, None)

    async def _report(
        self,
        kept: _Kept,
        record: NodeRecord,
        view: DeviceView,
        status: tuple[bool, DeviceFacts, str, RestraintLevel, str],
    ) -> None:
        ready = self._ready_condition(record, status[0])
        paused = self._paused_condition(record, view.restraint)
        await self._write_status(record, build_node_status(view.identity, ready, paused))
        kept.status = status

    async def _report_absent(self, record: NodeRecord) -> None:
        await self._write_status(record, {"conditions": [self._ready_condition(record, False)]})

    async def _write_status(self, record: NodeRecord, status: Json) -> None:
        answer = await self._cluster.patch_node_status(record.name, status, uid=record.uid)
        current = self._records.nodes.get(record.name)
        if current is not None and current.uid == record.uid:
            current.status = read_node_record(answer).status

    def _ready_condition(self, record: NodeRecord, ready: bool) -> Json:
        now = datetime.fromtimestamp(self._clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        before = record.ready
        same = before.get("status") == ("True" if ready else "False")
        since = before.get("lastTransitionTime") if same else None
        if ready:
            return build_ready_condition(True, "DeviceAttached", "the device is attached", since or now, now)
        message = "the device's link is gone and its leases went to other devices"
        return build_ready_condition(False, "DeviceLost", message, since or now, now)

    def _paused_condition(self, record: NodeRecord, restraint: Restraint) -> Json:
        now = datetime.fromtimestamp(self._clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        before = record.paused
        same = before.get("status") == ("True" if restraint.paused else "False")
        return build_paused_condition(restraint, (before.get("lastTransitionTime") if same else None) or now, now)

    async def _renew(self, kept: _Kept, record: NodeRecord) -> None:
        first = not kept.lease_due
        lease = build_node_lease(record.name, record.uid, self._renewals.now())
        # A restarted operator finds all its devices at once; their renewals are spread from then on.
        spread = self._rng.random() if first else 0.9 + self._rng.random() / 10
        await self._cluster.apply(LEASES, lease, NODE_LEASE_NAMESPACE, force=True)
        kept.lease_due = self._clock.monotonic() + NODE_LEASE_RENEWAL_S * spread

    def _is_current(self, record: NodeRecord) -> bool:
        known = self._records.nodes.get(record.name)
        return known is not None and known.uid == record.uid
