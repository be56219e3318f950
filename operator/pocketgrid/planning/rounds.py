"""One decision for each of many devices at once: what `dispatch.decide` would say, device after device.

`decide` is the rule; this is a faster way to follow it. Each device sees the jobs as those before it have left them:
fewer shards to be had, more devices at work, seats taken. What makes that fast is that a device's own part (has it the
model, is it hungry, how large would its lease be) does not depend on the others, so it is computed for all in columns;
and that devices for which it comes out alike take the same decision one after the other until some job's state turns
the order of jobs round or a job has no more to give. Such runs are found by arithmetic instead of one by one.
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

_UNLIMITED = 1 << 60


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
    """

    rows: Rows
    jobs: NDArray[np.intp]
    shards: NDArray[np.int64]

    def decisions(self) -> list[tuple[int, int, int]]:
        """(row, job, shards) of the devices for which there is something to do."""
        some = self.jobs >= 0
        return list(
            zip(self.rows[some].tolist(), self.jobs[some].tolist(), self.shards[some].tolist(), strict=True),
        )


class _Kind(IntEnum):
    """What a job could be for a device."""

    NOTHING = 0
    PREPARE = 1
    GRANT_OWN = 2
    GRANT = 3
    BUSY_OWN = 4
    BUSY = 5


@dataclass(slots=True)
class _Job:
    """A job while the round goes on."""

    index: int
    state: JobState
    pending: int | None
    working: int

    def rank(self, kind: int) -> tuple[bool, int, int, float, str]:
        others = self.working - (kind in (_Kind.GRANT_OWN, _Kind.BUSY_OWN))
        return (self.pending == 0, -self.state.priority, others, self.state.created, self.state.uid)

    @property
    def seats(self) -> int:
        return max(self.state.max_nodes - self.working, 0) if self.state.max_nodes else _UNLIMITED


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


def plan_round(columns: FleetColumns, states: Sequence[JobState], rows: Rows, now: float) -> Round:
    """Decide for the present devices in `rows`, in canonical order; O(devices x jobs) in a few passes over columns."""
    loads = _loads(columns, states, rows)
    profiles = columns.profile[rows]
    codes = np.zeros(len(rows), np.intp)
    signatures: list[tuple[int, ...]] = [()]
    jobs: list[_Job] = []
    sizes: list[NDArray[np.int64]] = []
    # By importance, so that the order of groups follows from the jobs and not from the order they were given in.
    for index in sorted(range(len(states)), key=lambda i: (-states[i].priority, states[i].created, states[i].uid)):
        state = states[index]
        if not state.wants_devices or (state.pending_shards == 0 and state.active_shards == 0):
            continue
        admitted = np.flatnonzero(state.admits[profiles])
        if not len(admitted):
            continue
        kinds, size = np.zeros(len(rows), np.uint8), np.zeros(len(rows), np.int64)
        kinds[admitted], size[admitted] = _kinds(columns.job(state.uid), state, loads.of(admitted), rows[admitted], now)
        codes, signatures = _combined(codes, signatures, kinds)
        jobs.append(_Job(index, state, state.pending_shards, state.working))
        sizes.append(size)
    order, bounds = _grouped(codes, len(signatures))
    chosen = np.full(len(rows), -1, np.intp)
    shards = np.zeros(len(rows), np.int64)
    for number, signature in enumerate(signatures):
        start, stop = bounds[number], bounds[number + 1]
        if any(_Kind.PREPARE <= kind <= _Kind.GRANT for kind in signature):
            _decide_group(jobs, sizes, signature, order[start:stop], chosen[start:stop], shards[start:stop])
    return Round(rows[order], chosen, shards)


# ---- each device's own part ----


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


def _kinds(
    job: JobColumns, state: JobState, loads: _Loads, rows: Rows, now: float
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What the job could be for each admitted device, and how large a lease of it would be; shape (rows,) each."""
    order, until, held, seconds = job.order[rows], job.until[rows], job.held[rows], job.seconds[rows]
    free = ~job.barred(rows, now)
    ready = order == READY
    able = ready & ~np.isnan(seconds)
    own = (held > 0) | ((order == ORDERED) & (now < until)) | (ready & job.seat[rows])
    if state.pending_shards == 0:
        free &= ~ready
    kinds = np.zeros(len(rows), np.uint8)
    kinds[free & ~able & ~own] = _Kind.PREPARE
    size = np.zeros(len(rows), np.int64)
    willing = np.flatnonzero(free & able) if state.pending_shards else np.zeros(0, np.intp)
    if len(willing):
        theirs = loads.of(willing)
        room = _room(theirs, state)
        hungry = _is_hungry(theirs, state) & (room > 0)
        wanted = _wanted(theirs, state, seconds[willing])
        size[willing] = np.where(hungry, np.maximum(np.minimum(wanted, room), 0), 0)
        # With none of this job, it is the backlog of others that fills its share.
        sated = hungry & (size[willing] == 0) & (held[willing] > 0)
        grant = np.where(own[willing], _Kind.GRANT_OWN, _Kind.GRANT)
        busy = np.where(own[willing], _Kind.BUSY_OWN, _Kind.BUSY)
        kinds[willing] = np.where(size[willing] > 0, grant, np.where(sated, _Kind.NOTHING, busy))
    return kinds, size


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
    least = np.minimum(2 * slots, np.maximum(np.ceil(fair), slots)) - loads.leased
    wanted = np.maximum(wanted, least)
    return np.clip(wanted, -1, 1 << 40).astype(np.int64)


# ---- groups of devices for which it comes out alike ----


def _combined(
    codes: NDArray[np.intp], signatures: list[tuple[int, ...]], kinds: NDArray[np.uint8]
) -> tuple[NDArray[np.intp], list[tuple[int, ...]]]:
    """Signatures longer by one job, numbered anew without gaps and in their own order."""
    width = len(_Kind)
    wide = codes * width + kinds
    used = np.flatnonzero(np.bincount(wide, minlength=len(signatures) * width))
    renumbered = np.zeros(len(signatures) * width, np.intp)
    renumbered[used] = np.arange(len(used))
    return renumbered[wide], [(*signatures[code // width], code % width) for code in used.tolist()]


def _grouped(codes: NDArray[np.intp], groups: int) -> tuple[Rows, list[int]]:
    """Positions sorted by group, otherwise as they were, and where each group begins."""
    bounds = [0, *np.cumsum(np.bincount(codes, minlength=groups)).tolist()]
    if groups == 1:
        return np.arange(len(codes)), bounds
    # Small integers are sorted by radix, several times faster than by comparison.
    compact = codes.astype(np.uint16) if groups <= np.iinfo(np.uint16).max else codes
    return np.argsort(compact, kind="stable"), bounds


def _decide_group(
    jobs: list[_Job],
    sizes: list[NDArray[np.int64]],
    signature: tuple[int, ...],
    positions: Rows,
    chosen: NDArray[np.intp],
    shards: NDArray[np.int64],
) -> None:
    """Decide for devices with the same signature, one after the other in runs; writes `chosen` and `shards`."""
    done = 0
    while done < len(positions):
        at = _first_choice(jobs, signature)
        if at is None:
            return
        left = len(positions) - done
        tied = _tied_preparations(jobs, signature, at)
        if tied:
            dealt = _deal(jobs, tied, left)
            chosen[done : done + len(dealt)] = dealt
            done += len(dealt)
            continue
        job, kind = jobs[at], signature[at]
        run = min(left, _run_length(jobs, signature, at))
        if kind != _Kind.PREPARE:
            assert job.pending
            ends = np.cumsum(sizes[at][positions[done : done + run]])
            run = min(run, int(np.searchsorted(ends, job.pending)) + 1)
            given = np.diff(np.minimum(ends[:run], job.pending), prepend=0)
            shards[done : done + run] = given
            job.pending -= int(given.sum())
        if kind != _Kind.GRANT_OWN:
            job.working += run
        chosen[done : done + run] = job.index
        done += run


def _first_choice(jobs: list[_Job], signature: tuple[int, ...]) -> int | None:
    """Which job `decide` would choose now, for a device of this signature."""
    too_busy = False
    for at in sorted((i for i, kind in enumerate(signature) if kind), key=lambda i: jobs[i].rank(signature[i])):
        job, kind = jobs[at], signature[at]
        if kind not in (_Kind.GRANT_OWN, _Kind.BUSY_OWN) and not job.seats:
            continue
        if kind == _Kind.PREPARE:
            return at
        if job.pending == 0 or too_busy:
            continue
        if kind in (_Kind.BUSY_OWN, _Kind.BUSY):
            too_busy = True
            continue
        return at
    return None


def _run_length(jobs: list[_Job], signature: tuple[int, ...], at: int) -> int:
    """How many devices in a row choose the job before another one's rank or its own seats make a difference."""
    job, kind = jobs[at], signature[at]
    if kind == _Kind.GRANT_OWN:
        return _UNLIMITED
    run = job.seats
    mine = job.rank(kind)
    for other, other_kind in enumerate(signature):
        if other_kind == _Kind.NOTHING or other == at:
            continue
        theirs = jobs[other].rank(other_kind)
        if mine[:2] == theirs[:2] and mine < theirs:
            run = min(run, theirs[2] - mine[2] + (mine[3:] < theirs[3:]))
    return run


def _tied_preparations(jobs: list[_Job], signature: tuple[int, ...], at: int) -> list[int]:
    """The jobs among which devices of this signature are dealt out, if the first choice is one of several such."""
    tier = jobs[at].rank(signature[at])[:2]
    same = [i for i, kind in enumerate(signature) if kind and jobs[i].rank(kind)[:2] == tier]
    if len(same) < 2 or any(signature[i] != _Kind.PREPARE for i in same):
        return []
    return [i for i in same if jobs[i].seats]


def _deal(jobs: list[_Job], tied: list[int], count: int) -> NDArray[np.intp]:
    """Give each of `count` devices to the job with the fewest, then the oldest, while there are seats."""
    pieces: list[NDArray[np.intp]] = []
    ranked = sorted((jobs[i] for i in tied), key=lambda j: (j.state.created, j.state.uid))
    while count and (open_jobs := [j for j in ranked if j.seats]):
        lowest = min(j.working for j in open_jobs)
        low = [j for j in open_jobs if j.working == lowest]
        level = min((j.working for j in open_jobs if j.working > lowest), default=lowest + count)
        rounds = min(level - lowest, count // len(low), *(j.seats for j in low))
        # Less than a whole round: the oldest of them get what is left.
        dealt = low[:count] if rounds == 0 else low
        rounds = max(rounds, 1)
        pieces.append(np.tile(np.array([j.index for j in dealt], np.intp), rounds))
        for job in dealt:
            job.working += rounds
        count -= rounds * len(dealt)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.intp)
