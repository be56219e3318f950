"""The job machine under every order of events Hypothesis can think of.

The rules play devices that answer, answer twice, answer late, fail, vanish and come back, and a disk that commits when
it likes. After every step the machine's own laws must hold, and so must the promise made to users: every shard is
committed exactly once, and nothing is acknowledged before it is.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from pocketgrid.jobs.machine import JobMachine
from pocketgrid.model import events as ev
from pocketgrid.model.ids import AttemptSeq, DeviceName, Epoch
from pocketgrid.model.job import ACCEPTED, Limits, ShardGrid, Verdict
from pocketgrid.model.view import Stage

DEVICES = [DeviceName(n) for n in ("ada", "bob", "cyd")]
REJECTED = Verdict(accepted=False, reason="WrongOutputs")


class JobLife(RuleBasedStateMachine):
    handed = Bundle("handed")

    @initialize(
        items=st.integers(1, 24),
        per_shard=st.integers(1, 5),
        backoff=st.integers(0, 2),
        max_failed=st.one_of(st.none(), st.integers(0, 30)),
        verify=st.booleans(),
    )
    def begin(self, items: int, per_shard: int, backoff: int, max_failed: int | None, verify: bool) -> None:
        grid = ShardGrid(items, per_shard)
        self.machine = JobMachine(grid, Epoch(2), Limits(backoff, max_failed), verify=verify)
        self.checks = 0
        self.answered: set[int] = set()
        self.lost: set[int] = set()
        self.final: set[int] = set()
        self.now = 0.0
        self.to_commit: list[ev.CommitShard] = []
        self.commits: dict[int, int] = {}
        self.acknowledged: set[int] = set()
        self.failed: dict[int, int] = {}
        self.blamed: dict[int, set[AttemptSeq]] = {}
        self.was_over = False
        self.finishing = 0
        self.take(self.machine.start(self.now, suspended=False))

    def take(self, effects: list[ev.JobEffect]) -> None:
        for effect in effects:
            match effect:
                case ev.CommitShard():
                    assert effect.shard not in self.commits
                    if effect.give_up:
                        allowed = self.machine.limits.backoff_limit_per_shard
                        assert len(self.blamed[effect.shard]) > allowed, "given up too early"
                    self.to_commit.append(effect)
                case ev.Settle(outcome="committed") if self.machine.check_number(effect.shard) is None:
                    assert effect.shard in self.commits, "acknowledged before it was durable"
                    self.acknowledged.add(effect.shard)
                case ev.CheckAnswered():
                    number = self.machine.check_number(effect.shard)
                    assert number is not None
                    assert number not in self.answered | self.lost, "a check ends once"
                    self.answered.add(number)
                case ev.FinishOutput():
                    self.finishing += 1
                case _:
                    pass

    def feed(self, event: ev.JobEvent) -> None:
        self.take(self.machine.handle(event, self.now))

    @rule(target=handed, device=st.sampled_from(DEVICES), count=st.integers(1, 4))
    def hand_out(self, device: DeviceName, count: int):
        before = set(self.machine.pending)
        cut = self.machine.hand_out(device, count, self.now, self.now + 10)
        if cut is None:
            return multiple()
        assert len(cut.shards) <= count
        assert {h.shard for h in cut.shards} <= before
        assert min(before) == cut.shards[0].shard
        return multiple(*((h.shard, h.seq, device) for h in cut.shards))

    @rule(target=handed, device=st.sampled_from(DEVICES), data=st.data())
    def copy(self, device: DeviceName, data: st.DataObject):
        active = sorted({a.shard for a in self.machine.attempts.values()})
        if not active:
            return multiple()
        cut = self.machine.hand_out_copy(device, data.draw(st.sampled_from(active)), self.now, self.now + 10)
        return multiple(*((h.shard, h.seq, device) for h in cut.shards)) if cut else multiple()

    @rule(target=handed, device=st.sampled_from(DEVICES))
    def hand_out_check(self, device: DeviceName):
        if not self.machine.verify or self.machine.stage is not Stage.RUNNING:
            return multiple()
        cut = self.machine.hand_out_check(device, self.checks, self.now, self.now + 10)
        self.checks += 1
        assert self.machine.hand_out_copy(DEVICES[0], cut.shards[0].shard, self.now, self.now + 10) is None
        return multiple(*((h.shard, h.seq, device) for h in cut.shards))

    @rule(shards=st.sets(st.integers(0, 24)))
    def make_final(self, shards: set[int]) -> None:
        if self.machine.verify and self.machine.stage in (Stage.RUNNING, Stage.SUSPENDED):
            self.final |= shards & set(self.commits)
            self.feed(ev.ShardsVerified(tuple(sorted(shards))))

    @rule(attempt=handed, good=st.booleans())
    def answer(self, attempt, good: bool) -> None:
        shard, seq, device = attempt
        self.feed(ev.ResultJudged(shard, seq, device, ACCEPTED if good else REJECTED))

    @rule(attempt=handed, blame=st.booleans())
    def fail(self, attempt, blame: bool) -> None:
        shard, seq, device = attempt
        if blame and seq in self.machine.attempts:
            self.blamed.setdefault(shard, set()).add(seq)
        self.feed(ev.AttemptFailed(shard, seq, device, blame, "OutOfMemory"))

    @rule(attempt=handed)
    def bring_back_from_an_earlier_epoch(self, attempt) -> None:
        shard, seq, device = attempt
        self.feed(ev.AttemptHeld(shard, AttemptSeq(seq & 0xFFFFFFFF), device, self.now + 10))

    @rule(shards=st.sets(st.integers(0, 24)), failed=st.integers(0, 3))
    def find_damage(self, shards: set[int], failed: int) -> None:
        if self.machine.stage in (Stage.COMPLETE, Stage.FAILED, Stage.REMOVED):
            return
        damaged = sorted(s for s in shards if s in self.commits)
        lost = sum(self.failed.pop(s) for s in damaged)
        for shard in damaged:
            del self.commits[shard]
            self.final.discard(shard)
        self.feed(ev.ShardsReopened(tuple(damaged), lost))

    @rule(max_failed=st.one_of(st.none(), st.integers(0, 30)), backoff=st.integers(0, 3))
    def edit_limits(self, max_failed: int | None, backoff: int) -> None:
        self.machine.limits = Limits(backoff, max_failed)

    @rule(attempt=handed)
    def give_back(self, attempt) -> None:
        _, seq, device = attempt
        self.feed(ev.AttemptsReturned(device, (seq,)))

    @rule(attempt=handed)
    def come_back_with(self, attempt) -> None:
        shard, seq, device = attempt
        self.feed(ev.AttemptHeld(shard, seq, device, self.now + 10))

    @rule(attempt=handed)
    def find_nothing_to_read(self, attempt) -> None:
        shard, seq, _ = attempt
        self.feed(ev.ShardEmpty(shard, seq))

    @rule(device=st.sampled_from(DEVICES))
    def vanish(self, device: DeviceName) -> None:
        self.feed(ev.DeviceGone(device))
        assert device not in self.machine.by_device

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.feed(ev.TimePassed())
        assert all(a.deadline > self.now for a in self.machine.attempts.values())

    @rule(suspend=st.booleans())
    def suspend(self, suspend: bool) -> None:
        self.feed(ev.SuspendChanged(suspend))
        if suspend and self.machine.stage is Stage.SUSPENDED:
            assert self.machine.hand_out(DEVICES[0], 1, self.now, self.now + 10) is None

    @rule(data=st.data(), failed=st.integers(0, 5), refuse=st.booleans())
    def write(self, data: st.DataObject, failed: int, refuse: bool) -> None:
        if not self.to_commit:
            return
        effect = self.to_commit.pop(data.draw(st.integers(0, len(self.to_commit) - 1)))
        if refuse and not effect.give_up:
            self.feed(ev.CommitRefused(effect.shard, effect.seq, "does not fit"))
            return
        rows = self.machine.grid.size(effect.shard)
        assert effect.shard not in self.commits, "committed twice"
        self.commits[effect.shard] = rows
        lost = rows if effect.give_up else min(failed, rows)
        self.failed[effect.shard] = lost
        self.blamed.pop(effect.shard, None)
        self.feed(ev.ShardCommitted(effect.shard, effect.seq, rows, lost))

    @rule()
    def finish(self) -> None:
        if self.machine.stage is Stage.FINISHING:
            self.feed(ev.OutputFinished("file:///out"))
            assert self.machine.stage is Stage.COMPLETE

    @invariant()
    def laws_hold(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.machine.validate()
        for number in self.machine.lost_checks:
            assert number not in self.answered | self.lost, "a check ends once"
            self.lost.add(number)
        self.machine.lost_checks.clear()
        held = {n for a in self.machine.attempts.values() if (n := self.machine.check_number(a.shard)) is not None}
        assert held | self.answered | self.lost == set(range(self.checks)), "a check has vanished"
        assert set(self.machine.verified) == self.final
        assert set(self.machine.committed) == set(self.commits)
        assert self.machine.counters.rows_done == sum(self.commits.values())
        assert self.machine.counters.rows_failed == sum(self.failed.values())
        over = self.machine.stage in (Stage.COMPLETE, Stage.FAILED, Stage.REMOVED)
        assert over or not self.was_over, "nothing brings an ended job back"
        self.was_over = over
        if not over and self.machine.stage is not Stage.FINISHING:
            open_shards = set(range(self.machine.grid.shards)) - set(self.commits) - set(self.machine._committing)
            assert all(self.machine.is_open(s) for s in open_shards)
        if self.machine.stage in (Stage.FINISHING, Stage.COMPLETE):
            assert len(self.commits) == self.machine.grid.shards
            assert not self.machine.verify or len(self.final) == self.machine.grid.shards

    def teardown(self) -> None:
        # Whatever has happened, devices that now do their work bring every job that may still run to its end.
        if not hasattr(self, "machine"):
            return
        self.feed(ev.SuspendChanged(suspend=False))
        for _ in range(10 * self.machine.grid.shards + 10):
            if self.machine.stage is not Stage.RUNNING:
                break
            for device in DEVICES:
                self.feed(ev.DeviceGone(device))
            cut = self.machine.hand_out(DEVICES[0], 2, self.now, self.now + 10)
            for handed in cut.shards if cut else ():
                self.feed(ev.ResultJudged(handed.shard, handed.seq, DEVICES[0], ACCEPTED))
            while self.to_commit:
                effect = self.to_commit.pop()
                rows = self.machine.grid.size(effect.shard)
                self.commits[effect.shard] = rows
                lost = rows if effect.give_up else 0
                self.failed[effect.shard] = lost
                self.feed(ev.ShardCommitted(effect.shard, effect.seq, rows, lost))
            if self.machine.verify:
                self.feed(ev.ShardsVerified(tuple(sorted(self.commits))))
        assert self.machine.stage in (Stage.FINISHING, Stage.COMPLETE, Stage.FAILED)
        if self.machine.stage is not Stage.FAILED:
            assert set(self.commits) == set(range(self.machine.grid.shards))
        self.machine.validate()


JobLife.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestJobLife = JobLife.TestCase
