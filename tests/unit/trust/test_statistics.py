"""Formulas against known values and against brute force."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import Comparator, ComparatorKind, Verification, VerificationMode, Witness
from pocketgrid.trust.draws import below, distinct, shuffle
from pocketgrid.trust.policy import (
    LEAST_SAMPLES,
    agreements_needed,
    audit_rate,
    false_alarm_rate,
    window_items,
    window_samples,
)
from pocketgrid.trust.summary import Tally, clopper_pearson
from pocketgrid.trust.voting import Ballot, count_heads, resolve, weigh
from pocketgrid.trust.windows import Window

ADAPTIVE = Verification(VerificationMode.ADAPTIVE)


@pytest.mark.parametrize(
    ("samples", "failures", "bound"),
    [
        # One-sided 95 % limits; the first by the closed form, the others by summing binomial probabilities.
        (100, 0, 1 - 0.05 ** (1 / 100)),
        (20, 1, 0.2161),
        (100, 1, 0.0466),
        (50, 5, 0.1988),
        (1000, 10, 0.0169),
    ],
)
def test_upper_limits_of_a_share(samples, failures, bound):
    assert clopper_pearson(samples, failures) == pytest.approx(bound, abs=2e-4)


@given(st.integers(1, 400), st.integers(0, 20))
def test_the_limit_is_where_so_few_failures_become_unlikely(samples, failures):
    limit = clopper_pearson(samples, failures)
    if samples <= failures:
        assert limit == 1.0
        return
    few = sum(math.comb(samples, n) * limit**n * (1 - limit) ** (samples - n) for n in range(failures + 1))
    assert few == pytest.approx(0.05, abs=1e-6)


def test_nothing_is_known_before_anything_is_final():
    tally = Tally()
    tally.refuted(DeviceName("liar"))
    assert tally.upper_bound() == 1.0


def test_the_bound_of_evenly_sampled_rows_is_the_rule_of_three():
    tally = Tally()
    for _ in range(10):
        tally.final(DeviceName("a"), 1_000, 30)
    assert tally.upper_bound() == pytest.approx(3 / 300, rel=0.01)
    tally.refuted(DeviceName("somebody who got nothing through"))
    assert tally.upper_bound() == pytest.approx(3 / 300, rel=0.01)
    tally.refuted(DeviceName("a"))
    assert tally.upper_bound() == pytest.approx(clopper_pearson(300, 1))


def test_unevenly_sampled_rows_count_for_less():
    tally = Tally()
    tally.final(DeviceName("a"), 1_000, 1_000)
    tally.final(DeviceName("b"), 1_000, 10)
    assert tally.upper_bound() > clopper_pearson(50, 0)


def test_a_tally_survives_a_restart():
    tally = Tally(computed=50, checked=7, compared=7, disagreed=1)
    tally.final(DeviceName("a"), 40, 6)
    tally.refuted(DeviceName("a"))
    again = Tally.from_dict(tally.to_dict())
    assert again.to_dict() == tally.to_dict()
    assert again.upper_bound() == tally.upper_bound()
    with pytest.raises(ValueError, match="checked of a tally"):
        Tally.from_dict({**tally.to_dict(), "checked": "many"})


@given(st.floats(1e-6, 1), st.floats(1e-5, 1), st.floats(0, 1))
def test_enough_samples_keep_any_liar_within_the_rate(liar, rate, share):
    """Expected share of wrong rows of a window: that it is a liar, its share, that no sample shows it."""
    spec = Verification(VerificationMode.ADAPTIVE, max_error_rate=rate)
    samples = agreements_needed(spec, liar)
    assert liar * share * (1 - share) ** samples <= rate * (1 + 1e-9)


def test_strangers_are_checked_much_and_the_proven_at_the_floor():
    assert audit_rate(ADAPTIVE, 0) == 1.0
    assert audit_rate(ADAPTIVE, 50) == 0.02
    assert audit_rate(ADAPTIVE, 5_000) == ADAPTIVE.audit_floor
    assert audit_rate(Verification(VerificationMode.AUDIT), 0) == ADAPTIVE.audit_floor
    assert window_items(ADAPTIVE, 5_000) == 400
    assert window_items(Verification(VerificationMode.AUDIT, audit_floor=0.0), 0) > 10**15
    assert window_samples(ADAPTIVE, 0.05, 0, 100) == 19
    assert window_samples(ADAPTIVE, 1e-6, 5_000, 400) == 4
    assert window_samples(ADAPTIVE, 0.9, 0, 50) == 50


@given(st.floats(0, 500), st.integers(1, 2_000))
def test_windows_in_a_row_are_checked_as_often_as_one_by_one(consecutive, items):
    """sqrt(N**2 + 2n) - N is what BOINC's 1/N gives for n items, each confirmed one raising N by one."""
    spec = Verification(VerificationMode.ADAPTIVE, audit_floor=1e-9)
    at = max(consecutive, 10.0)
    expected = 0.0
    for _ in range(items):
        expected += 1 / (at + expected)
    drawn = window_samples(spec, 0.0, at, items)
    assert drawn == pytest.approx(max(min(items, LEAST_SAMPLES), expected), abs=1.5, rel=0.02)


def test_only_exact_comparators_never_sound_a_false_alarm():
    assert false_alarm_rate(ADAPTIVE) == 0
    close = Verification(VerificationMode.ADAPTIVE, comparator=Comparator(ComparatorKind.ALL_CLOSE, rtol=1e-3))
    assert false_alarm_rate(close) == close.max_error_rate / 2


def voters(count):
    return [Witness(DeviceName(f"d{n}"), f"o{n}") for n in range(count)]


def ballot_of(*answers):
    people = voters(len(answers))
    ballot = Ballot([people[0]])
    for position in range(1, len(answers)):
        ballot.add(people[position], [answers[position] == earlier for earlier in answers[:position]])
    return ballot


def test_credibility_is_the_posterior_of_sarmenta():
    """Two of 95 % against one of 95 %: 0.95 * 0.95 * 0.05 against 0.05 * 0.05 * 0.95, and all three wrong."""
    outcome = weigh(ballot_of("a", "a", "b"), [19, 19, 19])
    assert outcome is not None
    assert outcome.right == {0, 1}
    right, wrong, none = 0.95**2 * 0.05, 0.05**2 * 0.95, 0.05**3
    assert outcome.odds == pytest.approx(right / (wrong + none))


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        ("aa", {0, 1}),
        ("ab", None),
        ("abb", None),
        ("abbb", None),
        ("abbbb", {1, 2, 3, 4}),
        ("abaaa", {0, 2, 3, 4}),
        ("abc", None),
    ],
)
def test_strangers_must_be_three_ahead(answers, right):
    outcome = resolve(ballot_of(*answers), 0, [19.0] * len(answers))
    assert (outcome.right if outcome else None) == right


@pytest.mark.parametrize(
    ("quorum", "answers", "right"),
    [(2, "aa", {0, 1}), (2, "ab", None), (2, "abb", {1, 2}), (3, "aab", {0, 1}), (3, "abc", None), (3, "abab", None)],
)
def test_quorums_count_heads(quorum, answers, right):
    outcome = resolve(ballot_of(*answers), quorum, [19.0] * len(answers))
    assert (outcome.right if outcome else None) == right


def test_who_is_struck_has_no_voice():
    ballot = ballot_of(*"abb")
    assert ballot.strike(DeviceName("d1"))
    assert not ballot.strike(DeviceName("d1"))
    assert ballot.voices == 2
    assert count_heads(ballot, 1, [19.0] * 3) is None
    ballot.add(Witness(DeviceName("late"), "l"), [True, False, False])
    outcome = count_heads(ballot, 2, [19.0] * 4)
    assert outcome is not None
    assert outcome.right == {0, 3}


def test_a_vote_speaks_of_all_earlier_ones():
    with pytest.raises(ValueError, match="1 comparisons with 2 earlier"):
        ballot_of(*"ab").add(voters(3)[2], [True])


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 2**32))
def test_what_is_drawn_is_different_and_in_range(population, count, seed):
    count = min(count, population)
    drawn = distinct(random.Random(seed), population, count)
    assert len(set(drawn)) == len(drawn) == count
    assert all(0 <= number < population for number in drawn)


def test_all_sets_and_orders_are_alike():
    rng = random.Random(1)
    pairs = [tuple(sorted(distinct(rng, 4, 2))) for _ in range(6_000)]
    orders = []
    for _ in range(6_000):
        things = [0, 1, 2]
        shuffle(rng, things)
        orders.append(tuple(things))
    for seen in (pairs, orders):
        counts = [seen.count(kind) for kind in set(seen)]
        assert len(counts) == 6
        # 1,000 each; five standard deviations are 144.
        assert all(abs(count - 1_000) < 144 for count in counts)


def test_the_largest_draw_is_in_range():
    class Edge:
        def random(self) -> float:
            return math.nextafter(1.0, 0.0)

    assert below(Edge(), 3) == 2


@given(st.integers(1, 60), st.integers(1, 9), st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 99))
def test_rows_of_a_window_are_drawn_once_each(items, per_shard, counts, seed):
    grid = ShardGrid(items, per_shard)
    window = Window(Witness(DeviceName("d")))
    for shard in range(grid.shards):
        window.add(shard, grid.size(shard))
    drawn = [sample for count in counts for sample in window.draw(grid, count, random.Random(seed))]
    assert len(set(drawn)) == len(drawn) == min(items, sum(counts))
    assert all(0 <= sample.row < grid.size(sample.shard) for sample in drawn)
    assert window.outstanding == set(drawn)
    assert all(a != b for a, b in pairwise(sorted(drawn)))
