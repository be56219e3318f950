"""A job's way from admission to its manifest, and the carrying out of what its machine asks for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from pocketgrid.engine.fleet import DeviceRecord
from pocketgrid.engine.grid import Grid
from pocketgrid.engine.jobrun import INPUT_CHANGED, JobRun
from pocketgrid.engine.links import ShardOutcome
from pocketgrid.engine.opening import open_job
from pocketgrid.engine.outbox import Outbox
from pocketgrid.engine.tokens import AttemptTokens
from pocketgrid.engine.verifier import Verifier
from pocketgrid.engine.writer import CommitWriter
from pocketgrid.errors import InputChangedError, InvalidSpecError, StaleEpochError, StoreError
from pocketgrid.jobs.machine import JobMachine
from pocketgrid.model import events as ev
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.view import Explanation, Presence, Stage
from pocketgrid.planning.dispatch import choose_items_per_shard
from pocketgrid.trust.tokens import TokenMint

if TYPE_CHECKING:
    from pocketgrid.model.ids import ShardIndex
    from pocketgrid.storage.modelstore import ModelStore
    from pocketgrid.storage.results import Committed, ShardCommit

log = logging.getLogger(__name__)

MANIFEST_NAME = "_manifest.json"
SAMPLE_ITEMS = 64


class Lifecycle:
    """Runs jobs.

    Args:
        model_dir: where models that are not local files are kept.
        take_over: whoever else may still hold a job's store has lost the leader election.
        verifier_seed: of the draws of checks.
        on_started: called when a job has a machine, so that devices can say what they already have of it.
    """

    def __init__(
        self,
        grid: Grid,
        model_dir: Path,
        *,
        take_over: bool,
        on_started: Callable[[JobRun], Awaitable[None]],
        verifier_seed: int,
    ) -> None:
        self._grid = grid
        self.verifier = Verifier(grid, self.apply, self.on_reopened, seed=verifier_seed)
        self._model_dir = model_dir
        self._take_over = take_over
        self._on_started = on_started
        self._sampling = ThreadPoolExecutor(1, thread_name_prefix="sample")
        self._models: ModelStore | None = None

    async def run_job(self, job: JobRun) -> None:
        """From admission to the closing of the store; for a task of its own."""
        if self._models is None:
            from pocketgrid.storage.modelstore import ModelStore

            self._models = ModelStore(self._model_dir)
        try:
            if await open_job(job, self._grid, self._models, take_over=self._take_over):
                await self._drive(job)
        except StaleEpochError as exc:
            self._taken_over(job, exc)
        except (InvalidSpecError, InputChangedError) as exc:
            # The input was one thing when the job was admitted and is another now.
            reason = exc.reason if isinstance(exc, InvalidSpecError) else INPUT_CHANGED
            log.error("broken job=%s reason=%s cause=%s", job.spec.key, reason, exc)
            self.apply(job, ev.JobBroken(reason, str(exc)))
        except StoreError as exc:
            log.error("closed with unwritten results job=%s cause=%s", job.spec.key, exc)
        except Exception as exc:
            # Shown on the job as well: a job that stands still without a word is the worst of all.
            job.trouble = Explanation("InternalError", f"{type(exc).__name__}: {exc}; see the operator's log")
            self._grid.touch()
            raise
        finally:
            await job.close_encoder()
            if job.executor is not None:
                job.executor.shutdown(wait=False)

    async def _drive(self, job: JobRun) -> None:
        assert job.store is not None
        assert job.executor is not None
        assert job.recovered is not None
        job.writer = CommitWriter(
            job.store,
            job.executor,
            on_committed=lambda group, done: self._on_committed(job, group, done),
            on_reopened=lambda shards, failed: self._on_damaged(job, shards, failed),
            on_trouble=lambda exc: self._on_trouble(job, exc),
            queue_bytes=self._grid.settings.commit_queue_bytes,
            times=self._grid.times,
        )
        if job.removed:
            job.writer.close()
        running = asyncio.create_task(job.writer.run(), name=f"writer-{job.spec.key}")
        try:
            per_shard = job.recovered.per_shard or job.spec.sharding.items_per_shard
            if per_shard:
                # A device may report its speed while the cut is being written; it must not choose another.
                job.planning_cut = True
                await self._start_machine(job, per_shard)
            self._grid.mark_all()
            self._grid.touch()
        except BaseException:
            job.writer.close()
            with suppress(StoreError):
                await running
            raise
        await running

    def close(self) -> None:
        """Let its thread end."""
        self._sampling.shutdown(wait=False)

    async def choose_cut(self, job: JobRun, record: DeviceRecord) -> None:
        """Cut a job whose user left that to the grid, now that `record` has measured itself."""
        assert job.admission is not None
        items = job.admission.job.items
        # What an item weighs is best seen on some; if they cannot be read just now, admission's estimate will do.
        with suppress(StoreError, OSError):
            await job.encode(self._sampling, [range(min(items, SAMPLE_ITEMS, job.admission.encoder.sample_items))])
        per_shard = choose_items_per_shard(
            record.speeds[job.uid],
            job.bytes_per_item,
            items,
            sum(r.identity.slots for r in self._grid.fleet.devices.values() if r.presence is Presence.CONNECTED),
        )
        try:
            await self._start_machine(job, per_shard)
        except StaleEpochError as exc:
            self._taken_over(job, exc)
        except StoreError as exc:
            log.error("closed without a cut job=%s cause=%s", job.spec.key, exc)

    async def _start_machine(self, job: JobRun, per_shard: int) -> None:
        assert job.admission is not None
        assert job.recovered is not None
        assert job.writer is not None
        recovered = job.recovered
        if not recovered.per_shard:
            await job.writer.plan(per_shard, verify=job.spec.verification.wanted)
        machine = JobMachine(
            ShardGrid(job.admission.job.items, per_shard),
            recovered.epoch,
            job.spec.limits,
            committed=recovered.committed,
            verify=recovered.verify if recovered.per_shard else job.spec.verification.wanted,
            verified=recovered.verified,
        )
        machine.counters.rows_done = recovered.rows_done
        machine.counters.rows_failed = recovered.rows_failed
        if job.opening is Stage.REMOVED:
            return
        job.machine = machine
        mint = TokenMint(recovered.token_key, job.uid)
        job.tokens = AttemptTokens(mint, shards=machine.grid.shards, epoch=recovered.epoch, verify=machine.verify)
        rows = (recovered.rows_done, recovered.rows_failed)
        self._grid.history.opened(
            job.uid, recovered.epoch, machine.grid.items, per_shard, machine.committed.to_text(), rows,
            verified=machine.verified.to_text() if machine.verify else None,
        )  # fmt: skip
        log.info(
            "started job=%s items=%d shards=%d done=%d epoch=%d",
            job.spec.key, machine.grid.items, machine.grid.shards, len(machine.committed), recovered.epoch,
        )  # fmt: skip
        self.verifier.start(job)
        effects = machine.start(self._grid.clock.monotonic(), suspended=job.spec.suspend)
        self._carry_out_alone(job, effects)
        await self._on_started(job)
        self._grid.mark_all()
        self._grid.touch()

    def _on_committed(self, job: JobRun, group: Sequence[ShardCommit], committed: Committed) -> None:
        if job.machine is None or job.tokens is None:
            return
        now = self._grid.clock.monotonic()
        outbox = Outbox(job.uid, job.tokens, self._grid.history)
        refused = dict(committed.refused)
        self._tell_committed(job, group, refused)
        for commit in group:
            if commit.shard in refused:
                refusal = ev.CommitRefused(commit.shard, commit.seq, refused[commit.shard])
                self.carry_out(job, job.machine.handle(refusal, now), outbox, None)
                continue
            rows = job.machine.grid.size(commit.shard)
            event = ev.ShardCommitted(commit.shard, commit.seq, rows, len(commit.failures))
            self.carry_out(job, job.machine.handle(event, now), outbox, None)
            job.rate.add(rows, now)
            record = self._grid.fleet.devices.get(commit.device)
            if record is not None:
                record.items_done += rows - len(commit.failures)
        outbox.deliver(self._grid.fleet.devices)
        self.verifier.committed(job, [commit for commit in group if commit.shard not in refused])
        self._grid.touch()

    def _tell_committed(self, job: JobRun, group: Sequence[ShardCommit], refused: Mapping[ShardIndex, str]) -> None:
        machine, recovered = job.machine, job.recovered
        assert machine is not None
        assert recovered is not None
        durable = (c for c in group if c.shard not in refused)
        rows = machine.grid.size
        self._grid.history.refused(job.uid, refused)
        self._grid.history.committed(
            job.uid, recovered.epoch, ((c.shard, c.seq, c.device, rows(c.shard), len(c.failures)) for c in durable)
        )

    def _on_damaged(self, job: JobRun, shards: Sequence[int], still_failed: int) -> None:
        self.verifier.reopened(job, shards)
        self.on_reopened(job, shards, still_failed)

    def on_reopened(self, job: JobRun, shards: Sequence[int], still_failed: int) -> None:
        """Committed shards must be done again; `still_failed` rows are failed among those that stay."""
        if job.machine is not None:
            self._grid.history.reopened(job.uid, shards)
            failed = job.machine.counters.rows_failed - still_failed
            self.apply(job, ev.ShardsReopened(tuple(shards), failed))

    def _taken_over(self, job: JobRun, exc: StaleEpochError) -> None:
        log.error("taken over job=%s cause=%s", job.spec.key, exc)
        self._grid.history.fenced(job.uid, str(exc))
        job.trouble = Explanation("TakenOver", str(exc))
        self._grid.active.pop(job.uid, None)
        if job.writer is not None:
            job.writer.close()
        self._grid.touch()

    def _on_trouble(self, job: JobRun, exc: StoreError | None) -> None:
        before = job.trouble
        if exc is not None:
            job.trouble = Explanation("StorageFailed", str(exc))
        elif job.trouble is not None and job.trouble.reason == "StorageFailed":
            job.trouble = None
            self._grid.mark_all()
        if job.trouble != before:
            self._grid.touch()

    async def _finish(self, job: JobRun) -> None:
        assert job.writer is not None
        if job.stage is not Stage.FINISHING:
            return
        with suppress(StaleEpochError):
            if await job.writer.finish() is not None:
                manifest = f"{job.spec.output.uri.rstrip('/')}/{MANIFEST_NAME}"
                self._grid.history.finished(job.uid, manifest)
                self.apply(job, ev.OutputFinished(manifest))

    # ---- carrying out ----

    def apply(self, job: JobRun, event: ev.JobEvent) -> None:
        """Feed one event to a job's machine, if it has one, and carry out what follows."""
        if job.machine is not None:
            self._grid.history.ended(job.uid, event)
            self._carry_out_alone(job, job.machine.handle(event, self._grid.clock.monotonic()))

    def look_at_deadlines(self, job: JobRun) -> None:
        """Release what is overdue. A device that was late is left alone with the job for a while: it may hang."""
        if job.machine is None:
            return
        now = self._grid.clock.monotonic()
        effects = job.machine.handle(ev.TimePassed(), now)
        for effect in effects:
            if isinstance(effect, ev.CancelAttempt):
                late = self._grid.fleet.devices.get(effect.device)
                if late is not None:
                    late.set_back(job.uid, now, "LeaseExpired: it did not answer in time")
        if effects:
            self._carry_out_alone(job, effects)

    def _carry_out_alone(self, job: JobRun, effects: Sequence[ev.JobEffect]) -> None:
        assert job.tokens is not None
        outbox = Outbox(job.uid, job.tokens, self._grid.history)
        self.carry_out(job, effects, outbox, None)
        outbox.deliver(self._grid.fleet.devices)

    def carry_out(
        self, job: JobRun, effects: Sequence[ev.JobEffect], outbox: Outbox, outcome: ShardOutcome | None
    ) -> None:
        """Carry out `effects` in order.

        Args:
            outbox: collects what devices are to be told; the caller delivers it.
            outcome: the answer that caused the effects, if one did.
        """
        for effect in effects:
            self._grid.history.carried_out(job.uid, effect, answered=outcome is not None)
            match effect:
                case ev.CommitShard():
                    worker = self._grid.fleet.worker(effect.device, job.spec)
                    commit, size = job.commit_of(effect, outcome, worker)
                    assert job.writer is not None
                    job.writer.put(commit, size)
                case ev.CheckAnswered():
                    assert outcome is not None
                    self.verifier.answered(job, effect.shard, outcome)
                case ev.Settle():
                    outbox.settle(effect)
                case ev.CancelAttempt():
                    outbox.cancel(effect)
                case ev.CancelJob():
                    self.cancel_everywhere(job)
                case ev.FinishOutput():
                    job.tasks.append(self._grid.spawn(self._finish(job), name=f"finish-{job.spec.key}"))
                case ev.CloseOutput():
                    self._close_job(job)
                case _:
                    assert_never(effect)
        if job.machine is not None and job.machine.released != job.released_seen:
            job.released_seen = job.machine.released
            self._grid.mark_idle(job)

    def cancel_everywhere(self, job: JobRun) -> None:
        """Withdraw the job's work order from all devices, and with it all that they have of the job."""
        for record in self._grid.fleet.devices.values():
            order = record.orders.pop(job.uid, None)
            if order is not None and record.link is not None:
                record.link.send_cancel(job.uid, ())

    def _close_job(self, job: JobRun) -> None:
        job.finished = self._grid.clock.wall()
        job.unread.clear()
        job.in_flight.clear()
        self._grid.active.pop(job.uid, None)
        for record in self._grid.fleet.devices.values():
            record.forget_job(job.uid)
        if job.writer is not None:
            job.writer.close()
        self._grid.mark_all()
        self._grid.touch()
