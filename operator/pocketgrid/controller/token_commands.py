"""The words of `pocketgrid token`: make, list and delete join tokens in a cluster.

Whoever runs them needs rights on Secrets in the operator's namespace, and to read its ConfigMap (`enrolment_stores`).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from pocketgrid.clock import SystemClock
from pocketgrid.errors import InvalidSpecError
from pocketgrid.gateway.tokens import JoinToken, make_token
from pocketgrid.model.trust import TrustTier

if TYPE_CHECKING:
    from pocketgrid.controller.client import Cluster

T = TypeVar("T")

EXIT_ABSENT = 1

EXPIRED_KEPT_S = 3600.0
"""Tokens that ran out longer ago are removed when a new one is made."""

_DURATION = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Kubeconfig = Annotated[Path | None, typer.Option(help="Default: the service account in a Pod, else kubectl's own.")]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]
Namespace = Annotated[str, typer.Option(help="Of the operator.", envvar="POCKETGRID_NAMESPACE")]
DEFAULT_NAMESPACE = "pocketgrid-system"


def token_commands() -> typer.Typer:
    """The commands, to be added to the command line."""
    commands = typer.Typer(help="Let devices join: make, list and delete join tokens.", no_args_is_help=True)
    commands.command("create")(create)
    commands.command("list")(list_tokens)
    commands.command("delete")(delete)
    return commands


def create(
    owner: Annotated[str, typer.Option(help="Who is responsible for the devices, and is paid for their work.")],
    hardware_class: Annotated[
        str,
        typer.Option("--class", help="The only HardwareClass they belong to. Default: those whose selector matches."),
    ] = "",
    ttl: Annotated[str, typer.Option(help="How long it is good for, such as 30m, 24h or 7d.")] = "24h",
    uses: Annotated[int, typer.Option(help="How many devices may join with it.")] = 1,
    tier: Annotated[str, typer.Option(help="Whose they are: Public, Vetted or Owned.")] = "Public",
    node: Annotated[
        str, typer.Option(help="Kubernetes Node they may say they run on; '*' for any. Default: none.")
    ] = "",
    address: Annotated[
        str, typer.Option(help="HOST:PORT devices are to join at. Default: what the operator has said.")
    ] = "",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Make a token and print the command that a device's owner is to run. It is shown this once."""
    from pocketgrid.controller.enrolment_stores import SecretTokens, read_gateway

    now = SystemClock().wall()
    made = make_token(
        owner=owner,
        now=now,
        ttl_s=_duration(ttl),
        uses=uses,
        hardware_class=hardware_class,
        tier=_tier(tier),
        node_name=node,
    )

    async def work(cluster: Cluster) -> tuple[str, str]:
        where = await read_gateway(cluster, namespace)
        tokens = SecretTokens(cluster, namespace)
        for old in await tokens.list():
            if old.expires_at + EXPIRED_KEPT_S < now:
                await tokens.delete(old.token_id)
        await tokens.create(made.token)
        return where

    said, ca_sha256 = _run(work, kubeconfig, context)
    typer.echo(f"pocketgrid-agent join {address or said} --token {made.text} --ca-sha256 {ca_sha256}")


def list_tokens(
    json_output: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """List tokens: what devices get that join with them, and how many still may. The secrets are not kept."""
    from pocketgrid.controller.enrolment_stores import SecretTokens

    found = _run(lambda cluster: SecretTokens(cluster, namespace).list(), kubeconfig, context)
    now = SystemClock().wall()
    rows = [_row(token, now) for token in sorted(found, key=lambda t: t.expires_at)]
    if json_output:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    heads = ("ID", "OWNER", "CLASS", "TIER", "NODE", "LEFT", "EXPIRES")
    table = [heads, *(tuple(str(value) or "-" for value in row.values()) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
    for line in table:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def delete(
    token_id: Annotated[str, typer.Argument(help="The first six characters of the token, as `list` shows them.")],
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
) -> None:
    """Let nobody join with a token any more. Devices that have joined with it stay."""
    from pocketgrid.controller.enrolment_stores import SecretTokens

    wanted = token_id.partition(".")[0]
    if not re.fullmatch(r"[a-z0-9]{6}", wanted):
        raise InvalidSpecError("InvalidToken", f"{token_id!r} is no id of a token", field="token_id")
    if not _run(lambda cluster: SecretTokens(cluster, namespace).delete(wanted), kubeconfig, context):
        typer.echo(f"pocketgrid: there is no token {wanted} in namespace {namespace}", err=True)
        raise typer.Exit(EXIT_ABSENT)


def _run(work: Callable[[Cluster], Awaitable[T]], kubeconfig: Path | None, context: str | None) -> T:
    from pocketgrid.controller.client import Cluster

    async def connected() -> T:
        async with Cluster.connect(kubeconfig, context) as cluster:
            return await work(cluster)

    return asyncio.run(connected())


def _row(token: JoinToken, now: float) -> dict[str, str | int]:
    expires = datetime.fromtimestamp(token.expires_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": token.token_id,
        "owner": token.owner,
        "class": token.hardware_class,
        "tier": token.tier.name.title(),
        "node": token.node_name,
        "left": token.uses_left if now < token.expires_at else 0,
        "expires": expires,
    }


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidSpecError("InvalidToken", f"{text!r} is no duration such as 30m, 24h or 7d", field="ttl")
    return float(match[1]) * _SECONDS[match[2]]


def _tier(text: str) -> TrustTier:
    try:
        return TrustTier[text.upper()]
    except KeyError:
        raise InvalidSpecError("InvalidToken", f"{text!r} is none of Public, Vetted, Owned", field="tier") from None
