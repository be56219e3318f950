"""One job under way: the pure machine, and all that stands around it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pocketgrid.engine.links import AttemptFailure, ShardOutcome
from pocketgrid.engine.merging import drop_rows, merge_failures
from pocketgrid.engine.tokens import AttemptTokens
from pocketgrid.engine.writer import CommitWriter
from pocketgrid.jobs.machine import JobMachine
from pocketgrid.model import events as ev
from pocketgrid.model.device import AgentFeature
from pocketgrid.model.ids import AttemptSeq, DeviceName, JobUid, ShardIndex
from pocketgrid.model.job import ACCEPTED, ItemFailure, JobSpec, Verdict
from pocketgrid.model.tensors import TensorData
from pocketgrid.model.trust import DataClass
from pocketgrid.model.view import Explanation, Stage
from pocketgrid.planning.eligibility import Eligibility
from pocketgrid.planning.rates import RateWindow
from pocketgrid.storage.logentries import Worker
from pocketgrid.trust.judge import OutputExpectation, judge_structure
from pocketgrid.worktimes import Work, WorkTimes

if TYPE_CHECKING:
    from pocketgrid.engine.admission import Admission
    from pocketgrid.engine.verification import JobVerification
    from pocketgrid.storage.encoding import EncodedShard
    from pocketgrid.storage.results import Recovered, ResultStore, ShardCommit


INPUT_UNREADABLE = "InputUnreadable"
"""The data set cannot be read just now; it is tried again."""

INPUT_CHANGED = "InputChanged"
"""The data set is not what it was when the job was admitted; the job fails."""


@dataclass(slots=True, eq=False)
class JobRun:
    """Everything about one job. Owned by the engine and touched only on its loop.

    Attributes:
        opening: stage until there is a machine.
        unread: rows that could not be read, for shards in flight that have such rows.
        in_flight: shards encoded by this process and not yet judged: whether `unread` is known for them.
        working: devices that count as working for it, as of the last tick.
        paused_until: monotonic seconds before which nothing is handed out (reading failed).
        exhausted: its budget allowed not one more shard when a device was last to get one.
        times: where the operator's processor time goes, of all jobs together.
    """

    spec: JobSpec
    times: WorkTimes = field(default_factory=WorkTimes)
    opening: Stage = Stage.ADMITTING
    explanation: Explanation | None = None
    trouble: Explanation | None = None
    admission: Admission | None = None
    recovered: Recovered | None = None
    store: ResultStore | None = None
    executor: ThreadPoolExecutor | None = None
    writer: CommitWriter | None = None
    machine: JobMachine | None = None
    tokens: AttemptTokens | None = None
    expectations: tuple[OutputExpectation, ...] = ()
    verification: JobVerification | None = None
    planning_cut: bool = False
    unread: dict[int, tuple[ItemFailure, ...]] = field(default_factory=dict)
    in_flight: set[int] = field(default_factory=set)
    eligibility: dict[DeviceName, Eligibility] = field(default_factory=dict)
    total_speed: float = 0.0
    working: set[DeviceName] = field(default_factory=set)
    rate: RateWindow = field(default_factory=RateWindow)
    paused_until: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    released_seen: int = 0
    exhausted: bool = False
    wire_bytes_per_item: float = 0.0
    revoking: set[int] = field(default_factory=set)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    readings: set[asyncio.Future[list[EncodedShard]]] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def uid(self) -> JobUid:
        """Identity of the job."""
        return self.spec.uid

    @property
    def removed(self) -> bool:
        """Whether the user deleted the job, or the engine stops; may come true at any moment of its opening."""
        return self.opening is Stage.REMOVED

    @property
    def stage(self) -> Stage:
        """Where the job stands."""
        if self.machine is not None:
            return self.machine.stage
        if self.opening is Stage.ADMITTING and self.store is not None and self.spec.suspend:
            return Stage.SUSPENDED
        return self.opening

    @property
    def wants_devices(self) -> bool:
        """Whether devices may be prepared for it or given work."""
        if self.admission is None or self.store is None:
            return False
        if self.trouble is not None and self.trouble.reason != INPUT_UNREADABLE:
            # What cannot be read is tried again after a pause, and only handing out tries it.
            return False
        return self.stage in (Stage.ADMITTING, Stage.RUNNING) and not self.spec.suspend

    @property
    def shards_out(self) -> int:
        """Shards and checks that devices have; at least 1 while there is something to check, by whoever comes."""
        if self.machine is None:
            return 0
        to_check = self.verification is not None and self.verification.machine.wants_checks
        return max(len(self.machine.attempts), int(to_check))

    @property
    def requires(self) -> frozenset[AgentFeature]:
        """What agents must be able to do; nothing is known of it before admission."""
        of_order = self.admission.job.order.requires if self.admission is not None else frozenset()
        public = self.spec.placement.data_class is DataClass.PUBLIC
        # An agent that knows nothing of it would write a confidential model to its disk as it is.
        return of_order if public else of_order | {AgentFeature.SEALED_CACHE}

    @property
    def bytes_per_item(self) -> float:
        """What an item weighs on the wire: as lately measured, or as admission estimated."""
        assert self.admission is not None
        return self.wire_bytes_per_item or self.admission.job.bytes_per_item

    @property
    def bytes_per_shard(self) -> float:
        """Estimate of what a shard's inputs weigh."""
        return self.bytes_per_item * (self.machine.grid.per_shard if self.machine is not None else 1)

    def items_of(self, shard: int) -> Sequence[int]:
        """Numbers of the items of a shard, in order: a range, unless it is the virtual shard of a check."""
        assert self.machine is not None
        if self.machine.check_number(shard) is None:
            return range(*self.machine.grid.bounds(shard))
        assert self.verification is not None
        return self.verification.items_of(shard)

    async def encode(self, threads: Executor, wanted: Sequence[Sequence[int]]) -> list[EncodedShard]:
        """Read and encode the items of several shards in a thread, in the narrowest dtypes that lose nothing.

        Raises:
            StoreError: the data set cannot be read any more, or not as it was when the job was admitted.
            OSError: the system refused to read.
        """
        assert self.admission is not None
        encoder = self.admission.encoder
        reading = asyncio.get_running_loop().run_in_executor(
            threads, lambda: [_narrowed(encoder.encode_items(items, self.times), self.times) for items in wanted]
        )
        self.readings.add(reading)
        reading.add_done_callback(self.readings.discard)
        encoded = await reading
        if rows := sum(shard.rows for shard in encoded):
            self.wire_bytes_per_item = sum(len(t.data) for shard in encoded for t in shard.inputs) / rows
        return encoded

    async def close_encoder(self) -> None:
        """Close the data set once nobody reads it any more."""
        while self.readings:
            await asyncio.wait(self.readings)
        if self.admission is not None:
            self.admission.encoder.close()

    def unread_of(self, shard: int, outcome: ShardOutcome) -> tuple[ItemFailure, ...] | None:
        """Rows of `shard` that were not sent; None if that must be found out by reading it again.

        A shard handed out before this process began may have had unreadable rows; if the answer has a row for each of
        the shard's, it had none.
        """
        assert self.machine is not None
        known = self.unread.get(shard)
        if known is not None:
            return known
        if shard in self.in_flight or outcome.failed is not None:
            return ()
        size = self.machine.grid.size(shard)
        return () if all(t.items == size for t in outcome.outputs) else None

    def judge(self, outcome: ShardOutcome, sent: int) -> Verdict:
        """Whether an answer to `sent` rows can be one at all."""
        verdict = judge_structure(self.expectations, outcome.outputs, outcome.failures, sent)
        if verdict.accepted is not True or self.store is None:
            return verdict
        problem = self.store.conforms(outcome.outputs, sent)
        return ACCEPTED if problem is None else Verdict(accepted=False, reason="WrongOutputs", message=problem)

    def commit_of(
        self,
        effect: ev.CommitShard,
        outcome: ShardOutcome | None,
        worker: Worker,
    ) -> tuple[ShardCommit, int]:
        """What goes to disk for an accepted answer, or for a shard that was given up; and how many bytes it weighs.

        Args:
            worker: who computed it, and at what price.
        """
        from pocketgrid.storage.results import ShardCommit

        assert self.machine is not None
        shard = effect.shard
        rows = self.machine.grid.size(shard)
        unread = self.unread.pop(shard, ())
        self.in_flight.discard(shard)
        self.revoking.discard(shard)
        if effect.give_up or outcome is None:
            missing = {f.row for f in unread}
            given_up = [
                ItemFailure(row, effect.give_up or "Unreadable", effect.message)
                for row in range(rows)
                if row not in missing
            ]
            failures = tuple(sorted((*unread, *given_up), key=lambda f: f.row))
            outputs: tuple[TensorData, ...] = ()
            compute_us = 0
        else:
            failures = merge_failures(unread, outcome.failures, rows)
            gone = [f.row for f in outcome.failures]
            outputs = tuple(drop_rows(t, gone) for t in outcome.outputs)
            compute_us = outcome.compute_us
        commit = ShardCommit(
            shard=ShardIndex(shard),
            seq=effect.seq,
            device=effect.device,
            owner=worker.owner,
            outputs=outputs,
            failures=failures,
            compute_us=compute_us,
            engine=worker.engine,
            classes=tuple(worker.classes.split(",")) if worker.classes else (),
            price=worker.price,
            numerics=worker.numerics,
        )
        return commit, sum(len(t.data) for t in outputs) + 256


def failure_event(
    outcome: ShardOutcome, failure: AttemptFailure, seq: AttemptSeq, device: DeviceName
) -> ev.AttemptFailed:
    """The event for an attempt that failed as a whole."""
    return ev.AttemptFailed(outcome.shard, seq, device, failure.blame_items, failure.reason, failure.message)


def _narrowed(shard: EncodedShard, times: WorkTimes) -> EncodedShard:
    from pocketgrid.storage.narrowing import narrow_tensor

    with times.measure(Work.ENCODE):
        return replace(shard, inputs=tuple(narrow_tensor(t) for t in shard.inputs))
