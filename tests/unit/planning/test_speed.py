"""Speed estimates follow devices that get hot, and come back with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pocketgrid.planning.speed import SpeedEstimate

COLD = 100.0
"""Items per second."""


def soak(estimate: SpeedEstimate, speed_at: Callable[[float], float], seconds: float, items: int = 25) -> SpeedEstimate:
    """Shards of `items` one after the other, at a speed that depends on how long it has been computing."""
    at = 0.0
    while at < seconds:
        spent = items / speed_at(at)
        estimate = estimate.observe(items, spent)
        at += spent
    return estimate


@pytest.mark.parametrize("hot", [80.0, 50.0, 20.0], ids=["a little slower", "half as fast", "a fifth"])
def test_heat_is_known_within_a_minute(hot: float) -> None:
    cold = soak(SpeedEstimate.measured(COLD), lambda _: COLD, 120)
    assert cold.items_per_second == pytest.approx(COLD, rel=0.01)
    throttled = soak(cold, lambda _: hot, 60)
    assert throttled.items_per_second == pytest.approx(hot, rel=0.15), "the grid still reckons with a cold device"
    assert soak(throttled, lambda _: COLD, 60).items_per_second == pytest.approx(COLD, rel=0.5)


def test_a_phone_that_slows_down_bit_by_bit_is_followed_all_the_way() -> None:
    def speed_at(seconds: float) -> float:
        return 50.0 + 50.0 * 0.5 ** (seconds / 30.0)

    estimate = SpeedEstimate.measured(COLD)
    at = 0.0
    while at < 300:
        spent = 25 / speed_at(at)
        at += spent
        estimate = estimate.observe(25, spent)
        assert estimate.items_per_second == pytest.approx(speed_at(at), rel=0.25)
    assert estimate.items_per_second == pytest.approx(50.0, rel=0.03)


def test_a_peak_measured_in_a_tenth_of_a_second_is_soon_outweighed() -> None:
    boasted = SpeedEstimate.measured(10 * COLD)
    assert soak(boasted, lambda _: COLD, 10).items_per_second == pytest.approx(COLD, rel=0.1)
