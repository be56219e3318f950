"""Tolerances cover what honest devices differ by, and are given up where wrong results would pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.trust.calibration import IncomparableError, Row, cosine_distance, deviation, is_useless


def rows(values: np.ndarray) -> list[Row]:
    return [Row(value.astype(np.float64)) for value in values]


def vectors(seed: int = 0, items: int = 200, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(items, width))


@given(st.integers(0, 100), st.floats(1e-7, 1e-2), st.integers(2, 60))
def test_rounding_noise_is_tolerated_twice_over(seed: int, noise: float, items: int) -> None:
    one = vectors(seed, items)
    other = one + np.random.default_rng(seed + 1).uniform(-noise, noise, one.shape)
    found = deviation(rows(one), rows(other))
    largest = float(np.max(np.abs(one - other)))
    assert not found.identical
    assert found.items == items
    assert found.absolute == pytest.approx(2 * largest)
    assert 0 < found.cosine < 0.1
    assert not is_useless(found)


def test_identical_runs_need_no_tolerance() -> None:
    found = deviation(rows(vectors()), rows(vectors()))
    assert (found.identical, found.absolute, found.cosine) == (True, 0.0, 0.0)


@given(st.permutations(range(40)))
def test_the_order_of_items_is_of_no_account_to_what_honest_devices_differ_by(order: list[int]) -> None:
    one, other = vectors(1, 40), vectors(1, 40) + 1e-4 * vectors(2, 40)
    assert deviation(rows(one[order]), rows(other[order])).absolute == deviation(rows(one), rows(other)).absolute


def test_one_outlier_in_ten_thousand_does_not_set_the_tolerance() -> None:
    one = vectors(items=10_000, width=2)
    other = one + 1e-6
    other[17] += 0.5
    assert deviation(rows(one), rows(other)).absolute == pytest.approx(2e-6, rel=1e-3)


@pytest.mark.parametrize("noise", [3.0, 30.0])
def test_a_device_that_is_as_far_off_as_a_wrong_answer_gives_no_tolerance(noise: float) -> None:
    one = vectors()
    found = deviation(rows(one), rows(one + noise * vectors(9)))
    assert math.isinf(found.absolute)
    assert math.isinf(found.cosine)
    assert is_useless(found)


def test_answers_that_are_all_nearly_the_same_give_no_tolerance() -> None:
    # A liar who always says the mean would pass.
    one = 5.0 + 1e-3 * vectors()
    found = deviation(rows(one), rows(one + 1e-2 * vectors(5)))
    assert is_useless(found)


def test_lengths_that_differ_need_the_absolute_distance() -> None:
    one = np.abs(vectors(items=50, width=1)) + 1
    found = deviation(rows(one), rows(one + 1e-6))
    assert math.isfinite(found.absolute)
    assert math.isinf(found.cosine), "all positive numbers have one direction"


@pytest.mark.parametrize(
    ("one", "other", "problem"),
    [
        ([], [], "0 results"),
        (rows(vectors(items=2)), rows(vectors(items=3)), "cannot be compared"),
        (rows(vectors(width=2)), rows(vectors(width=3)), "item 0 differs"),
        ([Row(np.zeros(1), (1,))], [Row(np.zeros(1), (2,))], "without Argmax"),
        ([Row(np.array([np.nan]))], [Row(np.array([np.nan]))], "not finite"),
        ([Row(np.array([np.inf]))], [Row(np.array([1.0]))], "not finite"),
    ],
)
def test_what_no_tolerance_covers_is_told(one: list[Row], other: list[Row], problem: str) -> None:
    with pytest.raises(IncomparableError, match=problem):
        deviation(one, other)


def test_zero_vectors_have_no_angle() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert cosine_distance(zero, zero) == 0.0
    assert math.isinf(cosine_distance(zero, one))
    assert cosine_distance(one, one) == pytest.approx(0.0)
