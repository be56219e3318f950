"""The words of `pocketgrid ledger`. Each command reads its arguments, asks the other modules, and prints.

Exit status: 0 done and as it should be, 1 something differs, 2 an argument is wrong, 3 it could not be told, since a
file is missing or could not be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pocketgrid.errors import InvalidSpecError, StoreError

if TYPE_CHECKING:
    from pocketgrid.ledger.reading import JobLedger

EXIT_DIFFERS = 1
EXIT_INVALID = 2
EXIT_UNKNOWN = 3

_FOLDER = "ledger"
"""Of the state folder; holds the key of settlements."""

Uris = Annotated[list[str], typer.Argument(help="Output folders of jobs: absolute paths or file:// URIs.")]
OptionalUris = Annotated[
    list[str] | None, typer.Argument(help="Output folders of jobs: absolute paths or file:// URIs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
StateDir = Annotated[
    Path | None, typer.Option(help="Holds the key that signs settlements. Default: the user's state folder.")
]
PublicKey = Annotated[
    Path | None, typer.Option(help="PEM file of the key that must have signed. Default: our own, in the state folder.")
]


def ledger_commands(default_state_dir: Callable[[], Path]) -> typer.Typer:
    """The commands below `pocketgrid ledger`."""
    commands = typer.Typer(help="Who is paid what, from the commit logs of jobs.", no_args_is_help=True)

    @commands.command("show")
    def show(uris: Uris, json_output: Json = False) -> None:
        """Pay by job, owner and device: earned, held until verified, and let go of."""
        from rich.console import Console

        from pocketgrid.ledger.report import ledgers_document, print_ledgers

        ledgers = _read(uris, json_output)
        if json_output:
            typer.echo(json.dumps(ledgers_document(ledgers)))
            return
        print_ledgers(Console(), ledgers)
        for ledger in ledgers:
            if not ledger.verify:
                typer.echo(f"{ledger.uri}: nothing is paid, since the job verifies nothing")

    @commands.command("verify")
    def verify(
        uris: OptionalUris = None,
        settlement: Annotated[Path | None, typer.Option(help="Also check this exported JSON file.")] = None,
        public_key: PublicKey = None,
        state_dir: StateDir = None,
        json_output: Json = False,
    ) -> None:
        """Recompute all pay from the single lines of the logs and compare it with the running sums and the manifests.

        With --settlement, check a settlement's signature and sums too, and that all it pays was earned in these logs.
        """
        if not uris and settlement is None:
            raise InvalidSpecError("NothingToVerify", "name output folders of jobs, or a file with --settlement")
        from pocketgrid.ledger.files import grown_since, read_settlement, settlement_problems
        from pocketgrid.ledger.report import ledger_document
        from pocketgrid.ledger.signing import PUBLIC_KEY
        from pocketgrid.ledger.signing import public_key as read_key
        from pocketgrid.model.money import write_money

        ledgers = _read(uris or (), json_output)
        differences = [f"{ledger.uri}: {text}" for ledger in ledgers for text in ledger.differences]
        notes = [f"{ledger.uri}: {text}" for ledger in ledgers for text in ledger.notes]
        notes += [
            f"{ledger.uri}: {ledger.keeper.mended} rows are proved by seals only, since lines of the log are damaged"
            for ledger in ledgers
            if ledger.keeper.mended
        ]
        if settlement is not None:
            path = public_key or (state_dir or default_state_dir()) / _FOLDER / PUBLIC_KEY
            statements = [ledger.statement for ledger in ledgers]
            try:
                problems = list(settlement_problems(settlement, read_key(path), statements))
                grown = grown_since(read_settlement(settlement), statements) if not problems else []
            except StoreError as exc:
                _cannot_tell(exc, json_output)
            differences += problems
            notes += [f"the log of job {job} has grown since it was settled" for job in grown]
        if json_output:
            report: dict[str, Any] = {
                "intact": not differences,
                "jobs": [ledger_document(ledger) for ledger in ledgers],
                "differences": differences,
                "notes": notes,
            }
            typer.echo(json.dumps(report))
        else:
            for line in (*differences, *notes):
                typer.echo(line)
            for ledger in ledgers:
                if not ledger.differences:
                    earned = write_money(sum(ledger.statement.earned.values()))
                    typer.echo(f"{ledger.uri}: {earned} earned: as it should be")
            if settlement is not None and not differences:
                typer.echo(f"{settlement}: as it should be")
        if differences:
            raise typer.Exit(EXIT_DIFFERS)

    @commands.command("export")
    def export(
        uris: Uris,
        out: Annotated[Path, typer.Option(help="Folder to write settlement-ID.json and settlement-ID.csv to.")],
        since: Annotated[
            Path | None, typer.Option(help="JSON file of the last settlement; what it has paid is not paid again.")
        ] = None,
        payees: Annotated[
            Path | None,
            typer.Option(help="YAML mapping of owners to what the payout provider calls them; others wait."),
        ] = None,
        currency: Annotated[str, typer.Option(help="What the payout provider calls the grid's currency.")] = "credit",
        period: Annotated[str, typer.Option(help="Text for people, such as 2026-11.")] = "",
        public_key: PublicKey = None,
        state_dir: StateDir = None,
        json_output: Json = False,
    ) -> None:
        """Write a signed settlement: what is to be paid out now, one line for each owner.

        The same logs and options give the same files. Nothing is paid out here.
        """
        from pocketgrid.ledger.files import read_payees, read_settlement, write_settlement
        from pocketgrid.ledger.signing import PUBLIC_KEY, signature_problem, signed, signing_key
        from pocketgrid.ledger.signing import public_key as read_key
        from pocketgrid.metering.settlements import settle
        from pocketgrid.model.money import write_money

        ledgers = _read(uris, json_output)
        for ledger in ledgers:
            if ledger.differences:
                message = (
                    f"{ledger.uri}: {ledger.differences[0]}; nothing is exported before `ledger verify` is content"
                )
                typer.echo(f"pocketgrid: {message}", err=True)
                raise typer.Exit(EXIT_DIFFERS)
        folder = (state_dir or default_state_dir()) / _FOLDER
        key = signing_key(folder)
        previous = None
        if since is not None:
            previous = read_settlement(since)
            if problem := signature_problem(previous, read_key(public_key or folder / PUBLIC_KEY)):
                raise InvalidSpecError("InvalidSettlement", f"{since}: {problem}", field="--since")
        settlement = settle(
            [ledger.statement for ledger in ledgers],
            currency=currency,
            period=period,
            payees=read_payees(payees) if payees is not None else None,
            previous=previous,
        )
        document = signed(settlement.document(), key)
        written = write_settlement(out, document)
        if json_output:
            files = [str(path) for path in written]
            summary = {"id": document["id"], "lines": len(settlement.lines), "total_micro": settlement.total}
            typer.echo(json.dumps({**summary, "files": files}))
            return
        for path in written:
            typer.echo(str(path))
        typer.echo(f"{write_money(settlement.total)} {currency} for {len(settlement.lines)} owners")
        for owner, amount in sorted(settlement.withheld.items()):
            reason = "no payee is known" if owner else "nobody answers for the device"
            typer.echo(f"withheld: {write_money(amount)} of {owner or '(nobody)'}: {reason}")
        for job, owners in settlement.behind.items():
            for owner, amount in owners.items():
                typer.echo(f"job {job}: its log says {write_money(amount)} less for {owner} than is paid out already")

    return commands


def _read(uris: Sequence[str], json_output: bool) -> list[JobLedger]:
    from pocketgrid.ledger.reading import read_ledger

    try:
        return [read_ledger(uri) for uri in uris]
    except StoreError as exc:
        _cannot_tell(exc, json_output)


def _cannot_tell(exc: StoreError, json_output: bool) -> NoReturn:
    if json_output:
        typer.echo(json.dumps({"intact": None, "error": str(exc)}))
    else:
        typer.echo(f"pocketgrid: {exc}", err=True)
    raise typer.Exit(EXIT_UNKNOWN) from exc
