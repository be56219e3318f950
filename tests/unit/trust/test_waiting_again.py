"""Samples that were given out in vain find somebody else, however few there are to ask."""

import random

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import Verification, VerificationMode, Witness
from pocketgrid.trust.effects import Verified
from pocketgrid.trust.machine import VerificationMachine
from pocketgrid.trust.reputation import Reputations

ADA, BOB, CYD = (Witness(DeviceName(name), owner=name) for name in ("ada", "bob", "cyd"))


def test_samples_lost_by_all_but_one_checker_are_settled_by_that_one() -> None:
    grid = ShardGrid(40, 10)
    machine = VerificationMachine(Verification(VerificationMode.AUDIT), grid, Reputations(), random.Random(3))
    for shard in range(grid.shards):
        machine.committed(shard, ADA, 0.0)
    now = 0.0
    effects = []
    for turn in range(200):
        now += 1.0
        for witness in (BOB, CYD):
            check = machine.next_check(witness, True, now)
            if check is None:
                continue
            if witness is BOB or turn % 3 == 0:
                machine.check_lost(check.number)
            else:
                agrees = dict.fromkeys(check.samples, (True,))
                effects += machine.answered(check.number, witness, agrees, now)
        if not machine.wants_checks:
            break
    final = {shard for effect in effects if isinstance(effect, Verified) for shard in effect.shards}
    assert final == set(range(grid.shards)), f"still open after {now} s"
    assert now < 60
