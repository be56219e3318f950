"""Laws of the agent's rules under any history, the world around it being as unreliable as it can be."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pocketgrid_agent import events as ev
from pocketgrid_agent.events import Attempt, Order
from pocketgrid_agent.machine import TOLERANCE, Limits, Machine
from pocketgrid_agent.policy import ALLOWED, Level, Verdict

JOBS = ("a", "b")
LIMITS = Limits(slots=2, credit_shards=4, credit_bytes=1000, held_bytes=500)


def order(job: str) -> Order:
    return Order(job, job * 64, 1, (ev.Binding("x", 0, "float32"),), (ev.Output("y"),))


class World(RuleBasedStateMachine):
    """Everything around a machine: link, slots, journal and gateway, each acting when it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(LIMITS)
        self.attached = False
        self.preparing: set[str] = set()
        self.computing: dict[bytes, Attempt] = {}
        self.told_to_stop: set[bytes] = set()
        self.to_journal: list[bytes] = []
        self.journal: dict[bytes, tuple[str, int]] = {}
        self.leased: dict[bytes, Attempt] = {}
        self.given_back: set[bytes] = set()
        self.begun: set[bytes] = set()
        self.finished: set[bytes] = set()
        self.unwanted: set[bytes] = set()
        self.settled: set[bytes] = set()
        self.tokens = 0

    def feed(self, event: ev.Event) -> None:
        for effect in self.machine.handle(event):
            self.carry_out(effect)

    def carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Prepare(wanted):
                assert wanted.job not in self.preparing
                self.preparing.add(wanted.job)
            case ev.Dismiss(job) | ev.Postpone(job):
                self.preparing.discard(job)
            case ev.Compute(attempt, wanted):
                assert attempt.job == wanted.job
                assert self.machine.verdict.allowed, "begun in a pause"
                assert attempt.token not in self.begun, "begun twice"
                assert attempt.token not in self.given_back, "given back and computed"
                shard = (attempt.job, attempt.shard)
                done = {s for t, s in self.journal.items() if t not in self.settled}
                assert shard not in done, "a finished shard is computed again"
                self.begun.add(attempt.token)
                self.computing[attempt.token] = attempt
            case ev.Abandon(tokens):
                assert set(tokens) <= set(self.computing)
                self.told_to_stop.update(tokens)
            case ev.Keep(token):
                self.to_journal.append(token)
            case ev.Reissue(old, new):
                assert old in self.finished
                assert old not in self.settled
                assert new not in self.begun
                self.finished.add(new)
                attempt = self.leased[new]
                self.journal[new] = (attempt.job, attempt.shard)
                self.to_journal.append(new)
            case ev.Deliver(job, tokens):
                assert self.attached
                for token in tokens:
                    assert token in self.finished
                    assert token not in self.to_journal, "sent before it was journaled"
                    assert self.leased[token].job == job
            case ev.Forget(tokens):
                assert set(tokens) <= self.settled, "forgotten before it was settled"
            case ev.GiveBack(job, tokens, reason):
                assert self.attached
                assert reason
                assert all(self.leased[t].job == job for t in tokens)
                assert not set(tokens) & self.begun, "computed and given back"
                self.given_back.update(tokens)
            case ev.Report() | ev.AnnounceDraining() | ev.Restrain():
                assert self.attached
            case ev.Disconnect():
                self.attached = False
                self.machine.handle(ev.LinkLost())
            case ev.Leave():
                raise AssertionError("nobody asked the process to end")

    # ---- the link ----

    @precondition(lambda self: not self.attached)
    @rule()
    def dial(self) -> None:
        held = {h.token: h for h in self.machine.announce()}
        for token, each in held.items():
            assert each.finished == (token in self.finished)
        missing = self.finished - self.settled - set(held)
        assert not missing, "a finished result is not announced"
        self.attached = True
        self.feed(ev.Welcomed())

    @precondition(lambda self: self.attached)
    @rule()
    def lose_link(self) -> None:
        self.attached = False
        self.feed(ev.LinkLost())

    # ---- the gateway ----

    @precondition(lambda self: self.attached)
    @rule(job=st.sampled_from(JOBS))
    def send_order(self, job: str) -> None:
        self.feed(ev.Ordered(order(job)))

    @precondition(lambda self: self.attached)
    @rule(
        job=st.sampled_from(JOBS), shards=st.lists(st.integers(0, 4), min_size=1, max_size=6), size=st.integers(1, 700)
    )
    def lease(self, job: str, shards: list[int], size: int) -> None:
        attempts = []
        for shard in shards:
            self.tokens += 1
            attempts.append(Attempt(job, shard, b"%d" % self.tokens, 10, size))
            self.leased[attempts[-1].token] = attempts[-1]
        self.feed(ev.Leased(tuple(attempts)))

    @precondition(lambda self: self.attached and self.leased)
    @rule(data=st.data())
    def lease_again(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.leased)))
        # A gateway never leases a token anew that was given back or settled; everything else may be repeated.
        if token not in self.given_back | self.settled | self.unwanted:
            self.feed(ev.Leased((self.leased[token],)))

    @precondition(lambda self: self.attached and self.leased)
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        tokens = data.draw(st.lists(st.sampled_from(sorted(self.leased)), max_size=4))
        for job in JOBS:
            self.feed(ev.Revoked(job, tuple(tokens)))

    @precondition(lambda self: self.attached and self.leased)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        tokens = data.draw(st.lists(st.sampled_from(sorted(self.leased)), min_size=1, max_size=4))
        self.unwanted.update(t for t in tokens if t not in self.finished)
        self.feed(ev.Cancelled("a", tuple(tokens)))

    @precondition(lambda self: self.attached)
    @rule(job=st.sampled_from(JOBS))
    def cancel_job(self, job: str) -> None:
        self.unwanted.update(t for t, a in self.leased.items() if a.job == job and t not in self.finished)
        self.feed(ev.Cancelled(job, ()))
        assert job not in self.machine.jobs

    @precondition(lambda self: self.attached and self.leased)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        tokens = data.draw(st.lists(st.sampled_from(sorted(self.leased)), min_size=1, max_size=4))
        self.settled.update(tokens)
        self.unwanted.update(t for t in tokens if t not in self.finished)
        self.feed(ev.Settled(tuple(tokens)))

    @precondition(lambda self: self.attached)
    @rule()
    def drain(self) -> None:
        self.feed(ev.DrainRequested("OperatorStopping", leave=False))

    # ---- this device ----

    @precondition(lambda self: self.preparing)
    @rule(data=st.data(), speed=st.sampled_from([0.0, 10.0, 1e6]), works=st.booleans())
    def prepared(self, data: st.DataObject, speed: float, works: bool) -> None:
        job = data.draw(st.sampled_from(sorted(self.preparing)))
        self.preparing.discard(job)
        outcome = ev.Ready(speed, 1) if works else ev.NotReady("DiskFull", "")
        self.feed(ev.Prepared(order(job), outcome))

    @precondition(lambda self: self.computing)
    @rule(data=st.data(), size=st.integers(0, 400), failed=st.booleans())
    def finish(self, data: st.DataObject, size: int, failed: bool) -> None:
        token = data.draw(st.sampled_from(sorted(self.computing)))
        attempt = self.computing.pop(token)
        if token in self.told_to_stop and size % 2:
            self.feed(ev.Abandoned(token))
            return
        if token not in self.told_to_stop:
            self.finished.add(token)
            if not failed:
                self.journal[token] = (attempt.job, attempt.shard)
        self.feed(ev.Finished(token, size, failed))

    @precondition(lambda self: self.to_journal)
    @rule(data=st.data())
    def journaled(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.to_journal)))
        tokens, self.to_journal = self.to_journal[:count], self.to_journal[count:]
        self.feed(ev.Journaled(tuple(tokens)))

    @rule(allowed=st.booleans())
    def policy(self, allowed: bool) -> None:
        self.feed(ev.PolicyChanged(ALLOWED if allowed else Verdict(Level.PAUSE, "TooHot", "very")))

    # ---- laws ----

    @invariant()
    def the_slots_agree(self) -> None:
        assert set(self.machine.running) == set(self.computing)
        assert self.machine.abandoned <= set(self.machine.running)

    @invariant()
    def whatever_is_wanted_is_being_prepared_unless_in_a_pause(self) -> None:
        unprepared = {name for name, job in self.machine.jobs.items() if job.outcome is None}
        assert self.preparing == (unprepared if self.machine.verdict.allowed else set())

    @invariant()
    def finished_results_are_held_until_settled(self) -> None:
        assert set(self.machine.held) == self.finished - self.settled
        assert self.machine.held_bytes == sum(r.result_bytes for r in self.machine.held.values())

    @invariant()
    def capacity_is_not_exceeded(self) -> None:
        outstanding = [*self.machine.queue.values(), *self.machine.running.values()]
        assert len(outstanding) <= TOLERANCE * LIMITS.credit_shards
        total = sum(a.input_bytes for a in outstanding)
        assert len(outstanding) == 1 or total <= TOLERANCE * LIMITS.credit_bytes
        assert self.machine._outstanding_bytes == total

    @invariant()
    def no_attempt_is_in_two_places(self) -> None:
        places = [set(self.machine.queue), set(self.machine.running), set(self.machine.held)]
        assert sum(len(place) for place in places) == len(set.union(*places))

    @invariant()
    def nothing_waits_without_reason(self) -> None:
        ready = {name for name, job in self.machine.jobs.items() if isinstance(job.outcome, ev.Ready)}
        if not self.computing and self.machine.held_bytes < LIMITS.held_bytes:
            assert not [a for a in self.machine.queue.values() if a.job in ready]

    @invariant()
    def bookkeeping_does_not_leak(self) -> None:
        m = self.machine
        answers = [t for tokens in m._answers.values() for t in tokens]
        assert set(answers) == {t for t, r in m.held.items() if not r.failed}
        assert m._computing == {(a.job, a.shard) for t, a in m.running.items() if t not in m.abandoned}


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
