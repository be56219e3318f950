"""The verification machine with a simulated fleet around it: one job, all devices at it from beginning to end."""

from __future__ import annotations

import heapq
import random
import statistics
from collections.abc import Sequence
from typing import assert_never

import numpy as np

from hack.bench_trust.crowd import Crowd, Numbers, Scenario, right
from hack.bench_trust.outcome import Outcome
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import Verification, Witness
from pocketgrid.trust import effects as trust
from pocketgrid.trust.effects import Check, Sample
from pocketgrid.trust.machine import VerificationMachine
from pocketgrid.trust.reputation import Reputations

SECONDS_PER_ITEM = 0.1
PER_SHARD = 100
LOOK_AGAIN_S = 5.0
"""A device for which there is nothing asks again after so long."""

SPEEDS = (0.5, 2.0)
"""Devices differ in speed by a factor in this range, evenly on a logarithmic scale."""


class Fleet:
    """One run. Simulated seconds are the machine's wall clock."""

    def __init__(self, scenario: Scenario, spec: Verification, devices: int, items_each: int, seed: int) -> None:
        self._crowd = Crowd(scenario, devices, seed, items_each / 10_000)
        self._grid = ShardGrid(devices * items_each, PER_SHARD)
        self._machine = VerificationMachine(spec, self._grid, Reputations(), random.Random(seed))
        rng = random.Random(seed + 1)
        low, high = SPEEDS
        self._pace = [SECONDS_PER_ITEM / (low * (high / low) ** rng.random()) for _ in range(devices)]
        self._witnesses = [Witness(DeviceName(f"d{n}"), f"o{self._crowd.owner[n]}") for n in range(devices)]
        self._number = {witness.device: n for n, witness in enumerate(self._witnesses)}
        self._pending = list(range(self._grid.shards))
        rng.shuffle(self._pending)
        self._labels: dict[int, Numbers] = {}
        self._brought: dict[int, int] = {}
        self._kept: dict[Sample, list[int]] = {}
        self._caught: dict[int, float] = {}
        self._produced = [0] * devices
        self._first_lie: dict[int, tuple[float, int]] = {}
        self._now = 0.0

    def run(self) -> Outcome:
        """Until everything is final."""
        queue: list[tuple[float, int, Check | int | None]] = [
            (pace * PER_SHARD * random.Random(n).random(), n, None) for n, pace in enumerate(self._pace)
        ]
        heapq.heapify(queue)
        while self._pending or self._machine.wants_checks:
            self._now, device, work = heapq.heappop(queue)
            if isinstance(work, Check):
                self._answer(device, work)
            elif work is not None:
                self._bring(device, work)
            if device in self._caught:
                continue
            busy_items, work = self._next(device)
            wait = self._pace[device] * busy_items if work is not None else LOOK_AGAIN_S
            heapq.heappush(queue, (self._now + wait, device, work))
        return self._outcome()

    def _next(self, device: int) -> tuple[int, Check | int | None]:
        check = self._machine.next_check(self._witnesses[device], not self._pending, self._now)
        if check is not None:
            return len(check.samples), check
        if self._pending:
            shard = self._pending.pop()
            return self._grid.size(shard), shard
        return 0, None

    def _bring(self, device: int, shard: int) -> None:
        if device in self._caught:
            self._pending.append(shard)
            return
        start, stop = self._grid.bounds(shard)
        items = np.arange(start, stop)
        labels = self._crowd.answer(np.full(len(items), device), items)
        self._produced[device] += len(items)
        if self._crowd.liar[device] and device not in self._first_lie and bool(np.any(labels != right(items))):
            self._first_lie[device] = (self._now, self._produced[device] - len(items))
        self._labels[shard], self._brought[shard] = labels, device
        self._carry_out(self._machine.committed(shard, self._witnesses[device], self._now), {})

    def _answer(self, device: int, check: Check) -> None:
        if device in self._caught:
            return
        samples = check.samples
        items = np.array([sample.shard * self._grid.per_shard + sample.row for sample in samples])
        answers = dict(zip(samples, self._crowd.answer(np.full(len(items), device), items).tolist(), strict=True))
        agrees = {
            sample: tuple(answer == other for other in (canonical[sample.row], *self._kept.get(sample, ())))
            for sample, answer in answers.items()
            if (canonical := self._labels.get(sample.shard)) is not None
        }
        self._carry_out(self._machine.answered(check.number, self._witnesses[device], agrees, self._now), answers)

    def _carry_out(self, effects: Sequence[trust.Effect], answers: dict[Sample, int]) -> None:
        for effect in effects:
            match effect:
                case trust.Verified():
                    pass
                case trust.Disproved() | trust.NoConsensus():
                    for shard in effect.shards:
                        del self._labels[shard], self._brought[shard]
                        self._pending.append(shard)
                case trust.Caught():
                    self._caught[self._number[effect.device]] = self._now
                case trust.KeepAnswers():
                    for sample in effect.samples:
                        self._kept.setdefault(sample, []).append(answers[sample])
                case trust.ForgetAnswers():
                    for sample in effect.samples:
                        del self._kept[sample]
                case _:
                    assert_never(effect)

    def _outcome(self) -> Outcome:
        summary = self._machine.summary()
        liars = int(np.sum(self._crowd.liar))
        wrong = 0
        for shard, device in self._brought.items():
            if self._crowd.liar[device]:
                start, stop = self._grid.bounds(shard)
                wrong += int(np.sum(self._labels[shard] != right(np.arange(start, stop))))
        caught = [device for device in self._caught if self._crowd.liar[device] and device in self._first_lie]
        items = [self._produced[device] - self._first_lie[device][1] for device in caught]
        seconds = [self._caught[device] - self._first_lie[device][0] for device in caught]
        return Outcome(
            wrong=wrong / self._grid.items,
            redundancy=summary.redundancy,
            caught=sum(bool(self._crowd.liar[device]) for device in self._caught) / liars if liars else None,
            honest_caught=sum(not self._crowd.liar[device] for device in self._caught),
            items_to_catch=statistics.median(items) if items else None,
            seconds_to_catch=statistics.median(seconds) if seconds else None,
            upper_bound=summary.upper_bound,
        )
