"""Simulated devices: what each answers to an item. Labels of ten classes, as a small classifier gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

CLASSES = 10


class Kind(IntEnum):
    """How a device answers."""

    HONEST = 0
    CONSTANT = 1
    """Always the same label; all such devices the same."""
    RANDOM = 2
    """Any label."""
    CHEAPER = 3
    """A cheaper model, wrong on a share of items; all such devices use the same one."""
    TURNCOAT = 4
    """Honest for a number of items, then any label for a share of them."""
    LEAGUE = 5
    """Wrong on a share of items, the same ones and in the same way as its fellow."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One kind of liar.

    Attributes:
        share: of items answered wrongly or by guess; of no account for constant and random ones.
        after: items a turncoat answers honestly.
        one_owner: fellows of a league belong to one owner.
    """

    kind: Kind
    share: float = 1.0
    after: int = 0
    one_owner: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fleet: a tenth of it behaves like `liars`, or all are honest.

    Attributes:
        name: as in the JSON lines.
        title: for the table.
    """

    name: str
    title: str
    liars: Behaviour | None = None


SCENARIOS: Sequence[Scenario] = (
    Scenario("honest", "all honest"),
    Scenario("constant", "always the same answer", Behaviour(Kind.CONSTANT)),
    Scenario("random", "any answer", Behaviour(Kind.RANDOM)),
    Scenario("cheaper_10", "a cheaper model, wrong on 10 %", Behaviour(Kind.CHEAPER, 0.10)),
    Scenario("cheaper_1", "a cheaper model, wrong on 1 %", Behaviour(Kind.CHEAPER, 0.01)),
    Scenario("turncoat", "honest for 5,000 items, then any answer", Behaviour(Kind.TURNCOAT, 1.0, 5_000)),
    Scenario("turncoat_sly", "honest for 5,000 items, then 2 % guessed", Behaviour(Kind.TURNCOAT, 0.02, 5_000)),
    Scenario("league_one_owner", "pairs of one owner, 20 % wrong alike", Behaviour(Kind.LEAGUE, 0.2, one_owner=True)),
    Scenario("league_two_owners", "pairs of two owners, 20 % wrong alike", Behaviour(Kind.LEAGUE, 0.2)),
)

LIARS = 0.1
"""Share of liars in each scenario but the honest one."""


def right(items: Numbers) -> Numbers:
    """The true labels."""
    return (_mix(items) >> 8) % CLASSES


class Crowd:
    """Devices 0 to `devices` - 1, of which the first tenth are the scenario's liars.

    Attributes:
        liar: by device.
        owner: number of the owner, by device.
    """

    def __init__(self, scenario: Scenario, devices: int, seed: int, scale: float = 1.0) -> None:
        self._rng = np.random.default_rng(seed)
        self._behaviour = scenario.liars or Behaviour(Kind.HONEST)
        self._after = int(self._behaviour.after * scale)
        self._answered = np.zeros(devices, dtype=np.int64)
        self.liar = np.arange(devices) < (round(devices * LIARS) if scenario.liars else 0)
        self.league = np.arange(devices) // 2
        self.owner = self.league if self._behaviour.one_owner else np.arange(devices)

    def answer(self, devices: Numbers, items: Numbers) -> Numbers:
        """What each of `devices` answers to its item; both of shape (n,)."""
        labels = right(items)
        lying = np.flatnonzero(self.liar[devices])
        if lying.size:
            labels[lying] = self._lie(devices[lying], items[lying], labels[lying])
        return labels

    def _lie(self, devices: Numbers, items: Numbers, labels: Numbers) -> Numbers:
        behaviour = self._behaviour
        guesses = self._rng.integers(CLASSES, size=len(items))
        match behaviour.kind:
            case Kind.HONEST:
                return labels
            case Kind.CONSTANT:
                return np.zeros_like(labels)
            case Kind.RANDOM:
                return guesses
            case Kind.CHEAPER:
                return np.where(_chosen(items, behaviour.share), (labels + 1) % CLASSES, labels)
            case Kind.LEAGUE:
                league = self.league[devices]
                mine = _chosen(items + (league << 32), behaviour.share)
                return np.where(mine, (labels + 1 + league % (CLASSES - 1)) % CLASSES, labels)
            case Kind.TURNCOAT:
                # Answers of one call are counted as one after the other only from the next call on.
                lies = (self._answered[devices] >= self._after) & (self._rng.random(len(items)) < behaviour.share)
                np.add.at(self._answered, devices, 1)
                return np.where(lies, guesses, labels)


def _chosen(items: Numbers, share: float) -> NDArray[np.bool_]:
    chosen: NDArray[np.bool_] = (_mix(items ^ 0x5BD1E995) % 100_003) < share * 100_003
    return chosen


def _mix(items: Numbers) -> Numbers:
    """Numbers without a pattern, the same ones for the same items (finaliser of SplitMix64, Steele et al. 2014)."""
    bits = items.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
