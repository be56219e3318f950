"""Rules of pay one by one; that they hold in any order is in tests/property/test_metering.py."""

from __future__ import annotations

import pytest

from pocketgrid.metering.bookkeeping import Bookkeeper
from pocketgrid.metering.books import Account, AccountKind, Books, Posting, broken_laws
from pocketgrid.metering.events import UNKNOWN, Believed, Confirmed, Delivered, Event, Lost, Payee, Sealed, TakenBack

ADA, BO = Payee("ada", "phone-1", 5), Payee("bo", "board-1", 7)
ALL = Believed((range(4),))


def delivered(shard: int, payee: Payee = ADA, place: int = 0, rows: int = 3) -> Delivered:
    return Delivered(shard, ("s", 10 * shard + place), payee, rows)


def taken_back(piece: Delivered, rows: int = 0) -> TakenBack:
    return TakenBack(piece.shard, piece.place, piece.payee, rows)


def sealed(*work: tuple[Payee, int]) -> Sealed:
    return Sealed(0, range(2), work)


@pytest.mark.parametrize(
    ("history", "held", "earned", "void"),
    [
        pytest.param([delivered(0)], 15, 0, 0, id="held while provisional"),
        pytest.param([delivered(0), ALL], 0, 15, 0, id="earned once verified"),
        pytest.param([delivered(0), delivered(0, BO, 1), ALL], 0, 15, 0, id="only the first result of a shard"),
        pytest.param([delivered(0), taken_back(delivered(0))], 0, 0, 15, id="void once not believed"),
        pytest.param(
            [delivered(0), taken_back(delivered(0)), delivered(0, BO, 1), ALL], 0, 21, 15, id="done again by another"
        ),
        pytest.param([delivered(0), taken_back(delivered(0)), delivered(0), ALL], 0, 0, 15, id="void is for ever"),
        pytest.param([taken_back(delivered(0)), delivered(0), ALL], 0, 0, 0, id="void before it was known"),
        pytest.param([ALL, delivered(0)], 15, 0, 0, id="belief is in what is there"),
        pytest.param([delivered(0), ALL, taken_back(delivered(0), 3)], 0, 15, 0, id="final and lost stays paid"),
        pytest.param([delivered(0), taken_back(delivered(0), 3)], 0, 15, 0, id="the entry proves that it was final"),
        pytest.param([taken_back(delivered(0), 3)], 0, 15, 0, id="even if its own line is lost"),
        pytest.param([delivered(0, UNKNOWN), ALL], 0, 0, 0, id="nobody is paid for what nobody can be named for"),
        pytest.param([Confirmed(1, BO, 4), Confirmed(1, BO, 4)], 0, 28, 0, id="a check is paid once"),
        pytest.param([Confirmed(2, BO, 4), Confirmed(1, ADA, 4)], 0, 28, 0, id="its number only grows"),
        pytest.param(
            [delivered(0), delivered(1), ALL, sealed((ADA, 6))], 0, 30, 0, id="a seal repeats what is known"
        ),
        pytest.param([sealed((ADA, 3), (BO, 3))], 0, 36, 0, id="a seal proves what lost lines said"),
        pytest.param([delivered(0), sealed((ADA, 3), (BO, 3))], 0, 36, 0, id="or part of it"),
        pytest.param([delivered(0), sealed((BO, 6))], 0, 42, 15, id="and what does not count"),
        pytest.param([sealed((ADA, 6)), delivered(0, BO, 1), ALL], 0, 30, 0, id="nothing comes behind a seal"),
        pytest.param(
            [sealed((ADA, 6)), taken_back(delivered(0), 3)], 0, 30, 0, id="and nothing is taken back behind it"
        ),
        pytest.param(
            [sealed((ADA, 6)), Lost(0), delivered(0, BO, 1), ALL], 0, 51, 0, id="a lost part stays paid"
        ),
    ],
)  # fmt: skip
def test_what_is_paid(history: list[Event], held: int, earned: int, void: int) -> None:
    keeper = Bookkeeper("job")
    for position, event in enumerate(history):
        keeper.fold(position, event)
    totals = [keeper.books.total(kind) for kind in (AccountKind.ESCROW, AccountKind.EARNED, AccountKind.VOID)]
    assert totals == [held, earned, void]
    assert list(broken_laws(keeper.books)) == []


def test_rows_that_only_a_seal_proves_are_counted() -> None:
    keeper = Bookkeeper("job")
    for position, event in enumerate([delivered(0), ALL, sealed((ADA, 3), (BO, 2))]):
        keeper.fold(position, event)
    assert keeper.mended == 2


@pytest.mark.parametrize("amount", [0, -1, 1.0, True])
def test_a_posting_moves_a_whole_amount(amount: int) -> None:
    with pytest.raises(ValueError, match="no whole amount"):
        Books().post(Posting(Account(AccountKind.PAYER, "a"), Account(AccountKind.ESCROW, "a", "b", "c"), amount))


def test_books_that_break_the_laws_are_told_apart() -> None:
    books = Books()
    books.post(Posting(Account(AccountKind.PAYER, "one"), Account(AccountKind.EARNED, "two", "ada"), 5))
    problems = list(broken_laws(books))
    assert any("job one set 5 aside" in p for p in problems)
    assert any("job two set 0 aside" in p for p in problems)
    books.post(Posting(Account(AccountKind.ESCROW, "one"), Account(AccountKind.PAYER, "one"), 9))
    assert sum("wrong side of 0" in p for p in broken_laws(books)) == 2
