"""Who computes the same bits, and what may be compared where bits differ."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.model.device import DeviceFacts, DeviceKind
from pocketgrid.model.ids import ModelDigest
from pocketgrid.model.numerics import Deviation, ToleranceProfile, comparable, numerics_class, passes
from pocketgrid.model.trust import Comparator, ComparatorKind

MODEL, OTHER = ModelDigest("1" * 64), ModelDigest("2" * 64)
PHONE = DeviceFacts(DeviceKind.PHONE, "arm64", "android", 8, 8 << 30, ("neon", "asimddp"), engine="onnxruntime 1.26.0")
CLOSE = Deviation(100, identical=False, absolute=0.01, cosine=1e-4)
EXACT = Comparator()


def all_close(atol: float, rtol: float = 0.0) -> Comparator:
    return Comparator(ComparatorKind.ALL_CLOSE, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"kind": DeviceKind.SBC}, True),
        ({"os": "linux"}, True),
        ({"cores": 4}, True),
        ({"memory_bytes": 1}, True),
        ({"model_name": "Pixel"}, True),
        ({"agent_version": "9"}, True),
        ({"simd": ("asimddp", "neon")}, True),
        ({"arch": "amd64"}, False),
        ({"simd": ("neon",)}, False),
        ({"engine": "onnxruntime 1.27.0"}, False),
        ({"engine": "onnxruntime 1.26.0 graph=basic"}, False),
    ],
)
def test_a_class_is_what_chooses_kernels_and_nothing_else(change: dict, same: bool) -> None:
    assert (numerics_class(replace(PHONE, **change)) == numerics_class(PHONE)) is same


def test_instructions_for_integers_part_only_quantised_models() -> None:
    plain = replace(PHONE, simd=("neon",))
    assert numerics_class(plain, quantised=False) == numerics_class(PHONE, quantised=False)
    assert numerics_class(plain, quantised=True) != numerics_class(PHONE, quantised=True)


def test_a_device_that_says_nothing_is_a_class_too() -> None:
    assert numerics_class(DeviceFacts(DeviceKind.SBC, "arm64", "linux", 1, 1)) == "arm64/-/-"


COMPARATORS = st.builds(
    Comparator,
    st.sampled_from(ComparatorKind),
    rtol=st.floats(0, 0.99),
    atol=st.floats(0, 10),
    minimum=st.floats(0.01, 1),
    k=st.integers(1, 5),
    margin=st.floats(0, 10),
)
DEVIATIONS = st.builds(
    Deviation,
    st.integers(1, 1000),
    identical=st.booleans(),
    absolute=st.floats(0, 10) | st.just(math.inf),
    cosine=st.floats(0, 1) | st.just(math.inf),
)


@given(COMPARATORS, DEVIATIONS, st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from([MODEL, OTHER]))
def test_laws_of_comparing(comparator: Comparator, found: Deviation, a: str, b: str, model: ModelDigest) -> None:
    profiles = [ToleranceProfile(model, {("a", "b"): found})]
    allowed = comparable(profiles, MODEL, comparator, a, b)
    assert allowed == comparable(profiles, MODEL, comparator, b, a)
    if a == b:
        assert allowed
    elif {a, b} != {"a", "b"} or model != MODEL:
        assert not allowed, "what was not measured is not compared"
    else:
        assert allowed == passes(comparator, found)
    assert comparable([], MODEL, comparator, a, b) == (a == b)


@pytest.mark.parametrize(
    ("comparator", "found", "allowed"),
    [
        (EXACT, CLOSE, False),
        (EXACT, replace(CLOSE, identical=True), True),
        (all_close(0.01), CLOSE, True),
        (all_close(0.009), CLOSE, False),
        (all_close(0.0, rtol=0.9), CLOSE, False),
        (all_close(1e9), replace(CLOSE, absolute=math.inf), False),
        (Comparator(ComparatorKind.COSINE, minimum=0.9999), CLOSE, True),
        (Comparator(ComparatorKind.COSINE, minimum=0.99991), CLOSE, False),
        (Comparator(ComparatorKind.COSINE, minimum=0.01), replace(CLOSE, cosine=math.inf), False),
        (Comparator(ComparatorKind.TOP_K, margin=0.02), CLOSE, True),
        (Comparator(ComparatorKind.TOP_K, margin=0.019), CLOSE, False),
    ],
)
def test_a_comparator_must_tolerate_what_honest_devices_differ_by(
    comparator: Comparator, found: Deviation, allowed: bool
) -> None:
    assert passes(comparator, found) is allowed


def test_of_several_profiles_of_one_pair_the_strictest_counts() -> None:
    profiles = [ToleranceProfile(MODEL, {("a", "b"): replace(CLOSE, absolute=a)}) for a in (0.01, 0.5)]
    assert not comparable(profiles, MODEL, all_close(0.1), "a", "b")
    assert comparable(profiles, MODEL, all_close(0.5), "a", "b")
