"""How many items to compute per run, decided from timed runs. Pure: samples in, next size or verdict out.

One run cannot be interrupted, so its length is the latency of a cancellation, and it should be short; but each run
has a fixed cost, so it should not be too short. Around 30 ms is both. Memory grows with the size of a run and is
given back by the engine's arena late or never, so sizes are approached from below and stop short of the guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RUN_SECONDS = 0.030
"""Wanted length of one run."""

ENOUGH_SECONDS = 0.005
"""A run of this length hides the cost of the call itself."""

MOST_ITEMS = 4096
"""Tiny models stop growing here: beyond it only memory grows."""

TOKENS_PER_ITEM = 32
"""Positions per ragged item in a measurement; speeds of two devices are only comparable at the same length."""

WORTH_IT = 1.03
"""A larger size must be so much faster per item to be chosen over a smaller one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed run.

    Attributes:
        items: in the run.
        seconds: it took.
        memory_bytes: of the process after it.
    """

    items: int
    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Guard:
    """What a measurement may cost.

    Attributes:
        memory_bytes: the process must stay below.
        seconds: of all runs together.
    """

    memory_bytes: int
    seconds: float = 0.15


def next_items(samples: Sequence[Sample], guard: Guard) -> int | None:
    """The size to try next, or None if the samples say enough.

    Args:
        samples: in the order they were made, warm-up excluded; sizes ascending.
        guard: what may not be exceeded.
    """
    if not samples:
        return 1
    last = samples[-1]
    if last.seconds >= RUN_SECONDS or last.items >= MOST_ITEMS:
        return None
    if sum(s.seconds for s in samples) >= guard.seconds:
        return None
    if last.seconds >= ENOUGH_SECONDS and not _promising(samples):
        return None
    # Far from the goal in time, jump; near it, double.
    factor = 2 if last.seconds * 8 > RUN_SECONDS else 4
    items = min(last.items * factor, MOST_ITEMS)
    grown = last.memory_bytes - samples[-2].memory_bytes if len(samples) > 1 else 0
    if last.memory_bytes + max(0, grown) * factor >= guard.memory_bytes:
        return None
    return items


def choose(samples: Sequence[Sample], guard: Guard) -> Sample:
    """The sample whose size should be used: the fastest per item of those that keep to the limits.

    Args:
        samples: at least one.
        guard: sizes that exceeded its memory are out, except the smallest, which there is nothing below.
    """
    best = samples[0]
    for sample in samples[1:]:
        if sample.memory_bytes >= guard.memory_bytes or sample.seconds > 1.5 * RUN_SECONDS:
            continue
        if sample.items / sample.seconds > WORTH_IT * best.items / best.seconds:
            best = sample
    return best


def _promising(samples: Sequence[Sample]) -> bool:
    """Whether the last growth still paid, so that another one may."""
    if len(samples) < 2:
        return True
    before, last = samples[-2:]
    return last.items / last.seconds > WORTH_IT * before.items / before.seconds
