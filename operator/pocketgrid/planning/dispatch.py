"""What a device with room for work gets next: which job, and how many shards of it.

Leases are cut when they are handed out, never in advance. Each is a few seconds of work on the device that gets it,
and towards the end of a job it shrinks to the device's share of what is left (guided self-scheduling, Polychronopoulos
and Kuck 1987, weighted by speed), so that devices of very different speed finish together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.planning.speed import SpeedEstimate

ROUNDING = 1e-9
"""A share that is a whole number but for the arithmetic counts as that number."""

SHARD_SECONDS = 0.25
"""Computing time of a shard. Much shorter, and coordination shows: with a model that fills the caches, every wake-up of
another thread is slow, and rows of a shard have fewer others of their length to share a micro-batch with. Much longer,
and a slow device holds up the end of a job, and a lost one loses more."""

SHARD_BYTES = 768 << 10
"""Weight of a shard's inputs, so that it fits into one message of the wire."""

SHARDS_PER_SLOT = 16
"""At least so many, so that fast and slow devices can share a small job by speed."""

REFILL_BELOW = 0.5
"""A device asks for more when less than this share of a full lease is left: early enough to hide a round trip."""


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """One device in one planning cycle.

    Attributes:
        backlog_s: seconds of work handed out and unanswered, at the device's own speed.
        leased_shards: handed out and unanswered.
        credit_shards, credit_bytes: all the device is willing to hold.
        leased_bytes: of inputs handed out and unanswered.
        slots: shards it computes at once.
        jobs: jobs the device counts as working for.
    """

    name: DeviceName
    backlog_s: float
    leased_shards: int
    leased_bytes: float
    credit_shards: int
    credit_bytes: int
    slots: int
    jobs: frozenset[JobUid]


@dataclass(frozen=True, slots=True)
class JobDemand:
    """One job in one planning cycle, as seen by one device.

    Attributes:
        pending_shards: not handed out to anybody; None while the cut is not chosen yet.
        active_shards: handed out and unanswered, by any device.
        items_per_shard: 0 while the cut is not chosen yet.
        bytes_per_shard: estimate of what a shard's inputs weigh.
        working: how many devices count as working for it.
        total_speed: items per second of those devices together, where known.
        leased_shards: handed out to the device in question and unanswered.
        speed: of the device in question at this job, or None until the device has loaded the model.
    """

    uid: JobUid
    priority: int
    created: float
    lease_seconds: float
    pending_shards: int | None
    active_shards: int
    items_per_shard: int
    bytes_per_shard: float
    working: int
    total_speed: float
    max_nodes: int
    speed: SpeedEstimate | None
    leased_shards: int = 0


@dataclass(frozen=True, slots=True)
class Prepare:
    """Let the device load the job's model."""

    job: JobUid


@dataclass(frozen=True, slots=True)
class Grant:
    """Hand the device so many shards of the job, lowest numbers first."""

    job: JobUid
    shards: int


Decision = Prepare | Grant


def is_hungry(load: DeviceLoad, lease_seconds: float) -> bool:
    """Whether the device has room for more work of a job with leases of `lease_seconds`."""
    if load.leased_shards >= load.credit_shards:
        return False
    if load.leased_shards == 0:
        return True
    if load.leased_bytes > load.credit_bytes * REFILL_BELOW or load.leased_shards > load.credit_shards * REFILL_BELOW:
        return False
    # One shard waiting behind each running one hides the round trip even when a shard outlasts a lease.
    return load.leased_shards < 2 * load.slots or load.backlog_s < lease_seconds * REFILL_BELOW


def decide(load: DeviceLoad, demands: Sequence[JobDemand]) -> Decision | None:
    """The next step for one device, given the jobs it is eligible for; None if there is nothing to do.

    Higher priority first; among equals, the job with the fewest devices, then the oldest. A device that already
    works for a job does not count against it, which is what keeps devices from swapping jobs back and forth. A job of
    which everything is handed out still has devices prepared for it: they may soon relieve a slow one.

    A device too busy for the first job in line gets nothing of the next: its refills would keep it too busy for ever,
    where leases of the next are longer or its shards smaller.
    """
    too_busy = False
    for demand in sorted(demands, key=lambda d: _rank(load, d)):
        mine = demand.uid in load.jobs
        if demand.max_nodes and not mine and demand.working >= demand.max_nodes:
            continue
        if demand.speed is None:
            # Being prepared already: wait for it, but do not let it bar the device from other work.
            if mine:
                continue
            return Prepare(demand.uid)
        if not demand.pending_shards or too_busy:
            continue
        if not is_hungry(load, demand.lease_seconds) or not _room(load, demand):
            too_busy = True
            continue
        shards = lease_shards(load, demand, demand.speed)
        if shards:
            return Grant(demand.uid, shards)
        # With none of this job, it is the backlog of others that fills its share.
        too_busy = not demand.leased_shards
    return None


def lease_shards(load: DeviceLoad, demand: JobDemand, speed: SpeedEstimate) -> int:
    """How many shards to hand out to a hungry device; 0 if what it has is its share of what is left."""
    pending = demand.pending_shards or 0
    rate = speed.items_per_second * load.slots
    shard_s = demand.items_per_shard / rate
    by_time = max(demand.lease_seconds - load.backlog_s, 0.0) / shard_s
    left = pending + demand.active_shards
    # What the device has of other jobs delays it as much as what it has of this one, second for second.
    fair_share = left * min(1.0, rate / max(demand.total_speed, rate)) - load.backlog_s / shard_s
    wanted = math.floor(min(by_time, fair_share) + ROUNDING)
    # One shard behind each running one keeps a device busy while its answer travels.
    wanted = max(wanted, min(2 * load.slots, max(math.ceil(fair_share), load.slots)) - load.leased_shards)
    return max(0, min(wanted, _room(load, demand), pending))


def _room(load: DeviceLoad, demand: JobDemand) -> int:
    room: float = load.credit_shards - load.leased_shards
    if demand.bytes_per_shard > 0:
        by_bytes = (load.credit_bytes - load.leased_bytes) / demand.bytes_per_shard
        # A shard larger than all credit must still be possible, one at a time.
        room = min(room, max(by_bytes, 1 if load.leased_shards == 0 else 0))
    return math.floor(room)


def choose_items_per_shard(speed: SpeedEstimate, bytes_per_item: float, items: int, slots: int) -> int:
    """Cut for a job whose user left it to the grid, from the first device that measured itself.

    Bounded by computing time, by weight, and so that there are `SHARDS_PER_SLOT` for each slot of the fleet to share,
    if there are so many items.
    """
    by_time = speed.items_per_second * SHARD_SECONDS
    by_bytes = SHARD_BYTES / max(bytes_per_item, 1e-9)
    by_count = max(items / (SHARDS_PER_SLOT * max(slots, 1)), 1.0)
    return max(1, math.floor(min(by_time, by_bytes, by_count)))


def _rank(load: DeviceLoad, demand: JobDemand) -> tuple[bool, int, int, float, str]:
    others = demand.working - (demand.uid in load.jobs)
    return (demand.pending_shards == 0, -demand.priority, others, demand.created, demand.uid)
