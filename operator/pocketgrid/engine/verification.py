"""One job's verification as the engine holds it: the pure machine, the checks under way, and the answers in dispute.

Not responsible for deciding, which is `trust`, nor for carrying out, which is `verifier`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pocketgrid.engine.links import ShardOutcome
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ItemFailure, ShardGrid
from pocketgrid.model.tensors import TensorData
from pocketgrid.model.trust import Comparator, Witness
from pocketgrid.trust.comparators import agreement
from pocketgrid.trust.effects import Caught, Check, Disproved, Effect, Sample
from pocketgrid.trust.machine import VerificationMachine
from pocketgrid.trust.probation import Probation
from pocketgrid.trust.traps import Traps

if TYPE_CHECKING:
    from pocketgrid.storage.logentries import Worker


FIRST_TRIAL = 1 << 30
"""Trials are numbered from here on, checks from 0."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What somebody says of some items.

    Attributes:
        outputs: one tensor per result column.
        rows: sample -> its row in `outputs`, or None if there is no result for it.
    """

    outputs: tuple[TensorData, ...]
    rows: Mapping[Sample, int | None]


@dataclass(slots=True)
class OpenCheck:
    """A check that a device has.

    Attributes:
        trial: it tests a device before its first lease; the machine knows nothing of it.
        sent: the samples that could be read, in the order in which they were sent.
    """

    check: Check
    witness: Witness
    trial: bool = False
    sent: tuple[Sample, ...] = ()


@dataclass(slots=True)
class JobVerification:
    """Everything about believing one job's results. Owned by the engine and touched only on its loop.

    Attributes:
        golden: items with answers that are believed, for tests of devices.
        probation: who has been tested.
        open: by virtual shard.
        kept: answers to samples whose question is open, in the order in which they came.
        look_again: monotonic seconds when a dispute nobody can decide is looked at again.
        origins: who brought what is provisional.
        barred: shards that a device is not to have again, because nobody agreed with what it brought.
        unpaid: by shard, how many of its rows agreed in checks, by who computed these.
        taken_back: by device that was found out here, how many shards were taken back from it.
        paid_before: by device, micro-units it had earned when this process opened the job.
    """

    machine: VerificationMachine
    grid: ShardGrid
    comparator: Comparator
    golden: Traps
    probation: Probation
    open: dict[int, OpenCheck] = field(default_factory=dict)
    kept: dict[Sample, list[Answer]] = field(default_factory=dict)
    look_again: float = 0.0
    unpaid: dict[int, dict[Worker, int]] = field(default_factory=dict)
    taken_back: dict[DeviceName, int] = field(default_factory=dict)
    paid_before: dict[str, int] = field(default_factory=dict)
    origins: dict[int, Witness] = field(default_factory=dict)
    barred: dict[DeviceName, set[int]] = field(default_factory=dict)
    _versions: dict[int, int] = field(default_factory=dict)
    _trials: int = 0

    def number_trial(self) -> int:
        """A number for a trial that no check of the machine has."""
        self._trials += 1
        return FIRST_TRIAL + self._trials

    def became_final(self, shards: Iterable[int]) -> None:
        """Others may be tested on `shards` from now on."""
        for shard in shards:
            origin = self.origins.pop(shard, None)
            if origin is not None:
                self.golden.learn(shard, origin)

    def no_measure(self, shards: Iterable[int]) -> None:
        """Nobody may be tested on `shards` any more."""
        for shard in shards:
            self.origins.pop(shard, None)
            self.golden.forget_shard(shard)

    def items_of(self, virtual: int) -> Sequence[int]:
        """Numbers of the items of a check, in the order of its samples."""
        check = self.open[virtual].check
        return [self.grid.bounds(sample.shard)[0] + sample.row for sample in check.samples]

    def note_sent(self, virtual: int, unread: Sequence[ItemFailure]) -> None:
        """A check is on its way, without the samples that could not be read."""
        known = self.open.get(virtual)
        if known is not None:
            gone = {failure.row for failure in unread}
            known.sent = tuple(s for at, s in enumerate(known.check.samples) if at not in gone)

    def rows_sent(self, virtual: int) -> int:
        """How many rows the answer to a check must have."""
        known = self.open.get(virtual)
        return len(known.sent) if known is not None else 0

    def keep(self, answer: Answer, samples: Iterable[Sample]) -> None:
        """The next answers to `samples` are compared with this one too."""
        for sample in samples:
            self.kept.setdefault(sample, []).append(answer)

    def forget(self, samples: Iterable[Sample]) -> None:
        """No answer to `samples` need be kept any longer."""
        for sample in samples:
            self.kept.pop(sample, None)

    def changed(self, shards: Iterable[int]) -> None:
        """What is committed for `shards` is another result from now on, or none."""
        for shard in shards:
            self._versions[shard] = self._versions.get(shard, 0) + 1

    def version(self, shard: int) -> int:
        """A number that tells whether what is committed for a shard is still the same."""
        return self._versions.get(shard, 0)

    def note_agreed(self, worker: Worker, agrees: Mapping[Sample, tuple[bool, ...]]) -> None:
        """A checker agreed with what is committed: it is paid once that is final."""
        for sample, same in agrees.items():
            if same[0]:
                by_worker = self.unpaid.setdefault(sample.shard, {})
                by_worker[worker] = by_worker.get(worker, 0) + 1

    @property
    def owed_micro(self) -> int:
        """What checks that were answered will cost if what they were about becomes final, micro-units."""
        return sum(worker.price * rows for by_worker in self.unpaid.values() for worker, rows in by_worker.items())

    def take_earned(self, shards: Iterable[int]) -> dict[Worker, dict[int, int]]:
        """Who is to be paid for checks now that `shards` are final: rows by shard, by worker."""
        earned: dict[Worker, dict[int, int]] = {}
        for shard in shards:
            for worker, rows in self.unpaid.pop(shard, {}).items():
                earned.setdefault(worker, {})[shard] = rows
        return earned

    def note_distrusted(self, effects: Iterable[Effect], distrusted: Collection[DeviceName]) -> None:
        """Some of `effects` may be about devices that are `distrusted` now."""
        for effect in effects:
            match effect:
                case Caught():
                    self.taken_back.setdefault(effect.device, 0)
                case Disproved() if effect.device in distrusted:
                    self.taken_back[effect.device] = self.taken_back.get(effect.device, 0) + len(effect.shards)
                case _:
                    pass

    def pay_nothing_to(self, device: DeviceName) -> None:
        """The device lied: what it is owed for checks is void."""
        for by_worker in self.unpaid.values():
            for worker in [w for w in by_worker if w.device == device]:
                del by_worker[worker]

    def compare(self, answer: Answer, canonical: Mapping[int, Answer]) -> dict[Sample, tuple[bool, ...]]:
        """Whether `answer` agrees with what is committed, and then with each answer remembered, sample by sample.

        Args:
            canonical: by shard; samples of shards that are not there are left out.
        """
        by_shard: dict[int, list[Sample]] = {}
        for sample in answer.rows:
            if sample.shard in canonical and sample in canonical[sample.shard].rows:
                by_shard.setdefault(sample.shard, []).append(sample)
        agrees: dict[Sample, tuple[bool, ...]] = {}
        for shard, samples in by_shard.items():
            same = _agreement(self.comparator, canonical[shard], answer, samples)
            agrees.update((sample, (yes,)) for sample, yes in zip(samples, same, strict=True))
        return {sample: same + self._as_earlier(sample, answer) for sample, same in agrees.items()}

    def _as_earlier(self, sample: Sample, answer: Answer) -> tuple[bool, ...]:
        return tuple(
            same
            for earlier in self.kept.get(sample, ())
            for same in _agreement(self.comparator, earlier, answer, [sample])
        )


def answer_of(outcome: ShardOutcome, sent: Sequence[Sample]) -> Answer:
    """A device's answer to rows that were `sent`."""
    failed = {failure.row for failure in outcome.failures}
    return Answer(outcome.outputs, {s: None if at in failed else at for at, s in enumerate(sent)})


def _agreement(comparator: Comparator, reference: Answer, answer: Answer, samples: Sequence[Sample]) -> list[bool]:
    both: list[Sample] = []
    mine: list[int] = []
    theirs: list[int] = []
    for sample in samples:
        row, other = reference.rows[sample], answer.rows[sample]
        if row is not None and other is not None:
            both.append(sample)
            mine.append(row)
            theirs.append(other)
    same: dict[Sample, bool] = {}
    if both:
        outputs = [_folded(tensor, like) for tensor, like in zip(answer.outputs, reference.outputs, strict=False)]
        equal = agreement(comparator, reference.outputs, mine, outputs, theirs)
        same = dict(zip(both, equal.tolist(), strict=True))
    # Two that say there is no result agree as well; their words need not.
    return [same.get(s, reference.rows[s] is None and answer.rows[s] is None) for s in samples]


def _folded(tensor: TensorData, like: TensorData) -> TensorData:
    """`tensor` as it would be staged: ragged if `like` is, though all of its items happen to be of one length."""
    if like.row_lengths is None or tensor.row_lengths is not None or len(tensor.shape) < 2:
        return tensor
    items, length, *rest = tensor.shape
    return replace(tensor, shape=(items * length, *rest), row_lengths=(length,) * items)
