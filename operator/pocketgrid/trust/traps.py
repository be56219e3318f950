"""Items with known answers, mixed into checks so that the checker is tested too."""

from __future__ import annotations

from collections.abc import Callable

from pocketgrid.clock import Rng
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import Witness
from pocketgrid.trust.draws import below
from pocketgrid.trust.effects import Sample

ITEMS_PER_TRAP = 16
"""Of so many items of a check one is a trap, on average."""

SHARDS_KEPT = 512
"""Final shards that traps are taken from; each further one takes the place of a random one."""

REMEMBERED = 1024
"""Traps a device was given; beyond that all are forgotten, and it may meet one again."""

TRIES = 4
"""Drawing a trap that may not be asked is in vain; so often, on average, it is tried for each."""


class Traps:
    """Final shards of a job, and which device was given which of their items."""

    def __init__(self, grid: ShardGrid, rng: Rng) -> None:
        self._grid = grid
        self._rng = rng
        self._finals: list[tuple[int, Witness]] = []
        self._given: dict[DeviceName, set[Sample]] = {}

    def learn(self, shard: int, origin: Witness) -> None:
        """`shard`, brought by `origin`, is final."""
        if len(self._finals) < SHARDS_KEPT:
            self._finals.append((shard, origin))
        else:
            self._finals[below(self._rng, SHARDS_KEPT)] = (shard, origin)

    def forget_shard(self, shard: int) -> None:
        """`shard` is not final any more."""
        self._finals = [(other, origin) for other, origin in self._finals if other != shard]

    def forget_device(self, device: DeviceName) -> None:
        """What `device` brought is no measure for others."""
        self._finals = [(shard, origin) for shard, origin in self._finals if origin.device != device]

    def wanted(self, items: int) -> int:
        """How many of a check's `items` are to be traps; 0 as long as nothing is final."""
        return int(items / ITEMS_PER_TRAP + self._rng.random()) if self._finals else 0

    def draw(self, device: DeviceName, count: int, admits: Callable[[Sample, Witness], bool]) -> dict[Sample, Witness]:
        """Up to `count` traps for `device`, never the same one twice.

        admits: whether an item brought by a device may be asked.
        """
        given = self._given.setdefault(device, set())
        if len(given) > REMEMBERED:
            given.clear()
        traps: dict[Sample, Witness] = {}
        for _ in range(count * TRIES):
            if len(traps) == count or not self._finals:
                break
            shard, origin = self._finals[below(self._rng, len(self._finals))]
            sample = Sample(shard, below(self._rng, self._grid.size(shard)))
            if sample not in given and admits(sample, origin):
                given.add(sample)
                traps[sample] = origin
        return traps
