"""The life of one batch job, without any input or output.

Feed it events and carry out the effects it answers with; feed what comes of them back in as events. Nothing here
knows of devices' links, files or clocks (``now`` is an argument), so any history can be replayed, and the laws below
are tested under every order of events Hypothesis can think of.

Laws, checked by `validate`:

- Every shard is in exactly one of: pending, in flight (at least one attempt), committing, committed.
- At most one attempt of a shard is being committed, and a committed shard never leaves that state (unless its stored
  result turns out to be damaged).
- A result is settled as "committed" only after the event that says it is durable.
- An attempt is held by one device only, and a device never has two attempts of one shard.

- In a job with verification a committed shard is provisional until it is verified, and the job is not over before.

Late results are welcome: an attempt that was released, or handed out by an operator that has since died, still counts
if its shard is open. What must be unique is the commit, not the computation.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

from pocketgrid.jobs.attempts import Attempt, JobCounters
from pocketgrid.model import events as ev
from pocketgrid.model.ids import AttemptSeq, DeviceName, Epoch, LeaseId, attempt_seq
from pocketgrid.model.job import Limits, ShardGrid
from pocketgrid.model.ranges import IndexSet
from pocketgrid.model.view import Explanation, Stage


@dataclass(slots=True)
class JobMachine:
    """State of one job. Create it when the cut into shards is known.

    Attributes:
        grid: how items are cut.
        epoch: of this writer; attempts are numbered within it.
        limits: when to give up.
        stage: where the job stands.
        released: how often a shard that was handed out has become free again.
        verify: committed shards are provisional; they must be verified as well.
        lost_checks: checks whose device gave up or vanished, since somebody last emptied this.
        touched: devices that hold something else than they did when somebody last emptied this.
    """

    grid: ShardGrid
    epoch: Epoch
    limits: Limits
    stage: Stage = Stage.RUNNING
    committed: IndexSet = field(default_factory=IndexSet)
    verify: bool = False
    verified: IndexSet = field(default_factory=IndexSet)
    lost_checks: list[int] = field(default_factory=list)
    counters: JobCounters = field(default_factory=JobCounters)
    explanation: Explanation | None = None
    manifest_uri: str = ""
    released: int = 0
    pending: IndexSet = field(init=False)
    attempts: dict[AttemptSeq, Attempt] = field(default_factory=dict)
    by_device: dict[DeviceName, dict[AttemptSeq, None]] = field(default_factory=dict)
    touched: set[DeviceName] = field(default_factory=set)
    _by_shard: dict[int, list[AttemptSeq]] = field(default_factory=dict)
    _committing: dict[int, AttemptSeq] = field(default_factory=dict)
    _committing_device: dict[int, DeviceName] = field(default_factory=dict)
    _blame: dict[int, set[AttemptSeq]] = field(default_factory=dict)
    _deadlines: list[tuple[float, AttemptSeq]] = field(default_factory=list)
    _next_attempt: int = 0
    _next_lease: int = 0
    _running_since: float | None = None

    def __post_init__(self) -> None:
        self.pending = self.committed.complement(self.grid.shards)

    # ---- commands ----

    def start(self, now: float, *, suspended: bool) -> list[ev.JobEffect]:
        """Begin at `now`; a job whose shards are all committed goes straight on to its manifest."""
        if suspended:
            self.stage = Stage.SUSPENDED
        else:
            self._running_since = now
        return [*self._check_failed_items(), *self._check_done()]

    def hand_out(
        self, device: DeviceName, count: int, now: float, deadline: float, *, but: Collection[int] = ()
    ) -> ev.LeaseCut | None:
        """Give `device` a lease of up to `count` pending shards, lowest first; None if there is nothing to give.

        Args:
            but: shards it is not to have.
        """
        if self.stage is not Stage.RUNNING or count <= 0:
            return None
        withheld = [shard for shard in but if self.pending.discard(shard)]
        shards = self.pending.take_first(count)
        for shard in withheld:
            self.pending.add(shard)
        if not shards:
            return None
        return self._lease(device, shards, now, deadline, copy=False)

    def hand_out_copy(self, device: DeviceName, shard: int, now: float, deadline: float) -> ev.LeaseCut | None:
        """Give `device` a second attempt at `shard`; None if it is not in flight or `device` has it already."""
        current = self._by_shard.get(shard)
        if self.stage is not Stage.RUNNING or not current or shard >= self.grid.shards:
            return None
        if any(self.attempts[seq].device == device for seq in current):
            return None
        self.counters.copies += 1
        return self._lease(device, [shard], now, deadline, copy=True)

    def hand_out_check(self, device: DeviceName, number: int, now: float, deadline: float) -> ev.LeaseCut:
        """Give `device` a check; the job must be running.

        To everything below, a check is an attempt at a shard that does not exist: `check_shard(number)`.
        """
        assert self.stage is Stage.RUNNING
        return self._lease(device, [self.check_shard(number)], now, deadline, copy=False)

    def check_shard(self, number: int) -> int:
        """The virtual shard that stands for a check."""
        return self.grid.shards + number

    def check_number(self, shard: int) -> int | None:
        """The check a virtual shard stands for; None if it is a real one."""
        return shard - self.grid.shards if shard >= self.grid.shards else None

    def attempts_of(self, device: DeviceName) -> tuple[Attempt, ...]:
        """What `device` holds, in the order it was handed out."""
        return tuple(self.attempts[seq] for seq in self.by_device.get(device, ()))

    def attempt_count(self, shard: int) -> int:
        """How many devices have `shard` now."""
        return len(self._by_shard.get(shard, ()))

    def is_open(self, shard: int) -> bool:
        """Whether a result for `shard` could still be of use."""
        if shard >= self.grid.shards:
            return shard in self._by_shard
        return not self._is_over() and shard not in self.committed and shard not in self._committing

    @property
    def committing_devices(self) -> Iterable[DeviceName]:
        """Whose results are on their way to disk; once for each shard."""
        return self._committing_device.values()

    @property
    def shards_active(self) -> int:
        """Shards in flight or on their way to disk, checks left out."""
        checks = sum(shard >= self.grid.shards for shard in self._by_shard) if self.verify else 0
        return len(self._by_shard) - checks + len(self._committing)

    # ---- events ----

    def handle(self, event: ev.JobEvent, now: float) -> list[ev.JobEffect]:
        """Take in one event; returns what is to be done, in order."""
        match event:
            case ev.ResultJudged():
                return self._on_result(event)
            case ev.AttemptFailed():
                return self._on_failure(event)
            case ev.ShardEmpty():
                return self._on_empty(event)
            case ev.AttemptsReturned():
                for seq in event.seqs:
                    self._release(seq, of=event.device)
                return []
            case ev.AttemptHeld():
                return self._on_held(event, now)
            case ev.DeviceGone():
                return self._on_device_gone(event)
            case ev.ShardCommitted():
                return self._on_committed(event)
            case ev.CommitRefused():
                return self._on_commit_refused(event)
            case ev.ShardsReopened():
                return self._on_reopened(event)
            case ev.ShardsVerified():
                return self._on_verified(event)
            case ev.SuspendChanged():
                return self._on_suspend(event, now)
            case ev.TimePassed():
                return self._on_time(now)
            case ev.OutputFinished():
                return self._on_output_finished(event)
            case ev.JobBroken():
                return self._fail(event.reason, event.message)
            case ev.JobRemoved():
                return self._end(Stage.REMOVED)
        assert_never(event)

    def _on_result(self, event: ev.ResultJudged) -> list[ev.JobEffect]:
        shard, seq, device = event.shard, event.seq, event.device
        if shard >= self.grid.shards:
            return self._on_check_result(event)
        if self._is_over() or shard in self.committed:
            self._forget(seq)
            self.counters.duplicates += 1
            return [ev.Settle(device, shard, seq, "superseded")]
        if shard in self._committing:
            self._forget(seq)
            if self._committing[shard] == seq:
                # The same result again, after a reconnect; it is settled once it is durable.
                return []
            self.counters.duplicates += 1
            return [ev.Settle(device, shard, seq, "superseded")]
        if event.verdict.accepted is not True:
            self._release(seq, of=device)
            verdict = event.verdict
            return [ev.Settle(device, shard, seq, "refused", verdict.reason or "Undecided", verdict.message)]
        effects = self._drop_others(shard, seq)
        self._begin_commit(shard, seq, device)
        return [ev.CommitShard(shard, seq, device), *effects]

    def _on_failure(self, event: ev.AttemptFailed) -> list[ev.JobEffect]:
        shard, seq = event.shard, event.seq
        settled = ev.Settle(event.device, shard, seq, "superseded")
        known = seq in self.attempts
        self._release(seq, of=event.device)
        if self._is_over() or shard >= self.grid.shards or shard in self.committed or shard in self._committing:
            return [settled]
        if not event.blame_items:
            self.counters.attempts_lost += known
            return [settled]
        if not known:
            # Told again after a reconnect, or long after the shard went elsewhere: one execution is blamed once.
            return [settled]
        # By number, because a device that has not heard of the settlement comes back with the same failure.
        executions = self._blame.setdefault(shard, set())
        executions.add(seq)
        blamed = len(executions)
        if blamed <= self.limits.backoff_limit_per_shard:
            return [settled]
        effects = self._drop_others(shard, seq)
        self._begin_commit(shard, seq, event.device)
        reason, message = event.reason or "ShardFailed", event.message
        return [settled, ev.CommitShard(shard, seq, event.device, reason, message), *effects]

    def _on_empty(self, event: ev.ShardEmpty) -> list[ev.JobEffect]:
        attempt = self.attempts.get(event.seq)
        if attempt is None or self._is_over():
            return []
        if event.shard >= self.grid.shards:
            self._release(event.seq)
            return []
        effects = self._drop_others(event.shard, event.seq)
        self._begin_commit(event.shard, event.seq, attempt.device)
        return [ev.CommitShard(event.shard, event.seq, attempt.device), *effects]

    def _on_check_result(self, event: ev.ResultJudged) -> list[ev.JobEffect]:
        shard, seq, device = event.shard, event.seq, event.device
        if seq not in self.attempts:
            return [ev.Settle(device, shard, seq, "superseded")]
        verdict = event.verdict
        if verdict.accepted is not True:
            self._release(seq, of=device)
            return [ev.Settle(device, shard, seq, "refused", verdict.reason or "Undecided", verdict.message)]
        self._forget(seq)
        # The word a shard's result would get: whoever is checked must not learn it.
        return [ev.Settle(device, shard, seq, "committed"), ev.CheckAnswered(shard, seq, device)]

    def _on_verified(self, event: ev.ShardsVerified) -> list[ev.JobEffect]:
        for shard in event.shards:
            if shard in self.committed:
                self.verified.add(shard)
        return self._check_done()

    def _on_held(self, event: ev.AttemptHeld, now: float) -> list[ev.JobEffect]:
        shard, seq, device = event.shard, event.seq, event.device
        if seq in self.attempts:
            return []
        # While a job is suspended nobody works for it, but what is finished is finished.
        wanted = self.stage is Stage.RUNNING or (self.stage is Stage.SUSPENDED and event.finished)
        if not wanted or shard >= self.grid.shards or shard in self.committed or shard in self._committing:
            return [ev.CancelAttempt(device, shard, seq)]
        if any(self.attempts[other].device == device for other in self._by_shard.get(shard, ())):
            return [ev.CancelAttempt(device, shard, seq)]
        self.pending.discard(shard)
        self._add(Attempt(seq, shard, device, LeaseId(-1), now, event.deadline))
        return []

    def _on_device_gone(self, event: ev.DeviceGone) -> list[ev.JobEffect]:
        for seq in list(self.by_device.get(event.device, ())):
            if seq not in event.keep:
                self._release(seq)
                self.counters.attempts_lost += 1
        return []

    def _on_committed(self, event: ev.ShardCommitted) -> list[ev.JobEffect]:
        shard = event.shard
        if self._committing.pop(shard, None) is None:
            return []
        device = self._committing_device.pop(shard)
        self.committed.add(shard)
        self._blame.pop(shard, None)
        self.counters.rows_done += event.rows
        self.counters.rows_failed += event.failed
        return [
            ev.Settle(device, shard, event.seq, "committed"),
            *self._check_failed_items(),
            *self._check_done(),
        ]

    def _on_commit_refused(self, event: ev.CommitRefused) -> list[ev.JobEffect]:
        if self._committing.get(event.shard) != event.seq:
            return []
        del self._committing[event.shard]
        device = self._committing_device.pop(event.shard)
        self.pending.add(event.shard)
        self.released += 1
        return [ev.Settle(device, event.shard, event.seq, "refused", "WrongOutputs", event.message)]

    def _on_reopened(self, event: ev.ShardsReopened) -> list[ev.JobEffect]:
        for shard in event.shards:
            self.verified.discard(shard)
            if self.committed.discard(shard):
                if self.stage is Stage.FINISHING:
                    self.stage = Stage.RUNNING
                self.pending.add(shard)
                self.released += 1
                self.counters.rows_done -= self.grid.size(shard)
        self.counters.rows_failed -= event.failed
        return []

    def _on_suspend(self, event: ev.SuspendChanged, now: float) -> list[ev.JobEffect]:
        if event.suspend and self.stage is Stage.RUNNING:
            self.stage = Stage.SUSPENDED
            self._running_since = None
            self._release_all()
            return [ev.CancelJob()]
        if not event.suspend and self.stage is Stage.SUSPENDED:
            self.stage = Stage.RUNNING
            # The active deadline starts anew on resumption, as it does for a batch/v1 Job.
            self._running_since = now
            return self._check_done()
        return []

    def _on_time(self, now: float) -> list[ev.JobEffect]:
        effects: list[ev.JobEffect] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, seq = heapq.heappop(self._deadlines)
            attempt = self.attempts.get(seq)
            if attempt is not None:
                self._release(seq)
                self.counters.attempts_lost += 1
                effects.append(ev.CancelAttempt(attempt.device, attempt.shard, seq))
        allowed = self.limits.active_deadline_s
        if (
            allowed
            and self.stage is Stage.RUNNING
            and self._running_since is not None
            and now - self._running_since >= allowed
        ):
            effects.extend(self._fail("DeadlineExceeded", f"the job was active longer than {allowed} s"))
        return effects

    def _on_output_finished(self, event: ev.OutputFinished) -> list[ev.JobEffect]:
        if self.stage is not Stage.FINISHING:
            return []
        self.manifest_uri = event.manifest_uri
        return self._end(Stage.COMPLETE)

    # ---- transitions ----

    def _check_failed_items(self) -> list[ev.JobEffect]:
        allowed = self.limits.max_failed_items
        failed = self.counters.rows_failed
        if allowed is None or failed <= allowed or self._is_over():
            return []
        return self._fail("MaxFailedItemsExceeded", f"{failed} items failed, {allowed} are allowed")

    def _check_done(self) -> list[ev.JobEffect]:
        settled = self.verified if self.verify else self.committed
        if self.stage is Stage.RUNNING and len(settled) == self.grid.shards:
            self.stage = Stage.FINISHING
            return [ev.FinishOutput()]
        return []

    def _fail(self, reason: str, message: str) -> list[ev.JobEffect]:
        if self._is_over():
            return []
        self.explanation = Explanation(reason, message)
        return self._end(Stage.FAILED)

    def _end(self, stage: Stage) -> list[ev.JobEffect]:
        if self.stage is Stage.REMOVED or (self._is_over() and stage is not Stage.REMOVED):
            return []
        was_over = self._is_over()
        self.stage = stage
        self._release_all()
        return [] if was_over else [ev.CancelJob(), ev.CloseOutput()]

    def _is_over(self) -> bool:
        return self.stage in (Stage.COMPLETE, Stage.FAILED, Stage.REMOVED)

    # ---- bookkeeping ----

    def _lease(
        self, device: DeviceName, shards: Iterable[int], now: float, deadline: float, *, copy: bool
    ) -> ev.LeaseCut:
        lease = LeaseId(self._next_lease)
        self._next_lease += 1
        handed = []
        for shard in shards:
            seq = attempt_seq(self.epoch, self._next_attempt)
            self._next_attempt += 1
            self._add(Attempt(seq, shard, device, lease, now, deadline, copy))
            handed.append(ev.HandedOut(shard, seq))
        return ev.LeaseCut(lease, device, deadline, tuple(handed))

    def _add(self, attempt: Attempt) -> None:
        self.attempts[attempt.seq] = attempt
        self.by_device.setdefault(attempt.device, {})[attempt.seq] = None
        self.touched.add(attempt.device)
        self._by_shard.setdefault(attempt.shard, []).append(attempt.seq)
        heapq.heappush(self._deadlines, (attempt.deadline, attempt.seq))

    def _forget(self, seq: AttemptSeq) -> Attempt | None:
        attempt = self.attempts.pop(seq, None)
        if attempt is None:
            return None
        self.touched.add(attempt.device)
        held = self.by_device[attempt.device]
        del held[seq]
        if not held:
            del self.by_device[attempt.device]
        siblings = self._by_shard[attempt.shard]
        siblings.remove(seq)
        if not siblings:
            del self._by_shard[attempt.shard]
        return attempt

    def _release(self, seq: AttemptSeq, *, of: DeviceName | None = None) -> None:
        attempt = self.attempts.get(seq)
        if attempt is None or (of is not None and attempt.device != of):
            return
        self._forget(seq)
        shard = attempt.shard
        if shard >= self.grid.shards:
            self.lost_checks.append(shard - self.grid.shards)
            return
        if shard not in self._by_shard and shard not in self._committing and shard not in self.committed:
            self.pending.add(shard)
            self.released += 1

    def _release_all(self) -> None:
        for seq in list(self.attempts):
            self._release(seq)
        self._deadlines.clear()

    def _drop_others(self, shard: int, winner: AttemptSeq) -> list[ev.JobEffect]:
        effects: list[ev.JobEffect] = []
        for seq in tuple(self._by_shard.get(shard, ())):
            attempt = self._forget(seq)
            if seq != winner and attempt is not None:
                effects.append(ev.CancelAttempt(attempt.device, shard, seq))
        return effects

    def _begin_commit(self, shard: int, seq: AttemptSeq, device: DeviceName) -> None:
        self.pending.discard(shard)
        self._committing[shard] = seq
        self._committing_device[shard] = device

    # ---- invariants ----

    def validate(self) -> None:
        """Check the laws in the module's docstring; for tests, O(shards).

        Raises:
            AssertionError: a law is broken.
        """
        in_flight = {shard for shard in self._by_shard if shard < self.grid.shards}
        committing = set(self._committing)
        pending = set(self.pending)
        committed = set(self.committed)
        groups = (pending, in_flight, committing, committed)
        assert set().union(*groups) == set(range(self.grid.shards)), "a shard is nowhere"
        assert sum(map(len, groups)) == self.grid.shards, "a shard is in two states"
        by_shard: Mapping[int, list[AttemptSeq]] = self._by_shard
        assert {s for seqs in by_shard.values() for s in seqs} == set(self.attempts)
        assert {s for held in self.by_device.values() for s in held} == set(self.attempts)
        for shard, seqs in by_shard.items():
            devices = [self.attempts[seq].device for seq in seqs]
            assert len(set(devices)) == len(devices), f"one device has shard {shard} twice"
            assert all(self.attempts[seq].shard == shard for seq in seqs)
        assert committing == set(self._committing_device)
        if self.stage in (Stage.COMPLETE, Stage.FAILED, Stage.REMOVED, Stage.SUSPENDED):
            assert not self.attempts or self.stage is Stage.SUSPENDED
        if self.stage is Stage.COMPLETE:
            assert len(self.committed) == self.grid.shards
            assert not self.verify or len(self.verified) == self.grid.shards
        assert set(self.verified) <= committed
        assert 0 <= self.counters.rows_failed <= self.counters.rows_done <= self.grid.items
