"""The composition root: the only place that wires rooms together and reads the environment.

Also the command line's words. Exit status of every command: 0 done, 1 a job failed or the grid could not run, 2 the
manifest or the command was wrong, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pocketgrid import __version__
from pocketgrid.clock import SystemClock
from pocketgrid.controller.token_commands import token_commands
from pocketgrid.errors import InvalidSpecError, PocketGridError, StoreError
from pocketgrid.history import HistoryFile
from pocketgrid.ledger.commands import ledger_commands
from pocketgrid.settings import GatewaySettings, Settings
from pocketgrid.telemetry.logs import LEVELS, configure_logs

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_INVALID = 2
EXIT_UNKNOWN = 3
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="pocketgrid",
    help="One dependable AI inference grid out of devices that are not dependable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
results_app = typer.Typer(help="Look at what a job has written.", no_args_is_help=True)
app.add_typer(results_app, name="results")
app.add_typer(token_commands(), name="token")

HistoryPath = Annotated[
    Path | None,
    typer.Option(help="File to append leases, results and commits to, as lines of JSON.", envvar="POCKETGRID_HISTORY"),
]
LogLevel = Annotated[str, typer.Option(help=f"One of {', '.join(LEVELS)}.", envvar="POCKETGRID_LOG_LEVEL")]


def cli() -> None:
    """Run the command line and end the process with a status."""
    try:
        app()
    except InvalidSpecError as exc:
        _complain(f"{exc.reason}: {exc}")
        sys.exit(EXIT_INVALID)
    except PocketGridError as exc:
        _complain(str(exc))
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"pocketgrid {__version__}")


@app.command()
def run(
    manifest: Annotated[
        Path, typer.Argument(help="YAML with InferenceJobs and, if they ask for some, HardwareClasses.")
    ],
    agents: Annotated[int, typer.Option(min=1, help="How many agents to start on this machine.")] = 2,
    threads: Annotated[int, typer.Option(min=0, help="Computing threads of each; 0 shares out the cores.")] = 0,
    state_dir: Annotated[
        Path | None, typer.Option(help="Certificates and cached models. Default: the user's state folder.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="End with one line of JSON instead of tables.")] = False,
    history: HistoryPath = None,
    log_level: LogLevel = "warning",
) -> None:
    """Run jobs on this machine without a cluster. Running the same file again goes on where it stopped."""
    configure_logs(log_level)
    from pocketgrid.local.agents import LocalAgents
    from pocketgrid.local.run import read_plan, run_plan

    clock = SystemClock()
    plan = read_plan(manifest, clock.wall())
    settings = Settings(state_dir=(state_dir or _default_state_dir()) / "local")
    pool = LocalAgents(
        count=agents,
        threads=threads or max(1, (os.cpu_count() or 1) // agents),
        folder=settings.state_dir / "agents",
        log_level=log_level,
    )
    from rich.console import Console

    from pocketgrid.local.progress import LiveProgress, print_summary, summary_json

    console = Console(stderr=True)
    try:
        with LiveProgress(console, clock) as progress:
            work = run_plan(plan, pool, settings, clock, progress.update, _history(history))
            outcome = _run_until_signalled(work)
    except KeyboardInterrupt:
        _complain("interrupted; run the same file again to go on where it stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if json_output:
        typer.echo(summary_json(outcome))
    else:
        print_summary(console, outcome)
    if any(v.stage.value == "Refused" for v in outcome.jobs):
        raise typer.Exit(EXIT_INVALID)
    if not outcome.succeeded:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def calibrate(
    manifest: Annotated[Path, typer.Argument(help="YAML with one InferenceJob: its model, and some hundred items.")],
    name: Annotated[str, typer.Option(help="Of the ToleranceProfile.")] = "",
    output: Annotated[
        Path | None, typer.Option(help="File for the ToleranceProfile. Default: standard output.")
    ] = None,
    agents: Annotated[int, typer.Option(min=1, help="How many agents to start on this machine.")] = 1,
    devices: Annotated[int, typer.Option(min=0, help="How many devices join from elsewhere.")] = 1,
    gateway_address: Annotated[str, typer.Option(help="Where these connect, HOST:PORT.")] = "127.0.0.1:0",
    wait: Annotated[float, typer.Option(min=1.0, help="Seconds for all to join, and for each to compute.")] = 600.0,
    state_dir: Annotated[
        Path | None, typer.Option(help="Certificates and cached models. Default: the user's state folder.")
    ] = None,
    log_level: LogLevel = "warning",
) -> None:
    """Measure how far results of different kinds of devices lie apart, and write a ToleranceProfile."""
    configure_logs(log_level)
    import tempfile

    import yaml

    from pocketgrid.api.convert import build_tolerance_profile
    from pocketgrid.local.agents import LocalAgents
    from pocketgrid.local.calibrate import Wanted
    from pocketgrid.local.calibrate import calibrate as measure
    from pocketgrid.local.run import read_plan

    clock = SystemClock()
    plan = read_plan(manifest, clock.wall())
    host, port = _host_and_port(gateway_address)
    settings = Settings(
        state_dir=(state_dir or _default_state_dir()) / "calibrate",
        gateway=GatewaySettings(host=host, port=port, server_names=tuple(dict.fromkeys((host, "localhost")))),
    )
    pool = LocalAgents(count=agents, threads=1, folder=settings.state_dir / "agents", log_level=log_level)
    with tempfile.TemporaryDirectory(prefix="pocketgrid-calibrate-") as scratch:
        work = measure(plan, pool, Wanted(devices, wait), settings, clock, Path(scratch), _complain)
        profile = _run_until_signalled(work)
    measured = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = yaml.safe_dump(build_tolerance_profile(profile, name or plan.jobs[0].name, measured), sort_keys=False)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


@app.command()
def operator(
    gateway_address: Annotated[
        str, typer.Option(help="Where devices connect, HOST:PORT.", envvar="POCKETGRID_GATEWAY_ADDRESS")
    ] = "127.0.0.1:7443",
    enrolment_port: Annotated[
        int | None, typer.Option(help="Where devices join, on the same host. Default: the gateway's port and 1.")
    ] = None,
    advertised_address: Annotated[
        str, typer.Option(help="HOST:PORT devices are to dial, if not where they joined at and the gateway's port.")
    ] = "",
    advertised_enrolment_address: Annotated[
        str, typer.Option(help="HOST:PORT devices are to join at. Default: the first server name, or the listener's.")
    ] = "",
    server_name: Annotated[
        list[str] | None,
        typer.Option(help="Host name or address devices dial, if it is not that of the listener. Repeatable."),
    ] = None,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Default: the service account in a Pod, else kubectl's own.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    namespace: Annotated[
        str, typer.Option(help="Holds the Lease by which operators elect a leader.", envvar="POCKETGRID_NAMESPACE")
    ] = "pocketgrid-system",
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Certificates and models; must survive restarts. Default: the user's state folder."),
    ] = None,
    liveness_endpoint: Annotated[
        str | None, typer.Option(help="URL to serve for liveness probes, such as http://0.0.0.0:8080/healthz.")
    ] = None,
    lease_seconds: Annotated[
        int,
        typer.Option(
            min=2, help="How long a leader that is not heard from keeps the lead; as short as its replacement."
        ),
    ] = 7,
    history: HistoryPath = None,
    log_level: LogLevel = "info",
) -> None:
    """Drive the InferenceJobs of a cluster, and serve its devices."""
    configure_logs(log_level)
    from pocketgrid.service import Cluster, serve

    host, port = _host_and_port(gateway_address)
    gateway = GatewaySettings(
        host=host,
        port=port,
        enrolment_port=(port and port + 1) if enrolment_port is None else enrolment_port,
        advertised_address=advertised_address,
        advertised_enrolment_address=advertised_enrolment_address,
        server_names=tuple(dict.fromkeys((*(server_name or ()), host, "localhost"))),
    )
    settings = Settings(state_dir=(state_dir or _default_state_dir() / "operator"), gateway=gateway)
    cluster = Cluster(kubeconfig, context, namespace, liveness_endpoint, lease_seconds)
    asyncio.run(serve(settings, cluster, SystemClock(), _history(history)))


@results_app.command("verify")
def verify_results(
    uri: Annotated[str, typer.Argument(help="The job's output folder: an absolute path or a file:// URI.")],
    model: Annotated[
        Path | None, typer.Option(help="Also compare this file with the model the output was computed with.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Recompute digests, rows, order and keys of a finished output and compare them with its manifest and commit log.

    Exit status: 0 all is as it should be, 1 something is wrong, 2 the URI is wrong, 3 it could not be told, since the
    job has not finished or a file could not be read.
    """
    from pocketgrid.storage.results import Verification, verify_output

    def check() -> Verification:
        if json_output or not sys.stderr.isatty():
            return verify_output(uri, model=model)
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        with Progress(BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task("verify")
            return verify_output(
                uri, model=model, progress=lambda done, total: bar.update(task, completed=done, total=total)
            )

    try:
        result = check()
    except StoreError as exc:
        if json_output:
            typer.echo(json.dumps({"uri": uri, "intact": None, "error": str(exc)}))
        else:
            _complain(str(exc))
        raise typer.Exit(EXIT_UNKNOWN) from exc
    manifest = result.manifest
    counts = {"items": manifest.items, "rows": manifest.rows, "failed": manifest.failed, "parts": len(manifest.parts)}
    if json_output:
        findings = [asdict(f) for f in result.findings]
        report = {"uri": uri, "intact": result.intact, **counts, "findings": findings, "notes": result.notes}
        typer.echo(json.dumps(report))
    else:
        for line in (*result.findings, *result.notes):
            typer.echo(str(line))
        if result.intact:
            typer.echo(
                f"{manifest.rows:,} rows and {manifest.failed:,} failed in {len(manifest.parts)} parts: as it should be"
            )
    if not result.intact:
        raise typer.Exit(EXIT_FAILED)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidSpecError("InvalidAddress", f"{address!r} is not HOST:PORT", field="--gateway-address")
    return host, int(port)


def _run_until_signalled(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; SIGINT and SIGTERM cancel it, so that everything it holds is put down in good order."""

    async def main() -> T:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        return await task

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _history(path: Path | None) -> HistoryFile | None:
    return HistoryFile(path, {"role": "operator"}) if path is not None else None


def _default_state_dir() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pocketgrid"


def _complain(message: str) -> None:
    typer.echo(f"pocketgrid: {message}", err=True)


app.add_typer(ledger_commands(_default_state_dir), name="ledger")
