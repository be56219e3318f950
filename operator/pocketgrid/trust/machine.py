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
that are not final. Checks are full of items of several devices, a few of them final (traps); nobody can tell which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pocketgrid.clock import Rng
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.ranges import IndexSet
from pocketgrid.model.trust import Verification, VerificationMode, Witness
from pocketgrid.trust.desk import CheckDesk, Flight
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
from pocketgrid.trust.independence import Comparable, may_check, nobody_may, same_class_only
from pocketgrid.trust.questions import Question, Questions
from pocketgrid.trust.reputation import Reputations
from pocketgrid.trust.standing import Standing
from pocketgrid.trust.summary import Summary, Tally
from pocketgrid.trust.voting import SETTLING_ODDS, Ballot, Outcome, count_heads, is_spent, odds_against, resolve
from pocketgrid.trust.windows import Subject, Window, samples_of, shard_of


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
        self._rng = rng
        self._comparable = comparable
        self._standing = Standing(spec, reputations, model)
        self._quorum = spec.mode is VerificationMode.QUORUM
        self._windows: dict[int, Window] = {}
        self._filling: dict[DeviceName, Window] = {}
        self._held: dict[DeviceName, list[Window]] = {}
        self._questions = Questions(grid)
        self._desk = CheckDesk(grid, self._questions, self._window_of, comparable, rng)
        self._given_up: Counter[int] = Counter()
        # Who was expelled during the current call: one answer can settle several questions that one device lost.
        self._expelled: set[DeviceName] = set()

    # ---- asking ----

    @property
    def wants_checks(self) -> bool:
        """Whether something is provisional still: the job cannot be complete."""
        return len(self.provisional) > 0

    @property
    def disputed(self) -> frozenset[Sample]:
        """Items for which answers are kept; O(number of open questions)."""
        return frozenset(
            sample
            for subject, question in self._questions
            if len(question.ballot.voters) > 1
            for sample in samples_of(self.grid, subject)
        )

    def summary(self) -> Summary:
        """Figures for the status of the job."""
        return self.tally.summary(self._rows(self.verified), self._rows(self.provisional))

    def blocked(self, witnesses: Sequence[Witness], now: float) -> str | None:
        """Why what is provisional cannot be settled by `witnesses`, all there are; None if it can."""
        trusted = [witness for witness in witnesses if self._standing.may_check(witness, now)]
        for subject, question in self._questions:
            if question.window is None or question.asked or question.wanting <= 0:
                continue
            if not any(question.admits(witness, self._comparable) for witness in trusted):
                return nobody_may(f"decide about shard {shard_of(subject)}", question.ballot.voters, len(witnesses))
        if self._quorum:
            return None
        for origin in dict.fromkeys(window.origin for window in self._windows.values()):
            if not any(may_check(witness, (origin,), self._comparable) for witness in trusted):
                return nobody_may(f"check what {origin.device} brought", (origin,), len(witnesses))
        return None

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
        window = Window(witness) if self._quorum else self._filling.setdefault(witness.device, Window(witness))
        window.add(shard, items)
        self._windows[shard] = window
        if self._quorum:
            window.closed = True
            return self._question_whole(shard, window, self.spec.quorum, now)
        if window.items >= self._standing.window(window.origin, now):
            self._close(window, now)
        return []

    def next_check(self, witness: Witness, idle: bool, now: float) -> Check | None:
        """What `witness` should check before it gets other work; None if nothing.

        idle: there is no other work for it. Then windows close early, and checks need not be full.
        """
        if not self._standing.may_check(witness, now):
            return None
        check = self._desk.replica(witness)
        if check is not None or self._quorum:
            return check
        if idle:
            for window in list(self._filling.values()):
                if may_check(witness, (window.origin,), self._comparable):
                    self._close(window, now)
        return self._desk.samples(witness, idle, now)

    def check_lost(self, number: int) -> None:
        """Whoever had the check will not answer it. Somebody else gets the same items.

        The same, because a device that saw which items it was asked about could otherwise wish for better ones.
        """
        flight = self._desk.take_back(number)
        if flight is None:
            return
        if flight.check.replica:
            self._questions.unask(flight.check.samples[0].shard, number)
        for sample, window in flight.windows.items():
            if not self._questions.unask(sample, number):
                self._ask_again(sample, window, flight.witness.device)

    def answered(
        self, number: int, witness: Witness, agrees: Mapping[Sample, tuple[bool, ...]], now: float
    ) -> list[Effect]:
        """`witness` has computed a check; nothing happens if it was lost before, or is somebody else's.

        agrees: for each item that could be compared, whether the answer agrees with the canonical one and with each
            kept one, in the order in which they were reported. Items that are absent are asked again.

        Raises:
            ValueError: `agrees` does not speak of each kept answer.
        """
        self._expelled.clear()
        flight = self._desk.take_back(number, witness.device)
        if flight is None:
            return []
        self._desk.progressed(now)
        self.tally.checked += len(agrees)
        if flight.check.replica:
            return self._replica_answered(flight, agrees, now)
        effects: list[Effect] = []
        for sample, window in list(flight.windows.items()):
            asked = self._questions.unask(sample, number)
            if sample not in agrees or witness.device in self._expelled:
                if not asked:
                    self._ask_again(sample, window, witness.device)
            elif asked:
                self._questions.vote(sample, flight.witness, agrees[sample])
                effects += [KeepAnswers((sample,)), *self._settle(sample, now)]
            elif self._is_asked(sample, window) and flight.origins[sample].device not in self._expelled:
                effects += self._first_answer(sample, flight, agrees[sample], now)
        return effects + self._finish_held(now)

    def late_result(self, shard: int, witness: Witness, agrees: bool, now: float) -> list[Effect]:
        """A hedge copy or a late result of `shard` was compared with the canonical one: evidence for nothing.

        It counts while the shard is provisional and no other has been compared with it, and only if `witness` is
        independent of who brought the shard, and not suspect.
        """
        self._expelled.clear()
        self.tally.computed += self.grid.size(shard)
        window = self._windows.get(shard)
        question = self._questions.get(shard)
        if window is None or (question is not None and len(question.ballot.voters) > 1):
            return []
        voters = (window.origin,) if question is None else (*question.ballot.voters, *question.asked.values())
        if not self._standing.may_check(witness, now) or not may_check(witness, voters, self._comparable):
            return []
        self.tally.compared += 1
        self.tally.disagreed += 0 if agrees else 1
        effects = [] if question is not None else self._question_whole(shard, window, 1, now)
        self._questions.vote(shard, witness, (agrees,))
        return [
            *effects,
            KeepAnswers(tuple(samples_of(self.grid, shard))),
            *self._settle(shard, now),
            *self._finish_held(now),
        ]

    def reopened(self, shards: Iterable[int], now: float) -> list[Effect]:
        """Shards were lost for other reasons; they will be committed again."""
        effects: list[Effect] = []
        for shard in shards:
            if self.verified.discard(shard):
                self._desk.traps.forget_shard(shard)
            window = self._windows.get(shard)
            if window is not None:
                effects += self._drop([shard])
                effects += self._finish(window, now)
        return effects + self._finish_held(now)

    def caught(self, device: DeviceName, now: float) -> list[Effect]:
        """Another job's machine caught `device`."""
        self._expelled.clear()
        return self._expel(device, now) + self._finish_held(now)

    def exhausted(self, witnesses: Sequence[Witness], now: float) -> list[Effect]:
        """Settle, by most voices, disputes that none of `witnesses`, all there are, may still decide.

        For small fleets: two against one is not much, but nobody else is there. One against one stays open; more
        that are of as many minds are given up.
        """
        effects: list[Effect] = []
        self._expelled.clear()
        trusted = [witness for witness in witnesses if self._standing.may_check(witness, now)]
        for subject, question in self._questions:
            if self._questions.get(subject) is not question or question.asked or self._quorum:
                continue
            if any(question.admits(witness, self._comparable) for witness in trusted):
                continue
            outcome = count_heads(question.ballot, 2, self._standing.odds(question.ballot, now))
            if outcome is not None:
                effects += self._decided(subject, outcome, now)
            elif question.ballot.voices > 2 or question.window is None:
                effects += self._give_up(subject, now)
        return effects + self._finish_held(now)

    def tried(self, witness: Witness, agrees: Mapping[Sample, tuple[bool, ...]], now: float) -> list[Effect]:
        """`witness` answered items with known answers, see `probation`: what is wrong is evidence as any other."""
        self._expelled.clear()
        wrong = self.tally.tried(agrees)
        return [effect for s in wrong for effect in self._refute(witness, SETTLING_ODDS, s.shard, now)]

    # ---- windows ----

    def _close(self, window: Window, now: float) -> None:
        self._filling.pop(window.origin.device, None)
        window.closed = True
        self._draw(window, self._standing.samples(window.origin, window.items, now), now)

    def _draw(self, window: Window, count: int, now: float) -> None:
        self._desk.wait(window.draw(self.grid, count, self._rng), window.origin.device, now)

    def _finish(self, window: Window, now: float) -> list[Effect]:
        """Make a window final if nothing is outstanding and enough has agreed; else draw what is missing."""
        if not window.closed or window.outstanding or not window.shards:
            return []
        if self._questions.involves(window.origin.device):
            # What speaks for a device is known at once, what speaks against it only when disputes are settled.
            self._held.setdefault(window.origin.device, []).append(window)
            return []
        missing = min(self._standing.agreements(window.origin, now), window.items) - len(window.passed)
        if missing > 0:
            self._draw(window, missing, now)
            if window.outstanding:
                return []
        self.tally.final(window.origin.device, window.items, len(window.passed))
        shards = tuple(sorted(window.shards))
        window.shards.clear()
        return [self._final(shards, window.origin)]

    def _finish_held(self, now: float) -> list[Effect]:
        """Look again at windows that waited for disputes of their devices."""
        effects: list[Effect] = []
        for device in self._questions.take_cleared():
            if not self._questions.involves(device):
                for window in self._held.pop(device, ()):
                    effects += self._finish(window, now)
        return effects

    def _final(self, shards: tuple[int, ...], origin: Witness, agreed: tuple[DeviceName, ...] = ()) -> Verified:
        for shard in shards:
            del self._windows[shard]
            self.provisional.discard(shard)
            self.verified.add(shard)
            self._given_up.pop(shard, None)
            self._desk.traps.learn(shard, origin)
        return Verified(shards, origin.device, agreed)

    def _leave_window(self, shard: int, window: Window) -> None:
        window.drop(shard, self.grid.size(shard))
        if not window.shards and self._filling.get(window.origin.device) is window:
            del self._filling[window.origin.device]

    def _take_back(self, shards: Sequence[int]) -> list[Effect]:
        for shard in shards:
            self.tally.taken_back += self.grid.size(shard)
        return self._drop(shards)

    def _drop(self, shards: Iterable[int]) -> list[Effect]:
        """Nothing is asked about `shards` any more, and they are not provisional."""
        gone = set(shards)
        for shard in gone:
            self._leave_window(shard, self._windows.pop(shard))
            self.provisional.discard(shard)
        return _forget(self._questions.close_shards(gone))

    # ---- samples ----

    def _ask_again(self, sample: Sample, window: Window | None, checker: DeviceName) -> None:
        if window is not None and self._is_asked(sample, window):
            self._desk.wait_again(sample, window, checker)

    def _is_asked(self, sample: Sample, window: Window | None) -> bool:
        """Whether the undisputed `sample`, drawn for `window` or as a trap, still means what it meant then."""
        if window is None:
            return sample.shard in self.verified and sample not in self._questions
        return self._window_of(sample) is window

    def _window_of(self, sample: Sample) -> Window | None:
        """The window for which the undisputed `sample` is to be asked."""
        window = self._windows.get(sample.shard)
        if window is None or sample not in window.outstanding or sample in self._questions:
            return None
        return window

    # ---- answers ----

    def _first_answer(self, sample: Sample, flight: Flight, agrees: tuple[bool, ...], now: float) -> list[Effect]:
        window, origin = flight.windows[sample], flight.origins[sample]
        self.tally.compared += 1
        if not agrees[0]:
            self.tally.disagreed += 1
            self._questions.pose(sample, Question(window, Ballot([origin]), 2))
            self._questions.vote(sample, flight.witness, agrees)
            self._desk.note_waiting(now)
            return [KeepAnswers((sample,)), *self._settle(sample, now)]
        self._standing.confirm(flight.witness, now)
        if window is None:
            return []
        self._standing.confirm(origin, now)
        window.outstanding.discard(sample)
        window.passed[sample] = flight.witness.device
        return self._finish(window, now)

    def _replica_answered(self, flight: Flight, agrees: Mapping[Sample, tuple[bool, ...]], now: float) -> list[Effect]:
        samples = flight.check.samples
        shard = samples[0].shard
        if not self._questions.unask(shard, flight.check.number) or len(agrees) < len(samples):
            return []
        together = tuple(all(column) for column in zip(*(agrees[sample] for sample in samples), strict=True))
        self.tally.compared += 1
        self.tally.disagreed += 0 if together[0] else 1
        self._questions.vote(shard, flight.witness, together)
        return [KeepAnswers(samples), *self._settle(shard, now), *self._finish_held(now)]

    def _question_whole(self, shard: int, window: Window, voices: int, now: float) -> list[Effect]:
        """Ask about all of `shard` at once instead of about samples of it."""
        effects = _forget(self._questions.close_shards({shard}))
        window.question(shard)
        self._questions.pose(shard, Question(window, Ballot([window.origin]), voices))
        return effects + self._settle(shard, now) if voices > 1 or self._quorum else effects

    def _settle(self, subject: Subject, now: float) -> list[Effect]:
        """Close a question if its answers allow it; else ask one more, or give up."""
        question = self._questions[subject]
        ballot = question.ballot
        quorum = self.spec.quorum if self._quorum else 0
        if quorum and ballot.voices < question.target:
            self._questions.want(subject, question.target)
            return []
        outcome = resolve(ballot, quorum, self._standing.odds(ballot, now))
        if outcome is not None:
            return self._decided(subject, outcome, now)
        if not is_spent(ballot, quorum):
            self._questions.want(subject, ballot.voices + 1)
            return []
        return self._give_up(subject, now)

    def _decided(self, subject: Subject, outcome: Outcome, now: float) -> list[Effect]:
        question, shard = self._questions[subject], shard_of(subject)
        ballot, window = question.ballot, question.window
        odds = self._standing.odds(ballot, now)
        effects = _forget(self._questions.close([subject]))
        agreed = tuple(ballot.voters[at].device for at in sorted(outcome.right) if at > 0)
        if window is None:
            self.tally.wrong_final += 0 if 0 in outcome.right else 1
        elif 0 not in outcome.right:
            self.tally.refuted(window.origin.device)
            # All of the window: had its samples been drawn for its other shards alone, they might have shown as much.
            lost = sorted(window.shards)
            effects += [*self._take_back(lost), Disproved(tuple(lost), window.origin.device)]
        elif isinstance(subject, Sample):
            window.outstanding.discard(subject)
            window.passed[subject] = agreed[0] if agreed else window.origin.device
        else:
            self._leave_window(shard, window)
            self.tally.final(window.origin.device, self.grid.size(shard), self.grid.size(shard))
            effects.append(self._final((shard,), window.origin, agreed))
        for at, voter in enumerate(ballot.voters):
            if at in ballot.struck:
                continue
            if at not in outcome.right:
                effects += self._refute(voter, odds_against(ballot, at, outcome, odds), shard, now)
            elif len(outcome.right) > 1:
                self._standing.confirm(voter, now)
        return effects if window is None else effects + self._finish(window, now)

    def _give_up(self, subject: Subject, now: float) -> list[Effect]:
        question, shard = self._questions[subject], shard_of(subject)
        effects = _forget(self._questions.close([subject]))
        if question.window is None:
            return effects
        self._given_up[shard] += 1
        effects += self._take_back([shard])
        effects.append(NoConsensus((shard,), question.window.origin.device, self._given_up[shard]))
        return effects + self._finish(question.window, now)

    # ---- liars ----

    def _refute(self, voter: Witness, odds: float, shard: int, now: float) -> list[Effect]:
        if voter.device in self._expelled or not self._standing.refute(voter, odds, now):
            return []
        reason = f"wrong on an item of shard {shard}, as others found"
        return [Caught(voter.device, reason), *self._expel(voter.device, now)]

    def _expel(self, device: DeviceName, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self._expelled.add(device)
        for number in self._desk.expel(device):
            self.check_lost(number)
        lost = sorted(shard for shard, window in self._windows.items() if window.origin.device == device)
        if lost:
            effects += [*self._take_back(lost), Disproved(tuple(lost), device)]
        for window in dict.fromkeys(self._windows.values()):
            if void := window.void(device):
                self._draw(window, void, now)
                effects += self._finish(window, now)
        for subject in self._questions.strike(device):
            if subject in self._questions:
                effects += self._settle(subject, now)
        return effects

    def _rows(self, shards: IndexSet) -> int:
        last = self.grid.shards - 1
        missing = self.grid.per_shard - self.grid.size(last) if last in shards else 0
        return len(shards) * self.grid.per_shard - missing


def _forget(samples: Sequence[Sample]) -> list[Effect]:
    return [ForgetAnswers(tuple(samples))] if samples else []
