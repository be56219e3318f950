"""Sums of money are whole millionths and are written so that nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.model.money import read_money, write_money


@given(st.integers(0, 10**15))
def test_what_is_written_is_read_as_the_same(micro: int) -> None:
    assert read_money(write_money(micro)) == micro


@pytest.mark.parametrize(
    ("text", "micro"),
    [("0", 0), ("12.5", 12_500_000), ("0.000001", 1), ("999999999.999999", 10**15 - 1), ("007", 7_000_000)],
)
def test_sums_are_read_exactly(text: str, micro: int) -> None:
    assert read_money(text) == micro


@pytest.mark.parametrize(
    ("micro", "text"), [(0, "0.00"), (12_500_000, "12.50"), (1, "0.000001"), (-1_500_000, "-1.50")]
)
def test_sums_are_written_short(micro: int, text: str) -> None:
    assert write_money(micro) == text


@pytest.mark.parametrize("text", ["", ".", ".5", "-1", "+1", "1e3", "1,5", "0.0000001", "1.5.0", "٣", " 1", "1."])
def test_what_is_no_sum_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"money|places"):
        read_money(text)
