"""Accounts and postings: double-entry books in micro-units.

A posting moves an amount from one account to another, so whatever is posted, all balances together are zero: money is
neither made nor lost here. What may be posted when is `bookkeeping`.

| account | its balance is |
|---|---|
| Payer(job) | minus all that was ever set aside for the job |
| Escrow(job, owner, device) | held for rows that are committed and not verified yet |
| Earned(job, owner, device) | earned for good |
| Void(job, owner, device) | set aside once and let go of; the payer's again, kept apart so that it can be seen |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple


class AccountKind(StrEnum):
    """See the table of the module."""

    PAYER = "Payer"
    ESCROW = "Escrow"
    EARNED = "Earned"
    VOID = "Void"


class Account(NamedTuple):
    """One account; `owner` and `device` are empty for a payer, and where nobody can be named."""

    kind: AccountKind
    job: str
    owner: str = ""
    device: str = ""


class Posting(NamedTuple):
    """`amount` micro-units, above 0, go from one account to another."""

    source: Account
    target: Account
    amount: int


class Books:
    """Balances by account. Only `post` changes them."""

    def __init__(self) -> None:
        self._balances: dict[Account, int] = {}

    def post(self, posting: Posting) -> None:
        """Book one posting.

        Raises:
            ValueError: the amount is not above 0, or no integer.
        """
        if type(posting.amount) is not int or posting.amount <= 0:
            raise ValueError(f"{posting} moves no whole amount above 0")
        for account, amount in ((posting.source, -posting.amount), (posting.target, posting.amount)):
            balance = self._balances.get(account, 0) + amount
            if balance:
                self._balances[account] = balance
            else:
                del self._balances[account]

    @property
    def balances(self) -> Mapping[Account, int]:
        """Every balance but 0."""
        return self._balances

    def total(self, kind: AccountKind, *, job: str | None = None, owner: str | None = None) -> int:
        """Sum over the accounts of `kind`, of one job or owner if given."""
        return sum(
            amount
            for account, amount in self._balances.items()
            if account.kind is kind
            and (job is None or account.job == job)
            and (owner is None or account.owner == owner)
        )


def broken_laws(books: Books) -> Iterable[str]:
    """The laws of conservation that `books` break, as sentences; none, or somebody has found a fault of ours."""
    balances = books.balances
    if total := sum(balances.values()):
        yield f"all balances together are {total} micro-units and not 0"
    for account, amount in balances.items():
        if (amount > 0) is (account.kind is AccountKind.PAYER):
            yield f"{account} has a balance of {amount}, which is on the wrong side of 0"
    for job in {account.job for account in balances}:
        paid = -books.total(AccountKind.PAYER, job=job)
        held, earned, void = (
            books.total(kind, job=job) for kind in (AccountKind.ESCROW, AccountKind.EARNED, AccountKind.VOID)
        )
        if paid != held + earned + void:
            yield f"job {job} set {paid} aside, of which {held} are held, {earned} earned and {void} let go of"
