"""The devices, as the engine knows them: who is attached, how their Nodes look, what they can do how fast."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from pocketgrid.engine.links import DeviceLink, HeldAttempt
from pocketgrid.engine.watched import Watched
from pocketgrid.metering.prices import unit_price
from pocketgrid.model.device import (
    AgentFeature,
    DeviceIdentity,
    HardwareClass,
    NodeView,
    Restraint,
    Vitals,
    device_labels,
)
from pocketgrid.model.ids import DeviceName, JobUid, ModelDigest
from pocketgrid.model.job import JobSpec, Placement
from pocketgrid.model.numerics import ToleranceProfile, numerics_class
from pocketgrid.model.trust import TrustTier
from pocketgrid.model.view import Presence
from pocketgrid.planning.eligibility import Eligibility, classes_of, judge_eligibility
from pocketgrid.planning.speed import SpeedEstimate
from pocketgrid.storage.logentries import Worker

SETBACK_FIRST_S = 0.5
SETBACK_LAST_S = 60.0
"""A device that fails at a job's shards gets others only after a pause, doubling from the first to the last: were it
served at once, one sick device with an empty queue would take every shard before the healthy ones could."""


TAINTED = "its Node was tainted by an administrator"
"""Why a device is distrusted that nobody caught."""

_PLANNED_BY = frozenset({"presence", "draining", "restraint", "link", "distrusted", "tier"})
"""Attributes of a record that planning asks for, beside those that watch themselves."""


class OrderState(Enum):
    """How far a device is with a job's model."""

    ORDERED = "ordered"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class Order:
    """A work order given to a device in its present session.

    Attributes:
        due: while ORDERED, monotonic seconds after which the device is no longer waited for.
        retry_at: if FAILED, monotonic seconds when it may be tried again.
    """

    state: OrderState
    retry_at: float = 0.0
    message: str = ""
    due: float = math.inf


@dataclass(frozen=True, slots=True)
class Setback:
    """Failures of a device at a job since its last success, until when it is left alone, and why."""

    times: int
    until: float
    why: str


@dataclass(frozen=True, slots=True)
class Distrust:
    """Why nothing of a device is believed, and the Node it was on then: whoever mends that one pardons the device."""

    reason: str
    node: DeviceName


@dataclass(slots=True)
class DeviceRecord:
    """Everything about one device.

    Attributes:
        changed_at: monotonic seconds of the last change of presence.
        progress_at: by job, monotonic seconds when a result last arrived; bounds when the next shard was begun.
        feeding: held while a lease is being sent, so that leases arrive in the order they were cut.
        held: what it said it has of jobs the engine does not know yet.
        distrusted: why nothing of it is believed; empty if that is not so.
        tier: whose it is, as far as the cluster has said.
        touched: gets the device's name whenever something changes that planning asks of it.
    """

    identity: DeviceIdentity
    touched: set[DeviceName] = field(default_factory=set, repr=False)
    link: DeviceLink | None = None
    presence: Presence = Presence.LOST
    changed_at: float = 0.0
    last_seen: float = 0.0
    vitals: Vitals = field(default_factory=Vitals)
    draining: bool = False
    restraint: Restraint = field(default_factory=Restraint)
    orders: Watched[JobUid, Order] = field(init=False)
    speeds: Watched[JobUid, SpeedEstimate] = field(init=False)
    model_speeds: dict[ModelDigest, float] = field(default_factory=dict)
    peak_speeds: dict[ModelDigest, float] = field(default_factory=dict)
    progress_at: dict[JobUid, float] = field(default_factory=dict)
    held: dict[JobUid, list[HeldAttempt]] = field(default_factory=dict)
    items_done: int = 0
    tier: TrustTier = TrustTier.PUBLIC
    distrusted: str = ""
    setbacks: Watched[JobUid, Setback] = field(init=False)
    feeding: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.orders = Watched(self.touched, self.name)
        self.speeds = Watched(self.touched, self.name)
        self.setbacks = Watched(self.touched, self.name)

    def __setattr__(self, name: str, value: object) -> None:
        # Not through super(): a class with slots is made anew by its decorator, and would not find itself.
        object.__setattr__(self, name, value)
        if name in _PLANNED_BY:
            self.touched.add(self.identity.name)

    @property
    def name(self) -> DeviceName:
        """Name of the device."""
        return self.identity.name

    @property
    def wants_work(self) -> bool:
        """Whether the device gets new work: it neither leaves, nor is paused by its owner, nor was caught lying."""
        return not self.draining and not self.restraint.paused and not self.distrusted

    def learn_model_speed(self, model: ModelDigest, items_per_second: float) -> None:
        """The device runs `model` at this speed now, all slots together."""
        self.model_speeds[model] = items_per_second
        self.peak_speeds[model] = max(items_per_second, self.peak_speeds.get(model, 0.0))

    def ready_for(self, job: JobUid) -> bool:
        """Whether the device has the job's model loaded."""
        order = self.orders.get(job)
        return order is not None and order.state is OrderState.READY

    def forget_job(self, job: JobUid) -> None:
        """The job is over; what the device can do with its model stays known."""
        for known in (self.orders, self.speeds, self.progress_at, self.held, self.setbacks):
            known.pop(job, None)

    def is_barred_from(self, job: JobUid, now: float) -> bool:
        """Whether the device cannot load the job's model, or failed at its work a short while ago."""
        order = self.orders.get(job)
        if order is not None and order.state is OrderState.FAILED and now < order.retry_at:
            return True
        if order is not None and order.state is OrderState.ORDERED and now >= order.due:
            return True
        setback = self.setbacks.get(job)
        return setback is not None and now < setback.until

    def set_back(self, job: JobUid, now: float, why: str) -> None:
        """The device failed at a shard of `job`: leave it alone with that job for a while, longer each time."""
        known = self.setbacks.get(job)
        if known is not None and now < known.until:
            # The rest of the same lease failing too is the same failure.
            return
        times = known.times + 1 if known is not None else 1
        pause = min(SETBACK_FIRST_S * 2.0 ** (times - 1), SETBACK_LAST_S)
        self.setbacks[job] = Setback(times, now + pause, why)


class Fleet:
    """Devices, Nodes and hardware classes, and which may work for what.

    Args:
        nodes_from_facts: there is no cluster: a device's Node is made from what it says of itself, and all are ours.
    """

    def __init__(self, *, nodes_from_facts: bool) -> None:
        self._nodes_from_facts = nodes_from_facts
        self.devices: dict[DeviceName, DeviceRecord] = {}
        self.nodes: dict[DeviceName, NodeView] = {}
        self.classes: dict[str, HardwareClass] = {}
        self._node_classes: dict[DeviceName, tuple[str, ...]] = {}
        self.deregistered: dict[DeviceName, str] = {}
        self._tiers: dict[DeviceName, TrustTier] = {}
        self.profiles: tuple[ToleranceProfile, ...] = ()
        self.distrusted: dict[DeviceName, Distrust] = {}
        """Devices of which nothing is believed, attached or not."""
        self.touched: set[DeviceName] = set()
        """Devices whose record has changed in a way that matters to planning; whoever derives from it empties it."""
        self.classes_changed = False
        self._guests: dict[DeviceName, set[DeviceName]] = {}

    def node_of(self, record: DeviceRecord) -> NodeView | None:
        """The Node a device runs on or is represented by; None until the cluster has shown it."""
        return self.nodes.get(DeviceName(record.identity.node_name or record.name))

    def classes_of(self, record: DeviceRecord) -> tuple[str, ...]:
        """Hardware classes of a device, sorted."""
        node = self.node_of(record)
        if node is None:
            return ()
        known = self._node_classes.get(node.name)
        if known is None:
            known = self._node_classes[node.name] = classes_of(node, self.classes.values())
        return known

    def worker(self, name: DeviceName, spec: JobSpec) -> Worker:
        """A device as it works for a job now, and what it earns for an item."""
        record = self.devices.get(name)
        if record is None:
            return Worker(name, "", "", "")
        classes = self.classes_of(record)
        price_micro = unit_price([self.classes[c] for c in classes], spec.model.sha256)
        identity = record.identity
        engine, numerics = identity.facts.engine, self.numerics_of(record)
        return Worker(name, identity.owner, ",".join(classes), engine, price_micro, numerics)

    def numerics_of(self, record: DeviceRecord) -> str:
        """Numerics class of a device: what its hardware class says, or what it is made of."""
        stated = [numerics for c in self.classes_of(record) if (numerics := self.classes[c].numerics)]
        return stated[0] if stated else numerics_class(record.identity.facts)

    def attached(self, link: DeviceLink) -> DeviceRecord:
        """Record a device that has attached; an existing record keeps what was learned of its speed."""
        identity = link.identity
        record = self.devices.get(identity.name)
        if record is None:
            record = self.devices[identity.name] = DeviceRecord(identity, touched=self.touched)
        elif record.identity.facts.engine != identity.facts.engine:
            record.speeds.clear()
        record.tier = self._tier_of(identity.name)
        self._move(record, identity.node_name)
        record.identity = identity
        record.link = link
        record.orders.clear()
        record.progress_at.clear()
        record.held.clear()
        record.draining = False
        record.restraint = Restraint()
        if self._nodes_from_facts:
            self.set_node(NodeView(identity.name, device_labels(identity)))
        known, node = self.distrusted.get(record.name), self.node_of(record)
        record.distrusted = known.reason if known is not None else ""
        if known is not None or (node is not None and node.distrusted):
            self.distrust(record.name, record.distrusted or TAINTED)
        return record

    def distrust(self, name: DeviceName, reason: str, node: str = "") -> bool:
        """Believe nothing of a device from now on, attached or not; whether it was believed before.

        Args:
            node: the Node it is on, if it is not attached and that is not one of its own name.
        """
        known, record = self.distrusted.get(name), self.devices.get(name)
        if record is not None:
            node = record.identity.node_name
        elif known is not None:
            node = node or known.node
        first = known.reason if known is not None else reason
        self.distrusted[name] = Distrust(first, DeviceName(node or name))
        if record is not None and record.distrusted != first:
            record.distrusted = first
        return known is None

    def pardon(self, name: DeviceName) -> bool:
        """Let a device work again; whether it was distrusted."""
        record = self.devices.get(name)
        if record is not None and record.distrusted:
            record.distrusted = ""
        return self.distrusted.pop(name, None) is not None

    def set_node(self, node: NodeView) -> bool:
        """Take in a Node as it is now; whether anything that bears on work has changed."""
        if self.nodes.get(node.name) == node:
            return False
        self.nodes[node.name] = node
        self._forget_classes_of(node.name)
        return True

    def remove_node(self, name: DeviceName) -> bool:
        """Forget a Node; whether it was known."""
        self._forget_classes_of(name)
        return self.nodes.pop(name, None) is not None

    def set_tier(self, name: DeviceName, tier: TrustTier) -> bool:
        """Take in whose a device is, attached or not; whether anything has changed for one that is known."""
        if tier is TrustTier.PUBLIC:
            self._tiers.pop(name, None)
        else:
            self._tiers[name] = tier
        record = self.devices.get(name)
        if record is None or record.tier is self._tier_of(name):
            return False
        record.tier = self._tier_of(name)
        return True

    def _tier_of(self, name: DeviceName) -> TrustTier:
        # Nobody has vouched for a device that the cluster says nothing of.
        return TrustTier.OWNED if self._nodes_from_facts else self._tiers.get(name, TrustTier.PUBLIC)

    def set_classes(self, classes: Mapping[str, HardwareClass]) -> bool:
        """Take in all hardware classes; whether anything has changed."""
        if self.classes == dict(classes):
            return False
        self.classes = dict(classes)
        self.classes_changed = True
        self._node_classes.clear()
        return True

    def missing_classes(self, placement: Placement) -> tuple[str, ...]:
        """Classes a job asks for that nobody has defined."""
        return tuple(c for c in placement.hardware_classes if c not in self.classes)

    def judge(self, record: DeviceRecord, placement: Placement, requires: frozenset[AgentFeature]) -> Eligibility:
        """Whether a device may work for a job with `placement` whose work order `requires` so much, presence aside."""
        features = record.identity.features
        node, classes = self.node_of(record), self.classes_of(record)
        return self.judge_node(node, classes, features, record.tier, placement, requires)

    @staticmethod
    def judge_node(
        node: NodeView | None,
        classes: tuple[str, ...],
        features: frozenset[AgentFeature],
        tier: TrustTier,
        placement: Placement,
        requires: frozenset[AgentFeature],
    ) -> Eligibility:
        """`judge`, of a device of such a tier with such a Node in such classes whose agent has such features."""
        if node is None:
            return Eligibility(selected=False, admits=False, evicts=True, reasons=("has no Node",))
        return judge_eligibility(placement, node, classes, requires - features, tier)

    def records_on(self, node: DeviceName) -> Iterable[DeviceRecord]:
        """Devices that run on or are represented by a Node."""
        own = self.devices.get(node)
        if own is not None and not own.identity.node_name:
            yield own
        yield from (self.devices[name] for name in sorted(self._guests.get(node, ())))

    def forget(self, name: DeviceName) -> None:
        """Let go of all that is known of a device; it may come back as one never seen."""
        record = self.devices.pop(name)
        self._move(record, "")
        self.touched.add(name)
        if self._nodes_from_facts:
            self.remove_node(name)

    def _move(self, record: DeviceRecord, node: str) -> None:
        guests = self._guests.get(DeviceName(record.identity.node_name))
        if guests is not None:
            guests.discard(record.name)
        if node:
            self._guests.setdefault(DeviceName(node), set()).add(record.name)

    def _forget_classes_of(self, node: DeviceName) -> None:
        self._node_classes.pop(node, None)
        self.touched.update(record.name for record in self.records_on(node))
