"""The fleet as columns: one array for each thing that planning asks of a device, one row for each device.

What has to be asked of all devices at once (who idles, who could work for this job, how fast are they together) is
asked of columns, because a loop over a hundred thousand objects takes longer than a turn may. What concerns one device
is asked of its record, which stays the truth: rows are only ever written from records.

Devices that no rule can tell apart share a profile: the classes their Nodes belong to, taints, cordon, and the labels
that some job asks for. Whether a job admits a profile is judged once, by the rule itself, however many devices have it.

Rows are numbered as devices come and are given to others once they are gone, so nothing may depend on them. Where an
order is needed it is that of `canonical`, which follows from the names alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketgrid.model.ids import DeviceName, JobUid

Rows = NDArray[np.intp]
"""Rows of devices, in an order that matters."""

NONE, ORDERED, READY, FAILED = range(4)
"""How far a device is with a job's model."""

_FIRST_CAPACITY = 64


@dataclass(slots=True, eq=False)
class JobColumns:
    """What planning knows of all devices as regards one job.

    Attributes:
        order: NONE, ORDERED, READY or FAILED; who is READY has a speed.
        until: while ORDERED, when the device is no longer waited for; if FAILED, when it may try again; monotonic s.
        paused: until then the device is left alone after a failure, monotonic s.
        seconds: per item, of one slot; not a number where unknown.
        held: shards handed out and unanswered.
        seat: it counts as working for the job.
    """

    order: NDArray[np.uint8]
    until: NDArray[np.float64]
    paused: NDArray[np.float64]
    seconds: NDArray[np.float64]
    held: NDArray[np.int32]
    seat: NDArray[np.bool_]

    @classmethod
    def empty(cls, capacity: int) -> JobColumns:
        """Nobody has ever heard of the job."""
        return cls(
            order=np.zeros(capacity, np.uint8),
            until=np.zeros(capacity),
            paused=np.zeros(capacity),
            seconds=np.full(capacity, np.nan),
            held=np.zeros(capacity, np.int32),
            seat=np.zeros(capacity, np.bool_),
        )

    def clear(self, row: int) -> None:
        """As for a device that has just come."""
        self.order[row] = NONE
        self.until[row] = self.paused[row] = 0.0
        self.seconds[row] = np.nan
        self.seat[row] = False
        self.held[row] = 0

    def grow(self, capacity: int) -> None:
        """Make room."""
        for name in self.__slots__:
            setattr(self, name, _grown(getattr(self, name), capacity, np.nan if name == "seconds" else 0))

    def barred(self, rows: Rows, now: float) -> NDArray[np.bool_]:
        """Who cannot load the model, is overdue with it, or failed a short while ago; shape (rows,)."""
        barred: NDArray[np.bool_] = now < self.paused[rows]
        order = self.order[rows]
        others = np.flatnonzero((order == FAILED) | (order == ORDERED))
        if len(others):
            before = now < self.until[rows[others]]
            barred[others] |= np.where(order[others] == FAILED, before, ~before)
        return barred


@dataclass(slots=True, eq=False)
class FleetColumns:
    """All devices.

    Attributes:
        rows: by name.
        names: by row; empty where there is no device.
        connected: attached.
        present: attached, and takes new work.
        profile: number of the profile.
        slots, credit_shards, credit_bytes: as in `DeviceLoad`.
        held: shards of all jobs handed out and unanswered.
        jobs: columns of each job.
    """

    rows: dict[DeviceName, int] = field(default_factory=dict)
    names: list[DeviceName] = field(default_factory=list)
    connected: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_FIRST_CAPACITY, np.bool_))
    present: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(_FIRST_CAPACITY, np.bool_))
    profile: NDArray[np.int32] = field(default_factory=lambda: np.zeros(_FIRST_CAPACITY, np.int32))
    slots: NDArray[np.int32] = field(default_factory=lambda: np.ones(_FIRST_CAPACITY, np.int32))
    credit_shards: NDArray[np.int32] = field(default_factory=lambda: np.zeros(_FIRST_CAPACITY, np.int32))
    credit_bytes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(_FIRST_CAPACITY))
    held: NDArray[np.int32] = field(default_factory=lambda: np.zeros(_FIRST_CAPACITY, np.int32))
    jobs: dict[JobUid, JobColumns] = field(default_factory=dict)
    _keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(_FIRST_CAPACITY, np.uint64))
    _free: list[int] = field(default_factory=list)
    _canonical: Rows | None = None
    _places: Rows = field(default_factory=lambda: np.zeros(_FIRST_CAPACITY, np.intp))

    @property
    def capacity(self) -> int:
        """How many rows there is room for."""
        return len(self.present)

    def row_of(self, name: DeviceName) -> int:
        """The row of a device, which is made if it has none."""
        row = self.rows.get(name)
        if row is not None:
            return row
        if self._free:
            row = self._free.pop()
            self.names[row] = name
        else:
            row = len(self.names)
            if row == self.capacity:
                self._grow(2 * row)
            self.names.append(name)
        self.rows[name] = row
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        self._keys[row] = int.from_bytes(digest, "little")
        self._canonical = None
        return row

    def remove(self, name: DeviceName) -> None:
        """Forget a device; its row will be another's."""
        row = self.rows.pop(name, None)
        if row is None:
            return
        self.names[row] = DeviceName("")
        self.connected[row] = self.present[row] = False
        self.held[row] = 0
        for job in self.jobs.values():
            job.clear(row)
        self._free.append(row)
        self._canonical = None

    def job(self, uid: JobUid) -> JobColumns:
        """The columns of a job, which are made if there are none."""
        columns = self.jobs.get(uid)
        if columns is None:
            columns = self.jobs[uid] = JobColumns.empty(self.capacity)
        return columns

    def canonical(self) -> Rows:
        """Rows of all devices in the order of a hash of their names: the same whoever came first."""
        if self._canonical is None:
            rows = np.fromiter(self.rows.values(), np.intp, len(self.rows))
            self._canonical = rows[np.argsort(self._keys[rows], kind="stable")]
            self._places = np.zeros(self.capacity, np.intp)
            self._places[self._canonical] = np.arange(len(rows))
        return self._canonical

    def select(self, mask: NDArray[np.bool_]) -> Rows:
        """Rows of the present devices for which `mask`, shape (capacity,), holds; canonical order."""
        canonical = self.canonical()
        wanted = np.flatnonzero(mask & self.present)
        if 4 * len(wanted) > len(canonical):
            return canonical[(mask & self.present)[canonical]]
        return wanted[np.argsort(self._places[wanted])]

    def rows_of(self, names: Iterable[DeviceName]) -> Rows:
        """Rows of the present ones among these devices, in canonical order."""
        mask = np.zeros(self.capacity, np.bool_)
        mask[[row for name in names if (row := self.rows.get(name)) is not None]] = True
        return self.select(mask)

    def needy(self) -> Rows:
        """Present devices with fewer than two shards for each slot, in canonical order.

        All others are served as their results come in, so these are the ones for which only time may have changed
        anything: a pause is over, a seat is free.
        """
        return self.select(self.held < 2 * self.slots)

    def working(self, uid: JobUid, now: float) -> NDArray[np.bool_]:
        """Who holds shards of a job or is being prepared for it, and can be reached; shape (capacity,)."""
        job = self.job(uid)
        working: NDArray[np.bool_] = (job.held > 0) | ((job.order == ORDERED) & (now < job.until))
        return working & self.connected

    def idle(self, uid: JobUid, admits: NDArray[np.bool_], now: float) -> Rows:
        """Who could work for a job at once and holds nothing of any."""
        job = self.job(uid)
        rows = np.flatnonzero((job.order == READY) & self.present & (self.held == 0) & (now >= job.paused))
        return rows[admits[self.profile[rows]]]

    def total_speed(self, uid: JobUid, now: float) -> float:
        """What the present devices that have a job's model and may work for it deliver together, items per second."""
        job = self.jobs.get(uid)
        if job is None:
            return 0.0
        able = np.flatnonzero((job.order == READY) & self.present & (now >= job.paused))
        return float(np.sum(self.slots[able] / job.seconds[able]))

    def _grow(self, capacity: int) -> None:
        for name in ("connected", "present", "profile", "slots", "credit_shards", "credit_bytes", "held", "_keys"):
            setattr(self, name, _grown(getattr(self, name), capacity, 1 if name == "slots" else 0))
        for job in self.jobs.values():
            job.grow(capacity)


def _grown(column: NDArray[Any], capacity: int, fill: float) -> NDArray[Any]:
    larger = np.full(capacity, fill, column.dtype)
    larger[: len(column)] = column
    return larger
