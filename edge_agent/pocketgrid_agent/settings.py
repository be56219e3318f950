"""Everything an owner can say about an agent, once, from the command line and the environment."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketgrid_agent import __version__
from pocketgrid_agent.policy import Policy, default_policy
from pocketgrid_agent.probe import MachineFacts, probe

KINDS = ("phone", "sbc", "laptop", "desktop", "server")

EXIT_CODES = """\
exit status:
  0  drained, or stopped while nothing was begun
  1  something unforeseen; the message says what, the journal keeps all results
  2  wrong options
  3  the gateway refused this device for good
  4  the state folder is in use by another agent, or state or cache cannot be written
  128+n  ended at once by a second signal n
"""

ENVIRONMENT = """\
environment:
  POCKETGRID_GATEWAY      default of --gateway
  POCKETGRID_JOIN_SECRET  the join secret itself, instead of --join-secret-file
  XDG_STATE_HOME, XDG_CACHE_HOME  where state and cache are by default
"""

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}

DEFAULT_CREDIT_BYTES = 32 << 20
MIN_CREDIT_SHARDS = 64
SMALL_SHARD_BYTES = 64 << 10
"""Shards of this size may fill the credit in bytes; the credit in shards is for larger ones and for latency."""

JOURNAL_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one agent process.

    Attributes:
        gateway: host:port to dial.
        ca_file: certificates to trust; None for the system's.
        join_secret: sent with every call.
        tls_server_name: name the gateway's certificate must bear, if not the host dialled.
        name: of the device; empty keeps or makes one.
        owner, node_name, labels: as in Hello.
        facts: of the machine, with the owner's corrections.
        state_dir, cache_dir: folders.
        cache_bytes: disk budget of models.
        memory_bytes: budget of models, runs and queued inputs together.
        journal_bytes: unsettled results beyond which nothing new is begun.
        threads: of the engine, over all slots.
        slots: shards computed at the same time.
        micro_batch: items per run; 0 measures.
        preload: load the engine at the start, not with the first work order.
        drain_s: how long an orderly end may take.
        policy: when to work.
        log_level: of Python's logging.
        history: file of what happened to every attempt, or None.
    """

    gateway: str
    ca_file: Path | None
    join_secret: str
    tls_server_name: str
    name: str
    owner: str
    node_name: str
    labels: Mapping[str, str]
    facts: MachineFacts
    state_dir: Path
    cache_dir: Path
    cache_bytes: int
    memory_bytes: int
    journal_bytes: int
    threads: int
    slots: int
    micro_batch: int
    preload: bool
    drain_s: float
    policy: Policy
    log_level: str
    history: Path | None = None

    @property
    def credit_bytes(self) -> int:
        """Input bytes this device is willing to hold."""
        return min(DEFAULT_CREDIT_BYTES, self.memory_bytes // 8)

    @property
    def credit_shards(self) -> int:
        """Shards this device is willing to hold."""
        return max(MIN_CREDIT_SHARDS, self.slots * 2, self.credit_bytes // SMALL_SHARD_BYTES)


def parse_bytes(text: str) -> int:
    """A Kubernetes quantity such as ``512Mi`` or ``2G`` in bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?|[KMGT]i)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity of bytes such as 512Mi or 2Gi")
    return int(float(match[1]) * _UNITS[match[2]])


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="pocketgrid-agent",
        # Else `--join-secret S` would mean --join-secret-file, and the secret end up in everyone's process list.
        allow_abbrev=False,
        description="Compute inference jobs leased by a PocketGrid gateway. Without a command: run until stopped; "
        "`probe` prints what is known of this machine as JSON.",
        epilog=ENVIRONMENT + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("command", nargs="?", choices=("run", "probe"), default="run", help="default: run")
    top.add_argument("--version", action="version", version=f"pocketgrid-agent {__version__}")
    _add_gateway(top.add_argument_group("gateway"), environment)
    _add_identity(top.add_argument_group("identity"))
    _add_resources(top.add_argument_group("resources"), environment)
    _add_policy(top.add_argument_group("when to work (unknown readings never stop work)"))
    top.add_argument("--drain-seconds", type=_positive_float, default=30.0, metavar="S", dest="drain_s")
    top.add_argument(
        "--history", type=Path, metavar="FILE", help="append what happens to every attempt, as lines of JSON"
    )
    top.add_argument("--log-level", type=str.upper, choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")
    return top


def _add_gateway(group: argparse._ArgumentGroup, environment: Mapping[str, str]) -> None:
    group.add_argument("--gateway", metavar="HOST:PORT", default=environment.get("POCKETGRID_GATEWAY", ""))
    group.add_argument("--ca-file", type=Path, metavar="PEM", help="default: the system's certificates")
    group.add_argument("--join-secret-file", type=Path, metavar="FILE", help="first line is the secret")
    group.add_argument(
        "--tls-server-name", default="", metavar="NAME", help="in the gateway's certificate, if not HOST"
    )


def _add_identity(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--name", default="", help="default: made once from the host name, then kept")
    group.add_argument("--owner", default="", help="who is responsible for this device")
    group.add_argument("--node-name", default="", help="Kubernetes Node this machine already is")
    group.add_argument("--kind", choices=KINDS, help="instead of what was found")
    group.add_argument(
        "--label", action="append", default=[], type=_label, metavar="KEY=VALUE", dest="labels", help="repeat"
    )


def _add_resources(group: argparse._ArgumentGroup, environment: Mapping[str, str]) -> None:
    home = Path(environment.get("HOME") or Path.home())
    state_home = Path(environment.get("XDG_STATE_HOME") or home / ".local/state")
    cache_home = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    group.add_argument("--state-dir", type=Path, default=state_home / "pocketgrid-agent", metavar="DIR")
    group.add_argument(
        "--cache-dir",
        type=Path,
        default=cache_home / "pocketgrid-agent",
        metavar="DIR",
        help="of models; several agents may share it",
    )
    group.add_argument("--cache-budget", type=_bytes, default="2Gi", metavar="BYTES", dest="cache_bytes")
    group.add_argument(
        "--memory-budget", type=_bytes, metavar="BYTES", dest="memory_bytes", help="default: half the memory"
    )
    group.add_argument(
        "--journal-budget", type=_bytes, default=str(JOURNAL_BYTES), metavar="BYTES", dest="journal_bytes",
        help="of results not yet settled; beyond it nothing new is begun",
    )  # fmt: skip
    group.add_argument("--threads", type=_positive, metavar="N", help="default: all cores")
    group.add_argument("--slots", type=_positive, default=1, metavar="N", help="shards at a time; default 1")
    group.add_argument("--micro-batch", type=_positive, default=0, metavar="N", help="default: measured")
    group.add_argument(
        "--preload", action="store_true", help="load the engine at the start (30 MB), not with the first work order"
    )


def _add_policy(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--min-battery", type=float, metavar="PERCENT", help="while not charging; default 30 if there is one"
    )
    group.add_argument("--only-charging", action="store_true")
    group.add_argument("--max-battery-celsius", type=float, metavar="C", help="default 45 if there is one")
    group.add_argument("--max-celsius", type=float, metavar="C", help="of the processor; default: no limit")
    group.add_argument("--min-memory", type=_bytes, metavar="BYTES", help="available; default: no limit")


def settings_from(arguments: argparse.Namespace, environment: Mapping[str, str], facts: MachineFacts) -> Settings:
    """Settings of a parsed command line.

    Raises:
        ValueError: something is missing or contradictory; the message names the option.
    """
    if not re.fullmatch(r"\S+:\d{1,5}", arguments.gateway):
        raise ValueError("--gateway HOST:PORT (or POCKETGRID_GATEWAY) is needed")
    slots: int = arguments.slots
    threads: int = arguments.threads or facts.cores
    if slots > threads:
        raise ValueError(f"--slots {slots} need at least as many --threads, not {threads}")
    return Settings(
        gateway=arguments.gateway,
        ca_file=_readable(arguments.ca_file, "--ca-file"),
        join_secret=_join_secret(arguments.join_secret_file, environment),
        tls_server_name=arguments.tls_server_name,
        name=arguments.name,
        owner=arguments.owner,
        node_name=arguments.node_name,
        labels=dict(arguments.labels),
        facts=facts,
        state_dir=arguments.state_dir.expanduser(),
        cache_dir=arguments.cache_dir.expanduser(),
        cache_bytes=arguments.cache_bytes,
        memory_bytes=arguments.memory_bytes or (facts.memory_bytes or 1 << 30) // 2,
        journal_bytes=arguments.journal_bytes,
        threads=threads,
        slots=slots,
        micro_batch=arguments.micro_batch,
        preload=arguments.preload,
        drain_s=arguments.drain_s,
        policy=_policy(arguments, default_policy(has_battery=facts.has_battery)),
        log_level=arguments.log_level,
        history=arguments.history,
    )


def machine_facts(arguments: argparse.Namespace) -> MachineFacts:
    """Facts of this machine, with the owner's corrections."""
    facts = probe(Path("/"), environment=os.environ)
    return replace(facts, kind=arguments.kind) if arguments.kind else facts


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> argparse.Namespace:
    """The command line, parsed; argparse ends the process with status 2 where it is wrong."""
    return parser(environment).parse_args(arguments)


def _policy(arguments: argparse.Namespace, default: Policy) -> Policy:
    def either(given: float | None, otherwise: float | None) -> float | None:
        return otherwise if given is None else given

    return Policy(
        min_battery_percent=either(arguments.min_battery, default.min_battery_percent),
        only_charging=arguments.only_charging,
        max_battery_celsius=either(arguments.max_battery_celsius, default.max_battery_celsius),
        max_celsius=arguments.max_celsius,
        min_memory_bytes=arguments.min_memory,
    )


def _join_secret(file: Path | None, environment: Mapping[str, str]) -> str:
    if file is None:
        secret = environment.get("POCKETGRID_JOIN_SECRET", "").strip()
        if not secret:
            raise ValueError("--join-secret-file (or POCKETGRID_JOIN_SECRET) is needed")
        return secret
    readable = _readable(file, "--join-secret-file")
    assert readable is not None
    lines = readable.read_text().split("\n", 1)
    if not lines[0].strip():
        raise ValueError(f"--join-secret-file: the first line of {file} is empty")
    return lines[0].strip()


def _readable(file: Path | None, option: str) -> Path | None:
    if file is not None and not os.access(file, os.R_OK):
        raise ValueError(f"{option}: cannot read {file}")
    return file


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
