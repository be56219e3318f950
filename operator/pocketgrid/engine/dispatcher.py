"""Carries the planning room's decisions out: makes its snapshots, hands out leases, takes back, races stragglers."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Collection

import numpy as np

from pocketgrid.engine.fleet import DeviceRecord, Order, OrderState
from pocketgrid.engine.grid import Grid
from pocketgrid.engine.jobrun import JobRun
from pocketgrid.engine.roster import Roster, names_of
from pocketgrid.engine.verifier import WITHHELD, Withheld
from pocketgrid.metering.budgets import Exposure, affordable_rows
from pocketgrid.model import events as ev
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.trust import TrustTier
from pocketgrid.model.view import Presence, Stage
from pocketgrid.planning.columns import FAILED, FleetColumns, Rows
from pocketgrid.planning.dispatch import DeviceLoad, Grant, JobDemand, Prepare, decide, is_hungry
from pocketgrid.planning.relief import BusyDevice, BusyShard, Copy, IdleDevice, TakeBack, relieve
from pocketgrid.planning.rounds import JobState, plan_round

log = logging.getLogger(__name__)

PREPARE_S = 120.0
"""A device that is to load a model keeps its seat among a job's `maxNodes` for so long, and for as long as"""

PREPARE_BYTES_PER_S = 256 << 10
"""fetching the model takes at this speed, that of a poor mobile link. After that it is welcome when it is ready."""

FEW = 32
"""So many devices are faster served one by one than in a round over columns."""

AT_A_TIME = 1000
"""Decisions carried out in one turn; the rest follow in the next, and the loop stays free for heartbeats."""

FIRST_LEASE_SHARDS = 2
"""For each slot of a device that is not our own: its speed is believed once it has answered."""

ROUNDS = 8
"""A device gets one decision in a round: to be prepared for two jobs it takes two. What is left over is decided in the
next turn."""

Feed = Callable[[JobRun, DeviceRecord, ev.LeaseCut], None]
NextCheck = Callable[[JobRun, DeviceRecord, bool], int | Withheld | None]


class Dispatcher:
    """Gives devices with room their next lease.

    Args:
        feed: starts sending a lease's items.
        next_check: the number of the check that a device is to compute now, if any; idle devices get them sooner.
    """

    def __init__(self, grid: Grid, feed: Feed, next_check: NextCheck) -> None:
        self._next_check = next_check
        self._fleet = grid.fleet
        self._jobs = grid.active
        self._settings = grid.settings
        self._clock = grid.clock
        self._history = grid.history
        self._feed = feed
        self._roster = Roster(grid.fleet, grid.active)

    def serve(self, record: DeviceRecord) -> None:
        """Give one device all it has room for."""
        if record.link is None or record.presence is not Presence.CONNECTED or not record.wants_work:
            return
        # Each round either prepares one more job or uses up credit, so this ends; the bound is for safety.
        for _ in range(64):
            now = self._clock.monotonic()
            load = self._load(record, now)
            if len(record.orders) >= len(self._jobs) and not self._is_hungry(load):
                return
            demands = self._demands(record, now)
            if not demands:
                return
            match decide(load, demands):
                case Prepare(job=uid):
                    self._prepare(record, self._jobs[uid])
                case Grant(job=uid, shards=count):
                    if not self._grant(record, self._jobs[uid], count, now):
                        return
                case None:
                    return

    def serve_needy(self) -> None:
        """Serve the devices for which only time may have changed anything: they have little or nothing to do."""
        columns = self._roster.columns()
        self._play(columns, columns.needy())

    def serve_all(self, names: Collection[DeviceName] | None = None) -> None:
        """Serve these devices, or all, one decision at a time."""
        columns = self._roster.columns()
        self._play(columns, columns.select(columns.present) if names is None else columns.rows_of(names))

    def _play(self, columns: FleetColumns, rows: Rows) -> None:
        for _ in range(ROUNDS):
            if len(rows) <= FEW:
                for name in names_of(columns, rows):
                    self.serve(self._fleet.devices[name])
                return
            now = self._clock.monotonic()
            jobs = list(self._jobs.values())
            states = [self._state(job, now) for job in jobs]
            decisions = plan_round(columns, states, rows, now).decisions()
            for row, index, count in decisions[:AT_A_TIME]:
                record = self._fleet.devices[columns.names[row]]
                if count:
                    self._grant(record, jobs[index], count, now)
                else:
                    self._prepare(record, jobs[index])
            if not decisions or len(decisions) > AT_A_TIME:
                return
            columns = self._roster.columns()
            rows = np.array([row for row, _, _ in decisions], np.intp)

    def _state(self, job: JobRun, now: float) -> JobState:
        machine = job.machine
        return JobState(
            uid=job.uid,
            priority=job.spec.priority,
            created=job.spec.created,
            lease_seconds=job.spec.sharding.lease_seconds,
            pending_shards=len(machine.pending) if machine is not None else None,
            active_shards=job.shards_out,
            items_per_shard=machine.grid.per_shard if machine is not None else 0,
            bytes_per_shard=job.bytes_per_shard if job.admission is not None else 0.0,
            working=len(job.working),
            total_speed=job.total_speed,
            max_nodes=job.spec.placement.max_nodes,
            wants_devices=job.wants_devices and now >= job.paused_until,
            admits=self._roster.admits(job),
        )

    def relieve_job(self, job: JobRun) -> None:
        """Near a job's end, let idle devices help slow ones."""
        machine = job.machine
        if machine is None or machine.stage is not Stage.RUNNING or machine.pending or not machine.attempts:
            return
        now = self._clock.monotonic()
        if job.tokens is None or not job.wants_devices or now < job.paused_until:
            return
        columns = self._roster.columns()
        rows = columns.idle(job.uid, self._roster.admits(job), now)
        if not len(rows):
            return
        per_shard = machine.grid.per_shard * columns.job(job.uid).seconds[rows]
        idle = [IdleDevice(n, t) for n, t in zip(names_of(columns, rows), per_shard.tolist(), strict=True)]
        if job.spec.placement.max_nodes:
            seats = max(job.spec.placement.max_nodes - len(job.working), 0)
            guests = sorted((d for d in idle if d.name not in job.working), key=lambda d: (d.seconds_per_shard, d.name))
            idle = [d for d in idle if d.name in job.working] + guests[:seats]
        if not idle:
            return
        busy = [b for name in machine.by_device if (b := self._busy(job, name, now)) is not None]
        # Each helper makes one move at most, and what the fastest cannot do, slower ones cannot do either.
        moves = sum(len(device.begun) + len(device.waiting) for device in busy)
        idle = heapq.nsmallest(moves, idle, key=lambda d: (d.seconds_per_shard, d.name))
        for move in relieve(idle, busy):
            match move:
                case TakeBack(device=name, shards=shards):
                    self._take_back(job, name, shards)
                case Copy(device=name, shard=shard):
                    record = self._fleet.devices[name]
                    cut = machine.hand_out_copy(name, shard, now, self._deadline(job, record, 1, now))
                    if cut is not None:
                        log.info("copy job=%s shard=%d device=%s", job.spec.key, shard, name)
                        self._seat(job, record)
                        self._history.leased(job.uid, cut, job.tokens.wire_index, copy=True)
                        self._feed(job, record, cut)

    def refresh_speeds(self) -> None:
        """Recompute who works for each job and what they deliver together; used to share out what is left.

        Between two calls, devices are only added: a count that is a tick old does no harm, and counting for every
        decision would make each cost as much as the fleet is large.
        """
        now = self._clock.monotonic()
        columns = self._roster.columns()
        for job in self._jobs.values():
            working = columns.working(job.uid, now)
            if job.spec.placement.max_nodes and job.machine is not None and job.machine.pending:
                # Between two leases a device is still one of the job's few; another would have to load the model first.
                seated = columns.idle(job.uid, self._roster.admits(job), now)
                working[seated[columns.job(job.uid).seat[seated]]] = True
            self._roster.seat(job, np.flatnonzero(working))
            job.total_speed = columns.total_speed(job.uid, now)

    def model_reported(self, job: JobRun, record: DeviceRecord) -> None:
        """A device has said whether it could load a job's model: count it without counting all others again."""
        if record.ready_for(job.uid):
            job.total_speed += record.identity.slots / record.speeds[job.uid].seconds_per_item
            if job.spec.placement.max_nodes:
                return
        job.working.discard(record.name)
        self._fleet.touched.add(record.name)

    def classes_at_work(self, job: JobRun) -> list[tuple[tuple[str, ...], int]]:
        """Classes of the devices that count as working for the job, and how many there are of each."""
        columns = self._roster.columns()
        counts = np.bincount(columns.profile[columns.job(job.uid).seat])
        return [(self._roster.classes(number), int(counts[number])) for number in np.flatnonzero(counts).tolist()]

    def is_served(self, job: JobRun) -> bool:
        """Whether some device may work for the job, and neither failed at it nor at its model."""
        columns = self._roster.columns()
        rows = np.flatnonzero(columns.present & (columns.job(job.uid).order != FAILED))
        rows = rows[self._roster.admits(job)[columns.profile[rows]]]
        return bool((columns.job(job.uid).paused[rows] == 0).any())

    def why_not(self, job: JobRun) -> dict[tuple[str, ...], int]:
        """Reasons why devices cannot work for the job, and how many devices share them."""
        columns, verdicts = self._roster.columns(), self._roster.verdicts(job)
        counts: dict[tuple[str, ...], int] = {}
        everybody = columns.canonical()
        for mask, away in (
            (columns.present, ()),
            (~columns.connected, ("not connected",)),
        ):
            profiles = np.bincount(columns.profile[everybody[mask[everybody]]], minlength=len(verdicts))
            for number in np.flatnonzero(profiles).tolist():
                why = (*verdicts[number].reasons, *away)
                counts[why] = counts.get(why, 0) + int(profiles[number])
        for name in names_of(columns, everybody[(columns.connected & ~columns.present)[everybody]]):
            record = self._fleet.devices[name]
            own = "draining" if record.draining else f"paused by its owner ({record.restraint.reason})"
            if record.distrusted:
                own = "distrusted"
            why = (*verdicts[columns.profile[columns.rows[name]]].reasons, own)
            counts[why] = counts.get(why, 0) + 1
        return counts

    # ---- snapshots ----

    def _may_work(self, job: JobRun, record: DeviceRecord, now: float) -> bool:
        if record.presence is not Presence.CONNECTED or not record.wants_work:
            return False
        if record.is_barred_from(job.uid, now):
            return False
        return self.eligible(job, record)

    def eligible(self, job: JobRun, record: DeviceRecord) -> bool:
        """Whether labels, taints and classes let the device take new leases of the job."""
        verdict = job.eligibility.get(record.name)
        if verdict is None:
            verdict = job.eligibility[record.name] = self._fleet.judge(record, job.spec.placement, job.requires)
        return verdict.admits

    @staticmethod
    def _is_prepared_for(record: DeviceRecord, job: JobRun, now: float) -> bool:
        order = record.orders.get(job.spec.uid)
        if order is None or order.state is OrderState.FAILED:
            return False
        return now < order.due if order.state is OrderState.ORDERED else record.name in job.working

    def _is_hungry(self, load: DeviceLoad) -> bool:
        return is_hungry(load, max((j.spec.sharding.lease_seconds for j in self._jobs.values()), default=0.0))

    @staticmethod
    def _held(job: JobRun, device: DeviceName) -> int:
        return len(job.machine.by_device.get(device, ())) if job.machine is not None else 0

    def _load(self, record: DeviceRecord, now: float) -> DeviceLoad:
        backlog = nbytes = 0.0
        shards = 0
        jobs = set()
        for uid, job in self._jobs.items():
            held = self._held(job, record.name)
            if held or self._is_prepared_for(record, job, now):
                jobs.add(uid)
            if held:
                shards += held
                backlog += held * self._shard_seconds(job, record) / record.identity.slots
                nbytes += held * job.bytes_per_shard
        return DeviceLoad(
            name=record.name,
            backlog_s=backlog,
            leased_shards=shards,
            leased_bytes=nbytes,
            credit_shards=record.identity.credits.shards,
            credit_bytes=record.identity.credits.bytes,
            slots=record.identity.slots,
            jobs=frozenset(jobs),
        )

    def _demands(self, record: DeviceRecord, now: float) -> list[JobDemand]:
        demands = []
        for job in self._jobs.values():
            machine = job.machine
            pending = len(machine.pending) if machine is not None else None
            active = job.shards_out
            if pending == 0 and (active == 0 or record.ready_for(job.uid)):
                continue
            if not job.wants_devices or now < job.paused_until or not self._may_work(job, record, now):
                continue
            demands.append(
                JobDemand(
                    uid=job.uid,
                    priority=job.spec.priority,
                    created=job.spec.created,
                    lease_seconds=job.spec.sharding.lease_seconds,
                    pending_shards=pending,
                    active_shards=active,
                    leased_shards=self._held(job, record.name),
                    items_per_shard=machine.grid.per_shard if machine is not None else 0,
                    bytes_per_shard=job.bytes_per_shard,
                    working=len(job.working),
                    total_speed=job.total_speed,
                    max_nodes=job.spec.placement.max_nodes,
                    speed=record.speeds.get(job.uid) if record.ready_for(job.uid) else None,
                )
            )
        return demands

    def _shard_seconds(self, job: JobRun, record: DeviceRecord) -> float:
        assert job.machine is not None
        speed = record.speeds.get(job.uid)
        # A device that came back with work of an earlier session has no speed yet; assume a second per shard.
        return job.machine.grid.per_shard * speed.seconds_per_item if speed is not None else 1.0

    def _busy(self, job: JobRun, name: DeviceName, now: float) -> BusyDevice | None:
        record = self._fleet.devices.get(name)
        if record is None:
            return None
        assert job.machine is not None
        attempts = job.machine.attempts_of(name)
        slots = record.identity.slots
        last = record.progress_at.get(job.uid, 0.0)
        begun = tuple(
            BusyShard(a.shard, job.machine.attempt_count(a.shard), now - max(a.handed, last))
            for a in attempts[:slots]
            if job.machine.check_number(a.shard) is None
        )
        waiting = tuple(
            a.shard
            for a in attempts[slots:]
            # A device that is away for a moment cannot be asked.
            if record.link is not None
            and a.shard not in job.revoking
            and job.machine.attempt_count(a.shard) == 1
            and job.machine.check_number(a.shard) is None
        )
        return BusyDevice(name, self._shard_seconds(job, record), slots, begun, waiting)

    # ---- moves ----

    def _seat(self, job: JobRun, record: DeviceRecord) -> None:
        job.working.add(record.name)
        self._fleet.touched.add(record.name)

    def _prepare(self, record: DeviceRecord, job: JobRun) -> None:
        assert job.admission is not None
        assert record.link is not None
        order = job.admission.job.order
        due = self._clock.monotonic() + PREPARE_S + order.model_bytes / PREPARE_BYTES_PER_S
        record.orders[job.uid] = Order(OrderState.ORDERED, due=due)
        self._seat(job, record)
        record.link.send_order(order)

    def _grant(self, record: DeviceRecord, job: JobRun, count: int, now: float) -> bool:
        assert job.machine is not None
        assert job.tokens is not None
        check = self._check(record, job, now, idle=False)
        if check is not None:
            return check
        if record.tier is not TrustTier.OWNED and job.uid not in record.progress_at:
            # How fast it is at this job is only its own word so far. It is asked more than once before it has answered.
            first = FIRST_LEASE_SHARDS * record.identity.slots
            count = min(count, max(0, first - self._held(job, record.name)))
        count = self._affordable(job, record, count)
        if not count:
            return False
        barred = job.verification.barred.get(record.name, ()) if job.verification is not None else ()
        cut = job.machine.hand_out(record.name, count, now, self._deadline(job, record, count, now), but=barred)
        if cut is None:
            return False
        self._seat(job, record)
        job.revoking.difference_update(h.shard for h in cut.shards)
        log.debug("lease job=%s device=%s shards=%d", job.spec.key, record.name, len(cut.shards))
        self._history.leased(job.uid, cut, job.tokens.wire_index, copy=False)
        self._feed(job, record, cut)
        return True

    def check_job(self, job: JobRun) -> None:
        """Hand checks to idle devices, where a job has nothing else left for them to do."""
        machine, verification = job.machine, job.verification
        if machine is None or verification is None or machine.stage is not Stage.RUNNING or machine.pending:
            return
        now = self._clock.monotonic()
        if not verification.machine.wants_checks or not job.wants_devices or now < job.paused_until:
            return
        columns = self._roster.columns()
        for name in names_of(columns, columns.idle(job.uid, self._roster.admits(job), now)):
            self._check(self._fleet.devices[name], job, now, idle=True)

    def _check(self, record: DeviceRecord, job: JobRun, now: float, *, idle: bool) -> bool | None:
        """Hand a device a check: True if it got one, False if it may not have anything, None if other work will do."""
        if job.verification is None or job.machine is None or job.tokens is None:
            return None
        if not self._affordable(job, record, 1):
            return False
        number = self._next_check(job, record, idle)
        if number is None:
            return None
        if number is WITHHELD:
            return False
        cut = job.machine.hand_out_check(record.name, number, now, self._deadline(job, record, 1, now))
        self._seat(job, record)
        self._history.leased(job.uid, cut, job.tokens.wire_index, copy=False, check=True)
        self._feed(job, record, cut)
        return True

    def _affordable(self, job: JobRun, record: DeviceRecord, shards: int) -> int:
        """How many of `shards` the job's budget allows to be handed to a device."""
        budget, machine = job.spec.budget, job.machine
        if budget is None or machine is None or job.store is None or not machine.verify:
            return shards
        per_shard = machine.grid.per_shard
        held: dict[DeviceName, int] = {name: len(attempts) for name, attempts in machine.by_device.items()}
        for name in machine.committing_devices:
            held[name] = held.get(name, 0) + 1
        out = sum(count * self._fleet.worker(name, job.spec).price for name, count in held.items())
        owed = job.verification.owed_micro if job.verification is not None else 0
        exposure = Exposure(job.store.pay.earned_micro, job.store.pay.held_micro, out * per_shard + owed)
        price = self._fleet.worker(record.name, job.spec).price
        # A last shard of the job that is shorter is paid for in full here and costs less.
        allowed = affordable_rows(budget, exposure, price, shards * per_shard) // per_shard
        job.exhausted = allowed == 0
        return min(shards, allowed)

    def _take_back(self, job: JobRun, name: DeviceName, shards: tuple[int, ...]) -> None:
        record = self._fleet.devices[name]
        if record.link is None or job.tokens is None or job.machine is None:
            return
        wanted = set(shards)
        job.revoking |= wanted
        tokens = [job.tokens.mint(a.seq, a.shard, name) for a in job.machine.attempts_of(name) if a.shard in wanted]
        log.info("take-back job=%s device=%s shards=%d", job.spec.key, name, len(tokens))
        record.link.send_revoke(job.uid, tokens)

    def _deadline(self, job: JobRun, record: DeviceRecord, count: int, now: float) -> float:
        expected = self._load(record, now).backlog_s + count * self._shard_seconds(job, record) / record.identity.slots
        slack = max(self._settings.lease_slack * expected, self._settings.lease_minimum_seconds)
        return now + slack
