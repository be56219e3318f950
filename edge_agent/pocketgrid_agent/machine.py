"""The agent's rules: an event goes in, the effects it calls for come out. No I/O, no clock, no randomness.

What it decides: which attempts to begin and when, what to give back, which results to keep and to send, when it may
leave. How any of that is carried out is `loop`'s business, which also turns what happened back into events. The
same history therefore always gives the same effects, and tests feed histories no network would produce twice.
(The split is the one of dask's worker state machine.)

Life of an attempt: leased -> queue -> running -> held -> settled. It leaves the queue or the running ones early when
it is revoked, cancelled or given back. It is held until the gateway settles it, over any number of sessions, because
only a commit makes work done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from pocketgrid_agent import events as ev
from pocketgrid_agent.events import Attempt, Effect, Event, NotReady, Order, Ready, Token
from pocketgrid_agent.policy import ALLOWED, Level, Verdict

LOOKAHEAD_SECONDS = 0.05
"""Work handed to a slot ahead of need, so that it never waits for the event loop between short shards. What is ahead
counts as begun and cannot be revoked, so this is also the price of a revocation."""

MOST_JOBS = 512
"""Known at the same time; each costs a work order and, until its turn has come, a little more."""

TOLERANCE = 2
"""Leases beyond so many times the credits are given back. Once would be too strict: after a late lease or a new
session the gateway may count an attempt as gone that this device still computes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much this device takes on.

    Attributes:
        slots: attempts computed at the same time.
        credit_shards: attempts queued or running, as announced in Hello.
        credit_bytes: their input bytes; one attempt alone may be larger.
        held_bytes: with so many bytes of unsettled results nothing new is begun; finished results are never dropped.
    """

    slots: int
    credit_shards: int
    credit_bytes: int
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt this device would rather not lose, for Hello and for restoring a journal."""

    job: str
    shard: int
    token: Token
    finished: bool = True
    result_bytes: int = 0
    failed: bool = False


@dataclass(slots=True)
class _Job:
    order: Order
    outcome: Ready | NotReady | None = None
    ordered: bool = True  # since the last Welcome


@dataclass(slots=True)
class _Result:
    job: str
    shard: int
    result_bytes: int
    failed: bool
    journaled: bool


@dataclass
class Machine:
    """State of one agent process. Feed it with `handle`; read it, never write it, otherwise.

    Attributes:
        queue: leased, not begun, in the order to begin.
        running: handed to a slot and not answered yet.
        abandoned: those of `running` whose result nobody wants any more.
        verdict: what the owner's policy allows.
        held: finished and not settled.
    """

    limits: Limits
    attached: bool = False
    verdict: Verdict = ALLOWED
    draining: ev.DrainRequested | None = None
    queue: OrderedDict[Token, Attempt] = field(default_factory=OrderedDict)
    running: dict[Token, Attempt] = field(default_factory=dict)
    abandoned: set[Token] = field(default_factory=set)
    held: dict[Token, _Result] = field(default_factory=dict)
    jobs: dict[str, _Job] = field(default_factory=dict)
    held_bytes: int = 0
    _left: bool = False
    _outstanding_bytes: int = 0
    _begun_seconds: float = 0.0
    # Successful results by what they are results of, to answer a second lease of the same shard.
    _answers: dict[tuple[str, int], list[Token]] = field(default_factory=dict)
    # Shards being computed with interest in the result.
    _computing: set[tuple[str, int]] = field(default_factory=set)

    def restore(self, results: Iterable[Held]) -> None:
        """Take over what the journal kept from an earlier process. Only before the first event."""
        for result in results:
            self._hold(result, journaled=True)

    def announce(self) -> list[Held]:
        """What to say in Hello: all attempts this device still works on or has finished."""
        unfinished = [
            Held(a.job, a.shard, a.token, finished=False)
            for a in (*self.running.values(), *self.queue.values())
            if a.token not in self.abandoned
        ]
        finished = [
            Held(r.job, r.shard, token, result_bytes=r.result_bytes, failed=r.failed) for token, r in self.held.items()
        ]
        return unfinished + finished

    def handle(self, event: Event) -> list[Effect]:
        """Digest one event; the effects are to be carried out in order."""
        effects: list[Effect] = []
        match event:
            case ev.Welcomed():
                self._welcomed(effects)
            case ev.LinkLost():
                self.attached = False
            case ev.Ordered(order):
                self._ordered(order, effects)
            case ev.Prepared(order, outcome):
                self._prepared(order, outcome, effects)
            case ev.Leased(attempts):
                self._leased(attempts, effects)
            case ev.Revoked(job, tokens):
                self._revoked(job, tokens, effects)
            case ev.Cancelled(job, tokens):
                self._cancelled(job, tokens, effects)
            case ev.Finished():
                self._finished(event, effects)
            case ev.Abandoned(token):
                self._stop_running(token)
            case ev.Journaled(tokens):
                self._journaled(tokens, effects)
            case ev.Settled(tokens):
                self._settled(tokens, effects)
            case ev.DrainRequested():
                self._drain(event, effects)
            case ev.PolicyChanged(verdict):
                self._policy(verdict, effects)
            case _:
                assert_never(event)
        self._begin(effects)
        self._maybe_leave(effects)
        return effects

    # ---- the session ----

    def _welcomed(self, effects: list[Effect]) -> None:
        self.attached = True
        if self.draining is not None and not self.draining.leave:
            self.draining = None  # it was for the session that ended
        if self.draining is not None:
            effects.append(ev.AnnounceDraining(self.draining.reason))
        elif self.verdict.level is not Level.WORK:
            effects.append(ev.Restrain(self.verdict))
        self._dismiss_forgotten(effects)
        self._deliver(self.held, effects)

    def _dismiss_forgotten(self, effects: list[Effect]) -> None:
        """Let go of jobs the gateway did not mention for a whole session: they ended while the link was down."""
        busy = {a.job for a in (*self.queue.values(), *self.running.values())}
        for name, job in list(self.jobs.items()):
            if not job.ordered and name not in busy:
                del self.jobs[name]
                effects.append(ev.Dismiss(name))
            job.ordered = False

    def _drain(self, event: ev.DrainRequested, effects: list[Effect]) -> None:
        if self.draining is not None and self.draining.leave:
            return
        self.draining = event
        if self.attached and event.leave:
            effects.append(ev.AnnounceDraining(event.reason))
        self._give_back(list(self.queue), "Draining", effects)

    def _policy(self, verdict: Verdict, effects: list[Effect]) -> None:
        before, self.verdict = self.verdict, verdict
        # Said before anything is given back, or the gateway would hand it to this very device again.
        if self.attached and (before.level, before.reason) != (verdict.level, verdict.reason):
            effects.append(ev.Restrain(verdict))
        unprepared = [job.order for job in self.jobs.values() if job.outcome is None]
        if before.allowed and not verdict.allowed:
            self._give_back(list(self.queue), verdict.reason, effects)
            # A model that is being fetched may be what the owner does not want to pay for.
            effects.extend(ev.Postpone(order.job) for order in unprepared)
        elif verdict.allowed and not before.allowed:
            effects.extend(ev.Prepare(order) for order in unprepared)

    def _maybe_leave(self, effects: list[Effect]) -> None:
        if self.draining is None or self._left or self.running:
            return
        undelivered = self.held if self.attached else [r for r in self.held.values() if not r.journaled]
        if undelivered:
            return
        if self.draining.leave:
            self._left = True
            effects.append(ev.Leave())
        elif self.attached:
            effects.append(ev.Disconnect(self.draining.reason))
            self.attached = False

    # ---- getting ready for jobs ----

    def _ordered(self, order: Order, effects: list[Effect]) -> None:
        if self.draining is not None:
            return  # no lease is going to follow; the next session's orders come anew
        job = self.jobs.get(order.job)
        if job is not None and job.order == order:
            job.ordered = True
            match job.outcome:
                case Ready(items_per_second=speed, micro_batch=micro_batch):
                    effects.append(ev.Report(order, Ready(speed, micro_batch)))
                    return
                case None:
                    return  # its preparation goes on and will be reported
                case NotReady():
                    pass  # worth another try: disks get emptied, models repaired
                case _:
                    assert_never(job.outcome)
        elif job is not None:
            effects.append(ev.Dismiss(order.job))
        elif len(self.jobs) >= MOST_JOBS:
            outcome = NotReady("TooManyJobs", f"this device knows {len(self.jobs)} jobs already, and takes no more")
            effects.append(ev.Report(order, outcome))
            return
        self.jobs[order.job] = _Job(order)
        if self.verdict.allowed:
            effects.append(ev.Prepare(order))

    def _prepared(self, order: Order, outcome: Ready | NotReady, effects: list[Effect]) -> None:
        job = self.jobs.get(order.job)
        if job is None or job.order != order:
            return
        job.outcome = outcome
        if self.attached:
            effects.append(ev.Report(order, outcome))
        if isinstance(outcome, NotReady):
            tokens = [t for t, a in self.queue.items() if a.job == order.job]
            self._give_back(tokens, outcome.reason, effects)

    # ---- work comes and goes ----

    def _leased(self, attempts: tuple[Attempt, ...], effects: list[Effect]) -> None:
        refused: dict[tuple[str, str], list[Token]] = {}
        for attempt in attempts:
            token = attempt.token
            if token in self.held:
                if self.held[token].journaled:
                    self._deliver([token], effects)
            elif token in self.queue or (token in self.running and token not in self.abandoned):
                pass  # the gateway repeats itself
            elif (answer := self._answer(attempt)) is not None:
                self._reissue(answer, attempt, effects)
            elif token in self.running:
                refused.setdefault((attempt.job, "StillStopping"), []).append(token)
            elif (reason := self._objection(attempt)) is not None:
                refused.setdefault((attempt.job, reason), []).append(token)
            else:
                self.queue[token] = attempt
                self._outstanding_bytes += attempt.input_bytes
        for (job, reason), tokens in refused.items():
            effects.append(ev.GiveBack(job, tuple(tokens), reason))

    def _objection(self, attempt: Attempt) -> str | None:
        """Why an attempt is not taken (CamelCase), or None."""
        if self.draining is not None:
            return "Draining"
        if not self.verdict.allowed:
            return self.verdict.reason
        job = self.jobs.get(attempt.job)
        if job is None:
            return "UnknownJob"
        if isinstance(job.outcome, NotReady):
            return job.outcome.reason
        outstanding = len(self.queue) + len(self.running)
        if outstanding >= TOLERANCE * self.limits.credit_shards:
            return "CreditsExceeded"
        if outstanding and self._outstanding_bytes + attempt.input_bytes > TOLERANCE * self.limits.credit_bytes:
            return "CreditsExceeded"
        return None

    def _revoked(self, job: str, tokens: tuple[Token, ...], effects: list[Effect]) -> None:
        self._give_back([t for t in tokens if t in self.queue and self.queue[t].job == job], "Revoked", effects)

    def _cancelled(self, job: str, tokens: tuple[Token, ...], effects: list[Effect]) -> None:
        if not tokens:
            if self.jobs.pop(job, None) is not None:
                effects.append(ev.Dismiss(job))
            tokens = tuple(t for t, a in (*self.queue.items(), *self.running.items()) if a.job == job)
        # Finished results stay: they are on their way, and the gateway settles whatever reaches it.
        self._drop(tokens, effects)

    def _give_back(self, tokens: list[Token], reason: str, effects: list[Effect]) -> None:
        by_job: dict[str, list[Token]] = {}
        for token in dict.fromkeys(tokens):  # a token said twice is still one attempt
            by_job.setdefault(self._unqueue(token).job, []).append(token)
        if self.attached:  # otherwise Hello will not list them, which says the same
            effects.extend(ev.GiveBack(job, tuple(given), reason) for job, given in by_job.items())

    def _drop(self, tokens: Iterable[Token], effects: list[Effect]) -> None:
        stop = []
        for token in tokens:
            if token in self.queue:
                self._unqueue(token)
            elif token in self.running and token not in self.abandoned:
                self.abandoned.add(token)
                attempt = self.running[token]
                self._computing.discard((attempt.job, attempt.shard))
                stop.append(token)
        if stop:
            effects.append(ev.Abandon(tuple(stop)))

    def _unqueue(self, token: Token) -> Attempt:
        attempt = self.queue.pop(token)
        self._outstanding_bytes -= attempt.input_bytes
        return attempt

    # ---- computing ----

    def _begin(self, effects: list[Effect]) -> None:
        waiting = iter(list(self.queue.values())) if self.queue and self._room else iter(())
        for attempt in waiting:
            if not self._room:
                return
            job = self.jobs.get(attempt.job)
            if job is None or not isinstance(job.outcome, Ready):
                continue
            if (answer := self._answer(attempt)) is not None:
                self._unqueue(attempt.token)
                self._reissue(answer, attempt, effects)
                continue
            if (attempt.job, attempt.shard) in self._computing:
                continue  # its own earlier attempt is about to answer it
            del self.queue[attempt.token]
            self.running[attempt.token] = attempt
            self._computing.add((attempt.job, attempt.shard))
            self._begun_seconds += self._cost(attempt, job.outcome)
            effects.append(ev.Compute(attempt, job.order))

    @property
    def _room(self) -> bool:
        if self.held_bytes >= self.limits.held_bytes:
            return False
        if len(self.running) < self.limits.slots:
            return True
        return self._begun_seconds < LOOKAHEAD_SECONDS * self.limits.slots

    @staticmethod
    def _cost(attempt: Attempt, ready: Ready) -> float:
        # Of unknown speed: assume it fills a slot, so that nothing is begun ahead.
        return attempt.items / ready.items_per_second if ready.items_per_second > 0 else LOOKAHEAD_SECONDS

    def _stop_running(self, token: Token) -> Attempt | None:
        attempt = self.running.pop(token, None)
        if attempt is None:
            return None
        self._outstanding_bytes -= attempt.input_bytes
        if token in self.abandoned:
            self.abandoned.discard(token)
        else:
            self._computing.discard((attempt.job, attempt.shard))
        if not self.running:
            self._begun_seconds = 0.0  # sums of floats drift; start afresh whenever the truth is known
        else:
            job = self.jobs.get(attempt.job)
            if job is not None and isinstance(job.outcome, Ready):
                self._begun_seconds = max(0.0, self._begun_seconds - self._cost(attempt, job.outcome))
        return attempt

    def _finished(self, event: ev.Finished, effects: list[Effect]) -> None:
        wanted = event.token not in self.abandoned
        attempt = self._stop_running(event.token)
        if attempt is None or not wanted:
            return
        self._hold(
            Held(
                attempt.job,
                attempt.shard,
                event.token,
                result_bytes=event.result_bytes,
                failed=event.failed,
            ),
            journaled=False,
        )
        effects.append(ev.Keep(event.token))

    # ---- results ----

    def _hold(self, result: Held, *, journaled: bool) -> None:
        self.held[result.token] = _Result(result.job, result.shard, result.result_bytes, result.failed, journaled)
        self.held_bytes += result.result_bytes
        if not result.failed:  # trouble may pass; a failed attempt is no answer to a new lease
            self._answers.setdefault((result.job, result.shard), []).append(result.token)

    def _answer(self, attempt: Attempt) -> Token | None:
        tokens = self._answers.get((attempt.job, attempt.shard))
        return tokens[-1] if tokens else None

    def _reissue(self, old: Token, attempt: Attempt, effects: list[Effect]) -> None:
        result_bytes = self.held[old].result_bytes
        self._hold(Held(attempt.job, attempt.shard, attempt.token, result_bytes=result_bytes), journaled=False)
        effects.append(ev.Reissue(old, attempt.token))

    def _journaled(self, tokens: tuple[Token, ...], effects: list[Effect]) -> None:
        for token in tokens:
            if token in self.held:
                self.held[token].journaled = True
        if self.attached:
            self._deliver(tokens, effects)

    def _deliver(self, tokens: Iterable[Token], effects: list[Effect]) -> None:
        by_job: dict[str, list[Token]] = {}
        for token in tokens:
            result = self.held.get(token)
            if result is not None and result.journaled:
                by_job.setdefault(result.job, []).append(token)
        effects.extend(ev.Deliver(job, tuple(group)) for job, group in by_job.items())

    def _settled(self, tokens: tuple[Token, ...], effects: list[Effect]) -> None:
        forgotten = []
        for token in tokens:
            result = self.held.pop(token, None)
            if result is None:
                continue
            self.held_bytes -= result.result_bytes
            forgotten.append(token)
            if not result.failed:
                answers = self._answers[result.job, result.shard]
                answers.remove(token)
                if not answers:
                    del self._answers[result.job, result.shard]
        if forgotten:
            effects.append(ev.Forget(tuple(forgotten)))
        self._drop(tokens, effects)  # another attempt was first: nobody needs ours
