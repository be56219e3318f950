"""Moments in the life of a job at which something could be lost, doubled or settled too early."""

import pytest

from pocketgrid.jobs.machine import JobMachine
from pocketgrid.model import events as ev
from pocketgrid.model.ids import DeviceName, Epoch, attempt_seq
from pocketgrid.model.job import ACCEPTED, Limits, ShardGrid, Verdict
from pocketgrid.model.ranges import IndexSet
from pocketgrid.model.view import Stage

ADA, BOB = DeviceName("ada"), DeviceName("bob")
NO_LIMITS = Limits()
REJECTED = Verdict(accepted=False, reason="WrongOutputs")


def a_job(shards: int = 3, limits: Limits = NO_LIMITS, **fields) -> JobMachine:
    machine = JobMachine(ShardGrid(10 * shards, 10), Epoch(2), limits, **fields)
    machine.start(0.0, suspended=False)
    return machine


def lease(machine: JobMachine, device: DeviceName = ADA, count: int = 1) -> list[ev.HandedOut]:
    cut = machine.hand_out(device, count, 0.0, 30.0)
    assert cut is not None
    return list(cut.shards)


def judged(handed: ev.HandedOut, device: DeviceName = ADA, verdict: Verdict = ACCEPTED) -> ev.ResultJudged:
    return ev.ResultJudged(handed.shard, handed.seq, device, verdict)


def committed(handed: ev.HandedOut, failed: int = 0) -> ev.ShardCommitted:
    return ev.ShardCommitted(handed.shard, handed.seq, 10, failed)


def outcomes(effects: list[ev.JobEffect]) -> list[str]:
    return [e.outcome for e in effects if isinstance(e, ev.Settle)]


def test_nothing_is_settled_before_it_is_durable() -> None:
    machine = a_job()
    (handed,) = lease(machine)
    assert machine.handle(judged(handed), 1.0) == [ev.CommitShard(handed.shard, handed.seq, ADA)]
    assert machine.handle(judged(handed), 1.0) == [], "the same result again is settled with the first"
    assert outcomes(machine.handle(committed(handed), 2.0)) == ["committed"]
    assert outcomes(machine.handle(judged(handed), 3.0)) == ["superseded"]


def test_the_first_of_two_copies_wins_and_the_other_is_cancelled() -> None:
    machine = a_job(1)
    (first,) = lease(machine)
    cut = machine.hand_out_copy(BOB, first.shard, 1.0, 30.0)
    assert cut is not None
    (second,) = cut.shards
    effects = machine.handle(judged(second, BOB), 2.0)
    assert effects == [ev.CommitShard(0, second.seq, BOB), ev.CancelAttempt(ADA, 0, first.seq)]
    assert outcomes(machine.handle(judged(first), 3.0)) == ["superseded"]
    assert machine.counters.duplicates == 1
    machine.validate()


def test_a_refused_commit_makes_the_shard_pending_even_while_suspended() -> None:
    machine = a_job()
    (handed,) = lease(machine)
    machine.handle(judged(handed), 1.0)
    machine.handle(ev.SuspendChanged(suspend=True), 1.0)
    assert outcomes(machine.handle(ev.CommitRefused(handed.shard, handed.seq, "does not fit"), 2.0)) == ["refused"]
    assert handed.shard in machine.pending
    assert machine.hand_out(ADA, 1, 2.0, 30.0) is None
    machine.handle(ev.SuspendChanged(suspend=False), 3.0)
    assert lease(machine)[0].shard == handed.shard


def test_the_last_commit_of_a_suspended_job_completes_it_on_resumption() -> None:
    machine = a_job(1)
    (handed,) = lease(machine)
    machine.handle(judged(handed), 1.0)
    machine.handle(ev.SuspendChanged(suspend=True), 1.0)
    assert outcomes(machine.handle(committed(handed), 2.0)) == ["committed"]
    assert machine.stage is Stage.SUSPENDED
    assert machine.handle(ev.SuspendChanged(suspend=False), 3.0) == [ev.FinishOutput()]


@pytest.mark.parametrize("end", [ev.JobRemoved(), ev.JobBroken("Broken", "it broke")])
def test_what_arrives_after_the_end_is_superseded_and_what_was_being_written_still_counts(end: ev.JobEvent) -> None:
    machine = a_job()
    first, second = lease(machine, count=2)
    machine.handle(judged(first), 1.0)
    assert machine.handle(end, 2.0) == [ev.CancelJob(), ev.CloseOutput()]
    assert outcomes(machine.handle(judged(second), 3.0)) == ["superseded"]
    assert outcomes(machine.handle(committed(first), 3.0)) == ["committed"]
    assert machine.handle(end, 4.0) == []
    machine.validate()


def test_one_execution_is_blamed_once_however_often_it_is_told() -> None:
    machine = a_job(limits=Limits(backoff_limit_per_shard=1))
    (handed,) = lease(machine)
    failure = ev.AttemptFailed(handed.shard, handed.seq, ADA, blame_items=True, reason="EngineError")
    for _ in range(5):
        assert outcomes(machine.handle(failure, 1.0)) == ["superseded"]
    assert handed.shard in machine.pending
    (again,) = lease(machine)
    effects = machine.handle(ev.AttemptFailed(again.shard, again.seq, ADA, True, "EngineError", "bad"), 2.0)
    assert ev.CommitShard(again.shard, again.seq, ADA, "EngineError", "bad") in effects


def test_a_devices_own_failures_are_never_held_against_the_shard() -> None:
    machine = a_job(limits=Limits(backoff_limit_per_shard=0))
    for _ in range(20):
        (handed,) = lease(machine)
        machine.handle(ev.AttemptFailed(handed.shard, handed.seq, ADA, False, "OutOfMemory"), 1.0)
    assert handed.shard in machine.pending
    assert machine.counters.attempts_lost == 20


def test_a_device_that_comes_back_keeps_what_it_still_has_and_only_that() -> None:
    machine = a_job()
    kept, lost = lease(machine, count=2)
    machine.handle(ev.DeviceGone(ADA, frozenset({kept.seq})), 1.0)
    assert [a.seq for a in machine.attempts_of(ADA)] == [kept.seq]
    assert kept.shard not in machine.pending
    assert lost.shard in machine.pending
    assert machine.counters.attempts_lost == 1
    machine.handle(ev.DeviceGone(ADA), 2.0)
    assert kept.shard in machine.pending


OLD = attempt_seq(Epoch(1), 7)


@pytest.mark.parametrize("state", ["pending", "in flight elsewhere", "committing", "committed"])
def test_an_attempt_of_an_earlier_operator_is_adopted_if_its_shard_is_open(state: str) -> None:
    machine = a_job()
    if state != "pending":
        (handed,) = lease(machine, BOB)
    if state in ("committing", "committed"):
        machine.handle(judged(handed, BOB), 1.0)
    if state == "committed":
        machine.handle(committed(handed), 2.0)
    effects = machine.handle(ev.AttemptHeld(0, OLD, ADA, 30.0), 3.0)
    machine.validate()
    if state in ("pending", "in flight elsewhere"):
        assert effects == []
        assert [a.seq for a in machine.attempts_of(ADA)] == [OLD]
        assert 0 not in machine.pending
        assert isinstance(machine.handle(ev.ResultJudged(0, OLD, ADA, ACCEPTED), 4.0)[0], ev.CommitShard)
    else:
        assert effects == [ev.CancelAttempt(ADA, 0, OLD)]
        assert not machine.attempts_of(ADA)


def test_a_late_result_is_welcome_after_its_lease_ran_out() -> None:
    machine = a_job()
    (handed,) = lease(machine)
    assert machine.handle(ev.TimePassed(), 30.0) == [ev.CancelAttempt(ADA, handed.shard, handed.seq)]
    (elsewhere,) = lease(machine, BOB)
    assert elsewhere.shard == handed.shard
    effects = machine.handle(judged(handed), 31.0)
    assert effects == [ev.CommitShard(0, handed.seq, ADA), ev.CancelAttempt(BOB, 0, elsewhere.seq)]


def test_a_rejected_result_frees_only_its_own_attempt() -> None:
    machine = a_job(1)
    (first,) = lease(machine)
    machine.hand_out_copy(BOB, 0, 1.0, 30.0)
    assert outcomes(machine.handle(judged(first, ADA, REJECTED), 2.0)) == ["refused"]
    assert 0 not in machine.pending
    assert [a.device for a in machine.attempts.values()] == [BOB]


def test_a_stale_commit_answer_changes_nothing() -> None:
    machine = a_job()
    (handed,) = lease(machine)
    assert machine.handle(committed(handed), 1.0) == []
    assert machine.handle(ev.CommitRefused(handed.shard, handed.seq, ""), 1.0) == []
    machine.handle(judged(handed), 1.0)
    assert machine.handle(ev.CommitRefused(handed.shard, OLD, "of another attempt"), 1.0) == []
    machine.validate()


def test_too_many_failed_items_fail_the_job_also_right_after_recovery() -> None:
    machine = JobMachine(ShardGrid(30, 10), Epoch(2), Limits(max_failed_items=4), committed=IndexSet([(0, 1)]))
    machine.counters.rows_done, machine.counters.rows_failed = 10, 5
    effects = machine.start(0.0, suspended=False)
    assert effects == [ev.CancelJob(), ev.CloseOutput()]
    assert machine.stage is Stage.FAILED


def test_exactly_as_many_failed_items_as_allowed_are_allowed() -> None:
    machine = a_job(limits=Limits(max_failed_items=5))
    for failed, stage in ((5, Stage.RUNNING), (1, Stage.FAILED)):
        (handed,) = lease(machine)
        machine.handle(judged(handed), 1.0)
        machine.handle(committed(handed, failed), 1.0)
        assert machine.stage is stage


def test_the_active_deadline_starts_anew_on_resumption() -> None:
    machine = a_job(limits=Limits(active_deadline_s=100))
    machine.handle(ev.TimePassed(), 99.0)
    assert machine.stage is Stage.RUNNING
    machine.handle(ev.SuspendChanged(suspend=True), 99.0)
    machine.handle(ev.TimePassed(), 500.0)
    machine.handle(ev.SuspendChanged(suspend=False), 500.0)
    machine.handle(ev.TimePassed(), 599.0)
    assert machine.stage is Stage.RUNNING
    machine.handle(ev.TimePassed(), 600.0)
    assert machine.stage is Stage.FAILED
    assert machine.explanation is not None
    assert machine.explanation.reason == "DeadlineExceeded"


def test_a_damaged_shard_takes_a_finishing_job_back_to_work() -> None:
    machine = a_job(1)
    (handed,) = lease(machine)
    machine.handle(judged(handed), 1.0)
    assert ev.FinishOutput() in machine.handle(committed(handed, 3), 1.0)
    machine.handle(ev.ShardsReopened((0,), 3), 2.0)
    assert machine.stage is Stage.RUNNING
    assert (machine.counters.rows_done, machine.counters.rows_failed) == (0, 0)
    assert machine.handle(ev.OutputFinished("file:///too-late"), 2.0) == []
    (again,) = lease(machine)
    machine.handle(judged(again), 3.0)
    assert ev.FinishOutput() in machine.handle(committed(again, 3), 3.0)
    assert machine.counters.rows_failed == 3


def test_an_epoch_is_never_mistaken_for_another() -> None:
    assert lease(a_job())[0].seq > OLD
    with pytest.raises(ValueError, match="out of range"):
        attempt_seq(Epoch(1), 1 << 32)


def test_nothing_grows_with_the_number_of_shards_done() -> None:
    machine = a_job(10_000)
    now = 0.0
    while machine.stage is Stage.RUNNING:
        now += 1.0
        cut = machine.hand_out(ADA, 40, now, now + 30)
        assert cut is not None
        for handed in cut.shards:
            machine.handle(ev.AttemptFailed(handed.shard, handed.seq, ADA, True, "once"), now)
        cut = machine.hand_out(BOB, 40, now, now + 30)
        assert cut is not None
        for handed in cut.shards:
            machine.handle(judged(handed, BOB), now)
            machine.handle(committed(handed), now)
        machine.handle(ev.TimePassed(), now)
        assert len(machine._deadlines) <= 80 * 31
    assert machine.stage is Stage.FINISHING
    left = (machine.attempts, machine.by_device, machine._by_shard, machine._committing, machine._committing_device)
    assert not any((*left, machine._blame))
    assert list(machine.committed.runs()) == [(0, 10_000)]


@pytest.mark.parametrize("finished", [pytest.param(True, id="finished"), pytest.param(False, id="still at work")])
def test_while_suspended_only_finished_attempts_of_earlier_sessions_are_wanted(finished: bool) -> None:
    machine = JobMachine(ShardGrid(10, 5), Epoch(2), Limits())
    machine.start(0.0, suspended=True)
    effects = machine.handle(ev.AttemptHeld(0, OLD, ADA, 30.0, finished=finished), 1.0)
    assert bool(machine.attempts) is finished
    assert effects == ([] if finished else [ev.CancelAttempt(ADA, 0, OLD)])
    machine.validate()


def test_a_failure_told_again_after_a_reconnect_is_not_held_against_the_shard_twice() -> None:
    machine = JobMachine(ShardGrid(5, 5), Epoch(2), Limits(backoff_limit_per_shard=1))
    machine.start(0.0, suspended=False)
    cut = machine.hand_out(ADA, 1, 0.0, 30.0)
    assert cut is not None
    (handed,) = cut.shards
    failed = ev.AttemptFailed(0, handed.seq, ADA, blame_items=True, reason="EngineError")
    for _ in range(5):
        effects = machine.handle(failed, 1.0)
        assert effects == [ev.Settle(ADA, 0, handed.seq, "superseded")]
        machine.handle(ev.AttemptHeld(0, handed.seq, ADA, 30.0, finished=True), 2.0)
    assert not machine.committed
    machine.validate()
