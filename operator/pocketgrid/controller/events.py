"""Kubernetes Events: a courtesy to people who look. Conditions are the truth; an Event that cannot be posted is let go.

The same Event about the same object is posted at most so often: devices come and go, and conditions tell of each time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from pocketgrid.api.v1alpha1.meta import API_VERSION
from pocketgrid.clock import Clock
from pocketgrid.controller.client import EVENTS, Cluster, Json
from pocketgrid.controller.readings import cut_bytes, rfc3339
from pocketgrid.controller.records import Record
from pocketgrid.controller.transitions import Transition
from pocketgrid.errors import PeerError

log = logging.getLogger(__name__)

EVENT_PERIOD_S = 60.0

MAX_MESSAGE_BYTES = 1024
"""What API servers take."""

CLUSTER_SCOPED = "default"
"""Namespace of Events about objects that have none."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What an Event is about."""

    kind: str
    name: str
    uid: str
    namespace: str = ""
    api_version: str = API_VERSION


class EventPoster:
    """Posts Events."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster = cluster
        self._clock = clock

    def allows(self, record: Record, subject: Subject, reason: str) -> bool:
        """Whether an Event for this reason may be posted now; `record` remembers when the last was."""
        last = record.told.get(f"{subject.kind}/{reason}", float("-inf"))
        return self._clock.monotonic() >= last + EVENT_PERIOD_S

    async def post(self, record: Record, subject: Subject, turn: Transition) -> None:
        """Tell of `turn`, unless the same was told a short while ago."""
        if not self.allows(record, subject, turn.reason):
            return
        record.told[f"{subject.kind}/{turn.reason}"] = self._clock.monotonic()
        now = rfc3339(datetime.fromtimestamp(self._clock.wall(), UTC))
        event = build_event(subject, turn, now)
        try:
            await self._cluster.create(EVENTS, event, event["metadata"]["namespace"])
        except PeerError as exc:
            log.info("event not posted object=%s reason=%s cause=%s", subject.name, turn.reason, exc)


def build_event(subject: Subject, turn: Transition, now: str) -> Json:
    """The Event object."""
    about = {"apiVersion": subject.api_version, "kind": subject.kind, "name": subject.name, "uid": subject.uid}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "generateName": f"{subject.name[:200]}.",
            "namespace": subject.namespace or CLUSTER_SCOPED,
        },
        "involvedObject": {**about, **({"namespace": subject.namespace} if subject.namespace else {})},
        "type": "Warning" if turn.warning else "Normal",
        "reason": turn.reason,
        "message": cut_bytes(turn.message, MAX_MESSAGE_BYTES),
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": "pocketgrid"},
        "reportingComponent": "pocketgrid.dev/operator",
        "reportingInstance": "operator",
    }
