"""Who must prove itself, on what, and what follows if it cannot."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import TrustTier, Witness
from pocketgrid.trust.independence import same_class_only
from pocketgrid.trust.probation import GOLDEN_ITEMS, LONGEST_S, REPEAT_S, Admitted, Probation, Trial, Waiting
from pocketgrid.trust.traps import Traps

OURS = Witness(DeviceName("ours"), owner="us", numerics="a", tier=TrustTier.OWNED, engine="1")
ALICE = Witness(DeviceName("alice-1"), owner="alice", numerics="a", engine="1")
ALICE_TOO = replace(ALICE, device=DeviceName("alice-2"))
BOB = Witness(DeviceName("bob-1"), owner="bob", numerics="a", engine="1")


def a_probation(*, seed: int = 0) -> tuple[Probation, Traps]:
    rng = random.Random(seed)
    traps = Traps(ShardGrid(1000, 10), rng)
    return Probation(traps, same_class_only), traps


def test_without_golden_items_a_stranger_is_let_in_untested() -> None:
    probation, _ = a_probation()
    assert probation.next(ALICE, 0.0) == Admitted(tested=False)


def test_our_own_devices_seed_the_golden_items_and_are_measured_by_nobody() -> None:
    probation, _ = a_probation()
    probation.committed(3, OURS)
    assert probation.next(OURS, 0.0) == Admitted(tested=True)
    step = probation.next(ALICE, 0.0)
    assert isinstance(step, Trial)
    assert len(step.items) == GOLDEN_ITEMS
    assert {sample.shard for sample in step.items} == {3}
    assert set(step.items.values()) == {OURS}


def test_what_a_stranger_commits_is_golden_only_once_it_is_final() -> None:
    probation, traps = a_probation()
    probation.committed(3, BOB)
    assert probation.next(ALICE, 0.0) == Admitted(tested=False)
    traps.learn(3, BOB)
    assert isinstance(probation.next(ALICE_TOO, 0.0), Trial)


def test_nobody_is_measured_by_its_own_owner_or_by_another_numerics_class() -> None:
    probation, traps = a_probation()
    traps.learn(3, ALICE)
    assert probation.next(ALICE_TOO, 0.0) == Admitted(tested=False)
    assert probation.next(replace(BOB, numerics="b"), 0.0) == Admitted(tested=False)
    assert isinstance(probation.next(BOB, 0.0), Trial)


def test_who_answers_all_rightly_is_in_until_its_engine_changes() -> None:
    probation, _ = a_probation()
    probation.committed(3, OURS)
    step = probation.next(ALICE, 0.0)
    assert isinstance(step, Trial)
    assert isinstance(probation.next(ALICE, 1.0), Waiting), "one test at a time"
    assert probation.answered(ALICE, [True] * len(step.items), 1.0)
    assert probation.next(ALICE, 1.0) == Admitted(tested=True)
    probation.committed(4, OURS)
    for changed in (replace(ALICE, engine="2"), replace(ALICE, numerics="a", engine="3")):
        assert isinstance(probation.next(changed, 1.0), Trial)


@pytest.mark.parametrize("agreed", [[], [False], [True] * 7, [True] * 7 + [False]])
def test_one_wrong_or_missing_answer_is_enough_to_fail(agreed: list[bool]) -> None:
    probation, _ = a_probation()
    probation.committed(3, OURS)
    probation.next(ALICE, 0.0)
    assert not probation.answered(ALICE, agreed, 10.0)
    assert probation.next(ALICE, 10.0) == Waiting(10.0 + REPEAT_S, 1)


@given(st.integers(1, 12))
def test_who_fails_again_and_again_waits_longer_and_longer_and_never_slips_in(failures: int) -> None:
    probation, _ = a_probation()
    now = 0.0
    for shard in range(20):
        probation.committed(shard, OURS)
    for number in range(failures):
        assert isinstance(probation.next(ALICE, now), Trial)
        probation.answered(ALICE, [False] * GOLDEN_ITEMS, now)
        waiting = probation.next(ALICE, now)
        assert isinstance(waiting, Waiting)
        assert waiting.until - now == min(REPEAT_S * 2.0**number, LONGEST_S)
        # Another engine makes no honest device of it.
        assert isinstance(probation.next(replace(ALICE, engine="2"), now), Waiting)
        assert isinstance(probation.next(ALICE, now), Waiting)
        now = waiting.until


def test_who_failed_is_not_let_in_because_nothing_is_left_to_ask() -> None:
    probation, traps = a_probation()
    probation.committed(3, OURS)
    probation.next(ALICE, 0.0)
    probation.answered(ALICE, [False], 0.0)
    traps.forget_device(OURS.device)
    assert isinstance(probation.next(ALICE, REPEAT_S), Waiting)
    assert probation.next(BOB, REPEAT_S) == Admitted(tested=False)


def test_a_test_that_was_not_answered_is_given_again_with_other_items() -> None:
    probation, _ = a_probation()
    probation.committed(3, OURS)
    probation.committed(4, OURS)
    first = probation.next(ALICE, 0.0)
    probation.withdrawn(ALICE.device)
    assert not probation.answered(ALICE, [True] * GOLDEN_ITEMS, 1.0), "too late: its items may be known by now"
    second = probation.next(ALICE, 1.0)
    assert isinstance(first, Trial)
    assert isinstance(second, Trial)
    assert not first.items.keys() & second.items.keys()


def test_who_is_caught_later_must_prove_itself_again() -> None:
    probation, _ = a_probation()
    probation.committed(3, OURS)
    probation.next(ALICE, 0.0)
    probation.answered(ALICE, [True] * GOLDEN_ITEMS, 0.0)
    probation.caught(ALICE.device)
    probation.committed(4, OURS)
    assert isinstance(probation.next(ALICE, 0.0), Trial)


def test_two_devices_are_not_given_the_same_test() -> None:
    probation, _ = a_probation()
    for shard in range(50):
        probation.committed(shard, OURS)
    one, other = probation.next(ALICE, 0.0), probation.next(BOB, 0.0)
    assert isinstance(one, Trial)
    assert isinstance(other, Trial)
    assert one.items.keys() != other.items.keys()
