"""A grid in miniature around the verification machine: devices that answer, lie, vanish and come late.

It plays the engine's part (keeps results and answers, compares, carries out effects) and checks, at every step, what
the machine must never do, by rules of its own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import TrustTier, Verification, Witness
from pocketgrid.trust import effects as trust
from pocketgrid.trust.effects import Check, Sample
from pocketgrid.trust.machine import VerificationMachine
from pocketgrid.trust.reputation import Reputations

RIGHT = "right"


@dataclass
class Device:
    """`lies`: share of items it gets wrong; `league`: liars of one league give the same wrong answers."""

    witness: Witness
    lies: float = 0.0
    league: str = ""
    from_item: int = 0
    items: int = 0

    def answer(self, sample: Sample, rng: random.Random) -> str:
        self.items += 1
        if self.items <= self.from_item or rng.random() >= self.lies:
            return RIGHT
        return f"wrong, says {self.league}" if self.league else f"wrong {rng.random()}"


@dataclass
class Troubles:
    """How often what goes wrong, per step."""

    lost: float = 0.0
    late: float = 0.0
    reopened: float = 0.0
    unreadable: float = 0.0
    caught_elsewhere: float = 0.0


@dataclass
class TrustWorld:
    spec: Verification
    grid: ShardGrid
    devices: list[Device]
    seed: int
    troubles: Troubles = field(default_factory=Troubles)
    reputations: Reputations = field(default_factory=Reputations)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.machine = VerificationMachine(
            self.spec, self.grid, self.reputations, random.Random(self.seed + 1), model="m"
        )
        self.pending = list(range(self.grid.shards))
        self.rng.shuffle(self.pending)
        self.canonical: dict[int, tuple[Device, list[str]]] = {}
        self.kept: dict[Sample, list[tuple[Device, str]]] = {}
        self.under_way: list[tuple[Device, Check]] = []
        self.asked_about: dict[int, object] = {}
        self.caught: set[DeviceName] = set()
        self.refused: dict[int, set[DeviceName]] = {}
        self.verified: set[int] = set()
        self.trace: list[object] = []
        self.computed = 0
        self.checked = 0
        self.now = 1e9
        self.gave_up = 0

    # ---- the engine's part ----

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if not self.pending and not self.machine.wants_checks:
                return
            self.step()
        raise AssertionError(f"not settled after {steps} steps: {self.machine.blocked(self.usable(), self.now)}")

    def usable(self) -> list[Witness]:
        return [device.witness for device in self.devices if device.witness.device not in self.caught]

    def step(self) -> None:
        self.now += self.rng.expovariate(1.0)
        self.trouble()
        device = self.rng.choice(self.devices)
        if device.witness.device in self.caught:
            return
        if self.under_way and self.rng.random() < 0.7:
            self.answer(*self.under_way.pop(self.rng.randrange(len(self.under_way))))
            return
        mine = [shard for shard in self.pending if device.witness.device not in self.refused.get(shard, ())]
        check = self.machine.next_check(device.witness, not mine, self.now)
        if check is not None:
            self.check_is_allowed(device, check)
            self.under_way.append((device, check))
        elif mine:
            self.commit(mine[-1], device)
        else:
            self.carry_out(self.machine.exhausted(self.usable(), self.now))

    def trouble(self) -> None:
        chance = self.rng.random
        if self.under_way and chance() < self.troubles.lost:
            _, check = self.under_way.pop(self.rng.randrange(len(self.under_way)))
            self.machine.check_lost(check.number)
            assert self.machine.answered(check.number, self.devices[0].witness, {}, self.now) == []
        if self.canonical and chance() < self.troubles.late:
            self.late(self.rng.choice(sorted(self.canonical)), self.rng.choice(self.devices))
        if self.canonical and chance() < self.troubles.reopened:
            shard = self.rng.choice(sorted(self.canonical))
            self.take_back([shard])
            self.carry_out(self.machine.reopened([shard], self.now))
        if chance() < self.troubles.caught_elsewhere:
            device = self.rng.choice(self.devices)
            if device.lies and device.witness.device not in self.caught:
                self.caught.add(device.witness.device)
                self.reputations.catch(device.witness, self.now)
                self.carry_out(self.machine.caught(device.witness.device, self.now))

    def commit(self, shard: int, device: Device) -> None:
        self.pending.remove(shard)
        rows = self.grid.size(shard)
        self.computed += rows
        self.canonical[shard] = (device, [device.answer(Sample(shard, row), self.rng) for row in range(rows)])
        self.carry_out(self.machine.committed(shard, device.witness, self.now))

    def answer(self, device: Device, check: Check) -> None:
        if device.witness.device in self.caught:
            return
        answers = {sample: device.answer(sample, self.rng) for sample in check.samples}
        agrees = {}
        for sample, answer in answers.items():
            if sample.shard in self.canonical and self.rng.random() >= self.troubles.unreadable:
                known = [self.canonical[sample.shard][1][sample.row], *(a for _, a in self.kept.get(sample, ()))]
                agrees[sample] = tuple(answer == other for other in known)
        self.checked += len(agrees)
        effects = self.machine.answered(check.number, device.witness, agrees, self.now)
        self.carry_out(effects, device, answers)

    def late(self, shard: int, device: Device) -> None:
        origin, canonical = self.canonical[shard]
        if origin is device:
            return
        self.computed += len(canonical)
        answers = {Sample(shard, row): device.answer(Sample(shard, row), self.rng) for row in range(len(canonical))}
        agrees = list(answers.values()) == canonical
        self.carry_out(self.machine.late_result(shard, device.witness, agrees, self.now), device, answers)

    def take_back(self, shards: list[int]) -> None:
        for shard in shards:
            del self.canonical[shard]
            self.verified.discard(shard)
            self.pending.append(shard)

    # ---- what the machine says, and what it must never say ----

    def carry_out(
        self, effects: list[trust.Effect], device: Device | None = None, answers: dict[Sample, str] | None = None
    ) -> None:
        self.trace += effects
        for effect in effects:
            match effect:
                case trust.Verified(shards, name, _):
                    assert not self.verified & set(shards)
                    assert all(self.canonical[shard][0].witness.device == name for shard in shards)
                    assert name not in self.caught, "final after its device was caught"
                    self.verified |= set(shards)
                case trust.Disproved(shards, name) | trust.NoConsensus(shards, name, _):
                    assert not self.verified & set(shards), "final shards are never taken back by the machine"
                    assert all(self.canonical[shard][0].witness.device == name for shard in shards)
                    self.gave_up += isinstance(effect, trust.NoConsensus)
                    self.take_back(list(shards))
                    if isinstance(effect, trust.Disproved):
                        for shard in shards:
                            self.refused.setdefault(shard, set()).add(name)
                case trust.Caught(name, _):
                    assert name not in self.caught
                    self.caught.add(name)
                case trust.KeepAnswers(samples):
                    assert device is not None
                    assert answers is not None
                    for sample in samples:
                        self.kept.setdefault(sample, []).append((device, answers[sample]))
                case trust.ForgetAnswers(samples):
                    for sample in samples:
                        del self.kept[sample]
        assert set(self.machine.disputed) == set(self.kept)
        assert set(self.machine.verified) == self.verified
        assert set(self.machine.provisional) == set(self.canonical) - self.verified
        if not effects or not self.canonical:
            return
        needed = sum(self.grid.size(shard) for shard in self.canonical)
        assert self.machine.summary().redundancy == max(1.0, (self.computed + self.checked) / needed)

    def check_is_allowed(self, device: Device, check: Check) -> None:
        samples = check.samples
        assert 0 < len(samples) == len(set(samples)) <= self.grid.per_shard
        self.asked_about[check.number] = self.canonical[samples[0].shard]
        if check.replica:
            shard = samples[0].shard
            assert samples == tuple(Sample(shard, row) for row in range(self.grid.size(shard)))
        for sample in samples:
            others = [self.canonical[sample.shard][0], *(other for other, _ in self.kept.get(sample, ()))]
            if check.replica:
                # A check that was handed out before the shard was taken back and done again is of no account.
                canonical = self.canonical[sample.shard]
                others += [d for d, c in self.under_way if c.replica and self.asked_about[c.number] is canonical]
            for other in others:
                a, b = device.witness, other.witness
                assert a.device != b.device, "nobody checks what they brought or have answered"
                assert a.numerics == b.numerics, "classes that cannot be compared"
                both_owned = a.tier is TrustTier.OWNED and b.tier is TrustTier.OWNED
                assert both_owned or a.owner != b.owner, "nobody checks their owner"
                assert both_owned or not a.network or a.network != b.network, "nobody checks their neighbour"

    # ---- what came of it ----

    def wrong_rows(self) -> int:
        return sum(answer != RIGHT for shard in self.verified for answer in self.canonical[shard][1])

    def honest_caught(self) -> set[DeviceName]:
        return self.caught & {device.witness.device for device in self.devices if not device.lies}
