"""The result store of one job: results in, acknowledged once durable; final parts and a manifest out.

Responsible for the order of things: staged data is fsynced before the log speaks of it, the log is fsynced and the
epoch checked before anything is acknowledged, a part is in place before it is entered as sealed, and staged data is
removed only after that entry is durable. What each step does is in the neighbouring modules, and why two writers
cannot both acknowledge is in `pocketgrid.storage.commitlog`.

All methods, `open` and `finish` included, are called from one thread at a time; there are no locks inside. They
block on the disk, so that thread is not the event loop's.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pocketgrid.errors import CorruptLogError, InternalError, InvalidSpecError, StoreError
from pocketgrid.model.ids import ShardIndex
from pocketgrid.model.job import AdmittedJob, OutputFormat, ShardGrid
from pocketgrid.model.ranges import IndexSet
from pocketgrid.model.tensors import TensorData
from pocketgrid.storage.commitlog import CommitLog
from pocketgrid.storage.durable import FolderLock, make_folder, output_folder, store_error, write_atomically
from pocketgrid.storage.logentries import (
    Commit,
    Entry,
    Finished,
    Plan,
    Sealed,
    Share,
    Worker,
)
from pocketgrid.storage.logpay import RunningPay
from pocketgrid.storage.results.columns import Column, derive_columns, layout_of, misfit, unseen, with_layout
from pocketgrid.storage.results.concluding import build_manifest
from pocketgrid.storage.results.contract import (
    DEFAULT_LIMITS,
    Check,
    Committed,
    Recovered,
    Settled,
    ShardCommit,
    StagedResult,
    StoreLimits,
)
from pocketgrid.storage.results.judging import judge, reopening
from pocketgrid.storage.results.manifest import NAME as MANIFEST_NAME
from pocketgrid.storage.results.manifest import Manifest, load_manifest
from pocketgrid.storage.results.missing import missing
from pocketgrid.storage.results.ownership import PRIVATE, check_ownership, fingerprint
from pocketgrid.storage.results.sealing import (
    KeyColumn,
    PartSource,
    decode_record,
    encode_record,
    seal_part,
)
from pocketgrid.storage.results.staging import Location, Staging
from pocketgrid.storage.timings import WriteTimings

if TYPE_CHECKING:
    import pyarrow as pa

ROW_NUMBER = "row"
"""Name of the key column of a job that names none."""


class ResultStore:
    """Writer of one job's output folder.

    Attributes:
        recovered: what opening found.
        timings: where the time goes.
    """

    recovered: Recovered

    def __init__(self, job: AdmittedJob, keys: Callable[[int, int], pa.Array], limits: StoreLimits) -> None:
        """For `open` only."""
        self._job = job
        self._limits = limits
        self._folder = output_folder(job.spec.output.uri)
        self._private = self._folder / PRIVATE
        self._lock = FolderLock(self._private / "lock")
        self._columns = derive_columns(job)
        self._keys = keys
        self._key: KeyColumn | None = None
        self._reopened: list[ShardIndex] = []
        self.timings = WriteTimings()
        self._log: CommitLog
        self._staging: Staging

    @classmethod
    def open(
        cls,
        job: AdmittedJob,
        keys: Callable[[int, int], pa.Array],
        *,
        take_over: bool = False,
        limits: StoreLimits = DEFAULT_LIMITS,
    ) -> ResultStore:
        """Become the writer of the job's output folder and recover what earlier writers committed.

        Args:
            job: the admitted job; its output folder is created if need be.
            keys: gives the keys of items [start, stop), in order; not asked if the key is the row number.
            take_over: go on even if a live process of this host holds the folder's lock. It is fenced off by the
                epoch and can acknowledge nothing more.
            limits: sizes; the defaults are right but for tests.

        Raises:
            InvalidSpecError: the folder cannot be used (reason OutputHoldsAnotherJob, InputChanged, ModelChanged,
                OutputChanged, OutputUnwritable, UnsupportedOutput or NameCollision).
            StoreError: another process writes there, or the disk failed.
            CorruptLogError: the log is damaged beyond redoing.
        """
        store = cls(job, keys, limits)
        if job.spec.input.key in {c.name for c in store._columns}:
            message = f"the key column {job.spec.input.key!r} has the name of a model output; rename the column"
            raise InvalidSpecError("NameCollision", message, field="spec.input.key")
        try:
            make_folder(store._private)
            store._lock.acquire(required=not take_over)
        except PermissionError as error:
            message = f"{store._folder} cannot be written: {error.strerror}; give this process the right to write there"
            raise InvalidSpecError("OutputUnwritable", message, field="spec.output.uri") from error
        except (NotADirectoryError, FileExistsError) as error:
            message = f"{store._folder} is not a folder, nor can it be made one; name another"
            raise InvalidSpecError("OutputUnwritable", message, field="spec.output.uri") from error
        except OSError as error:
            raise store_error("opening", store._private, error) from error
        try:
            store._recover()
        except BaseException:
            store.close()
            raise
        return store

    def _recover(self) -> None:
        check_ownership(self._job, self._folder)
        limits = self._limits
        self._log = CommitLog.open(
            self._private / "log", self._job.spec.uid, fingerprint(self._job), rotate_bytes=limits.segment_bytes
        )
        self._log.spent = self.timings.sync_log
        state = self._log.state
        self._staging = Staging(
            self._private / "staging", self._log.epoch, rotate_bytes=limits.segment_bytes, timings=self.timings
        )
        notes = list(self._log.notes)
        if state.layout is not None:
            self._columns = with_layout(self._columns, state.layout)
        if state.plan is not None and state.plan.items != self._job.items:
            raise CorruptLogError(f"the log of {self._folder} plans {state.plan.items} items, not {self._job.items}")
        entries, missed = missing(state, self._folder, self._job.spec.output.format, self._staging)
        notes += missed
        if entries:
            self._log.append(entries)
        # Only now: the header is durable and no newer epoch exists, so what we do not need nobody needs.
        self._staging.sweep(state.references)
        self.recovered = Recovered(
            epoch=self._log.epoch,
            token_key=self._log.token_key,
            per_shard=state.plan.per_shard if state.plan else 0,
            committed=IndexSet(state.committed.runs()),
            rows_done=state.rows_done,
            rows_failed=state.rows_failed,
            finished=state.finished is not None and state.complete,
            notes=tuple(notes),
            verify=state.plan is not None and state.plan.verify,
            verified=IndexSet(state.verified.runs()),
        )

    # ---- writing ----

    def plan(self, per_shard: int, *, verify: bool = False) -> None:
        """Fix how the job is cut; durable when it returns. Saying the same again is harmless.

        Args:
            verify: a shard is final, and paid, only once `settle` says so. Else every committed shard is as good as
                any, and nothing is paid.

        Raises:
            InvalidSpecError: reason VerificationChanged: the job had begun with, or without, verification.
            InternalError: the job was planned differently before.
            StoreError: writing failed; the job is still unplanned.
        """
        state = self._log.state
        if state.plan is not None:
            if state.plan.per_shard != per_shard:
                raise InternalError(f"{self._folder} is cut by {state.plan.per_shard} items, not by {per_shard}")
            if state.plan.verify != verify:
                message = f"{self._folder} was begun {'with' if state.plan.verify else 'without'} verification; "
                message += "leave it so, or start a new job in a new folder"
                raise InvalidSpecError("VerificationChanged", message, field="spec.verification")
            return
        limits, rows = self._limits, self._limits.part_rows
        values = sum(c.estimated_values for c in self._columns) or 1
        rows = min(rows, limits.part_bytes // (4 * values))
        if self._job.spec.output.format is OutputFormat.JSONL:
            rows = min(rows, limits.part_texts // values)
        shards = max(1, ShardGrid(self._job.items, per_shard).shards)
        per_part = min(shards, max(1, rows // per_shard))
        entries: list[Entry] = [Plan(per_shard, self._job.items, per_part, verify)]
        if all(c.known for c in self._columns):
            entries.append(layout_of(self._columns))
        self._log.append(entries)

    def conforms(self, outputs: Sequence[TensorData], rows: int) -> str | None:
        """Why `outputs` cannot be the result of `rows` rows, or None. No look at values, but for class labels."""
        return misfit(self._columns, outputs, rows)

    def commit(self, batch: Sequence[ShardCommit]) -> Committed:
        """Make the results of `batch` durable, all in one go. What it returns as done, no crash undoes.

        Raises:
            StaleEpochError: a newer writer exists; nothing of the batch is acknowledged.
            StoreError: writing failed, such as on a full disk; nothing of the batch is acknowledged, what was
                committed stays, and the same batch may be tried again.
            InternalError: the job is not planned yet.
        """
        state = self._log.state
        if state.plan is None:
            raise InternalError(f"{self._folder}: a shard was committed before the job was planned")
        new: list[ShardCommit] = []
        already: list[ShardIndex] = []
        refused: list[tuple[ShardIndex, str]] = []
        columns, fresh = self._columns, set()
        for shard in batch:
            if shard.shard in state.committed or shard.shard in fresh:
                already.append(shard.shard)
                continue
            if problem := self._problem(columns, shard, state.plan):
                refused.append((shard.shard, problem))
                continue
            if shard.outputs and shard.outputs[0].items:
                columns = tuple(c.settled_by(t) for c, t in zip(columns, shard.outputs, strict=True))
            fresh.add(shard.shard)
            new.append(shard)
        if new:
            self._write(new, columns)
        return Committed(tuple(s.shard for s in new), tuple(already), tuple(refused))

    def _problem(self, columns: Sequence[Column], shard: ShardCommit, plan: Plan) -> str | None:
        if not 0 <= shard.shard < plan.grid.shards:
            return f"there is no shard {shard.shard} among {plan.grid.shards}"
        size, failed = plan.grid.size(shard.shard), {f.row for f in shard.failures}
        if len(failed) != len(shard.failures) or any(not 0 <= row < size for row in failed):
            return f"the failed rows are not distinct rows of a shard of {size}"
        return misfit(columns, shard.outputs, size - len(failed))

    def _write(self, new: Sequence[ShardCommit], columns: tuple[Column, ...]) -> None:
        started = time.perf_counter()
        records = [encode_record(columns, s.outputs, s.failures) for s in new]
        self.timings.stage.seconds += time.perf_counter() - started
        locations = self._staging.append(records)
        entries: list[Entry] = []
        if self._log.state.layout is None and all(c.known for c in columns):
            entries.append(layout_of(columns))
        numbers, introductions = self._log.state.introduce(s.worker for s in new)
        entries += introductions
        for shard, (batch, _), where in zip(new, records, locations, strict=True):
            entries.append(
                Commit(
                    shard=shard.shard,
                    seq=shard.seq,
                    worker=numbers[shard.worker],
                    rows=shard.outputs[0].items if shard.outputs else 0,
                    failed=len(shard.failures),
                    compute_us=shard.compute_us,
                    staging=where.segment,
                    offset=where.offset,
                    length=where.length,
                    batch_length=len(batch),
                    crc=where.crc,
                )
            )
        self._log.append(entries)
        self._columns = columns

    # ---- judging ----

    def settle(
        self,
        *,
        verified: Iterable[ShardIndex] = (),
        reopened: Iterable[ShardIndex] = (),
        checks: Sequence[Check] = (),
    ) -> Settled:
        """Make a judgement durable, all in one go. Saying it again is harmless, but for `checks`.

        Args:
            verified: shards that are believed. Those that are not committed, or final already, are passed over.
            reopened: shards that are not believed. Those that are final, or not committed, are passed over; the others
                are done again, and what was held for their devices is let go of. Must not meet `verified`.
            checks: answers of those who computed something again; each is paid once for each time it is given here.

        Raises:
            StaleEpochError: a newer writer exists; nothing is changed.
            StoreError: writing failed; nothing is changed, and the same may be tried again.
            InternalError: the job is not planned with verification.
        """
        state = self._log.state
        if state.plan is None or not state.plan.verify:
            raise InternalError(f"{self._folder}: a judgement came for a job that is not planned with verification")
        settled, entries = judge(state, verified, reopened, checks)
        if entries:
            self._log.append(entries)
        if settled.reopened:
            # It is done, and trying it again would pay the checks again; the next sweep finds what this one could not.
            with contextlib.suppress(StoreError):
                self._staging.sweep(state.references)
        return settled

    def read_staged(self, shard: ShardIndex) -> StagedResult | None:
        """The committed result of a shard whose part is not sealed; None if there is none or its record is damaged.

        Raises:
            StoreError: the system refuses to read.
        """
        commit = self._log.state.staged_commit(shard)
        if commit is None:
            return None
        with self._staging.reading() as read:
            data = read(Location(commit.staging, commit.offset, commit.length, commit.crc))
        if data is None:
            return None
        outputs, failures = decode_record(self._columns, data, commit.batch_length)
        return StagedResult(outputs, failures, self._log.state.worker_of(commit))

    def provisional(self) -> list[tuple[ShardIndex, Worker]]:
        """Shards that are committed and not final, and who computed each, ascending."""
        state = self._log.state
        if state.plan is None or not state.plan.verify:
            return []
        commits = sorted(c for held in state.staged.values() for c in held.values() if c.shard not in state.verified)
        return [(ShardIndex(c.shard), state.worker_of(c)) for c in commits]

    @property
    def verified(self) -> IndexSet:
        """Shards that are final now; for looking only."""
        return self._log.state.verified

    @property
    def pay(self) -> RunningPay:
        """What is held for the devices and what they have earned; for looking only."""
        return self._log.state.pay

    def pay_by_device(self) -> dict[str, tuple[int, int]]:
        """Micro-units earned and held, by device; "" is whoever nobody can be named for."""
        return self._log.state.pay_by_device()

    # ---- finishing ----

    def seal(self) -> int:
        """Write the final file of at most one part whose shards are all committed; return how many were sealed.

        0 also if staged results turned out to be damaged: ask `take_reopened`.

        Raises:
            StaleEpochError: a newer writer exists.
            StoreError: writing failed; the part is sealed later.
            InvalidSpecError: the data set no longer gives the keys it promised.
        """
        state = self._log.state
        part = state.ready_part()
        if part is None or state.plan is None:
            return 0
        columns = self._columns if all(c.known for c in self._columns) else unseen(self._columns)
        source = PartSource(state.plan, part, dict(state.staged[part]), self._staging, columns, self._key_column())
        with self.timings.seal:
            outcome = seal_part(source, self._folder, self._job.spec.output.format, self._log.check_epoch)
        if isinstance(outcome, Sealed):
            self._log.append(self._attributed(outcome))
            self._staging.sweep(state.references)
            return 1
        self._log.append([reopening(state, c) for c in outcome])
        self._reopened += [ShardIndex(c.shard) for c in outcome]
        return 0

    def _attributed(self, sealed: Sealed) -> list[Entry]:
        """`sealed` with who computed it, so that this is known even if lines of single shards are lost."""
        work = self._log.state.staged_work(sealed.part)
        numbers, introductions = self._log.state.introduce(work)
        shares = tuple(sorted(Share(numbers[worker], *share[1:]) for worker, share in work.items()))
        return [*introductions, replace(sealed, work=shares)]

    @property
    def has_ready_part(self) -> bool:
        """Whether `seal` has something to do."""
        return self._log.state.ready_part() is not None

    @property
    def has_reopened(self) -> bool:
        """Whether `take_reopened` has something to tell."""
        return bool(self._reopened)

    @property
    def rows_failed(self) -> int:
        """Failed rows of all shards that are committed now."""
        return self._log.state.rows_failed

    def take_reopened(self) -> list[ShardIndex]:
        """Shards that were committed but must be done again, because their staged results were damaged. Once each."""
        taken, self._reopened = self._reopened, []
        return taken

    def finish(self) -> Manifest:
        """Seal what remains, write the manifest and enter the end; calling it again is harmless.

        Raises:
            StoreError: writing failed, or not all shards are committed (some may have been reopened just now: ask
                `take_reopened`).
            StaleEpochError, InvalidSpecError: see `seal`.
        """
        while self.seal():
            pass
        state = self._log.state
        plan = state.plan
        if plan is not None and plan.verify and len(state.verified) != plan.grid.shards == len(state.committed):
            raise StoreError(
                f"{self._folder} cannot be finished: {len(state.verified)} of {plan.grid.shards} shards are verified"
            )
        if (plan is None and self._job.items) or (plan is not None and len(state.sealed) != plan.parts):
            shards = plan.grid.shards if plan else 0
            raise StoreError(
                f"{self._folder} cannot be finished: {len(state.committed)} of {shards} shards are committed"
            )
        path = self._folder / MANIFEST_NAME
        data = self._manifest().to_bytes()
        digest = hashlib.sha256(data).hexdigest()
        self._log.check_epoch()
        known = state.finished == Finished(digest)
        try:
            # Unless the log vouches for it, what can be read may be the work of a try whose last fsync failed.
            if not known or not path.exists() or path.read_bytes() != data:
                write_atomically(path, self._staging.temporary(MANIFEST_NAME), data)
        except OSError as error:
            self._log.check_epoch()
            raise store_error("writing", path, error) from error
        if not known:
            self._log.append([Finished(digest)])
        self._staging.close()
        self._log.check_epoch()  # what a newer writer has staged is not ours to remove
        self._staging.sweep(())
        return load_manifest(path)

    def _manifest(self) -> Manifest:
        columns = self._columns if all(c.known for c in self._columns) else unseen(self._columns)
        return build_manifest(self._job, self._log.state, self._key_column(), columns)

    def _key_column(self) -> KeyColumn:
        if self._key is None:
            import pyarrow as pa

            name = self._job.spec.input.key
            if not name:
                taken = {c.name for c in self._columns}
                name = next(n for n in (ROW_NUMBER, "row_number", "_row_number") if n not in taken)
                self._key = KeyColumn(name, numbered=True, type=pa.int64(), source=self._keys)
            else:
                # The first key decides, so that all parts agree however the data set is read.
                first = self._keys(0, min(1, self._job.items))
                self._key = KeyColumn(name, numbered=False, type=first.type, source=self._keys)
        return self._key

    def close(self) -> None:
        """Let go of files and lock; what is on disk stays as it is."""
        for held in (getattr(self, "_log", None), getattr(self, "_staging", None)):
            if held is not None:
                held.close()
        self._lock.release()
