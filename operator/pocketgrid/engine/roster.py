"""Keeps the planning room's columns in step with the records of devices.

Records are the truth, and most of what happens concerns one device and is decided from its record. Columns answer what
would otherwise be a loop over all devices. Rows of devices to which something has happened are written anew before the
columns are next looked at, so the cost follows what happens and not how many devices there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketgrid.engine.fleet import DeviceRecord, Fleet, OrderState
from pocketgrid.engine.jobrun import JobRun
from pocketgrid.model.device import AgentFeature, NodeView
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.trust import TrustTier
from pocketgrid.model.view import Presence
from pocketgrid.planning.columns import FAILED, NONE, ORDERED, READY, FleetColumns
from pocketgrid.planning.eligibility import Eligibility

_STAGES = {OrderState.ORDERED: ORDERED, OrderState.READY: READY, OrderState.FAILED: FAILED}


@dataclass(frozen=True, slots=True)
class _Profile:
    """What rules about eligibility can see of a device; `node` is that of the first one with this profile."""

    node: NodeView | None
    classes: tuple[str, ...]
    features: frozenset[AgentFeature]
    tier: TrustTier


@dataclass(slots=True)
class _Judged:
    """Verdicts of one job on all profiles, as long as it asks for the same."""

    asks: tuple[Any, ...]
    verdicts: list[Eligibility] = field(default_factory=list)
    admits: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


class Roster:
    """The columns of all devices in a fleet.

    Args:
        jobs: those that may still want devices.
    """

    def __init__(self, fleet: Fleet, jobs: Mapping[JobUid, JobRun]) -> None:
        self._fleet = fleet
        self._jobs = jobs
        self._columns = FleetColumns()
        self._asked: tuple[str, ...] = ()
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._profiles: list[_Profile] = []
        self._judged: dict[JobUid, _Judged] = {}
        self._known: set[JobUid] = set()

    def columns(self) -> FleetColumns:
        """The columns, in step with everything that has happened so far."""
        columns, touched = self._columns, self._fleet.touched
        self._follow_jobs()
        for uid, job in self._jobs.items():
            if job.machine is not None and job.machine.touched:
                held_by, job.machine.touched = job.machine.touched, set()
                mine = columns.job(uid)
                for name in held_by:
                    if name in self._fleet.devices:
                        row, count = columns.row_of(name), len(job.machine.by_device.get(name, ()))
                        columns.held[row] += count - mine.held[row]
                        mine.held[row] = count
        while touched:
            name = touched.pop()
            record = self._fleet.devices.get(name)
            if record is None:
                columns.remove(name)
            else:
                self._write(record)
        return columns

    def admits(self, job: JobRun) -> NDArray[np.bool_]:
        """By profile, whether such devices may get work of the job; shape (profiles,)."""
        return self._judge(job).admits

    def verdicts(self, job: JobRun) -> list[Eligibility]:
        """The job's verdict on each profile."""
        return self._judge(job).verdicts

    def classes(self, profile: int) -> tuple[str, ...]:
        """Hardware classes of devices with a profile."""
        return self._profiles[profile].classes

    def seat(self, job: JobRun, rows: NDArray[np.intp]) -> None:
        """These devices, and no others, count as working for the job."""
        mine = self._columns.job(job.uid)
        mine.seat[:] = False
        mine.seat[rows] = True
        names = self._columns.names
        job.working = {names[row] for row in rows.tolist()}

    def _follow_jobs(self) -> None:
        columns = self._columns
        for uid in [uid for uid in columns.jobs if uid not in self._jobs]:
            columns.held -= columns.jobs.pop(uid).held
            self._judged.pop(uid, None)
        self._known &= self._jobs.keys()
        new = self._jobs.keys() - self._known
        asked = tuple(sorted({key for job in self._jobs.values() for key, _ in job.spec.placement.node_selector}))
        if asked != self._asked or self._fleet.classes_changed:
            self._asked = asked
            self._fleet.classes_changed = False
            self._numbers.clear()
            self._profiles.clear()
            self._judged.clear()
            self._fleet.touched.update(self._fleet.devices)
        for uid in new:
            machine = self._jobs[uid].machine
            columns.job(uid)
            if machine is not None:
                machine.touched.update(machine.by_device)
        self._known |= new

    def _write(self, record: DeviceRecord) -> None:
        columns, row = self._columns, self._columns.row_of(record.name)
        columns.connected[row] = record.presence is Presence.CONNECTED
        columns.present[row] = record.presence is Presence.CONNECTED and record.wants_work and record.link is not None
        columns.profile[row] = self._profile_of(record)
        columns.slots[row] = record.identity.slots
        columns.credit_shards[row] = record.identity.credits.shards
        columns.credit_bytes[row] = record.identity.credits.bytes
        for uid, job in self._jobs.items():
            mine = columns.job(uid)
            order, speed, setback = record.orders.get(uid), record.speeds.get(uid), record.setbacks.get(uid)
            known = order is not None and (order.state is not OrderState.READY or speed is not None)
            mine.order[row] = _STAGES[order.state] if order is not None and known else NONE
            if order is not None:
                mine.until[row] = order.retry_at if order.state is OrderState.FAILED else order.due
            mine.seconds[row] = speed.seconds_per_item if speed is not None else np.nan
            mine.paused[row] = setback.until if setback is not None else 0.0
            mine.seat[row] = record.name in job.working

    def _profile_of(self, record: DeviceRecord) -> int:
        node, features = self._fleet.node_of(record), record.identity.features
        classes = self._fleet.classes_of(record)
        labels = tuple(node.labels.get(key) for key in self._asked) if node is not None else None
        key = (
            labels,
            classes,
            node.taints if node else None,
            node.unschedulable if node else None,
            features,
            record.tier,
        )
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._profiles)
            self._profiles.append(_Profile(node, classes, features, record.tier))
        return number

    def _judge(self, job: JobRun) -> _Judged:
        asks = (job.spec.placement, job.requires)
        judged = self._judged.get(job.uid)
        if judged is None or judged.asks != asks:
            judged = self._judged[job.uid] = _Judged(asks)
        if len(judged.verdicts) < len(self._profiles):
            for profile in self._profiles[len(judged.verdicts) :]:
                known = (profile.node, profile.classes, profile.features, profile.tier)
                judged.verdicts.append(self._fleet.judge_node(*known, *asks))
            judged.admits = np.array([verdict.admits for verdict in judged.verdicts], np.bool_)
        return judged


def names_of(columns: FleetColumns, rows: NDArray[np.intp]) -> list[DeviceName]:
    """Names of the devices in `rows`."""
    return [columns.names[row] for row in rows.tolist()]
