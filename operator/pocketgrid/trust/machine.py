"""What is believed of one job's results.

Told what was committed by whom and how comparisons went, it says who is to compute what again, which shards are final,
which are to be done again, and who lied. It computes nothing, compares nothing, remembers no answer: the engine does.

The engine keeps answers where an effect says so (`KeepAnswers`, `ForgetAnswers`), for the next answer is compared with
them: first with the canonical (committed) one, then with those kept for the item, in the order in which they came.

Life of a provisional shard:

- None: final at once.
- Audit, Adaptive: it joins the window of its device. When the window closes, rows are drawn (`policy`); each is
  computed again by somebody independent. All agree: the window is final. One does not: others are asked about that
  row until the odds are clear (`voting`), and whoever was wrong has it on record (`reputation`).
- Quorum: replicas of the whole shard, until enough agree or too many were asked.

A device that is caught loses everything provisional, its voice in open questions, and what it vouched for in windows
that are not final. Checks are full of items of several devices, a few of which are already final (traps); who gets one
cannot tell whose they are, nor that it is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pocketgrid.clock import Rng
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.ranges import IndexSet
from pocketgrid.model.trust import Verification, VerificationMode, Witness
from pocketgrid.trust.draws import below, shuffle
from pocketgrid.trust.effects import (
    Caught,
    Check,
    Disproved,
    Effect,
    ForgetAnswers,
    KeepAnswers,
    NoConsensus,
    Sample,
    Verified,
)
from pocketgrid.trust.independence import Comparable, may_check, same_class_only
from pocketgrid.trust.policy import agreements_needed, false_alarm_rate, window_items, window_samples
from pocketgrid.trust.reputation import CAUGHT_AT, Reputations
from pocketgrid.trust.summary import Summary, Tally
from pocketgrid.trust.voting import SETTLING_ODDS, Ballot, Outcome, count_heads, weigh
from pocketgrid.trust.windows import Subject, Window

MOST_VOICES = 9
"""Answers to one audited item, the canonical one included, before it is given up."""

QUORUM_ESCALATIONS = 5
"""Replicas beyond the quorum before a shard is given up."""

PATIENCE_S = 30.0
"""A busy device gets a check that is not full only if a sample has waited so long."""

SUSPECT_AT = 0.5
"""Who is a liar with this probability is not asked about others."""

ITEMS_PER_TRAP = 16
"""Of so many items of a check one is a trap."""

TRAPS_KEPT = 512
"""Final shards that traps are taken from; each further one takes the place of a random one."""

CONVICTING_ODDS = 100.0
"""One wrong answer convicts under an exact comparator if it is wrong with these odds."""


@dataclass(slots=True)
class _Question:
    """Something that answers differ about, or of which several are wanted from the beginning.

    Attributes:
        window: None for a trap.
        target: voices wanted before heads are counted; of no account for audits.
        asked: who has been asked and has not answered, by check.
    """

    window: Window | None
    ballot: Ballot
    target: int
    asked: dict[int, Witness] = field(default_factory=dict)

    @property
    def wanting(self) -> int:
        return self.target - self.ballot.voices - len(self.asked)

    def admits(self, witness: Witness, comparable: Comparable) -> bool:
        return may_check(witness, (*self.ballot.voters, *self.asked.values()), comparable)


@dataclass(slots=True)
class _Flight:
    """A check that somebody computes. `windows`: where each sample belonged when it was drawn; None for traps."""

    witness: Witness
    check: Check
    windows: dict[Sample, Window | None]
    origins: dict[Sample, Witness]


class VerificationMachine:
    """State of one job's verification.

    Args:
        spec: what the user wants.
        grid: how items are cut.
        reputations: shared by all jobs.
        rng: chance; the same seed and history give the same decisions.
        model: digest of the job's model; what a device proved with another says nothing.
        comparable: which numerics classes can be compared; each with itself unless told more.
    """

    def __init__(
        self,
        spec: Verification,
        grid: ShardGrid,
        reputations: Reputations,
        rng: Rng,
        *,
        model: str = "",
        comparable: Comparable = same_class_only,
    ) -> None:
        self.spec = spec
        self.grid = grid
        self.verified = IndexSet()
        self.provisional = IndexSet()
        self.tally = Tally()
        self._reputations = reputations
        self._rng = rng
        self._model = model
        self._comparable = comparable
        self._quorum = spec.mode is VerificationMode.QUORUM
        self._windows: dict[int, Window] = {}
        self._filling: dict[DeviceName, Window] = {}
        self._queue: dict[DeviceName, list[Sample]] = {}
        self._queued = 0
        self._waiting_since: float | None = None
        self._questions: dict[Subject, _Question] = {}
        self._wanting: dict[Subject, None] = {}
        self._flights: dict[int, _Flight] = {}
        self._next_check = 0
        self._finals: list[tuple[int, Witness]] = []
        self._finals_seen = 0
        self._trapped: dict[DeviceName, set[Sample]] = {}
        self._given_up: Counter[int] = Counter()

    # ---- asking ----

    @property
    def wants_checks(self) -> bool:
        """Whether something is provisional still: the job cannot be complete."""
        return len(self.provisional) > 0

    @property
    def disputed(self) -> frozenset[Sample]:
        """Items whose answers the engine keeps; O(number of them)."""
        return frozenset(s for subject in self._questions for s in self._samples_of(subject))

    def summary(self) -> Summary:
        """Figures for the status of the job."""
        return self.tally.summary(self._rows(self.verified), self._rows(self.provisional))

    # ---- what happens ----

    def restored(self, verified: IndexSet, tally: Mapping[str, object] | None = None) -> None:
        """After a restart, before any `committed`: what the log says is final, and what `tally.to_dict` kept."""
        for start, stop in verified.runs():
            self.verified.add_run(start, stop)
        if tally:
            self.tally = Tally.from_dict(tally)

    def committed(self, shard: int, witness: Witness, now: float) -> list[Effect]:
        """`shard` as `witness` computed it is durable.

        Raises:
            ValueError: the shard is provisional or final already; it must be taken back first.
        """
        if shard in self.provisional or shard in self.verified:
            raise ValueError(f"shard {shard} was committed before and not taken back")
        items = self.grid.size(shard)
        self.tally.computed += items
        if self.spec.mode is VerificationMode.NONE:
            self.verified.add(shard)
            return [Verified((shard,), witness.device)]
        self.provisional.add(shard)
        if self._quorum:
            window = Window(witness, closed=True)
            self._pose(shard, _Question(window, Ballot([witness]), self.spec.quorum), now)
            window.outstanding.add(shard)
        else:
            window = self._filling.setdefault(witness.device, Window(witness))
        window.add(shard, items)
        self._windows[shard] = window
        if self._quorum:
            return self._settle(shard, now)
        consecutive = self._reputations.consecutive(window.origin, self._model, now)
        if window.items >= window_items(self.spec, consecutive):
            self._close(window, now)
        return []

    def next_check(self, witness: Witness, idle: bool, now: float) -> Check | None:
        """What `witness` should check before it gets other work; None if nothing.

        idle: there is no other work for it. Then windows close early, and checks need not be full.
        """
        if self._reputations.liar(witness, self._model, now) >= SUSPECT_AT:
            return None
        for subject in self._wanting:
            question = self._questions[subject]
            if isinstance(subject, int) and question.admits(witness, self._comparable):
                return self._ask_replica(subject, question, witness)
        if self._quorum:
            return None
        if idle:
            for window in list(self._filling.values()):
                if may_check(witness, (window.origin,), self._comparable):
                    self._close(window, now)
        impatient = self._waiting_since is not None and now - self._waiting_since >= PATIENCE_S
        if not (idle or impatient or self._queued + len(self._wanting) >= self.grid.per_shard):
            return None
        return self._ask_samples(witness, now, partial=idle or impatient)

    def check_lost(self, number: int) -> None:
        """Whoever had the check will not answer it. Somebody else gets the same items.

        The same, because a device that saw which items it was asked about could otherwise wish for better ones.
        """
        flight = self._flights.pop(number, None)
        if flight is None:
            return
        if flight.check.replica:
            self._unask(flight.check.samples[0].shard, number)
            return
        for sample, window in flight.windows.items():
            if not self._unask(sample, number):
                self._ask_again(sample, window)

    def answered(
        self, number: int, witness: Witness, agrees: Mapping[Sample, tuple[bool, ...]], now: float
    ) -> list[Effect]:
        """`witness` has computed a check.

        agrees: for each item that could be compared, whether the answer agrees with the canonical one and with each
            kept one, in the order in which they were reported. Items that are absent are asked again.

        Raises:
            ValueError: `agrees` does not speak of each kept answer.
        """
        flight = self._flights.get(number)
        if flight is None or flight.witness.device != witness.device:
            return []
        del self._flights[number]
        self.tally.checked += len(agrees)
        if flight.check.replica:
            return self._replica_answered(flight, agrees, now)
        effects: list[Effect] = []
        for sample, window in flight.windows.items():
            asked = self._unask(sample, number)
            if sample not in agrees or Caught(witness.device, "") in effects:
                if not asked:
                    self._ask_again(sample, window)
            elif asked:
                self._questions[sample].ballot.add(flight.witness, agrees[sample])
                effects += [KeepAnswers((sample,)), *self._settle(sample, now)]
            elif self._is_asked(sample, window):
                effects += self._first_answer(sample, window, flight, agrees[sample], now)
        return effects

    def late_result(self, shard: int, witness: Witness, agrees: bool, now: float) -> list[Effect]:
        """A hedge copy or a late result of `shard` was compared with the canonical one: evidence for nothing.

        One that differs counts only while the shard is provisional, and the engine keeps it then, see above; one by
        somebody who is not independent of who brought the shard does not count.
        """
        self.tally.computed += self.grid.size(shard)
        window = self._windows.get(shard)
        question = self._questions.get(shard)
        if window is None or (question is not None and len(question.ballot.voters) > 1):
            return []
        voters = (window.origin,) if question is None else (*question.ballot.voters, *question.asked.values())
        if not may_check(witness, voters, self._comparable):
            return []
        self.tally.compared += 1
        self.tally.disagreed += 0 if agrees else 1
        effects = [] if question is not None else self._question_whole(shard, window, now)
        self._questions[shard].ballot.add(witness, (agrees,))
        return [*effects, KeepAnswers(tuple(self._samples_of(shard))), *self._settle(shard, now)]

    def reopened(self, shards: Iterable[int], now: float) -> list[Effect]:
        """Shards were lost for other reasons; they will be committed again."""
        effects: list[Effect] = []
        for shard in shards:
            if self.verified.discard(shard):
                self._finals = [(other, origin) for other, origin in self._finals if other != shard]
            window = self._windows.get(shard)
            if window is not None:
                effects += self._drop([shard])
                effects += self._finish(window, now)
        return effects

    def caught(self, device: DeviceName, now: float) -> list[Effect]:
        """Another job's machine caught `device`."""
        return self._expel(device, now)

    # ---- windows ----

    def _close(self, window: Window, now: float) -> None:
        device = window.origin.device
        if self._filling.get(device) is window:
            del self._filling[device]
        window.closed = True
        liar, consecutive = self._standing(window.origin, now)
        self._draw(window, window_samples(self.spec, liar, consecutive, window.items), now)

    def _draw(self, window: Window, count: int, now: float) -> None:
        samples = window.draw(self.grid, count, self._rng)
        self._enqueue(window.origin.device, samples)
        if samples and self._waiting_since is None:
            self._waiting_since = now

    def _enqueue(self, device: DeviceName, samples: Sequence[Sample]) -> None:
        if samples:
            self._queue.setdefault(device, []).extend(samples)
            self._queued += len(samples)

    def _finish(self, window: Window, now: float) -> list[Effect]:
        """Make a window final if nothing is outstanding and enough has agreed; else draw what is missing."""
        if not window.closed or window.outstanding or not window.shards:
            return []
        liar, _ = self._standing(window.origin, now)
        missing = min(agreements_needed(self.spec, liar), window.items) - len(window.passed)
        if missing > 0 and not self._quorum:
            self._draw(window, missing, now)
            if window.outstanding:
                return []
        shards = tuple(sorted(window.shards))
        window.shards.clear()
        self.tally.final(window.origin.device, window.items, len(window.passed))
        return [self._final(shards, window.origin)]

    def _final(self, shards: tuple[int, ...], origin: Witness, agreed: tuple[DeviceName, ...] = ()) -> Verified:
        for shard in shards:
            del self._windows[shard]
            self.provisional.discard(shard)
            self.verified.add(shard)
            self._given_up.pop(shard, None)
            self._finals_seen += 1
            if len(self._finals) < TRAPS_KEPT:
                self._finals.append((shard, origin))
            else:
                self._finals[below(self._rng, TRAPS_KEPT)] = (shard, origin)
        return Verified(shards, origin.device, agreed)

    def _drop(self, shards: Iterable[int]) -> list[Effect]:
        """Nothing is asked about `shards` any more, and they are not provisional."""
        gone = set(shards)
        for shard in gone:
            window = self._windows.pop(shard)
            window.drop(shard, self.grid.size(shard))
            self.provisional.discard(shard)
            if not window.shards and self._filling.get(window.origin.device) is window:
                del self._filling[window.origin.device]
        closed = [subject for subject in self._questions if _shard_of(subject) in gone]
        return self._forget(closed)

    def _forget(self, subjects: Iterable[Subject]) -> list[Effect]:
        samples: list[Sample] = []
        for subject in subjects:
            self._wanting.pop(subject, None)
            question = self._questions.pop(subject, None)
            if question is not None and len(question.ballot.voters) > 1:
                samples += self._samples_of(subject)
        return [ForgetAnswers(tuple(samples))] if samples else []

    # ---- handing out ----

    def _ask_replica(self, shard: int, question: _Question, witness: Witness) -> Check:
        check = self._number(tuple(self._samples_of(shard)), replica=True)
        question.asked[check.number] = witness
        self._mark(shard)
        self._flights[check.number] = _Flight(witness, check, {}, {})
        return check

    def _ask_samples(self, witness: Witness, now: float, *, partial: bool) -> Check | None:
        room = self.grid.per_shard
        flight = _Flight(witness, Check(-1, (), replica=False), {}, {})
        disputes = [
            subject
            for subject in self._wanting
            if isinstance(subject, Sample) and self._questions[subject].admits(witness, self._comparable)
        ][:room]
        for sample in disputes:
            flight.windows[sample] = self._questions[sample].window
            flight.origins[sample] = self._questions[sample].ballot.voters[0]
        self._take_queued(witness, room, flight)
        if not flight.windows or not (partial or len(flight.windows) >= room):
            for sample in flight.windows:
                if sample not in self._questions:
                    self._enqueue(flight.origins[sample].device, [sample])
            return None
        self._add_traps(witness, flight, room)
        samples = list(flight.windows)
        shuffle(self._rng, samples)
        flight.check = self._number(tuple(samples), replica=False)
        for sample in disputes:
            self._questions[sample].asked[flight.check.number] = witness
            self._mark(sample)
        self._flights[flight.check.number] = flight
        self._waiting_since = now if self._queued or self._wanting else None
        return flight.check

    def _take_queued(self, witness: Witness, room: int, flight: _Flight) -> None:
        """Move samples that `witness` may check from the queue to the flight.

        From devices in turn, so that a window is checked by many: whoever is in league with its device gets little.
        """
        devices = list(self._queue)
        start = below(self._rng, len(devices)) if devices else 0
        devices = devices[start:] + devices[:start]
        while devices and len(flight.windows) < room:
            devices = [d for d in devices if len(flight.windows) < room and self._take_one(witness, d, flight)]

    def _take_one(self, witness: Witness, device: DeviceName, flight: _Flight) -> bool:
        """Move one sample of `device`; False if there is none for `witness`."""
        samples = self._queue[device]
        while samples:
            window = self._windows.get(samples[-1].shard)
            stale = window is None or samples[-1] not in window.outstanding or samples[-1] in self._questions
            if window is not None and not stale:
                if not may_check(witness, (window.origin,), self._comparable):
                    return False
                flight.windows[samples[-1]] = window
                flight.origins[samples[-1]] = window.origin
            samples.pop()
            self._queued -= 1
            if not stale:
                break
        if not samples:
            del self._queue[device]
        return bool(samples)

    def _add_traps(self, witness: Witness, flight: _Flight, room: int) -> None:
        """Items whose answers are known, never the same one twice for one device."""
        wanted = int(len(flight.windows) / ITEMS_PER_TRAP + self._rng.random())
        seen = self._trapped.setdefault(witness.device, set())
        for _ in range(min(wanted, room - len(flight.windows))):
            if not self._finals:
                return
            shard, origin = self._finals[below(self._rng, len(self._finals))]
            sample = Sample(shard, below(self._rng, self.grid.size(shard)))
            fresh = sample not in seen and sample not in flight.windows and sample not in self._questions
            if fresh and may_check(witness, (origin,), self._comparable):
                seen.add(sample)
                flight.windows[sample] = None
                flight.origins[sample] = origin

    def _number(self, samples: tuple[Sample, ...], *, replica: bool) -> Check:
        check = Check(self._next_check, samples, replica)
        self._next_check += 1
        return check

    def _pose(self, subject: Subject, question: _Question, now: float) -> None:
        self._questions[subject] = question
        self._mark(subject)
        if self._waiting_since is None:
            self._waiting_since = now

    def _mark(self, subject: Subject) -> None:
        """Keep the list of questions that want more voices."""
        if self._questions[subject].wanting > 0:
            self._wanting[subject] = None
        else:
            self._wanting.pop(subject, None)

    def _unask(self, subject: Subject, number: int) -> bool:
        """Check `number` is not under way any more; whether `subject` was a question in it, still open."""
        question = self._questions.get(subject)
        if question is None or question.asked.pop(number, None) is None:
            return False
        self._mark(subject)
        return True

    def _ask_again(self, sample: Sample, window: Window | None) -> None:
        if window is not None and self._is_asked(sample, window):
            self._enqueue(window.origin.device, [sample])

    def _is_asked(self, sample: Sample, window: Window | None) -> bool:
        """Whether the undisputed `sample`, drawn for `window` or as a trap, still means what it meant then."""
        if sample in self._questions:
            return False
        if window is None:
            return sample.shard in self.verified
        return self._windows.get(sample.shard) is window and sample in window.outstanding

    # ---- answers ----

    def _first_answer(
        self, sample: Sample, window: Window | None, flight: _Flight, agrees: tuple[bool, ...], now: float
    ) -> list[Effect]:
        self.tally.compared += 1
        origin = flight.origins[sample]
        if not agrees[0]:
            self.tally.disagreed += 1
            ballot = Ballot([origin])
            ballot.add(flight.witness, agrees)
            self._pose(sample, _Question(window, ballot, 2), now)
            return [KeepAnswers((sample,)), *self._settle(sample, now)]
        self._reputations.confirm(flight.witness, self._model, now)
        if window is None:
            return []
        self._reputations.confirm(origin, self._model, now)
        window.outstanding.discard(sample)
        window.passed[sample] = flight.witness.device
        return self._finish(window, now)

    def _question_whole(self, shard: int, window: Window, now: float) -> list[Effect]:
        """Ask about all of `shard` at once instead of about samples of it."""
        forgotten = self._forget([s for s in self._questions if isinstance(s, Sample) and s.shard == shard])
        window.outstanding = {s for s in window.outstanding if _shard_of(s) != shard}
        window.passed = {s: by for s, by in window.passed.items() if s.shard != shard}
        window.outstanding.add(shard)
        self._pose(shard, _Question(window, Ballot([window.origin]), 1), now)
        return forgotten

    def _replica_answered(self, flight: _Flight, agrees: Mapping[Sample, tuple[bool, ...]], now: float) -> list[Effect]:
        shard = flight.check.samples[0].shard
        question = self._questions.get(shard)
        if not self._unask(shard, flight.check.number) or question is None:
            return []
        if len(agrees) < len(flight.check.samples):
            return []
        together = tuple(all(column) for column in zip(*(agrees[s] for s in flight.check.samples), strict=True))
        self.tally.compared += 1
        self.tally.disagreed += 0 if together[0] else 1
        question.ballot.add(flight.witness, together)
        return [KeepAnswers(flight.check.samples), *self._settle(shard, now)]

    def _settle(self, subject: Subject, now: float) -> list[Effect]:
        """Close a question if its answers allow it; else ask one more, or give up."""
        question = self._questions[subject]
        ballot = question.ballot
        odds = [self._odds(voter, now) for voter in ballot.voters]
        if self._quorum and question.window is not None:
            if ballot.voices < question.target:
                self._mark(subject)
                return []
            outcome = count_heads(ballot, self.spec.quorum // 2 + 1, odds)
            most = self.spec.quorum + QUORUM_ESCALATIONS
        else:
            outcome = weigh(ballot, odds)
            if outcome is not None and outcome.odds < SETTLING_ODDS and not _is_unanimous(ballot, outcome):
                outcome = None
            most = MOST_VOICES
        if outcome is not None:
            return self._decided(subject, outcome, now)
        if len(ballot.voters) < most:
            question.target = max(question.target, ballot.voices + 1)
            self._mark(subject)
            return []
        return self._give_up(subject, now)

    def exhausted(self, witnesses: Sequence[Witness], now: float) -> list[Effect]:
        """Settle, by most voices, disputes that none of `witnesses` (all there are) may still decide.

        For small fleets: two against one is not much, but nobody else is there. One against one stays open.
        """
        effects: list[Effect] = []
        for subject, question in list(self._questions.items()):
            if self._questions.get(subject) is not question or question.asked or self._quorum:
                continue
            if any(self._may_answer(question, witness, now) for witness in witnesses):
                continue
            odds = [self._odds(voter, now) for voter in question.ballot.voters]
            outcome = count_heads(question.ballot, 2, odds)
            if outcome is not None:
                effects += self._decided(subject, outcome, now)
        return effects

    def blocked(self, witnesses: Sequence[Witness], now: float) -> str | None:
        """Why what is provisional cannot be settled by `witnesses` (all there are); None if it can."""
        for subject, question in self._questions.items():
            if question.window is None or question.asked or question.wanting <= 0:
                continue
            if not any(self._may_answer(question, witness, now) for witness in witnesses):
                return _nobody(f"decide about shard {_shard_of(subject)}", question.ballot.voters, len(witnesses))
        for origin in {id(w): w.origin for w in self._windows.values()}.values():
            trusted = (w for w in witnesses if self._reputations.liar(w, self._model, now) < SUSPECT_AT)
            if not self._quorum and not any(may_check(w, (origin,), self._comparable) for w in trusted):
                return _nobody(f"check what {origin.device} brought", (origin,), len(witnesses))
        return None

    def _may_answer(self, question: _Question, witness: Witness, now: float) -> bool:
        return question.admits(witness, self._comparable) and (
            self._reputations.liar(witness, self._model, now) < SUSPECT_AT
        )

    def _decided(self, subject: Subject, outcome: Outcome, now: float) -> list[Effect]:
        question = self._questions[subject]
        effects = self._forget([subject])
        shard = _shard_of(subject)
        ballot, window = question.ballot, question.window
        canonical_right = 0 in outcome.right
        agreed = tuple(ballot.voters[at].device for at in sorted(outcome.right) if at > 0)
        if window is not None and canonical_right:
            window.outstanding.discard(subject)
            if isinstance(subject, Sample):
                window.passed[subject] = agreed[0] if agreed else window.origin.device
            elif self._windows.get(shard) is window:
                effects.append(self._whole_final(shard, window, agreed))
        elif window is not None:
            self.tally.refuted(window.origin.device)
            self._take_back(shard)
            effects += [*self._drop([shard]), Disproved((shard,), window.origin.device)]
        elif not canonical_right:
            self.tally.wrong_final += 1
        for at, voter in enumerate(ballot.voters):
            if at in ballot.struck:
                continue
            if at in outcome.right:
                if len(outcome.right) > 1:
                    self._reputations.confirm(voter, self._model, now)
            else:
                effects += self._refute(voter, outcome.odds, shard, now)
        if window is not None:
            effects += self._finish(window, now)
        return effects

    def _whole_final(self, shard: int, window: Window, agreed: tuple[DeviceName, ...]) -> Verified:
        items = self.grid.size(shard)
        window.drop(shard, items)
        self.tally.final(window.origin.device, items, items)
        if not window.shards and self._filling.get(window.origin.device) is window:
            del self._filling[window.origin.device]
        return self._final((shard,), window.origin, agreed)

    def _give_up(self, subject: Subject, now: float) -> list[Effect]:
        question = self._questions[subject]
        effects = self._forget([subject])
        if question.window is None:
            return effects
        shard = _shard_of(subject)
        self._given_up[shard] += 1
        self._take_back(shard)
        effects += self._drop([shard])
        effects.append(NoConsensus((shard,), question.window.origin.device, self._given_up[shard]))
        return effects + self._finish(question.window, now)

    # ---- liars ----

    def _refute(self, voter: Witness, odds: float, shard: int, now: float) -> list[Effect]:
        rate = false_alarm_rate(self.spec)
        self._reputations.refute(voter, self._model, now, min(1.0, max(rate, 1.0 / max(odds, 1.0))))
        liar = self._reputations.liar(voter, self._model, now)
        certain = rate == 0.0 and odds >= CONVICTING_ODDS
        if not certain and liar < CAUGHT_AT:
            return []
        self._reputations.catch(voter)
        reason = f"wrong on an item of shard {shard}, as others found"
        return [Caught(voter.device, reason), *self._expel(voter.device, now)]

    def _expel(self, device: DeviceName, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self._filling.pop(device, None)
        self._finals = [(shard, origin) for shard, origin in self._finals if origin.device != device]
        for flight in self._flights.values():
            for sample in [s for s, window in flight.windows.items() if window is None]:
                if flight.origins[sample].device == device:
                    del flight.windows[sample]
        for number in [number for number, flight in self._flights.items() if flight.witness.device == device]:
            self.check_lost(number)
        lost = sorted(shard for shard, window in self._windows.items() if window.origin.device == device)
        if lost:
            for shard in lost:
                self._take_back(shard)
            effects += [*self._drop(lost), Disproved(tuple(lost), device)]
        for window in {id(w): w for w in self._windows.values()}.values():
            void = [sample for sample, by in window.passed.items() if by == device]
            for sample in void:
                del window.passed[sample]
            if void:
                self._draw(window, len(void), now)
                effects += self._finish(window, now)
        for subject, question in list(self._questions.items()):
            if self._questions.get(subject) is question and question.ballot.strike(device):
                effects += self._settle(subject, now)
        return effects

    # ---- small ----

    def _take_back(self, shard: int) -> None:
        self.tally.taken_back += self.grid.size(shard)

    def _standing(self, witness: Witness, now: float) -> tuple[float, float]:
        liar = self._reputations.liar(witness, self._model, now)
        if self.spec.mode is not VerificationMode.ADAPTIVE:
            liar = max(liar, self._reputations.prior(witness))
        return liar, self._reputations.consecutive(witness, self._model, now)

    def _odds(self, witness: Witness, now: float) -> float:
        liar = self._reputations.liar(witness, self._model, now)
        return (1.0 - liar) / liar if liar > 0.0 else float("inf")

    def _samples_of(self, subject: Subject) -> list[Sample]:
        if isinstance(subject, Sample):
            return [subject]
        return [Sample(subject, row) for row in range(self.grid.size(subject))]

    def _rows(self, shards: IndexSet) -> int:
        rows = len(shards) * self.grid.per_shard
        last = self.grid.shards - 1
        return rows - (self.grid.per_shard - self.grid.size(last)) if last >= 0 and last in shards else rows


def _is_unanimous(ballot: Ballot, outcome: Outcome) -> bool:
    return len(outcome.right) == ballot.voices and len(outcome.right) > 1


def _shard_of(subject: Subject) -> int:
    return subject if isinstance(subject, int) else subject.shard


def _nobody(to_do: str, voters: Iterable[Witness], count: int) -> str:
    names = ", ".join(voter.device for voter in voters)
    return (
        f"nobody may {to_do}: of {count} devices, each shares an owner, network prefix or suspicion with {names}, "
        "or is of another numerics class without a tolerance profile"
    )
