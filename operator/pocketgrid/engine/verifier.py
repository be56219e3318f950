"""Carries out what the trust room decides: hands out checks, compares answers, makes shards final or takes them back.

Everything is decided by a job's `VerificationMachine`. Here its checks become leases, answers become comparisons with
what is committed, and its effects become entries in the commit log. An effect on shards is durable before the job's
machine hears of it, so that nothing is paid or sealed that a crash could undo.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, assert_never

from pocketgrid.engine.fleet import DeviceRecord
from pocketgrid.engine.grid import Grid
from pocketgrid.engine.jobrun import JobRun
from pocketgrid.engine.links import ShardOutcome
from pocketgrid.engine.verification import Answer, JobVerification, OpenCheck, answer_of
from pocketgrid.model import events as ev
from pocketgrid.model.ids import DeviceName, ShardIndex
from pocketgrid.model.numerics import comparable
from pocketgrid.model.trust import Witness
from pocketgrid.model.view import Stage
from pocketgrid.trust import effects as trust
from pocketgrid.trust.effects import Sample
from pocketgrid.trust.machine import VerificationMachine
from pocketgrid.trust.probation import Probation, Trial, Waiting
from pocketgrid.trust.reputation import Reputations
from pocketgrid.trust.traps import Traps
from pocketgrid.worktimes import Work

if TYPE_CHECKING:
    from pocketgrid.storage.logentries import Worker
    from pocketgrid.storage.results import ShardCommit, StagedResult

log = logging.getLogger(__name__)


NO_CONSENSUS = "NoConsensus"
"""A job failed because devices never agreed about some of its shards."""

LAST_RESORT_S = 3.0
"""How often it is looked at whether there is anybody who can still decide a dispute."""


class Withheld(Enum):
    """A device gets nothing of a job now."""

    WITHHELD = "withheld"


WITHHELD = Withheld.WITHHELD


class Verifier:
    """Verifies the results of all jobs that ask for it.

    Args:
        apply: feeds an event to a job's machine and carries out what follows.
        on_reopened: told of shards that must be done again, and how many rows are failed among the others.
        seed: of the draws of checks; whoever knows it knows what will be checked.
    """

    def __init__(
        self,
        grid: Grid,
        apply: Callable[[JobRun, ev.JobEvent], None],
        on_reopened: Callable[[JobRun, Sequence[int], int], None],
        *,
        seed: int,
    ) -> None:
        self._grid = grid
        self._apply = apply
        self._on_reopened = on_reopened
        self._rng = random.Random(seed)
        self.reputations = Reputations()

    # ---- a job's life ----

    def start(self, job: JobRun) -> None:
        """A job has its machine: what its log has and has not made final is provisional."""
        assert job.machine is not None
        assert job.store is not None
        if not job.machine.verify:
            return
        verification = job.spec.verification
        machine = VerificationMachine(
            verification,
            job.machine.grid,
            self.reputations,
            random.Random(self._rng.getrandbits(64)),
            model=job.spec.model.sha256,
            comparable=self._comparable(job),
        )
        machine.restored(job.machine.verified)
        golden = Traps(job.machine.grid, random.Random(self._rng.getrandbits(64)))
        probation = Probation(golden, self._comparable(job))
        job.verification = JobVerification(machine, job.machine.grid, verification.comparator, golden, probation)
        now = self._grid.clock.wall()
        effects: list[trust.Effect] = []
        for shard, worker in job.store.provisional():
            effects += self._take_in(job.verification, shard, self._witness_of(worker), now)
        job.verification.paid_before = {name: earned for name, (earned, _) in job.store.pay_by_device().items()}
        for device in self._grid.fleet.distrusted:
            # It was caught, and this job's log had not been told yet.
            effects += machine.caught(device, now)
        self._carry_out(job, effects)

    def committed(self, job: JobRun, group: Iterable[ShardCommit]) -> None:
        """Shards have become durable."""
        if job.verification is None:
            return
        now = self._grid.clock.wall()
        final: list[int] = []
        effects: list[trust.Effect] = []
        for commit in group:
            if not commit.outputs:
                # Nobody has an answer to it: its items could not be read, or several devices failed at them.
                final.append(commit.shard)
                continue
            job.verification.changed([commit.shard])
            effects += self._take_in(job.verification, commit.shard, self._witness_of(commit.worker), now)
        self._carry_out(job, effects)
        if final:
            self._grid.spawn(self._settle(job, final, ()), name=f"settle-{job.spec.key}")

    @staticmethod
    def _take_in(verification: JobVerification, shard: int, origin: Witness, now: float) -> list[trust.Effect]:
        verification.origins[shard] = origin
        verification.probation.committed(shard, origin)
        return verification.machine.committed(shard, origin, now)

    def reopened(self, job: JobRun, shards: Sequence[int]) -> None:
        """Shards were lost for another reason than being wrong."""
        if job.verification is not None:
            job.verification.no_measure(shards)
            self._carry_out(job, job.verification.machine.reopened(shards, self._grid.clock.wall()))

    def witness(self, record: DeviceRecord) -> Witness:
        """Who a device is, as far as it bears on believing it."""
        return Witness(
            record.name,
            owner=record.identity.owner,
            network=record.identity.network_prefix,
            numerics=self._grid.fleet.numerics_of(record),
            tier=record.tier,
            engine=record.identity.facts.engine,
        )

    def _witness_of(self, worker: Worker) -> Witness:
        # What it was when it computed counts; where it is now is all that is known of its place.
        record = self._grid.fleet.devices.get(DeviceName(worker.device))
        place = self.witness(record) if record is not None else Witness(DeviceName(worker.device))
        return replace(place, owner=worker.owner, numerics=worker.numerics, engine=worker.engine)

    def _comparable(self, job: JobRun) -> Callable[[str, str], bool]:
        fleet, model, comparator = self._grid.fleet, job.spec.model.sha256, job.spec.verification.comparator
        # Asked anew each time: a profile may be measured while the job waits for one.
        return lambda one, other: comparable(fleet.profiles, model, comparator, one, other)

    # ---- handing out ----

    def next_check(self, job: JobRun, record: DeviceRecord, idle: bool) -> int | Withheld | None:
        """The number of a check the device is to compute now; it must be handed out. None: it may have other work.

        A device's first check of a job is a trial (docs/adr/0013), and until it has passed it gets nothing else.
        """
        machine, verification = job.machine, job.verification
        if machine is None or verification is None or machine.stage is not Stage.RUNNING:
            return None
        witness = self.witness(record)
        match verification.probation.next(witness, self._grid.clock.monotonic()):
            case Waiting():
                return WITHHELD
            case Trial(items=items):
                trial = trust.Check(verification.number_trial(), tuple(items), replica=False)
                verification.open[machine.check_shard(trial.number)] = OpenCheck(trial, witness, trial=True)
                return trial.number
        check = verification.machine.next_check(witness, idle, self._grid.clock.wall())
        if check is None:
            return None
        verification.open[machine.check_shard(check.number)] = OpenCheck(check, witness)
        return check.number

    def collect_lost(self, job: JobRun) -> None:
        """Checks whose device gave up or vanished are drawn again."""
        if job.machine is None or job.verification is None or not job.machine.lost_checks:
            return
        lost, job.machine.lost_checks = job.machine.lost_checks, []
        for number in lost:
            known = job.verification.open.pop(job.machine.check_shard(number), None)
            if known is not None:
                self._lost(job.verification, known)

    @staticmethod
    def _lost(verification: JobVerification, known: OpenCheck) -> None:
        if known.trial:
            verification.probation.withdrawn(known.witness.device)
        else:
            verification.machine.check_lost(known.check.number)

    def settle_last(self, job: JobRun, records: Iterable[DeviceRecord]) -> None:
        """Decide disputes that none of the devices there are, `records`, can decide any more."""
        verification, now = job.verification, self._grid.clock.monotonic()
        if verification is None or now < verification.look_again:
            return
        verification.look_again = now + LAST_RESORT_S
        witnesses = [self.witness(record) for record in records]
        self._carry_out(job, verification.machine.exhausted(witnesses, self._grid.clock.wall()))

    # ---- answers ----

    def answered(self, job: JobRun, virtual: int, outcome: ShardOutcome) -> None:
        """A check came back with an answer of the right form."""
        if job.verification is None:
            return
        known = job.verification.open.pop(virtual, None)
        if known is None:
            return
        self._grid.spawn(self._compare(job, known, outcome), name=f"compare-{job.spec.key}")

    def late(self, job: JobRun, record: DeviceRecord, outcome: ShardOutcome) -> None:
        """A result for a shard that another device's was committed for: evidence for free."""
        verification = job.verification
        if verification is None or outcome.shard not in verification.machine.provisional:
            return
        size = verification.grid.size(outcome.shard)
        # Where rows could not be read it is not worth finding out which.
        if job.judge(outcome, size).accepted is True:
            self._grid.spawn(self._compare_late(job, self.witness(record), outcome), name=f"late-{job.spec.key}")

    async def _compare(self, job: JobRun, known: OpenCheck, outcome: ShardOutcome) -> None:
        verification = job.verification
        assert verification is not None
        number = known.check.number
        try:
            canonical = await self._canonical(job, {sample.shard for sample in known.sent})
            answer = answer_of(outcome, known.sent)
            began = time.thread_time()
            agrees = verification.compare(answer, canonical)
            self._grid.times.add(Work.JUDGE, time.thread_time() - began)
        except BaseException:
            self._lost(verification, known)
            raise
        if known.trial:
            self._tried(job, known, agrees)
            return
        effects = verification.machine.answered(number, known.witness, agrees, self._grid.clock.wall())
        record = self._grid.fleet.devices.get(known.witness.device)
        if record is not None:
            verification.note_agreed(self._grid.fleet.worker(record.name, job.spec), agrees)
        self._carry_out(job, effects, answer)
        self._grid.mark_all()

    def _tried(self, job: JobRun, known: OpenCheck, agrees: Mapping[Sample, tuple[bool, ...]]) -> None:
        """A device has answered its trial."""
        assert job.verification is not None
        device, now = known.witness.device, self._grid.clock.monotonic()
        if not agrees:
            # Nothing of it can be read any more: it is tested on something else.
            job.verification.probation.withdrawn(device)
        else:
            agreed = [agrees.get(sample, (True,))[0] for sample in known.check.samples]
            passed = job.verification.probation.answered(known.witness, agreed, now)
            log.info("trial job=%s device=%s passed=%s", job.spec.key, device, passed)
            record = self._grid.fleet.devices.get(device)
            if record is not None and not passed:
                wrong = len(agreed) - sum(agreed)
                record.set_back(job.uid, now, f"TrialFailed: {wrong} of {len(agreed)} known answers were wrong")
            wall = self._grid.clock.wall()
            self._carry_out(job, job.verification.machine.tried(known.witness, agrees, wall))
        self._grid.mark(device)

    async def _compare_late(self, job: JobRun, witness: Witness, outcome: ShardOutcome) -> None:
        verification = job.verification
        assert verification is not None
        canonical = await self._canonical(job, {outcome.shard})
        samples = [Sample(outcome.shard, row) for row in range(verification.grid.size(outcome.shard))]
        answer = answer_of(outcome, samples)
        agrees = verification.compare(answer, canonical)
        if len(agrees) < len(samples) or outcome.shard not in verification.machine.provisional:
            return
        same = all(yes[0] for yes in agrees.values())
        effects = verification.machine.late_result(outcome.shard, witness, same, self._grid.clock.wall())
        self._carry_out(job, effects, answer)

    async def _canonical(self, job: JobRun, shards: set[int]) -> dict[int, Answer]:
        """What is committed for these shards, those that were taken back meanwhile left out."""
        assert job.writer is not None
        assert job.verification is not None
        version, size = job.verification.version, job.verification.grid.size
        wanted = {ShardIndex(shard): version(shard) for shard in sorted(shards)}
        found = await job.writer.perform(lambda store: {shard: store.read_staged(shard) for shard in wanted})
        # What was taken back and done again meanwhile is not what was read.
        return {
            shard: _answer(shard, staged, size(shard))
            for shard, staged in (found or {}).items()
            if staged is not None and version(shard) == wanted[shard]
        }

    # ---- effects ----

    def _carry_out(self, job: JobRun, effects: Sequence[trust.Effect], answer: Answer | None = None) -> None:
        """Carry out `effects` in order; they follow from `answer`, if one was given."""
        assert job.verification is not None
        broken = ""
        verified: list[int] = []
        reopened: list[int] = []
        for effect in effects:
            match effect:
                case trust.Verified():
                    verified += effect.shards
                case trust.Disproved():
                    log.warning("disproved job=%s device=%s shards=%d", job.spec.key, effect.device, len(effect.shards))
                    reopened += effect.shards
                    job.verification.barred.setdefault(effect.device, set()).update(effect.shards)
                case trust.NoConsensus():
                    job.verification.barred.setdefault(effect.device, set()).update(effect.shards)
                    log.warning("no consensus job=%s shards=%d", job.spec.key, len(effect.shards))
                    reopened += effect.shards
                    if effect.times > job.spec.limits.backoff_limit_per_shard:
                        broken = f"devices never agreed about shard {effect.shards[0]}, {effect.times} times over"
                case trust.Caught():
                    self.distrust(effect.device, effect.reason, but=job)
                case trust.KeepAnswers():
                    assert answer is not None
                    job.verification.keep(answer, effect.samples)
                case trust.ForgetAnswers():
                    job.verification.forget(effect.samples)
                case _:
                    assert_never(effect)
        job.verification.changed(reopened)
        job.verification.no_measure(reopened)
        job.verification.became_final(verified)
        job.verification.note_distrusted(effects, self._grid.fleet.distrusted)
        # Known answers were final before they were asked for again.
        asked = {sample.shard for sample in answer.rows} & job.verification.unpaid.keys() if answer is not None else ()
        known = [shard for shard in asked if shard in job.verification.machine.verified]
        if verified or reopened or known:
            self._grid.spawn(self._settle(job, verified, reopened, known), name=f"settle-{job.spec.key}")
        if broken:
            remedy = "allow for tolerances in spec.verification, or use a model whose results can be repeated"
            self._apply(job, ev.JobBroken(NO_CONSENSUS, f"{broken}; {remedy}"))

    async def _settle(
        self, job: JobRun, verified: Sequence[int], reopened: Sequence[int], known: Sequence[int] = ()
    ) -> None:
        from pocketgrid.storage.results import Check

        assert job.writer is not None
        assert job.verification is not None
        job.verification.take_earned(reopened)
        checks = [
            Check(worker, sum(rows.values()), shards=tuple(ShardIndex(s) for s in sorted(rows)))
            for worker, rows in job.verification.take_earned((*verified, *known)).items()
        ]
        final, back = [ShardIndex(s) for s in verified], [ShardIndex(s) for s in reopened]
        settled = await job.writer.perform(
            lambda store: (store.settle(verified=final, reopened=back, checks=checks), store.rows_failed)
        )
        if settled is None:
            return
        done, rows_failed = settled
        if done.reopened:
            self._on_reopened(job, done.reopened, rows_failed)
        if done.verified:
            self._grid.history.verified(job.uid, done.verified)
            self._apply(job, ev.ShardsVerified(tuple(done.verified)))
        self._grid.mark_all()
        self._grid.touch()

    def distrust(self, device: DeviceName, reason: str, *, node: str = "", but: JobRun | None = None) -> None:
        """Believe nothing more of a device: what it holds goes elsewhere, what is provisional is done again."""
        if self._grid.fleet.distrust(device, reason, node):
            log.warning("distrusted device=%s cause=%s", device, reason)
        record = self._grid.fleet.devices.get(device)
        for job in list(self._grid.active.values()):
            if job.verification is not None:
                job.verification.pay_nothing_to(device)
                job.verification.probation.caught(device)
                job.verification.golden.forget_device(device)
            if job.verification is not None and job is not but:
                self._carry_out(job, job.verification.machine.caught(device, self._grid.clock.wall()))
            self._apply(job, ev.DeviceGone(device))
            self.collect_lost(job)
            if record is not None and record.orders.pop(job.uid, None) is not None and record.link is not None:
                record.link.send_cancel(job.uid, ())
        self._grid.touch()

    def pardon(self, device: DeviceName) -> None:
        """Somebody looked at the device and lets it work again; its history begins anew."""
        if self._grid.fleet.pardon(device):
            log.info("pardoned device=%s", device)
            self._grid.mark(device)
            self._grid.touch()


def waits_for_checks(job: JobRun) -> bool:
    """Whether nothing is left to do but checks, and nobody is at one."""
    machine, verification = job.machine, job.verification
    if machine is None or verification is None or machine.pending or machine.attempts:
        return False
    return verification.machine.wants_checks


def _answer(shard: int, staged: StagedResult, size: int) -> Answer:
    failed = {failure.row for failure in staged.failures}
    good = (row for row in range(size) if row not in failed)
    rows: dict[Sample, int | None] = {Sample(shard, row): at for at, row in enumerate(good)}
    rows.update((Sample(shard, row), None) for row in failed)
    return Answer(staged.outputs, rows)
