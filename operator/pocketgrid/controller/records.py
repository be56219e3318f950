"""What the controller remembers of the API's objects, from lists, watches and its own writes.

News arrives on several ways and not always in order; an object that is older than what is known is ignored. That
resource versions of one object grow is what all of Kubernetes' storage does, and newer API servers promise it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketgrid.api.v1alpha1.conditions import JobCondition
from pocketgrid.controller.client import Json
from pocketgrid.controller.manifests import KEPT_ANNOTATION, KEPT_BY, PAUSED_CONDITION, read_node
from pocketgrid.model.device import HardwareClass, NodeView
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.numerics import ToleranceProfile
from pocketgrid.model.trust import TrustTier
from pocketgrid.model.view import Explanation


@dataclass(slots=True)
class Record:
    """Any object.

    Attributes:
        version: resource version as a number; 0 if it is none.
        status: as the API server has it, as far as known.
        generation: of the spec that the rest of the record was made from.
        written_at: monotonic seconds of our last write to the status.
        told: monotonic seconds of the last Event, by what it was about and why.
    """

    name: str
    uid: str
    version: int = 0
    generation: int = 0
    status: Json = field(default_factory=dict)
    written_at: float = float("-inf")
    told: dict[str, float] = field(default_factory=dict)

    def see(self, body: Mapping[str, Any]) -> bool:
        """Take in the status of a newer state of the same object; false if it is older than what is known."""
        version = version_of(body)
        if body["metadata"]["uid"] != self.uid or (version and version < self.version):
            return False
        self.version = version
        self.status = dict(body.get("status") or {})
        return True


@dataclass(slots=True)
class JobRecord(Record):
    """An InferenceJob.

    Attributes:
        first: the immutable part of the spec it was first taken with.
        refusal: why the newest spec was refused.
        ttl: seconds it is kept after its end, None for ever.
        over: it ended before this process began, and the engine need not know of it.
        accused: devices that this job has found out, and that an Event has named.
    """

    namespace: str = ""
    first: Json | None = None
    refusal: Explanation | None = None
    ttl: int | None = None
    over: bool = False
    accused: set[DeviceName] = field(default_factory=set)

    @property
    def job(self) -> JobUid:
        """Identity of the job."""
        return JobUid(self.uid)


@dataclass(slots=True)
class ClassRecord(Record):
    """A HardwareClass; one of `hardware_class` and `refusal` is there."""

    hardware_class: HardwareClass | None = None
    refusal: Explanation | None = None


@dataclass(slots=True)
class ProfileRecord(Record):
    """A ToleranceProfile; None if it cannot be read."""

    profile: ToleranceProfile | None = None


@dataclass(slots=True)
class EdgeRecord(Record):
    """An EdgeNode.

    Attributes:
        earned_before: micro-units the device had earned before this process began, as the status said then; None
            until it has been looked up.
        items_before: items committed from the device before this process began to count, as the status said then;
            None until it has been looked up.
    """

    owner: str = ""
    node_name: str = ""
    hardware_class: str = ""
    tier: TrustTier = TrustTier.PUBLIC
    key_sha256: str = ""
    revoked: bool = False
    items_before: int | None = None
    earned_before: int | None = None

    @property
    def boot_id(self) -> str:
        """The run of the agent that was last attached."""
        return str(self.status.get("bootID") or "")


@dataclass(slots=True)
class NodeRecord(Record):
    """A Node. Of its status, only the Ready condition is kept.

    Attributes:
        kept: it has no kubelet, the gateway keeps it.
        taints: as the API server has them, whole: whoever writes one has to write all.
        resource_version: of the state that all this is from.
    """

    view: NodeView = field(default_factory=lambda: NodeView(DeviceName(""), {}))
    kept: bool = False
    taints: tuple[Json, ...] = ()
    resource_version: str = ""

    @property
    def ready(self) -> Json:
        """The Ready condition, empty if there is none."""
        return condition(self.status, "Ready")

    @property
    def paused(self) -> Json:
        """The condition about the owner's policy, empty if there is none."""
        return condition(self.status, PAUSED_CONDITION)


@dataclass(slots=True)
class Records:
    """All objects the controller knows.

    Attributes:
        shut_out: devices whose EdgeNode was deleted since this process began: they have to join anew.
    """

    jobs: dict[JobUid, JobRecord] = field(default_factory=dict)
    classes: dict[str, ClassRecord] = field(default_factory=dict)
    profiles: dict[str, ProfileRecord] = field(default_factory=dict)
    edge_nodes: dict[str, EdgeRecord] = field(default_factory=dict)
    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    shut_out: set[str] = field(default_factory=set)


def read_node_record(body: Mapping[str, Any]) -> NodeRecord:
    """Remember a Node."""
    metadata = body["metadata"]
    status = body.get("status") or {}
    known = (condition(status, "Ready"), condition(status, PAUSED_CONDITION))
    return NodeRecord(
        name=metadata["name"],
        uid=metadata["uid"],
        version=version_of(body),
        status={"conditions": [each for each in known if each]},
        view=read_node(body),
        kept=(metadata.get("annotations") or {}).get(KEPT_ANNOTATION) == KEPT_BY,
        taints=tuple(dict(taint) for taint in (body.get("spec") or {}).get("taints") or ()),
        resource_version=str(metadata.get("resourceVersion") or ""),
    )


def version_of(body: Mapping[str, Any]) -> int:
    """Resource version of an object or a list; 0 if it is not a number."""
    version = str(body.get("metadata", {}).get("resourceVersion") or "")
    return int(version) if version.isdecimal() else 0


def condition(status: Mapping[str, Any], name: str) -> Json:
    """One condition of a status, empty if it is not there."""
    return next((dict(c) for c in status.get("conditions") or () if c.get("type") == name), {})


def finished(status: Mapping[str, Any]) -> Json:
    """The condition that says a job is over; empty if it is not."""
    for name in (JobCondition.COMPLETE, JobCondition.FAILED):
        found = condition(status, name)
        if found.get("status") == "True":
            return found
    return {}


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> Json:
    """The JSON merge patch (RFC 7386) that turns `old` into `new`; empty if they are the same."""
    patch: Json = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if before == value:
            continue
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            patch[key] = merge_patch(before, value)
        else:
            patch[key] = value
    return patch


def lost_fields(sent: Any, returned: Any, path: str = "status") -> list[str]:
    """Paths of what was sent and did not come back: a structural schema prunes what it does not know, silently.

    Lists are compared entry by entry; the API server does not change their order.
    """
    match sent:
        case Mapping():
            kept = returned if isinstance(returned, Mapping) else {}
            lost = []
            for key, value in sent.items():
                if value is None:
                    continue
                here = f"{path}.{key}"
                lost += lost_fields(value, kept[key], here) if key in kept else [here]
            return lost
        case list():
            kept_entries = returned if isinstance(returned, list) else []
            lost = [f"{path}[{i}]" for i in range(len(kept_entries), len(sent))]
            for i, (before, after) in enumerate(zip(sent, kept_entries, strict=False)):
                lost += lost_fields(before, after, f"{path}[{i}]")
            return lost
        case _:
            return []
