"""Pay at the writing side: no acknowledged earning lost, none twice, none invented, whatever happens to the writer.

A state machine commits, judges, seals, crashes at any system call, loses what was not fsynced, meets a full disk, and
lets superseded writers go on. After every step the running sums must be what was acknowledged, and the books that are
recomputed from single lines must agree with them.
"""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pocketgrid.errors import StaleEpochError, StoreError
from pocketgrid.ledger.reading import read_ledger
from pocketgrid.model.ids import DeviceName, ShardIndex
from pocketgrid.storage.results import Check, ResultStore, ShardCommit, verify
from tests.property.test_results import (  # noqa: F401  # the fixture puts DISK in the way of system calls
    DISK,
    ITEMS,
    LIMITS,
    PER_SHARD,
    SHARDS,
    Killed,
    _disk,
    a_content,
)
from tests.unit.storage_write.result_builders import a_job, no_keys

PRICES = {"ada": 5, "bo": 700}

owners = st.sampled_from(sorted(PRICES))
some = st.sets(st.integers(0, SHARDS - 1), max_size=5)
acts = st.sampled_from(["commit", "settle", "settle", "seal", "finish"])


class PayUnderFire(RuleBasedStateMachine):
    """One job, any number of writers, one of them legitimate."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pocketgrid-pay-"))
        self.output = self.folder / "out"
        self.superseded: list[ResultStore] = []
        self.attempt = 0
        self.earned = self.in_doubt = 0
        self.unsure = 0  # what failed appends may have left in the log, until a writer opens it anew
        DISK.durable, DISK.unwritten, DISK.rng = {}, {}, random.Random(0)
        self.store = self.opened()

    @initialize(seed=st.integers(0, 2**32))
    def vary(self, seed: int) -> None:
        DISK.rng = random.Random(seed)

    def opened(self, *, take_over: bool = False) -> ResultStore:
        take_over = take_over or bool(self.superseded)
        store = ResultStore.open(a_job(self.output, ITEMS), no_keys, take_over=take_over, limits=LIMITS)
        store.plan(PER_SHARD, verify=True)
        return store

    def reopened(self, in_doubt: int = 0, *, take_over: bool = False) -> None:
        """Open anew; of what was not acknowledged, any whole entries may have become durable."""
        self.store = self.opened(take_over=take_over)
        assert self.earned <= self.store.pay.earned_micro <= self.earned + self.unsure + in_doubt
        self.earned, self.unsure = self.store.pay.earned_micro, 0

    # ---- acts ----

    def results(self, shards: set[int], owner: str) -> list[ShardCommit]:
        made = []
        for shard in sorted(shards):
            self.attempt += 1
            result, _ = a_content(shard, self.attempt)
            made.append(replace(result, owner=owner, device=DeviceName(f"{owner}-1"), price=PRICES[owner]))
        return made

    def value(self, shard: int) -> int:
        """What a provisional shard will earn; 0 if it is not provisional."""
        found = self.store.read_staged(ShardIndex(shard))
        if found is None or shard in self.store.verified:
            return 0
        return found.worker.price * (found.outputs[0].items if found.outputs else 0)

    def checks(self, shards: set[int], owner: str) -> list[Check]:
        worker = self.results({0}, owner)[0].worker
        return [Check(worker, agreed=shard, disagreed=1, shards=(ShardIndex(shard),)) for shard in sorted(shards)[:2]]

    def worth(self, verified: set[int], checks: list[Check]) -> int:
        return sum(self.value(s) for s in verified) + sum(c.agreed * c.worker.price for c in checks)

    def act(self, what: str, one: set[int], other: set[int], owner: str) -> int:
        """Do it; returns what it has earned. Until then `in_doubt` says what it may earn."""
        self.in_doubt = 0
        match what:
            case "commit":
                self.store.commit(self.results(one, owner))
                return 0
            case "settle":
                return self.settle_all(one, other - one, self.checks(other, owner))
            case "seal":
                self.store.seal()
                return 0
            case _:
                return self.settle_all(set(range(SHARDS)), set(), [])

    def settle_all(self, verified: set[int], back: set[int], checks: list[Check]) -> int:
        self.in_doubt = self.worth(verified, checks)
        self.store.settle(
            verified=[ShardIndex(s) for s in verified], reopened=[ShardIndex(s) for s in back], checks=checks
        )
        return self.in_doubt

    # ---- rules ----

    @rule(what=acts, one=some, other=some, owner=owners)
    def go_on(self, what: str, one: set[int], other: set[int], owner: str) -> None:
        final = set(self.store.verified)
        self.earned += self.act(what, one, other, owner)
        assert self.store.pay.earned_micro == self.earned
        assert final <= set(self.store.verified), "what was final is not any more"

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.reopened()

    @rule(moment=st.integers(0, 14), what=acts, one=some, other=some, owner=owners, power=st.booleans())
    def die(self, moment: int, what: str, one: set[int], other: set[int], owner: str, power: bool) -> None:
        try:
            with DISK.trouble(moment, DISK.kill):
                self.act(what, one, other, owner)
        except Killed:
            pass
        self.store._lock.release()
        if power:
            DISK.lose_power(self.output)
        self.reopened(self.in_doubt)

    @rule(moment=st.integers(0, 14), what=acts, one=some, other=some, owner=owners)
    def run_out_of_space(self, moment: int, what: str, one: set[int], other: set[int], owner: str) -> None:
        def full() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        before = self.store.pay.earned_micro
        try:
            with DISK.trouble(moment, full):
                self.earned += self.act(what, one, other, owner)
        except StaleEpochError:
            raise
        except StoreError:
            assert self.store.pay.earned_micro == before, "what was not acknowledged counts"
            self.unsure += self.in_doubt
        assert self.store.pay.earned_micro == self.earned

    @rule()
    def supersede(self) -> None:
        self.superseded.append(self.store)
        self.reopened(take_over=True)

    @precondition(lambda self: self.superseded)
    @rule(data=st.data(), verified=some, owner=owners)
    def superseded_writer_goes_on(self, data: st.DataObject, verified: set[int], owner: str) -> None:
        zombie = data.draw(st.sampled_from(self.superseded))
        with pytest.raises(StaleEpochError):
            zombie.settle(verified=[ShardIndex(s) for s in verified], checks=self.checks({3}, owner))

    # ---- what must hold ----

    @invariant()
    def what_is_final_is_there(self) -> None:
        state = self.store._log.state
        assert set(state.verified) <= set(state.committed)
        assert {s for p in state.sealed for s in state.plan.shards_of(p)} <= set(state.verified)

    @invariant()
    def every_way_to_the_figures_agrees(self) -> None:
        ledger = read_ledger(str(self.output))
        assert ledger.differences == ()
        assert ledger.keeper.mended == 0
        assert self.store.pay.earned_micro == self.earned
        assert self.earned <= sum(ledger.statement.earned.values()) <= self.earned + self.unsure

    def teardown(self) -> None:
        try:
            self.store.close()
            self.reopened()
            self.store.commit(self.results(set(range(SHARDS)), "bo"))
            self.earned += self.settle_all(set(range(SHARDS)), set(), [])
            manifest = self.store.finish()
            assert (manifest.verified, manifest.cost, manifest.items) == (True, self.earned, ITEMS)
            assert verify(str(self.output)) == []
            self.every_way_to_the_figures_agrees()
            self.store.close()
            for store in self.superseded:
                store.close()
        finally:
            shutil.rmtree(self.folder)


PayUnderFire.TestCase.settings = settings(
    max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPayUnderFire = PayUnderFire.TestCase
