"""Tells the cluster how things are: the status of jobs, classes and EdgeNodes, and Events where something turned.

One task follows the engine and compares, again and again, what is with what the objects say. Only differences are
written, by the lanes, so neither a slow API server nor an absent one holds up the engine or this task.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pocketgrid.api.v1alpha1.edge_node import EdgeNode
from pocketgrid.api.v1alpha1.inference_job import InferenceJob
from pocketgrid.clock import Clock
from pocketgrid.controller.client import (
    CLASSES,
    EDGE_NODES,
    JOBS,
    Cluster,
    ConflictError,
    Endpoint,
    Json,
    NotFoundError,
)
from pocketgrid.controller.device_status import absent_trust_status, earned_in, earnings_status, edge_node_status
from pocketgrid.controller.distrust import Distrust
from pocketgrid.controller.events import EventPoster, Subject
from pocketgrid.controller.lanes import Lanes
from pocketgrid.controller.manifests import build_edge_node
from pocketgrid.controller.nodes import NodeKeeper
from pocketgrid.controller.readings import rfc3339
from pocketgrid.controller.records import (
    ClassRecord,
    EdgeRecord,
    JobRecord,
    Record,
    Records,
    condition,
    lost_fields,
    merge_patch,
)
from pocketgrid.controller.status import hardware_class_status, job_status, refused_job_status
from pocketgrid.controller.transitions import DEVICE_DISTRUSTED, accusation, device_transitions, transitions
from pocketgrid.controller.ttl import expires_at
from pocketgrid.engine.engine import Engine
from pocketgrid.model.device import NodeView
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.view import DeviceView, Explanation, JobView, Presence, Stage

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often things are looked at when they change all the time."""

LOOK_SHARE = 0.1
"""Of the process's time that looking at devices may take."""

QUIET_S = 1.0
"""How often when nothing changes: some things are due by time alone."""

JOB_PERIOD_S = 1.0
REST_PERIOD_S = 2.0
"""A device that begins or ends all work is shown so, but no more often than this."""

EDGE_PERIOD_S = 10.0
LAST_SEEN_PERIOD_S = 60.0
"""How often figures are written. Conditions are written at once."""

NODE_BOUND = "NodeBound"
"""An EdgeNode's condition: whether a Node represents the device."""

ATTACHED_GRACE_S = 15.0
"""How long devices have after the operator's start until EdgeNodes left ready by a predecessor are lost."""


class Publisher:
    """Compares and writes. `look` is called again and again on the engine's loop."""

    def __init__(
        self,
        cluster: Cluster,
        engine: Engine,
        records: Records,
        nodes: NodeKeeper,
        distrust: Distrust,
        lanes: Lanes,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._engine = engine
        self._records = records
        self._nodes = nodes
        self._distrust = distrust
        self._lanes = lanes
        self._clock = clock
        self._events = EventPoster(cluster, clock)
        self._began = clock.monotonic()
        self._devices_due = self._began
        self.pruned: set[str] = set()
        """Status fields the API server has dropped: our schema there is not the one this program was made with."""

    def look(self, *, everything: bool = False) -> None:
        """Compare jobs once, and devices if it is time again, and begin the writes that are due. Never blocks.

        Comparing a device takes about 50 µs, so with thousands of them it is done the less often.
        """
        self._look_at_jobs(self._engine.job_views())
        began = self._clock.monotonic()
        if began < self._devices_due and not everything:
            return
        devices = self._engine.device_views()
        self._nodes.look(devices)
        self._distrust.look()
        self._look_at_devices(devices)
        self._look_at_classes(devices)
        ended = self._clock.monotonic()
        self._devices_due = ended + (ended - began) / LOOK_SHARE

    # ---- jobs ----

    def _look_at_jobs(self, views: Mapping[JobUid, JobView]) -> None:
        for uid, record in list(self._records.jobs.items()):
            self._look_who_was_found_out(record, views.get(uid))
            status = self._job_status(record, views.get(uid))
            if status is None or status == record.status:
                self._delete_if_expired(record)
            elif turned(record.status, status) or self._due(record, JOB_PERIOD_S):
                self._write(JOBS, record, status, record.namespace)

    def _look_who_was_found_out(self, record: JobRecord, view: JobView | None) -> None:
        if view is None or view.verification is None:
            return
        found = view.verification.taken_back.items()
        new = {device: shards for device, shards in found if device not in record.accused}
        if new and self._events.allows(record, _job(record), DEVICE_DISTRUSTED):
            self._lanes.start(f"event/{record.uid}", partial(self._accuse, record, new))

    async def _accuse(self, record: JobRecord, found: Mapping[DeviceName, int]) -> None:
        record.accused |= found.keys()
        await self._events.post(record, _job(record), accusation(found))

    def _job_status(self, record: JobRecord, view: JobView | None) -> Json | None:
        now = self._now()
        if record.over:
            # Only what the user may have edited since is acknowledged; what happened stays as it was written.
            return {**record.status, "observedGeneration": record.generation}
        if view is None:
            return refused_job_status(record.refusal, record.status, record.generation, now) if record.refusal else None
        if view.stage is Stage.REMOVED:
            return None
        return job_status(view, record.status, record.generation, now, refusal=record.refusal)

    def _delete_if_expired(self, record: JobRecord) -> None:
        expiry = expires_at(record.status, record.ttl)
        if expiry is not None and self._clock.wall() >= expiry:
            delete = partial(self._delete, record)
            if self._lanes.start(f"ttl/{record.uid}", delete):
                log.info("expired job=%s/%s", record.namespace, record.name)

    async def _delete(self, record: JobRecord) -> None:
        try:
            await self._cluster.delete(JOBS, record.name, record.namespace, uid=record.uid)
            record.ttl = None
        except (NotFoundError, ConflictError):
            record.ttl = None

    # ---- devices ----

    def _look_at_devices(self, views: Mapping[DeviceName, DeviceView]) -> None:
        for name, view in views.items():
            record = self._records.edge_nodes.get(name)
            if record is None:
                # Whoever joined has one since then. A device whose link is about to end must not get it back.
                if view.presence is Presence.CONNECTED and name not in self._records.shut_out:
                    self._lanes.start(f"edge/{name}", partial(self._create_edge_node, view))
                continue
            if record.node_name != view.identity.node_name and view.presence is Presence.CONNECTED:
                self._lanes.start(f"edge/{name}", partial(self._move_edge_node, record, view))
            status = self._edge_status(record, view)
            rested = _at_rest(record.status) != _at_rest(status) and self._due(record, REST_PERIOD_S)
            if turned(record.status, status) or rested or record.status.get("bootID") != status.get("bootID"):
                due = True
            elif {**record.status, "lastSeenTime": ""} == {**status, "lastSeenTime": ""}:
                due = self._due(record, LAST_SEEN_PERIOD_S)
            else:
                due = self._due(record, EDGE_PERIOD_S)
            if due:
                self._write(EDGE_NODES, record, status)
        distrusted = self._engine.distrusted()
        grace_is_over = self._clock.monotonic() >= self._began + ATTACHED_GRACE_S
        for device, record in self._records.edge_nodes.items():
            if device in views:
                continue
            # The engine may have forgotten it, and then counts its work from nothing when it returns.
            record.items_before = None
            status = record.status
            if grace_is_over and record.status.get("presence") not in (None, Presence.LOST.value):
                status = self._absent_status(record)
            reason = distrusted.get(DeviceName(device), "")
            if bool(reason) != bool((record.status.get("trust") or {}).get("distrusted")):
                status = absent_trust_status(status, reason, self._now())
            self._write(EDGE_NODES, record, status)

    def _edge_status(self, record: EdgeRecord, view: DeviceView) -> Json:
        deregistered = self._engine.deregistered_boot(view.name) or None
        status = edge_node_status(
            view, record.status, self._now(), generation=record.generation, deregistered_boot_id=deregistered
        )
        if record.items_before is None:
            record.items_before = int(record.status.get("itemsDone") or 0)
        status["itemsDone"] = record.items_before + view.items_done
        if record.earned_before is None:
            record.earned_before = earned_in(record.status)
        if record.earned_before or view.earnings is not None:
            status["earnings"] = earnings_status(view.earnings, record.earned_before)
        node = view.identity.node_name or view.name
        obstacle = self._nodes.obstacles.get(view.name)
        if obstacle is None and node not in self._records.nodes:
            # A boot id beside a missing Node means that the Node was deleted; this one is only about to come.
            if record.status.get("bootID") != status.get("bootID"):
                status.pop("bootID", None)
            return status
        found = Explanation("NodeFound", f"Node {node} represents the device")
        bound = self._bound(record, obstacle is None, obstacle or found)
        status["conditions"] = [*status["conditions"], bound]
        if obstacle is not None and obstacle.reason in ("NodeNotFound", "NodeConflict"):
            status.pop("bootID", None)
        return status

    def _bound(self, record: EdgeRecord, bound: bool, why: Explanation) -> Json:
        before = condition(record.status, NODE_BOUND)
        truth = "True" if bound else "False"
        same = before.get("status") == truth
        return {
            "type": NODE_BOUND,
            "status": truth,
            "reason": why.reason,
            # Never empty: API servers of 1.20 take an empty text of a CustomResourceDefinition's field for null.
            "message": why.message,
            "lastTransitionTime": before["lastTransitionTime"] if same else rfc3339(self._now()),
            "observedGeneration": record.generation,
        }

    def _absent_status(self, record: EdgeRecord) -> Json:
        """The status of a device that was attached to an operator before this one and has not come back."""
        not_ready = {
            "status": "False",
            "reason": "Lost",
            "message": "it has not come back since the operator was restarted",
            "lastTransitionTime": rfc3339(self._now()),
        }
        conditions = [
            {**entry, **not_ready} if entry["type"] == "Ready" and entry["status"] != "False" else entry
            for entry in record.status.get("conditions") or ()
        ]
        lost = {"presence": Presence.LOST.value, "leasedShards": 0, "conditions": conditions}
        return {**record.status, **lost}

    async def _create_edge_node(self, view: DeviceView) -> None:
        try:
            await self._cluster.create(EDGE_NODES, build_edge_node(view.identity))
        except ConflictError:
            return  # It is there already; the watch will show it.
        log.info("edge node created device=%s owner=%s", view.name, view.identity.owner)

    async def _move_edge_node(self, record: EdgeRecord, view: DeviceView) -> None:
        node_name = view.identity.node_name or None
        await self._cluster.patch_spec(EDGE_NODES, record.name, {"nodeName": node_name}, uid=record.uid)

    # ---- hardware classes ----

    def _look_at_classes(self, views: Mapping[DeviceName, DeviceView]) -> None:
        ready = {view.identity.node_name or str(name) for name, view in views.items() if view.schedulable}
        nodes = [record.view for record in self._records.nodes.values()]
        for record in self._records.classes.values():
            status = self._class_status(record, nodes, ready)
            if turned(record.status, status) or self._due(record, JOB_PERIOD_S):
                self._write(CLASSES, record, status)

    def _class_status(self, record: ClassRecord, nodes: list[NodeView], ready: set[str]) -> Json:
        chosen = record.hardware_class
        matching = [n.name for n in nodes if chosen is not None and chosen.includes(n.labels)]
        available = sum(name in ready for name in matching)
        now = self._now()
        return hardware_class_status(
            len(matching), available, record.status, record.generation, now, refusal=record.refusal
        )

    # ---- writing ----

    def _write(self, endpoint: Endpoint, record: Record, status: Json, namespace: str = "") -> None:
        if status == record.status:
            return
        key = f"{endpoint.plural}/{record.uid}"
        self._lanes.start(key, partial(self._write_status, endpoint, record, status, namespace))

    async def _write_status(self, endpoint: Endpoint, record: Record, status: Json, namespace: str) -> None:
        before = record.status
        patch = merge_patch(before, status)
        record.written_at = self._clock.monotonic()
        try:
            answer = await self._cluster.patch_status(endpoint, record.name, patch, namespace, uid=record.uid)
        except (NotFoundError, ConflictError):
            return  # Deleted, or made anew under its name; the watch will say so.
        self._note_lost(endpoint, record, patch, answer)
        record.see(answer)
        if isinstance(record, JobRecord):
            for turn in transitions(before, status):
                await self._events.post(record, _job(record), turn)
        if isinstance(record, EdgeRecord):
            for turn in device_transitions(before, status):
                await self._events.post(record, Subject(EdgeNode.resource.kind, record.name, record.uid), turn)
                if (node := self._records.nodes.get(record.node_name or record.name)) is not None:
                    await self._events.post(record, Subject("Node", node.name, node.uid, api_version="v1"), turn)

    def _note_lost(self, endpoint: Endpoint, record: Record, patch: Json, answer: Json) -> None:
        for path in lost_fields(patch, answer.get("status") or {}):
            known = f"{endpoint.plural}: {path}"
            if known not in self.pruned:
                self.pruned.add(known)
                log.error(
                    "the API server dropped a status field object=%s field=%s; its CustomResourceDefinition is not "
                    "the one of this version, apply the CRDs again",
                    record.name, known,
                )  # fmt: skip

    def _due(self, record: Record, period: float) -> bool:
        return self._clock.monotonic() >= record.written_at + period

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall(), UTC)


def _job(record: JobRecord) -> Subject:
    return Subject(InferenceJob.resource.kind, record.name, record.uid, record.namespace)


def turned(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a condition, the presence or whether a device is trusted differs, which is worth writing at once."""
    return _gist(old) != _gist(new)


def _gist(status: Mapping[str, Any]) -> tuple[Any, ...]:
    conditions = sorted((c.get("type"), c.get("status"), c.get("reason")) for c in status.get("conditions") or ())
    trust = status.get("trust") or {}
    # What decides after a restart whether the device is pardoned.
    pardon = trust.get("timesCaught"), trust.get("taintedNodeUID")
    return status.get("presence"), status.get("observedGeneration"), conditions, pardon


def _at_rest(status: Mapping[str, Any]) -> bool:
    return not status.get("leasedShards")
