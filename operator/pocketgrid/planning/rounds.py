"""One decision for each of many devices at once: what `dispatch.decide` says, a hand of devices at a time.

`decide` is the rule; this is a faster way to follow it. A device's own part (has it the model, is it hungry, how large
would its lease be) does not depend on other devices, so it is computed for all in columns. What does depend on them is
how the jobs stand: how many devices each has, which of its shards and seats are left. Therefore devices are dealt with
in hands. Those of one hand see the jobs as they stand when it begins; if a job has nothing left when a device's turn
comes, the device is looked at again in the next hand. The more hands, the more evenly equal jobs share the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pocketgrid.model.ids import JobUid
from pocketgrid.planning.columns import ORDERED, READY, FleetColumns, JobColumns, Rows
from pocketgrid.planning.dispatch import REFILL_BELOW, ROUNDING

HANDS = 12
"""By a part of so many, jobs of one importance may be served unequally in a round; the next ones make up for it."""

SMALLEST_HAND = 8

_NEVER = np.iinfo(np.int64).max
_MOST_DEVICES = 1 << 32


@dataclass(frozen=True, slots=True)
class JobState:
    """One job as all devices see it; `dispatch.JobDemand` is this and what a device knows of itself.

    Attributes:
        wants_devices: work may be handed out and devices may be prepared now.
        admits: by profile, whether labels, taints and classes let such devices work for it.
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
    wants_devices: bool
    admits: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Round:
    """What was decided, in the order in which it was.

    Attributes:
        rows: devices, shape (n,).
        jobs: index into the states that were given, or -1 if there is nothing to do; shape (n,).
        shards: how many to hand out; 0: let the device load the model; shape (n,).
        hands: where each hand begins.
    """

    rows: Rows
    jobs: NDArray[np.intp]
    shards: NDArray[np.int64]
    hands: tuple[int, ...]

    def decisions(self) -> list[tuple[int, int, int]]:
        """(row, job, shards) of the devices for which there is something to do."""
        some = self.jobs >= 0
        chosen = (self.rows[some].tolist(), self.jobs[some].tolist(), self.shards[some].tolist())
        return list(zip(*chosen, strict=True))


class _Kind(IntEnum):
    """What a job could be for a device. OWN: it counts as working for it."""

    NOTHING = 0
    PREPARE = 1
    GRANT_OWN = 2
    GRANT = 3
    BUSY_OWN = 4
    BUSY = 5


_IS_OWN = np.array([kind in (_Kind.GRANT_OWN, _Kind.BUSY_OWN) for kind in _Kind])
_IS_GRANT = np.array([kind in (_Kind.GRANT_OWN, _Kind.GRANT) for kind in _Kind])
_IS_BUSY = np.array([kind in (_Kind.BUSY_OWN, _Kind.BUSY) for kind in _Kind])


def plan_round(columns: FleetColumns, states: Sequence[JobState], rows: Rows, now: float) -> Round:
    """Decide for the devices in `rows`; O(devices x jobs), in a few passes over columns for each job."""
    table = _Table.build(columns, states, rows, now)
    size = max(SMALLEST_HAND, -(-len(rows) // HANDS))
    order: list[Rows] = []
    jobs: list[NDArray[np.intp]] = []
    shards: list[NDArray[np.int64]] = []
    again = np.zeros(0, np.intp)
    begun = 0
    while len(again) or begun < len(rows):
        fresh = np.arange(begun, min(begun + size, len(rows)))
        begun += len(fresh)
        hand = np.concatenate([again, fresh]) if len(again) else fresh
        chosen, given, settled = table.play(hand)
        order.append(hand[settled])
        jobs.append(chosen[settled])
        shards.append(given[settled])
        again = hand[~settled]
    if not order:
        return Round(rows, np.zeros(0, np.intp), np.zeros(0, np.int64), ())
    starts = np.cumsum([0, *(len(part) for part in order)])[:-1]
    return Round(rows[np.concatenate(order)], np.concatenate(jobs), np.concatenate(shards), tuple(starts.tolist()))


# ---- hands ----


@dataclass(slots=True)
class _Table:
    """The jobs that are in play and how they stand, and what each of them could be for each device.

    Attributes:
        index: of each job in the states that were given; most important first, then oldest; shape (jobs,).
        kinds, sizes: `_Kind` and size of a lease; shape (jobs, devices).
        tier: rank of its priority, from 0.
        pending: shards left, -1 while the cut is not chosen.
        seats: how many more devices may begin to work for it.
    """

    index: NDArray[np.intp]
    kinds: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    tier: NDArray[np.int64]
    working: NDArray[np.int64]
    pending: NDArray[np.int64]
    seats: NDArray[np.int64]

    @classmethod
    def build(cls, columns: FleetColumns, states: Sequence[JobState], rows: Rows, now: float) -> _Table:
        loads = _loads(columns, states, rows)
        profiles = columns.profile[rows]
        index, kinds, sizes = [], [], []
        for at in sorted(range(len(states)), key=lambda i: (-states[i].priority, states[i].created, states[i].uid)):
            state = states[at]
            if not state.wants_devices or (state.pending_shards == 0 and state.active_shards == 0):
                continue
            admitted = np.flatnonzero(state.admits[profiles])
            if not len(admitted):
                continue
            kind, size = np.zeros(len(rows), np.uint8), np.zeros(len(rows), np.int64)
            job = columns.job(state.uid)
            _fill(job, state, loads, rows, admitted, now, kind, size)
            index.append(at)
            kinds.append(kind)
            sizes.append(size)
        chosen = [states[at] for at in index]
        tiers = {priority: tier for tier, priority in enumerate(sorted({s.priority for s in chosen}, reverse=True))}
        seats = [max(s.max_nodes - s.working, 0) if s.max_nodes else _MOST_DEVICES for s in chosen]
        return cls(
            index=np.array(index, np.intp),
            kinds=np.array(kinds, np.uint8).reshape(len(index), len(rows)),
            sizes=np.array(sizes, np.int64).reshape(len(index), len(rows)),
            tier=np.array([tiers[s.priority] for s in chosen], np.int64),
            working=np.array([s.working for s in chosen], np.int64),
            pending=np.array([-1 if s.pending_shards is None else s.pending_shards for s in chosen], np.int64),
            seats=np.array(seats, np.int64),
        )

    def play(self, hand: Rows) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.bool_]]:
        """Decide for the devices at these positions: job, shards, and whether that is settled; shape (hand,) each."""
        at, grants = self._choose(hand)
        settled = np.ones(len(hand), np.bool_)
        given = np.zeros(len(hand), np.int64)
        guests = np.zeros(len(hand), np.bool_)
        some = np.flatnonzero(at >= 0)
        if not len(some):
            return at, given, settled
        jobs, takers = at[some], hand[some]
        given[some] = np.where(grants[some], self.sizes[jobs, takers], 0)
        guests[some] = ~_IS_OWN[self.kinds[jobs, takers]]
        count = len(self.index)
        wanted = np.bincount(jobs, given[some], count)
        scarce = ((self.pending > 0) & (wanted > self.pending)) | (np.bincount(jobs, guests[some], count) > self.seats)
        for job in np.flatnonzero(scarce).tolist():
            self._share_out(job, np.flatnonzero(at == job), grants, guests, given, settled)
        begun = np.bincount(jobs, (guests & settled)[some], count).astype(np.int64)
        self.working += begun
        self.seats -= np.where(self.seats < _MOST_DEVICES, begun, 0)
        self.pending -= np.bincount(jobs, given[some], count).astype(np.int64)
        return np.where(at >= 0, self.index[at], -1), given, settled

    def _share_out(
        self,
        job: int,
        takers: Rows,
        grants: NDArray[np.bool_],
        guests: NDArray[np.bool_],
        given: NDArray[np.int64],
        settled: NDArray[np.bool_],
    ) -> None:
        """Seats and shards of a job go to the first of `takers`; corrects what they are given, and who is settled."""
        seated = ~guests[takers] | (np.cumsum(guests[takers]) <= self.seats[job])
        wanted = np.where(seated, given[takers], 0)
        left = self.pending[job] - (np.cumsum(wanted) - wanted)
        settled[takers] = seated & (~grants[takers] | (left > 0))
        given[takers] = np.where(settled[takers] & grants[takers], np.minimum(wanted, left), 0)

    def _choose(self, hand: Rows) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """`decide` for a hand: which job (-1: none), and whether it is a grant; shape (hand,) each."""
        count = len(self.index)
        if not count:
            return np.full(len(hand), -1, np.intp), np.zeros(len(hand), np.bool_)
        kinds = self.kinds[:, hand]
        own = _IS_OWN[kinds]
        # `dispatch._rank` as one number: out of shards, priority, other devices, age.
        tier = np.where(self.pending == 0, count + self.tier, self.tier)
        others = (tier * _MOST_DEVICES + self.working)[:, None] - own
        rank = others * count + np.arange(count)[:, None]
        free = own | (self.seats > 0)[:, None]
        stocked = free & (self.pending > 0)[:, None]
        prepare = np.where(free & (kinds == _Kind.PREPARE), rank, _NEVER).min(axis=0)
        grant = np.where(stocked & _IS_GRANT[kinds], rank, _NEVER).min(axis=0)
        busy = np.where(stocked & _IS_BUSY[kinds], rank, _NEVER).min(axis=0)
        grant = np.where(grant < busy, grant, _NEVER)
        best = np.minimum(prepare, grant)
        return np.where(best == _NEVER, -1, best % count).astype(np.intp), grant < prepare


# ---- each device's own part ----


@dataclass(frozen=True, slots=True)
class _Loads:
    """`DeviceLoad` of the devices of a round; shape (n,) each."""

    slots: NDArray[np.int64]
    credit_shards: NDArray[np.int64]
    credit_bytes: NDArray[np.float64]
    leased: NDArray[np.int64]
    leased_bytes: NDArray[np.float64]
    backlog_s: NDArray[np.float64]

    def of(self, at: Rows) -> _Loads:
        """Those of some of the devices."""
        return _Loads(
            self.slots[at],
            self.credit_shards[at],
            self.credit_bytes[at],
            self.leased[at],
            self.leased_bytes[at],
            self.backlog_s[at],
        )


def _loads(columns: FleetColumns, states: Sequence[JobState], rows: Rows) -> _Loads:
    slots = columns.slots[rows].astype(np.int64)
    leased = np.zeros(len(rows), np.int64)
    leased_bytes, backlog = np.zeros(len(rows)), np.zeros(len(rows))
    busy = np.flatnonzero(columns.held[rows])
    for state in states if len(busy) else ():
        job = columns.jobs.get(state.uid)
        if job is None:
            continue
        held = job.held[rows[busy]].astype(np.int64)
        seconds = job.seconds[rows[busy]]
        # A device that came back with work of an earlier session has no speed yet; assume a second per shard.
        shard_s = np.where(np.isnan(seconds), 1.0, state.items_per_shard * seconds)
        leased[busy] += held
        backlog[busy] += held * shard_s / slots[busy]
        leased_bytes[busy] += held * state.bytes_per_shard
    return _Loads(
        slots=slots,
        credit_shards=columns.credit_shards[rows].astype(np.int64),
        credit_bytes=columns.credit_bytes[rows],
        leased=leased,
        leased_bytes=leased_bytes,
        backlog_s=backlog,
    )


def _fill(
    job: JobColumns,
    state: JobState,
    loads: _Loads,
    rows: Rows,
    admitted: Rows,
    now: float,
    kinds: NDArray[np.uint8],
    sizes: NDArray[np.int64],
) -> None:
    """Write down what the job could be for each admitted device, and how large a lease of it would be."""
    theirs = rows[admitted]
    order, free = job.order[theirs], ~job.barred(theirs, now)
    ready = order == READY
    unprepared = admitted[free & ~ready]
    held = job.held[rows[unprepared]] > 0
    waiting = (job.order[rows[unprepared]] == ORDERED) & (now < job.until[rows[unprepared]])
    kinds[unprepared] = np.where(held | waiting, _Kind.NOTHING, _Kind.PREPARE)
    if not state.pending_shards:
        return
    at = admitted[free & ready]
    if not len(at):
        return
    mine, willing = rows[at], loads.of(at)
    held_shards = job.held[mine]
    own = (held_shards > 0) | job.seat[mine]
    room = _room(willing, state)
    hungry = _is_hungry(willing, state) & (room > 0)
    wanted = _wanted(willing, state, job.seconds[mine])
    size = np.where(hungry, np.maximum(np.minimum(wanted, room), 0), 0)
    # With none of this job, it is the backlog of others that fills its share.
    sated = hungry & (size == 0) & (held_shards > 0)
    grant = np.where(own, _Kind.GRANT_OWN, _Kind.GRANT)
    busy = np.where(own, _Kind.BUSY_OWN, _Kind.BUSY)
    kinds[at] = np.where(size > 0, grant, np.where(sated, _Kind.NOTHING, busy))
    sizes[at] = size


def _is_hungry(loads: _Loads, state: JobState) -> NDArray[np.bool_]:
    """`dispatch.is_hungry`, in columns."""
    leased = loads.leased
    full = (loads.leased_bytes > loads.credit_bytes * REFILL_BELOW) | (leased > loads.credit_shards * REFILL_BELOW)
    low = (leased < 2 * loads.slots) | (loads.backlog_s < state.lease_seconds * REFILL_BELOW)
    hungry: NDArray[np.bool_] = (leased < loads.credit_shards) & ((leased == 0) | (~full & low))
    return hungry


def _room(loads: _Loads, state: JobState) -> NDArray[np.int64]:
    room = (loads.credit_shards - loads.leased).astype(np.float64)
    if state.bytes_per_shard > 0:
        by_bytes = (loads.credit_bytes - loads.leased_bytes) / state.bytes_per_shard
        # A shard larger than all credit must still be possible, one at a time.
        room = np.minimum(room, np.maximum(by_bytes, np.where(loads.leased == 0, 1.0, 0.0)))
    return np.floor(room).astype(np.int64)


def _wanted(loads: _Loads, state: JobState, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """`dispatch.lease_shards` but for room and pending shards, in columns."""
    slots, backlog = loads.slots, loads.backlog_s
    rate = (1.0 / seconds) * slots
    shard_s = state.items_per_shard / rate
    by_time = np.maximum(state.lease_seconds - backlog, 0.0) / shard_s
    left = (state.pending_shards or 0) + state.active_shards
    fair = left * np.minimum(1.0, rate / np.maximum(state.total_speed, rate)) - backlog / shard_s
    wanted = np.floor(np.minimum(by_time, fair) + ROUNDING)
    # One shard behind each running one keeps a device busy while its answer travels.
    least = np.minimum(2 * slots, np.maximum(np.ceil(fair), slots)) - loads.leased
    return np.clip(np.maximum(wanted, least), -1, 1 << 40).astype(np.int64)
