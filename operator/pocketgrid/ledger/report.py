"""What `pocketgrid ledger` prints: one line of JSON, or tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pocketgrid.ledger.reading import JobLedger, Party
from pocketgrid.metering.books import AccountKind
from pocketgrid.metering.events import Payee
from pocketgrid.model.money import write_money


def ledger_document(ledger: JobLedger) -> dict[str, Any]:
    """One job, by owner and device."""
    totals = {kind: ledger.keeper.books.total(kind) for kind in AccountKind}
    return {
        "uri": ledger.uri,
        "job": ledger.job,
        "name": ledger.name,
        "verified": ledger.verify,
        "finished": ledger.finished,
        "earned_micro": totals[AccountKind.EARNED],
        "held_micro": totals[AccountKind.ESCROW],
        "void_micro": totals[AccountKind.VOID],
        "parties": list(_parties(ledger)),
        "log_sha256": ledger.digest,
        "notes": list(ledger.notes),
        "differences": list(ledger.differences),
    }


def ledgers_document(ledgers: Sequence[JobLedger]) -> dict[str, Any]:
    """All jobs, and what each owner has earned in them."""
    owners: Counter[str] = Counter()
    for ledger in ledgers:
        owners.update(ledger.statement.earned)
    return {
        "jobs": [ledger_document(ledger) for ledger in ledgers],
        "owners": [{"owner": owner, "earned_micro": earned} for owner, earned in sorted(owners.items())],
    }


def print_ledgers(console: Console, ledgers: Sequence[JobLedger]) -> None:
    """Tables by job and by owner."""
    document = ledgers_document(ledgers)
    table = Table(title="Pay by device", title_justify="left")
    for heading in ("Job", "Owner", "Device"):
        table.add_column(heading)
    for heading in ("Rows", "Rows checked", "Earned", "Held", "Void"):
        table.add_column(heading, justify="right")
    for job in document["jobs"]:
        for party in job["parties"]:
            sums = [write_money(party[name]) for name in ("earned_micro", "held_micro", "void_micro")]
            rows = [f"{party[name]:,}" for name in ("rows_verified", "rows_checked")]
            table.add_row(job["name"] or job["job"], party["owner"] or "(nobody)", party["device"], *rows, *sums)
    console.print(table)
    totals = Table(title="Earned by owner", title_justify="left")
    totals.add_column("Owner")
    totals.add_column("Earned", justify="right")
    for line in document["owners"]:
        totals.add_row(line["owner"] or "(nobody)", write_money(line["earned_micro"]))
    console.print(totals)


def _parties(ledger: JobLedger) -> Iterator[dict[str, Any]]:
    earned, held, void = (ledger.amounts(kind) for kind in (AccountKind.EARNED, AccountKind.ESCROW, AccountKind.VOID))
    verified, checked = (_by_party(rows.items()) for rows in ledger.keeper.rows)
    for party in sorted({*earned, *held, *void, *verified, *checked}):
        yield {
            "owner": party.owner,
            "device": party.device,
            "rows_verified": verified[party],
            "rows_checked": checked[party],
            "earned_micro": earned.get(party, 0),
            "held_micro": held.get(party, 0),
            "void_micro": void.get(party, 0),
        }


def _by_party(rows: Iterable[tuple[Payee, int]]) -> Counter[Party]:
    sums: Counter[Party] = Counter()
    for payee, count in rows:
        sums[Party(payee.owner, payee.device)] += count
    return sums
