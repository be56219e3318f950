"""Builds the immutable views the engine shows of itself."""

from __future__ import annotations

from dataclasses import replace

from pocketgrid.engine.dispatcher import Dispatcher
from pocketgrid.engine.fleet import DeviceRecord, Fleet
from pocketgrid.engine.grid import Grid
from pocketgrid.engine.jobrun import JobRun
from pocketgrid.engine.verifier import Verifier, waits_for_checks
from pocketgrid.model.device import NodeView
from pocketgrid.model.money import write_money
from pocketgrid.model.view import (
    CostView,
    DeviceView,
    EarningsView,
    Explanation,
    HistoryView,
    JobView,
    Presence,
    Stage,
    TrustView,
    VerificationView,
)
from pocketgrid.planning.eligibility import summarise_counts, summarise_reasons
from pocketgrid.trust.reputation import Reputation, Reputations


def view_job(job: JobRun, grid: Grid, dispatcher: Dispatcher, verifier: Verifier) -> JobView:
    """One job, now."""
    fleet = grid.fleet
    machine = job.machine
    by_class: dict[str, int] = {}
    for classes, count in dispatcher.classes_at_work(job) if job.working and not job.stage.terminal else ():
        asked = job.spec.placement.hardware_classes
        matching = [c for c in classes if not asked or c in asked]
        label = matching[0] if matching else ""
        by_class[label] = by_class.get(label, 0) + count
    view = JobView(
        spec=job.spec,
        stage=job.stage,
        explanation=machine.explanation if machine is not None else job.explanation,
        obstacle=_obstacle(job, fleet, dispatcher, verifier, grid.clock.wall()),
        trouble=job.trouble,
        items=job.admission.job.items if job.admission is not None else 0,
        devices=by_class,
        started=job.started,
        finished=job.finished,
    )
    if machine is None:
        return view
    counters = machine.counters
    return replace(
        view,
        items=machine.grid.items,
        items_done=counters.rows_done,
        items_failed=counters.rows_failed,
        items_per_shard=machine.grid.per_shard,
        shards=machine.grid.shards,
        shards_done=len(machine.committed),
        shards_active=machine.shards_active,
        completed_text=machine.committed.to_text(limit=grid.settings.completed_text_limit),
        throughput=job.rate.rate(grid.clock.monotonic()) if machine.stage is Stage.RUNNING else _mean_rate(job),
        attempts_lost=counters.attempts_lost,
        copies=counters.copies,
        duplicates=counters.duplicates,
        manifest_uri=machine.manifest_uri,
        verification=_verification(job),
        cost=_cost(job),
    )


def view_device(
    record: DeviceRecord, fleet: Fleet, jobs: dict[str, JobRun], known: Reputations, earned: EarningsView | None
) -> DeviceView:
    """One device."""
    node = fleet.node_of(record)
    held = {uid: len(j.machine.by_device.get(record.name, ())) for uid, j in jobs.items() if j.machine is not None}
    return DeviceView(
        identity=record.identity,
        presence=record.presence,
        vitals=record.vitals,
        classes=fleet.classes_of(record),
        schedulable=(
            record.presence is Presence.CONNECTED and record.wants_work and node is not None and not node.unschedulable
        ),
        speeds=dict(record.model_speeds),
        peak_speeds=dict(record.peak_speeds),
        restraint=record.restraint,
        tier=record.tier,
        trust=_trust(record, known.of(record.name), node),
        earnings=earned,
        distrusted=record.distrusted,
        leased_shards=sum(held.values()),
        last_seen=record.last_seen,
        items_done=record.items_done,
        jobs=tuple(jobs[uid].uid for uid, count in held.items() if count),
    )


def _trust(record: DeviceRecord, known: Reputation | None, node: NodeView | None) -> TrustView | None:
    if known is None and not record.distrusted:
        return None
    known = known or Reputation()
    # As of when each was last added to: figures that fade while nothing happens would have to be written all the time.
    histories = tuple(
        HistoryView(fingerprint, h.confirmed, h.refuted, h.suspicion, h.consecutive, h.at)
        for fingerprint, h in known.histories.items()
    )
    return TrustView(
        verified_items=round(sum(history.confirmed for history in histories)),
        disagreements=round(sum(history.refuted for history in histories)),
        since=known.since,
        caught=known.caught_at,
        times_caught=known.caught,
        proven=known.proven,
        histories=histories,
        tainted_node=node.uid if node is not None and node.distrusted else "",
    )


def _verification(job: JobRun) -> VerificationView | None:
    if job.verification is None:
        return None
    summary = job.verification.machine.summary()
    return VerificationView(
        rows_verified=summary.rows_verified,
        rows_checked=summary.rows_checked,
        disagreement_rate=summary.disagreement_rate,
        redundancy=summary.redundancy,
        wrong_rows_upper_bound=summary.upper_bound * summary.rows_verified if summary.rows_verified else None,
        taken_back=dict(job.verification.taken_back),
    )


def _cost(job: JobRun) -> CostView | None:
    if job.store is None or not (job.spec.budget or job.store.pay.earned_micro or job.store.pay.held_micro):
        return None
    limit = job.spec.budget.limit_micro if job.spec.budget is not None else None
    return CostView(job.store.pay.earned_micro, job.store.pay.held_micro, limit)


def _mean_rate(job: JobRun) -> float:
    # Of a finished job, what matters is the whole of it; of one that a predecessor began, what this process saw.
    if job.machine is None or job.recovered is None or not job.finished:
        return 0.0
    rows = job.machine.counters.rows_done - job.recovered.rows_done
    return rows / max(job.finished - job.started, 1e-3)


def _obstacle(job: JobRun, fleet: Fleet, dispatcher: Dispatcher, verifier: Verifier, now: float) -> Explanation | None:
    if job.stage.terminal or job.stage in (Stage.SUSPENDED, Stage.FINISHING):
        return None
    if job.exhausted and job.spec.budget is not None:
        limit = write_money(job.spec.budget.limit_micro)
        remedy = "raise spec.budget.limit; the job goes on from where it is"
        return Explanation("BudgetExhausted", f"another shard could cost more than the limit of {limit}; {remedy}")
    to_check = waits_for_checks(job)
    if not to_check and dispatcher.is_served(job):
        return None
    connected = [r for r in fleet.devices.values() if r.presence is Presence.CONNECTED]
    able = [r for r in connected if dispatcher.eligible(job, r) and r.wants_work]
    if to_check and able:
        assert job.verification is not None
        why = job.verification.machine.blocked([verifier.witness(record) for record in able], now)
        remedy = "attach a device of another owner, or measure a ToleranceProfile for these numerics classes"
        return Explanation("NoVerifier", f"{why}; {remedy}") if why is not None else None
    if able:
        failed: dict[str, tuple[str, ...]] = {
            str(r.name): (order.message,)
            for r in able
            if (order := r.orders.get(job.uid)) is not None and order.message and not r.ready_for(job.uid)
        }
        if len(failed) == len(able):
            remedy = "attach a device that can, or export the model for these; each tries again from time to time"
            return Explanation(
                "ModelLoadFailed", f"no device could load the model: {summarise_reasons(failed)}; {remedy}"
            )
        sick = {str(r.name): (r.setbacks[job.uid].why,) for r in able if job.uid in r.setbacks}
        if len(sick) == len(able):
            return Explanation("DevicesFailing", f"every device fails at it: {summarise_reasons(sick)}")
        return None
    classes = job.spec.placement.hardware_classes
    asked = f" of class {' or '.join(classes)}" if classes else ""
    return Explanation("NoReadyNodes", f"no ready device{asked}; {summarise_counts(dispatcher.why_not(job))}")
