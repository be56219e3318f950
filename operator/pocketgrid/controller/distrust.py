"""What was found out about a device outlives the operator, and shows on its Node.

**The taint.** The Node of a distrusted device carries `pocketgrid.dev/distrusted`. The engine believes a device or not
as the watch shows that taint, so an administrator decides with `kubectl taint`: removing it pardons, setting it
distrusts. Here it is put on Nodes that never had it. A Node's taints have one owner as a whole in server-side apply;
the patch therefore carries all that were there together with the resource version they were read at, and whoever
changes them meanwhile makes it fail and be tried again.

**After a restart.** The EdgeNode's status has what was known of the device. It says that the device is distrusted, and
which Node (uid) was seen with the taint: if that very Node has it no more, somebody removed it while no operator
looked, and the device is pardoned. A Node that never had it, such as one made anew, pardons nobody: the operator may
have died between two writes. A device cannot write either object.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from pocketgrid.controller.client import NODES, Cluster, ConflictError, Json, NotFoundError
from pocketgrid.controller.lanes import Lanes
from pocketgrid.controller.records import EdgeRecord, NodeRecord, Records
from pocketgrid.engine.engine import Engine
from pocketgrid.engine.fleet import TAINTED
from pocketgrid.model.device import DISTRUSTED_TAINT_KEY
from pocketgrid.model.ids import DeviceName

log = logging.getLogger(__name__)

BY_RESULTS = "WrongResults"
BY_ADMINISTRATOR = "ByAdministrator"
"""Values of the taint."""


def distrusted_taint(reason: str) -> Json:
    """The taint of a device that is distrusted for `reason`."""
    value = BY_ADMINISTRATOR if reason == TAINTED else BY_RESULTS
    return {"key": DISTRUSTED_TAINT_KEY, "value": value, "effect": "NoSchedule"}


def build_taint_patch(record: NodeRecord, reason: str) -> Json:
    """The merge patch that adds the taint to what `record` had, and fails if it is not so any more."""
    return {
        "metadata": {"uid": record.uid, "resourceVersion": record.resource_version},
        "spec": {"taints": [*record.taints, distrusted_taint(reason)]},
    }


class Distrust:
    """Carries distrust from the engine to Nodes, and from EdgeNodes to the engine. Belongs on the engine's loop."""

    def __init__(self, cluster: Cluster, engine: Engine, records: Records, lanes: Lanes) -> None:
        self._cluster = cluster
        self._engine = engine
        self._records = records
        self._lanes = lanes

    def restore(self) -> None:
        """Before any device attaches and any job begins: what predecessors knew of devices."""
        for name, edge in self._records.edge_nodes.items():
            trust = edge.status.get("trust") or {}
            if not trust:
                continue
            try:
                self._engine.restore_trust(DeviceName(name), read_reputation(trust, edge))
            except (ValueError, TypeError, KeyError) as exc:
                log.error("what was known of a device is lost device=%s cause=%s", name, exc)
            if reason := trust.get("distrusted"):
                node = self._records.nodes.get(edge.node_name or name)
                tainted = str(trust.get("taintedNodeUID") or "")
                if node is None or node.view.distrusted or node.uid != tainted:
                    self._engine.distrust(DeviceName(name), str(reason), edge.node_name)
                else:
                    log.info("pardoned while no operator looked device=%s node=%s", name, node.name)

    def look(self) -> None:
        """Begin the writes that are due. Never blocks."""
        for name, reason in self._engine.distrusted().items():
            edge = self._records.edge_nodes.get(name)
            node = self._records.nodes.get((edge.node_name if edge is not None else "") or name)
            # A stranger's Node that only has the device's name says nothing of it.
            ours = node is not None and (node.kept or (edge is not None and edge.node_name == node.name))
            if node is not None and ours and not node.view.distrusted:
                self._lanes.start(f"taint/{node.name}", partial(self._taint, node, reason))

    async def _taint(self, record: NodeRecord, reason: str) -> None:
        try:
            await self._cluster.patch(NODES, record.name, build_taint_patch(record, reason))
        except (ConflictError, NotFoundError) as exc:
            # The watch will show what has changed, and there will be another look.
            log.debug("taint to be tried again node=%s cause=%s", record.name, exc)
            return
        log.info("tainted node=%s cause=%s", record.name, reason)


def read_reputation(trust: Mapping[str, Any], edge: EdgeRecord) -> dict[str, object]:
    """`status.trust` as `Reputations.from_dict` reads it. Whose the device is, the EdgeNode's spec says.

    Raises:
        ValueError, KeyError, TypeError: it is not what `device_status` writes.
    """
    return {
        "owner": edge.owner,
        "tier": edge.tier.name,
        "caught": trust.get("timesCaught", 0),
        "proven": trust.get("proven") is True,
        "since": _seconds(trust.get("since")),
        "caughtAt": _seconds(trust.get("caughtTime")),
        "histories": [
            {
                "fingerprint": entry["fingerprint"],
                **{key: float(entry[key]) for key in ("confirmed", "refuted", "suspicion", "consecutive")},
                "at": _seconds(entry["time"]),
            }
            for entry in trust.get("histories") or ()
        ],
    }


def _seconds(moment: str | None) -> float:
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
