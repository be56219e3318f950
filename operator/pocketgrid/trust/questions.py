"""What is still open: items and shards about which more voices are wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import Witness
from pocketgrid.trust.effects import Sample
from pocketgrid.trust.independence import Comparable, may_check
from pocketgrid.trust.voting import Ballot
from pocketgrid.trust.windows import Subject, Window, samples_of, shard_of


@dataclass(slots=True, eq=False)
class Question:
    """Something that answers differ about, or of which several are wanted from the beginning.

    Attributes:
        window: whose outcome waits for it; None for a trap.
        target: voices wanted before they are counted.
        asked: who has been asked and has not answered, by number of the check.
    """

    window: Window | None
    ballot: Ballot
    target: int
    asked: dict[int, Witness] = field(default_factory=dict)

    @property
    def wanting(self) -> int:
        """How many more are to be asked."""
        return self.target - self.ballot.voices - len(self.asked)

    def admits(self, witness: Witness, comparable: Comparable) -> bool:
        """Whether `witness` is independent of all who have answered or been asked."""
        return may_check(witness, (*self.ballot.voters, *self.asked.values()), comparable)


class Questions:
    """The open questions of one job, in the order in which they were posed."""

    def __init__(self, grid: ShardGrid) -> None:
        self._grid = grid
        self._open: dict[Subject, Question] = {}
        # In Quorum mode every provisional shard is a question, but few of them want somebody just now.
        self._wanting: dict[Subject, None] = {}
        self._involved: Counter[DeviceName] = Counter()
        self._cleared: dict[DeviceName, None] = {}

    def __contains__(self, subject: Subject) -> bool:
        return subject in self._open

    def __iter__(self) -> Iterator[tuple[Subject, Question]]:
        """A copy: questions may close meanwhile."""
        return iter(list(self._open.items()))

    def __getitem__(self, subject: Subject) -> Question:
        return self._open[subject]

    def get(self, subject: Subject) -> Question | None:
        """The open question about `subject`."""
        return self._open.get(subject)

    @property
    def wanting(self) -> Iterable[Subject]:
        """Subjects about which somebody is to be asked; not to be kept."""
        return self._wanting.keys()

    @property
    def wanting_count(self) -> int:
        """How many of these there are."""
        return len(self._wanting)

    def pose(self, subject: Subject, question: Question) -> None:
        """Open a question."""
        self._open[subject] = question
        self._mark(subject)

    def involves(self, device: DeviceName) -> bool:
        """Whether `device` has answered something that is still open."""
        return self._involved[device] > 0

    def take_cleared(self) -> list[DeviceName]:
        """Devices that have got out of a question since the last call."""
        cleared, self._cleared = self._cleared, {}
        return list(cleared)

    def vote(self, subject: Subject, witness: Witness, agrees: Sequence[bool]) -> None:
        """`witness` has answered; `agrees` as for `Ballot.add`."""
        ballot = self._open[subject].ballot
        ballot.add(witness, agrees)
        # The canonical answer is in question from the second one on.
        self._involved.update(voter.device for voter in (ballot.voters if len(ballot.voters) == 2 else [witness]))

    def ask(self, subject: Subject, number: int, witness: Witness) -> None:
        """`witness` is asked, by check `number`."""
        self._open[subject].asked[number] = witness
        self._mark(subject)

    def unask(self, subject: Subject, number: int) -> bool:
        """Check `number` is not under way any more; whether `subject` was a question in it that is still open."""
        question = self._open.get(subject)
        if question is None or question.asked.pop(number, None) is None:
            return False
        self._mark(subject)
        return True

    def want(self, subject: Subject, voices: int) -> None:
        """Ask until there are so many voices, or as many as were wanted before."""
        question = self._open[subject]
        question.target = max(question.target, voices)
        self._mark(subject)

    def close(self, subjects: Iterable[Subject]) -> list[Sample]:
        """These are answered, or nobody cares any more. Returns the items for which answers were kept."""
        kept: list[Sample] = []
        for subject in list(subjects):
            self._wanting.pop(subject, None)
            question = self._open.pop(subject, None)
            if question is None or len(question.ballot.voters) < 2:
                continue
            kept += samples_of(self._grid, subject)
            for voter in question.ballot.voters:
                self._involved[voter.device] -= 1
                self._cleared[voter.device] = None
        return kept

    def close_shards(self, shards: set[int]) -> list[Sample]:
        """`close` for everything about these shards."""
        return self.close([subject for subject in self._open if shard_of(subject) in shards])

    def strike(self, device: DeviceName) -> list[Subject]:
        """`device` has no voice any more. Returns the questions in which it had one."""
        return [subject for subject, question in self._open.items() if question.ballot.strike(device)]

    def _mark(self, subject: Subject) -> None:
        if self._open[subject].wanting > 0:
            self._wanting[subject] = None
        else:
            self._wanting.pop(subject, None)
