"""What idle devices do near the end of a job: relieve slow ones of shards they have not begun, then race stragglers.

Taking back comes first because it costs nothing; a second copy costs the work twice and is made only when it is
expected to be done sooner than the first (Dean and Ghemawat 2004, section 3.6, backup tasks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pocketgrid.model.ids import DeviceName

COPY_ADVANTAGE_S = 0.25
"""A copy must be expected to save at least this: about what moving the input and the result costs."""

OVERDUE_FACTOR = 2.0
"""A shard that has taken this many times its expected time is a straggler, whatever its device promises."""

MAX_COPIES = 2
"""Attempts of one shard at the same time."""


@dataclass(frozen=True, slots=True)
class IdleDevice:
    """A device with nothing to do; `seconds_per_shard` of the job in question on it."""

    name: DeviceName
    seconds_per_shard: float


@dataclass(frozen=True, slots=True)
class BusyShard:
    """A shard being computed.

    Attributes:
        attempts: how many devices have it now.
        running_s: since it was expected to be begun.
    """

    shard: int
    attempts: int
    running_s: float


@dataclass(frozen=True, slots=True)
class BusyDevice:
    """A device at work on the job.

    Attributes:
        begun: shards it is believed to compute now.
        waiting: shards it has not begun, in the order it will begin them.
    """

    name: DeviceName
    seconds_per_shard: float
    slots: int
    begun: tuple[BusyShard, ...]
    waiting: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Ask `device` for these shards, its last ones, unless it has begun them meanwhile."""

    device: DeviceName
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Hand `shard` to `device` although another is at work on it."""

    device: DeviceName
    shard: int


def relieve(idle: Sequence[IdleDevice], busy: Sequence[BusyDevice]) -> list[TakeBack | Copy]:
    """Moves for a job without pending shards. Each idle device causes at most one move; fastest idle first.

    Deterministic: ties are broken by name and shard number.
    """
    moves: list[TakeBack | Copy] = []
    waiting = {d.name: list(d.waiting) for d in busy}
    attempts = {s.shard: s.attempts for d in busy for s in d.begun}
    holders: dict[int, set[DeviceName]] = {}
    for device in busy:
        for shard in device.begun:
            holders.setdefault(shard.shard, set()).add(device.name)
    for helper in sorted(idle, key=lambda d: (d.seconds_per_shard, d.name)):
        victim = max(
            (d for d in busy if waiting[d.name] and d.name != helper.name),
            key=lambda d: (_remaining_s(d, len(waiting[d.name])), d.name),
            default=None,
        )
        if victim is not None:
            count = _shards_to_take(helper, victim, len(waiting[victim.name]))
            if count:
                taken = waiting[victim.name][-count:]
                del waiting[victim.name][-count:]
                moves.append(TakeBack(victim.name, tuple(taken)))
                continue
        copy = _best_copy(helper, busy, attempts, holders)
        if copy is not None:
            attempts[copy.shard] += 1
            holders[copy.shard].add(helper.name)
            moves.append(copy)
    return moves


def _remaining_s(device: BusyDevice, waiting: int) -> float:
    rounds = waiting / max(device.slots, 1)
    begun = max((device.seconds_per_shard - s.running_s for s in device.begun), default=0.0)
    return rounds * device.seconds_per_shard + max(begun, 0.0)


def _shards_to_take(helper: IdleDevice, victim: BusyDevice, waiting: int) -> int:
    # Both finish together if the helper gets its share by speed; it must also beat the victim to the last shard.
    if helper.seconds_per_shard >= _remaining_s(victim, waiting):
        return 0
    victim_rate = max(victim.slots, 1) / victim.seconds_per_shard
    helper_rate = 1.0 / helper.seconds_per_shard
    return min(waiting, max(1, round(waiting * helper_rate / (helper_rate + victim_rate))))


def _best_copy(
    helper: IdleDevice,
    busy: Sequence[BusyDevice],
    attempts: dict[int, int],
    holders: dict[int, set[DeviceName]],
) -> Copy | None:
    best: tuple[float, int] | None = None
    for device in busy:
        for running in device.begun:
            if attempts[running.shard] >= MAX_COPIES or helper.name in holders[running.shard]:
                continue
            left = device.seconds_per_shard - running.running_s
            if running.running_s > OVERDUE_FACTOR * device.seconds_per_shard:
                # Past all promise: expect it to take as long again as it already has.
                left = running.running_s
            saving = left - helper.seconds_per_shard
            if saving > COPY_ADVANTAGE_S and (best is None or (saving, -running.shard) > (best[0], -best[1])):
                best = (saving, running.shard)
    return Copy(helper.name, best[1]) if best is not None else None
