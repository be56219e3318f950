"""Drawing lots: all chance in this room comes through here, from the generator it is given."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import TypeVar

from pocketgrid.clock import Rng

Thing = TypeVar("Thing")


def below(rng: Rng, bound: int) -> int:
    """A number in [0, bound), all alike; `bound` is far below 2**53, so rounding favours none to speak of."""
    return min(int(rng.random() * bound), bound - 1)


def shuffle(rng: Rng, things: MutableSequence[Thing]) -> None:
    """Put `things` into an order of which all are alike (Fisher and Yates, as Durstenfeld 1964 has it)."""
    for at in range(len(things) - 1, 0, -1):
        other = below(rng, at + 1)
        things[at], things[other] = things[other], things[at]


def distinct(rng: Rng, population: int, count: int) -> list[int]:
    """`count` different numbers below `population`, all sets alike, in the order of drawing.

    Floyd's algorithm (Bentley and Floyd 1987): O(count), whatever the population.
    """
    drawn: dict[int, None] = {}
    for top in range(population - count, population):
        candidate = below(rng, top + 1)
        drawn[top if candidate in drawn else candidate] = None
    return list(drawn)
