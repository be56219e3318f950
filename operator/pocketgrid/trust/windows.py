"""A run of provisional shards of one device, and the samples that decide about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pocketgrid.clock import Rng
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import Witness
from pocketgrid.trust.draws import below, distinct
from pocketgrid.trust.effects import Sample

Subject = Sample | int
"""What is asked about: one item, or a whole shard."""

_CROWDED = 0.5
"""Where more than this share of the rows is drawn, listing the others is quicker than drawing until one is new."""


@dataclass(slots=True, eq=False)
class Window:
    """Shards of one device that become final together.

    Attributes:
        origin: who brought them.
        closed: samples were drawn; no shard is added any more.
        outstanding: questions not yet answered. Nothing is final while there are any.
        passed: items that agreed, and who said so.
        given: how many samples each checker was given.
    """

    origin: Witness
    shards: set[int] = field(default_factory=set)
    items: int = 0
    closed: bool = False
    outstanding: set[Subject] = field(default_factory=set)
    passed: dict[Sample, DeviceName] = field(default_factory=dict)
    given: Counter[DeviceName] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        """How many rows were drawn."""
        return len(self.outstanding) + len(self.passed)

    def add(self, shard: int, items: int) -> None:
        """One more provisional shard."""
        self.shards.add(shard)
        self.items += items

    def drop(self, shard: int, items: int) -> None:
        """`shard` is not of this window any more, nor is anything asked about it."""
        self.shards.discard(shard)
        self.items -= items
        self.outstanding = {subject for subject in self.outstanding if shard_of(subject) != shard}
        self.passed = {sample: by for sample, by in self.passed.items() if sample.shard != shard}

    def question(self, shard: int) -> None:
        """`shard` is asked about as a whole; what was asked about its rows is void."""
        self.outstanding = {subject for subject in self.outstanding if shard_of(subject) != shard} | {shard}
        self.passed = {sample: by for sample, by in self.passed.items() if sample.shard != shard}

    def void(self, device: DeviceName) -> int:
        """What `device` said does not count any more; returns how many items that were."""
        void = [sample for sample, by in self.passed.items() if by == device]
        for sample in void:
            del self.passed[sample]
        return len(void)

    def draw(self, grid: ShardGrid, count: int, rng: Rng) -> list[Sample]:
        """Up to `count` rows that were never drawn, all alike; they are outstanding from now on.

        Rows of a shard that is questioned as a whole are not drawn.
        """
        shards = sorted(shard for shard in self.shards if shard not in self.outstanding)
        total = sum(grid.size(shard) for shard in shards)
        drawn = {s for s in (*self.outstanding, *self.passed) if isinstance(s, Sample)}
        count = min(count, total - len(drawn))
        if count <= 0:
            return []
        # Only the job's last shard may be short, and it has the highest number, so it is the last here.
        samples: list[Sample]
        if len(drawn) + count > _CROWDED * total:
            fresh = [Sample(s, row) for s in shards for row in range(grid.size(s))]
            fresh = [sample for sample in fresh if sample not in drawn]
            samples = [fresh[at] for at in distinct(rng, len(fresh), count)]
        else:
            samples = []
            while len(samples) < count:
                at, row = divmod(below(rng, total), grid.per_shard)
                sample = Sample(shards[at], row)
                if sample not in drawn:
                    drawn.add(sample)
                    samples.append(sample)
        self.outstanding.update(samples)
        return samples


def shard_of(subject: Subject) -> int:
    """The shard that `subject` is or belongs to."""
    return subject if isinstance(subject, int) else subject.shard


def samples_of(grid: ShardGrid, subject: Subject) -> list[Sample]:
    """The items that `subject` is or consists of, by row."""
    if isinstance(subject, Sample):
        return [subject]
    return [Sample(subject, row) for row in range(grid.size(subject))]
