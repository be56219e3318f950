"""Devices come, answer, fall silent and come back: everything their links bring, turned into events for jobs.

Called by the gateway. What a device brings of a job that is not known yet (the operator has just started and is still
reading its jobs) is kept until it is, within a bound.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from pocketgrid.engine.fleet import DeviceRecord, Order, OrderState
from pocketgrid.engine.grid import Grid
from pocketgrid.engine.jobrun import INPUT_CHANGED, INPUT_UNREADABLE, JobRun, failure_event
from pocketgrid.engine.lifecycle import Lifecycle
from pocketgrid.engine.links import (
    AttemptFailure,
    DeviceLink,
    HeldAttempt,
    ModelStatus,
    Settlement,
    ShardOutcome,
)
from pocketgrid.engine.outbox import Outbox
from pocketgrid.errors import InputChangedError, RefusedError
from pocketgrid.model import events as ev
from pocketgrid.model.device import Restraint, Vitals
from pocketgrid.model.ids import AttemptSeq, DeviceName, JobUid, ModelDigest
from pocketgrid.model.job import ItemFailure, Verdict
from pocketgrid.model.trust import TrustTier
from pocketgrid.model.view import Presence
from pocketgrid.planning.eligibility import may_receive
from pocketgrid.planning.speed import SpeedEstimate
from pocketgrid.worktimes import Work

if TYPE_CHECKING:
    from pocketgrid.storage.modelstore import StoredModel

log = logging.getLogger(__name__)

UNDECIDED = Verdict(accepted=None, reason="Undecided")

DISTRUSTED = "Distrusted"
"""The device was caught giving wrong results; nothing of it is believed until somebody pardons it."""

SPEED_DOUBT = 4.0
"""A device is taken to be so many times faster than its answers came, at most: it may have waited for us in between."""

SHORTEST_S = 1e-6

OUTCOME_BYTES = 512
"""What an outcome weighs apart from its tensors, and each of its failed items, about."""


class Attendance:
    """Who is there, and what they bring.

    Args:
        jobs_listed: all jobs there are are known already.
        model_reported: told of each device that has loaded a job's model, or could not.
    """

    def __init__(
        self,
        grid: Grid,
        lifecycle: Lifecycle,
        *,
        jobs_listed: bool,
        model_reported: Callable[[JobRun, DeviceRecord], None],
    ) -> None:
        self._grid = grid
        self._lifecycle = lifecycle
        self._jobs_listed = jobs_listed
        self._model_reported = model_reported
        self._orphans: dict[JobUid, list[tuple[DeviceName, Sequence[ShardOutcome]]]] = {}
        self._orphan_bytes = 0
        # By when they left, so that a tick looks at those who are due and at nobody else.
        self._away: deque[tuple[float, DeviceName]] = deque()
        self._lost: deque[tuple[float, DeviceName]] = deque()
        self._reread = ThreadPoolExecutor(1, thread_name_prefix="reread")

    def close(self) -> None:
        """Let its thread end."""
        self._reread.shutdown(wait=False)

    def jobs_listed(self) -> None:
        """All jobs there are have been submitted; results for others may now be refused."""
        self._jobs_listed = True
        for uid in [uid for uid in self._orphans if uid not in self._grid.jobs]:
            for name, outcomes in self._orphans.pop(uid):
                self._orphan_bytes -= _weight(outcomes)
                self._refuse_unknown(name, uid, outcomes)

    async def job_started(self, job: JobRun) -> None:
        """A job can take results now: bring it what devices already have of it."""
        for record in self._grid.fleet.devices.values():
            held = record.held.pop(job.uid, None)
            if held and record.link is not None:
                self._reconcile(job, record, held)
        # Without waiting for room: the job's writer may not run before this is done, and the bound holds anyway.
        for name, outcomes in self._orphans.pop(job.uid, ()):
            self._orphan_bytes -= _weight(outcomes)
            record_or_none = self._grid.fleet.devices.get(name)
            if record_or_none is not None:
                await self._take_results(record_or_none, job.uid, outcomes)

    def job_ended(self, uid: JobUid) -> None:
        """Forget what was kept of a job for its sake alone."""
        for _, outcomes in self._orphans.pop(uid, ()):
            self._orphan_bytes -= _weight(outcomes)
        for record in self._grid.fleet.devices.values():
            record.forget_job(uid)

    def tick(self, now: float) -> None:
        """Give up devices that have been away for too long, and forget those that have been given up for long."""
        settings, devices = self._grid.settings, self._grid.fleet.devices
        for record in _overdue(self._away, devices, Presence.UNKNOWN, now - settings.reconnect_grace_seconds):
            log.info("lost device=%s", record.name)
            self.lose(record)
            self._grid.touch()
        for record in _overdue(self._lost, devices, Presence.LOST, now - settings.forget_seconds):
            log.info("forgotten device=%s", record.name)
            self._forget(record)

    def attach(self, link: DeviceLink, held: Sequence[HeldAttempt]) -> None:
        """A device has said hello.

        Args:
            link: the newest link of a device takes the place of an older one.
            held: attempts of earlier sessions it still has.

        Raises:
            RefusedError: it may not attach.
        """
        identity = link.identity
        if self._grid.fleet.deregistered.get(identity.name) == identity.boot_id:
            raise RefusedError(
                "Deregistered", f"Node {identity.name} was deleted; restart the agent to join again", retry=False
            )
        self._grid.fleet.deregistered.pop(identity.name, None)
        older = self._grid.fleet.devices.get(identity.name)
        if older is not None and older.link is not None:
            older.link.close("Replaced", "the device attached again", retry=older.identity.boot_id == identity.boot_id)
        record = self._grid.fleet.attached(link)
        record.presence = Presence.CONNECTED
        record.changed_at = self._grid.clock.monotonic()
        record.last_seen = self._grid.clock.wall()
        log.info("attached device=%s boot=%s held=%d", identity.name, identity.boot_id, len(held))
        self._grid.history.attached(identity, held)
        by_job: dict[JobUid, list[HeldAttempt]] = {}
        for attempt in held:
            by_job.setdefault(attempt.job, []).append(attempt)
        for job in self._grid.active.values():
            job.eligibility.pop(identity.name, None)
            if job.machine is not None:
                self._reconcile(job, record, by_job.pop(job.uid, []))
        for uid, attempts in by_job.items():
            if uid in self._grid.active or not self._jobs_listed:
                record.held[uid] = attempts
            else:
                link.send_cancel(uid, ())
        if record.distrusted:
            self._lifecycle.verifier.distrust(record.name, record.distrusted)
        self._grid.mark(identity.name)
        self._grid.touch()

    def detach(self, link: DeviceLink, reason: str) -> None:
        """A device's link has ended. Its leases stand for a moment, in case it comes back."""
        record = self._record_of(link)
        if record is None:
            return
        log.info("detached device=%s reason=%s", record.name, reason)
        self._grid.history.detached(record.name, reason)
        record.link = None
        record.changed_at = self._grid.clock.monotonic()
        record.presence = Presence.UNKNOWN
        self._away.append((record.changed_at, record.name))
        if record.draining or self._grid.fleet.deregistered.get(record.name) == record.identity.boot_id:
            self.lose(record)
        self._grid.touch()

    def heartbeat(self, link: DeviceLink, vitals: Vitals) -> None:
        """A device reports."""
        record = self._record_of(link)
        if record is not None:
            record.vitals = vitals
            record.last_seen = self._grid.clock.wall()

    def restrained(self, link: DeviceLink, restraint: Restraint) -> None:
        """A device's owner holds it back, differently than before. What it had not begun it gives back by itself."""
        record = self._record_of(link)
        if record is None or record.restraint == restraint:
            return
        if record.restraint.level is not restraint.level or record.restraint.reason != restraint.reason:
            log.info("restraint device=%s level=%s reason=%s", record.name, restraint.level, restraint.reason)
        record.restraint = restraint
        self._grid.mark(record.name)
        self._grid.touch()

    def draining(self, link: DeviceLink, reason: str) -> None:
        """A device will leave."""
        record = self._record_of(link)
        if record is not None:
            log.info("draining device=%s reason=%s", record.name, reason)
            record.draining = True
            self._grid.touch()

    def returned(self, link: DeviceLink, uid: JobUid, tokens: Sequence[bytes]) -> bool:
        """A device gives back what it has not begun. Whether that is of a job there is."""
        record, job = self._record_of(link), self._grid.jobs.get(uid)
        if record is None or job is None or job.machine is None or job.tokens is None:
            return False
        wanted = set(tokens)
        seqs = []
        unasked = False
        for attempt in job.machine.attempts_of(record.name):
            if job.tokens.mint(attempt.seq, attempt.shard, record.name) in wanted:
                seqs.append(attempt.seq)
                unasked = unasked or attempt.shard not in job.revoking
                job.revoking.discard(attempt.shard)
        if unasked and record.wants_work:
            # Or it would be handed the same again at once, and give it back again, for ever.
            record.set_back(uid, self._grid.clock.monotonic(), "Returned: it gave back work it was not asked for")
        self._lifecycle.apply(job, ev.AttemptsReturned(record.name, tuple(seqs)))
        return True

    def model_status(self, link: DeviceLink, status: ModelStatus) -> bool:
        """A device has loaded a job's model, or could not. Whether it had been told to."""
        record, job = self._record_of(link), self._grid.active.get(status.job)
        if record is None or job is None or status.job not in record.orders:
            return False
        if status.model != job.spec.model.sha256:
            return False
        counted = record.ready_for(job.uid)
        if not status.ready:
            retry_at = self._grid.clock.monotonic() + self._grid.settings.model_retry_seconds
            text = f"{status.reason}: {status.message}"
            log.warning("model failed job=%s device=%s cause=%s", job.spec.key, record.name, text)
            record.orders[job.uid] = Order(OrderState.FAILED, retry_at, text)
        else:
            record.orders[job.uid] = Order(OrderState.READY)
            measured = status.items_per_second or 1.0
            record.learn_model_speed(job.spec.model.sha256, measured)
            if job.uid not in record.speeds:
                own = record.tier is TrustTier.OWNED
                first = SpeedEstimate.measured if own else SpeedEstimate.claimed
                record.speeds[job.uid] = first(measured / record.identity.slots)
            if job.machine is None and not job.planning_cut:
                job.planning_cut = True
                job.tasks.append(self._grid.spawn(self._lifecycle.choose_cut(job, record), name=f"cut-{job.spec.key}"))
        if not (counted and record.ready_for(job.uid)):
            self._model_reported(job, record)
        self._grid.mark(record.name)
        self._grid.touch()
        return True

    async def results(self, link: DeviceLink, uid: JobUid, outcomes: Sequence[ShardOutcome]) -> None:
        """A device brings answers. Returns when there is room for more, which is what slows a device down."""
        record = self._record_of(link)
        if record is None:
            return
        record.last_seen = self._grid.clock.wall()
        await self._take_results(record, uid, outcomes)
        job = self._grid.jobs.get(uid)
        if job is not None and job.writer is not None:
            await job.writer.wait_for_room()

    def model_for(self, device: DeviceName, digest: ModelDigest) -> StoredModel | None:
        """The model, if the device has a work order for it; None if it has no business with it."""
        record = self._grid.fleet.devices.get(device)
        if record is None:
            return None
        for uid in record.orders:
            job = self._grid.active.get(uid)
            if job is None or job.admission is None or job.admission.model.sha256 != digest:
                continue
            if may_receive(record.tier, job.spec.placement):
                return job.admission.model
        return None

    def _record_of(self, link: DeviceLink) -> DeviceRecord | None:
        record = self._grid.fleet.devices.get(link.identity.name)
        return record if record is not None and record.link is link else None

    def _reconcile(self, job: JobRun, record: DeviceRecord, held: Sequence[HeldAttempt]) -> None:
        assert job.machine is not None
        assert job.tokens is not None
        genuine: dict[AttemptSeq, HeldAttempt] = {}
        for attempt in held:
            claim = job.tokens.read(attempt.token, attempt.shard, record.name)
            if claim is None:
                continue
            real = claim.shard is not None and job.machine.check_number(claim.shard) is None
            if claim.shard is not None and (real or claim.seq in job.machine.attempts):
                genuine[claim.seq] = replace(attempt, shard=claim.shard)
            elif record.link is not None:
                # A check of an operator that has died, or one that was given up.
                record.link.send_cancel(job.uid, (attempt.token,))
        self._lifecycle.apply(job, ev.DeviceGone(record.name, frozenset(genuine)))
        deadline = self._grid.clock.monotonic() + self._grid.settings.lease_minimum_seconds
        for seq, attempt in genuine.items():
            known = seq in job.machine.attempts
            if known and job.machine.check_number(job.machine.attempts[seq].shard) is not None:
                continue
            self._lifecycle.apply(job, ev.AttemptHeld(attempt.shard, seq, record.name, deadline, attempt.finished))
            if not known and seq in job.machine.attempts:
                self._grid.history.resumed(job.uid, record.name, attempt.shard, seq)

    def lose(self, record: DeviceRecord) -> None:
        """Give a device up: its leases go elsewhere."""
        record.presence = Presence.LOST
        record.orders.clear()
        self._lost.append((self._grid.clock.monotonic(), record.name))
        for job in self._grid.active.values():
            if job.machine is not None:
                self._lifecycle.apply(job, ev.DeviceGone(record.name))

    def _forget(self, record: DeviceRecord) -> None:
        for job in self._grid.active.values():
            job.eligibility.pop(record.name, None)
            job.working.discard(record.name)
        self._grid.fleet.forget(record.name)
        self._grid.touch()

    async def _take_results(self, record: DeviceRecord, uid: JobUid, outcomes: Sequence[ShardOutcome]) -> None:
        job = self._grid.jobs.get(uid)
        if job is None or (job.machine is None and not job.stage.terminal):
            self._keep_orphans(record, uid, outcomes)
            return
        if job.machine is None or job.tokens is None:
            self._refuse_unknown(record.name, uid, outcomes)
            return
        now = self._grid.clock.monotonic()
        history = self._grid.history
        outbox = Outbox(uid, job.tokens, history)
        times, began = self._grid.times, time.thread_time()
        believable = self._believable_seconds(job, record, outcomes, now)
        for told in outcomes:
            claim = job.tokens.read(told.token, told.shard, record.name)
            if claim is None:
                history.result(uid, record.name, told.shard, None, "forged")
                outbox.refuse(record.name, told.token, "NotLeased", "this device was never given that shard")
                continue
            seq = claim.seq
            if claim.shard is None or job.machine.check_number(claim.shard) is not None:
                self._take_check(job, record, seq, told, outbox)
                continue
            outcome = told if claim.shard == told.shard else replace(told, shard=claim.shard)
            if record.distrusted:
                history.result(uid, record.name, outcome.shard, seq, "rejected", DISTRUSTED)
                self._lifecycle.apply(job, ev.AttemptsReturned(record.name, (seq,)))
                outbox.refuse(record.name, outcome.token, DISTRUSTED, record.distrusted)
                continue
            if outcome.failed is not None:
                event: ev.JobEvent = failure_event(outcome, outcome.failed, seq, record.name)
                history.result(uid, record.name, outcome.shard, seq, "failed", outcome.failed.reason)
                if not outcome.failed.blame_items and uid in self._grid.active:
                    record.set_back(uid, now, f"{outcome.failed.reason}: {outcome.failed.message}")
            elif not job.machine.is_open(outcome.shard):
                # Superseded whatever it says; not worth reading the shard again.
                history.result(uid, record.name, outcome.shard, seq, "superseded")
                self._lifecycle.verifier.late(job, record, outcome)
                event = ev.ResultJudged(outcome.shard, seq, record.name, UNDECIDED)
            else:
                unread = job.unread_of(outcome.shard, outcome)
                if unread is None:
                    times.add(Work.JUDGE, time.thread_time() - began)
                    try:
                        unread = await self._read_again(job, outcome.shard)
                    except Exception as exc:  # of any kind, as in the feeder
                        log.warning("read failed job=%s cause=%s: %s", job.spec.key, type(exc).__name__, exc)
                        failure = AttemptFailure(False, INPUT_UNREADABLE, str(exc))
                        again = failure_event(outcome, failure, seq, record.name)
                        history.result(uid, record.name, outcome.shard, seq, "failed", failure.reason)
                        self._lifecycle.carry_out(job, job.machine.handle(again, now), outbox, outcome)
                        if isinstance(exc, InputChangedError):
                            self._lifecycle.apply(job, ev.JobBroken(INPUT_CHANGED, str(exc)))
                        continue
                    finally:
                        began = time.thread_time()
                verdict = job.judge(outcome, job.machine.grid.size(outcome.shard) - len(unread))
                event = ev.ResultJudged(outcome.shard, seq, record.name, verdict)
                judged = "accepted" if verdict.accepted is True else "rejected"
                history.result(uid, record.name, outcome.shard, seq, judged, verdict.reason)
                if verdict.accepted is True:
                    record.setbacks.pop(uid, None)
                    self._learn_speed(job, record, seq, outcome, believable)
                else:
                    log.warning("rejected job=%s device=%s cause=%s", job.spec.key, record.name, verdict.message)
                    record.set_back(uid, now, f"{verdict.reason}: {verdict.message}")
            if uid in self._grid.active:
                record.progress_at[uid] = now
            self._lifecycle.carry_out(job, job.machine.handle(event, now), outbox, outcome)
        outbox.deliver(self._grid.fleet.devices)
        times.add(Work.JUDGE, time.thread_time() - began)
        self._grid.mark(record.name)
        self._grid.touch()

    def _take_check(
        self, job: JobRun, record: DeviceRecord, seq: AttemptSeq, outcome: ShardOutcome, outbox: Outbox
    ) -> None:
        assert job.machine is not None
        attempt = job.machine.attempts.get(seq)
        if attempt is None or attempt.device != record.name or job.verification is None:
            outbox.supersede(record.name, outcome.token)
            return
        answer = replace(outcome, shard=attempt.shard)
        event: ev.JobEvent
        if answer.failed is not None:
            event = failure_event(answer, answer.failed, seq, record.name)
            self._grid.history.result(job.uid, record.name, attempt.shard, seq, "failed", answer.failed.reason)
        else:
            verdict = job.judge(answer, job.verification.rows_sent(attempt.shard))
            judged = "checked" if verdict.accepted is True else "rejected"
            self._grid.history.result(job.uid, record.name, attempt.shard, seq, judged, verdict.reason)
            event = ev.ResultJudged(attempt.shard, seq, record.name, verdict)
            if verdict.accepted is not True:
                now = self._grid.clock.monotonic()
                record.set_back(job.uid, now, f"{verdict.reason}: {verdict.message}")
        effects = job.machine.handle(event, self._grid.clock.monotonic())
        self._lifecycle.carry_out(job, effects, outbox, answer)

    async def _read_again(self, job: JobRun, shard: int) -> tuple[ItemFailure, ...]:
        assert job.admission is not None
        assert job.machine is not None
        # Rare: an answer to a lease of a dead operator, so one thread will do.
        (encoded,) = await job.encode(self._reread, [job.items_of(shard)])
        if encoded.failures:
            job.unread[shard] = encoded.failures
        return encoded.failures

    def _believable_seconds(
        self, job: JobRun, record: DeviceRecord, outcomes: Sequence[ShardOutcome], now: float
    ) -> float:
        """Least computing time of an item that can be believed of `outcomes`; 0 if nothing can be said.

        However fast a device says it is, it has not been much faster than its answers came.
        """
        assert job.machine is not None
        held = job.machine.attempts_of
        since = record.progress_at.get(job.uid) or min((a.handed for a in held(record.name)), default=now)
        items = sum(outcome.outputs[0].items for outcome in outcomes if outcome.outputs)
        return (now - since) * record.identity.slots / (items * SPEED_DOUBT) if items else 0.0

    def _learn_speed(
        self, job: JobRun, record: DeviceRecord, seq: AttemptSeq, outcome: ShardOutcome, believable: float
    ) -> None:
        assert job.machine is not None
        attempt = job.machine.attempts.get(seq)
        items = outcome.outputs[0].items if outcome.outputs else 0
        known = record.speeds.get(job.uid)
        if attempt is not None and items and outcome.compute_us > 0:
            # Nothing can have been computed for longer than it was there.
            there = self._grid.clock.monotonic() - attempt.handed
            seconds = max(min(outcome.compute_us / 1e6, max(there, SHORTEST_S)), items * believable)
            learned = known.observe(items, seconds) if known is not None else SpeedEstimate.measured(items / seconds)
            record.speeds[job.uid] = learned
            record.learn_model_speed(job.spec.model.sha256, learned.items_per_second * record.identity.slots)

    def _keep_orphans(self, record: DeviceRecord, uid: JobUid, outcomes: Sequence[ShardOutcome]) -> None:
        if self._jobs_listed and uid not in self._grid.jobs:
            self._refuse_unknown(record.name, uid, outcomes)
            return
        size = _weight(outcomes)
        if self._orphan_bytes + size <= self._grid.settings.orphan_bytes:
            self._orphans.setdefault(uid, []).append((record.name, outcomes))
            self._orphan_bytes += size

    def _refuse_unknown(self, name: DeviceName, uid: JobUid, outcomes: Sequence[ShardOutcome]) -> None:
        record = self._grid.fleet.devices.get(name)
        if record is not None and record.link is not None:
            settlement = Settlement(superseded=tuple(o.token for o in outcomes))
            self._grid.history.settled(uid, name, settlement)
            record.link.send_settled(uid, settlement)


def _overdue(
    left: deque[tuple[float, DeviceName]],
    devices: Mapping[DeviceName, DeviceRecord],
    presence: Presence,
    before: float,
) -> Iterator[DeviceRecord]:
    """Those who left no later than `before` and have not been here since; they are taken off the queue."""
    while left and left[0][0] <= before:
        at, name = left.popleft()
        record = devices.get(name)
        if record is not None and record.presence is presence and record.changed_at <= at:
            yield record


def _weight(outcomes: Sequence[ShardOutcome]) -> int:
    return sum(
        OUTCOME_BYTES * (1 + len(o.failures)) + sum(len(t.data) + 32 * len(t.row_lengths or ()) for t in o.outputs)
        for o in outcomes
    )
