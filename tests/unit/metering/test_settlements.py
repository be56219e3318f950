"""Settlements: nothing twice, nothing forgotten, and the same bytes for the same logs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.errors import InvalidSpecError
from pocketgrid.metering.settlements import COLUMNS, Settlement, Statement, canonical, settle, table


def a_statement(job: str, digest: str = "d", **earned: int) -> Statement:
    return Statement(job, f"default/{job}", digest * 64, earned)


def paid(settlement: Settlement) -> dict[str, int]:
    return {line.owner: line.amount for line in settlement.lines}


def test_the_next_settlement_pays_what_came_since() -> None:
    first = settle([a_statement("a", ada=10, bo=5)], currency="PI")
    assert paid(first) == {"ada": 10, "bo": 5}
    second = settle([a_statement("a", ada=17, bo=5), a_statement("b", bo=2)], currency="PI", previous=first.document())
    assert paid(second) == {"ada": 7, "bo": 2}
    assert second.previous == first.document()["id"]
    third = settle([a_statement("b", bo=2)], currency="PI", previous=second.document())
    assert paid(third) == {}
    fourth = settle([a_statement("a", ada=18, bo=5)], currency="PI", previous=third.document())
    assert paid(fourth) == {"ada": 1}, "a job that was not named in between is remembered"


def test_who_cannot_be_paid_yet_is_paid_later() -> None:
    statement = Statement("a", "", "d" * 64, {"ada": 10, "bo": 5, "": 3})
    first = settle([statement], currency="PI", payees={"ada": "uid-1"})
    assert (paid(first), first.withheld) == ({"ada": 10}, {"bo": 5, "": 3})
    reasons = {w["owner"]: w["reason"] for w in first.document()["withheld"]}
    assert reasons == {"bo": "NoPayee", "": "NoOwner"}
    second = settle([statement], currency="PI", payees={"ada": "uid-1", "bo": "uid-2"}, previous=first.document())
    assert (paid(second), second.withheld) == ({"bo": 5}, {"": 3})
    assert [line.payee for line in second.lines] == ["uid-2"]


def test_a_log_that_says_less_than_was_paid_takes_nothing_back_and_pays_nothing_until_it_has_caught_up() -> None:
    first = settle([a_statement("a", ada=10)], currency="PI")
    second = settle([a_statement("a", "e", ada=7)], currency="PI", previous=first.document())
    assert (paid(second), second.behind) == ({}, {"a": {"ada": 3}})
    third = settle([a_statement("a", "f", ada=12)], currency="PI", previous=second.document())
    assert paid(third) == {"ada": 2}


def test_the_same_logs_give_the_same_bytes_in_any_order() -> None:
    one, two = a_statement("a", ada=10), a_statement("b", bo=3)
    bytes_ = {canonical(settle(order, currency="PI").document()) for order in ([one, two], [two, one])}
    assert len(bytes_) == 1


def test_a_payment_has_the_same_id_whatever_else_is_settled_with_it() -> None:
    alone = settle([a_statement("a", ada=10)], currency="PI").lines[0]
    among = settle([a_statement("a", ada=10, bo=4), a_statement("b", bo=3)], currency="PI").lines[0]
    assert alone.payment_id("PI") == among.payment_id("PI")
    assert alone.payment_id("PI") != alone.payment_id("EUR")


def test_the_payment_has_the_fields_of_the_pi_platform() -> None:
    line = settle([a_statement("a", ada=12_500_001)], currency="PI", period="2026-11", payees={"ada": "uid-1"})
    payment = line.document()["lines"][0]["payment"]
    assert set(payment) == {"amount", "memo", "metadata", "uid"}
    assert (payment["amount"], payment["memo"], payment["uid"]) == ("12.500001", "PocketGrid 2026-11", "uid-1")


def test_the_table_says_the_same_as_the_document() -> None:
    document = settle([a_statement("a", ada=10, bo=5)], currency="PI", period="p").document()
    rows = table(document)
    assert rows[0] == COLUMNS
    assert [dict(zip(COLUMNS, row, strict=True))["amount_micro"] for row in rows[1:]] == ["10", "5"]
    assert all(row[0] == document["id"] for row in rows[1:])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"marks": {"a": {"ada": 3}}}, "InvalidSettlement", id="marks lowered"),
        pytest.param({"marks": None}, "InvalidSettlement", id="no marks"),
        pytest.param({"marks": {"a": {"ada": 1.5}}}, "InvalidSettlement", id="a fraction"),
        pytest.param({"version": 9}, "InvalidSettlement", id="another version"),
    ],
)
def test_a_previous_settlement_that_was_changed_is_refused(change: Mapping[str, Any], reason: str) -> None:
    document = {**settle([a_statement("a", ada=10)], currency="PI").document(), **change}
    with pytest.raises(InvalidSpecError) as refusal:
        settle([], currency="PI", previous=document)
    assert refusal.value.reason == reason


def test_currencies_are_not_mixed_and_a_job_is_settled_from_one_log() -> None:
    first = settle([a_statement("a", ada=10)], currency="PI")
    with pytest.raises(InvalidSpecError, match="in PI, not in EUR"):
        settle([], currency="EUR", previous=first.document())
    with pytest.raises(InvalidSpecError, match="two of the logs are of job a"):
        settle([a_statement("a", ada=10), a_statement("a", "e", ada=10)], currency="PI")


def test_nothing_with_a_fraction_is_written() -> None:
    with pytest.raises(ValueError, match="fraction"):
        canonical({"a": 1.5})


names = st.sampled_from(["ada", "bo", ""])
growth = st.lists(
    st.tuples(
        st.dictionaries(st.tuples(st.sampled_from("abc"), names), st.integers(0, 50), max_size=6),
        st.sets(st.sampled_from("abc")),
        st.sampled_from([None, {"ada": "x"}, {"ada": "x", "bo": "y"}]),
    ),
    min_size=1,
    max_size=8,
)


@given(growth)
def test_all_settlements_together_pay_what_was_earned_and_not_one_unit_more(
    script: list[tuple[dict[tuple[str, str], int], set[str], dict[str, str] | None]],
) -> None:
    """Logs grow, some are settled, now with these payees and now with those; the last settles all for all."""
    earned: Counter[tuple[str, str]] = Counter()
    total: Counter[str] = Counter()
    document: dict[str, Any] | None = None
    for more, jobs, payees in [*script, ({}, set("abc"), None)]:
        earned.update(more)
        statements = [Statement(job, "", "d", {o: n for (j, o), n in earned.items() if j == job}) for job in jobs]
        settlement = settle(statements, currency="PI", payees=payees, previous=document)
        document = json.loads(canonical(settlement.document()))
        total.update(paid(settlement))
        for owner, amount in total.items():
            assert amount <= sum(n for (_, o), n in earned.items() if o == owner)
    due: Counter[str] = Counter()
    for (_, owner), amount in earned.items():
        due[owner] += amount if owner else 0
    assert +total == +due
