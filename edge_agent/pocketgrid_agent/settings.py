"""Everything an owner can say about an agent, once, from the command line, the environment and a file."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketgrid_agent import __version__, profiles
from pocketgrid_agent.config import PREFIX, ConfigError, apply_defaults
from pocketgrid_agent.joining import Invitation
from pocketgrid_agent.policy import Policy
from pocketgrid_agent.probe import MachineFacts, probe
from pocketgrid_agent.quantities import label, positive, quantity, seconds

COMMANDS = ("run", "join", "status", "doctor", "probe")
KINDS = ("phone", "sbc", "laptop", "desktop", "server")

EXIT_CODES = """\
exit status:
  0  drained, or stopped while nothing was begun
  1  something unforeseen; the message says what, the journal keeps all results
  2  wrong options, or not joined yet
  3  the gateway refused this device for good
  4  the state folder is in use by another agent, or state or cache cannot be written
  5  doctor: something keeps an agent from working here
  128+n  ended at once by a second signal n
"""

ENVIRONMENT = f"""\
environment:
  POCKETGRID_GATEWAY      default of --gateway
  POCKETGRID_JOIN_TOKEN   the token itself, instead of --token-file
  POCKETGRID_CONFIG       default of --config
  {PREFIX}<OPTION>  any other option, such as {PREFIX}MIN_BATTERY=40; lists with ';' between
  XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_CACHE_HOME  where file, state and cache are by default
"""

DEFAULT_CREDIT_BYTES = 32 << 20
MIN_CREDIT_SHARDS = 64
SMALL_SHARD_BYTES = 64 << 10
"""Shards of this size may fill the credit in bytes; the credit in shards is for larger ones and for latency."""

JOURNAL_BYTES = 256 << 20

ADDRESS = re.compile(r"\S+:\d{1,5}")

SHORTEST_DUTY = 0.05
"""Below it a device would be in the grid's way more than it helps."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one agent process.

    Attributes:
        gateway: host:port to dial; empty: what was said when this device joined.
        invitation: how to join, should that be needed; None: not at all.
        name: of the device; empty keeps or makes one.
        node_name, labels: as in Hello.
        facts: of the machine, with the owner's corrections.
        state_dir, cache_dir: folders.
        cache_bytes: disk budget of models.
        memory_bytes: budget of models, runs and queued inputs together.
        journal_bytes: unsettled results beyond which nothing new is begun.
        threads: of the engine, over all slots.
        slots: shards computed at the same time.
        micro_batch: items per run; 0 measures.
        graph_optimization: how far the engine rewrites models: all, extended, basic or off.
        preload: load the engine at the start, not with the first work order.
        drain_s: how long an orderly end may take.
        policy: when to work.
        duty: share of the time its threads compute, 0 to 1.
        log_level: of Python's logging.
        history: file of what happened to every attempt, or None.
    """

    gateway: str
    invitation: Invitation | None
    name: str
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
    graph_optimization: str
    preload: bool
    drain_s: float
    policy: Policy
    duty: float
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


def parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="pocketgrid-agent",
        # Options of one version must not mean other ones in the next.
        allow_abbrev=False,
        description="Compute inference jobs leased by a PocketGrid gateway.\n\n"
        "commands:\n"
        "  run      until stopped; also without a command\n"
        "  join     HOST:PORT --token ... --ca-sha256 ...: become a device of a grid; once, then `run`\n"
        "  status   what the agent of this state folder is doing, and if it does not work, why\n"
        "  doctor   look for what would keep an agent from working here, with remedies\n"
        "  probe    what is known of this machine, as JSON",
        epilog=ENVIRONMENT + "\n" + EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("command", nargs="?", choices=COMMANDS, default="run", help="default: run")
    top.add_argument("address", nargs="?", metavar="HOST:PORT", help="of `join`: where")
    top.add_argument("--version", action="version", version=f"pocketgrid-agent {__version__}")
    top.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML; default ~/.config/pocketgrid-agent/config.toml, if it is there",
    )
    top.add_argument("--json", action="store_true", help="of status and doctor: for programs")
    _add_gateway(top.add_argument_group("gateway"), environment)
    _add_identity(top.add_argument_group("identity"))
    _add_resources(top.add_argument_group("resources"), environment)
    profiles.add_arguments(top.add_argument_group("when and how much to work; limits may be `off`"))
    top.add_argument("--drain-seconds", type=seconds, default=30.0, metavar="S", dest="drain_s")
    top.add_argument(
        "--history", type=Path, metavar="FILE", help="append what happens to every attempt, as lines of JSON"
    )
    top.add_argument("--log-level", type=str.upper, choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")
    return top


def _add_gateway(group: argparse._ArgumentGroup, environment: Mapping[str, str]) -> None:
    group.add_argument(
        "--gateway", metavar="HOST:PORT", default=environment.get("POCKETGRID_GATEWAY", ""),
        help="default: what was said when this device joined",
    )  # fmt: skip
    group.add_argument("--join", metavar="HOST:PORT", default="", help="of `run`: join there first, unless joined")
    group.add_argument(
        "--token", default="", metavar="TOKEN", help="others on this machine may see it while it is used"
    )
    group.add_argument("--token-file", type=Path, metavar="FILE", help="its first line is the token")
    group.add_argument("--ca-sha256", default="", metavar="HEX", help="of the grid's authority")
    group.add_argument(
        "--tls-server-name", default="", metavar="NAME", help="in the gateway's certificate, if not HOST"
    )


def _add_identity(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--name", default="", help="default: made once from the host name, then kept")
    group.add_argument("--node-name", default="", help="Kubernetes Node this machine already is")
    group.add_argument("--kind", choices=KINDS, help="instead of what was found")
    group.add_argument(
        "--label", action="append", default=[], type=label, metavar="KEY=VALUE", dest="labels", help="repeat"
    )


def _add_resources(group: argparse._ArgumentGroup, environment: Mapping[str, str]) -> None:
    home = _home(environment)
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
    group.add_argument("--cache-budget", type=quantity, default="2Gi", metavar="BYTES", dest="cache_bytes")
    group.add_argument(
        "--memory-budget", type=quantity, metavar="BYTES", dest="memory_bytes", help="default: half the memory"
    )
    group.add_argument(
        "--journal-budget", type=quantity, default=str(JOURNAL_BYTES), metavar="BYTES", dest="journal_bytes",
        help="of results not yet settled; beyond it nothing new is begun",
    )  # fmt: skip
    group.add_argument("--threads", type=positive, metavar="N", help="default: all cores")
    group.add_argument("--slots", type=positive, default=1, metavar="N", help="shards at a time; default 1")
    group.add_argument("--micro-batch", type=positive, default=0, metavar="N", help="default: measured")
    group.add_argument(
        "--graph-optimization", choices=("all", "extended", "basic", "off"), default="all",
        help="how far the engine rewrites models: less is slower, and the way round a fault of its optimiser",
    )  # fmt: skip
    group.add_argument(
        "--preload", action="store_true", help="load the engine at the start (30 MB), not with the first work order"
    )


def settings_from(arguments: argparse.Namespace, environment: Mapping[str, str], facts: MachineFacts) -> Settings:
    """Settings of a parsed command line.

    Raises:
        ValueError: something is missing or contradictory; the message names the option.
    """
    if arguments.gateway and not ADDRESS.fullmatch(arguments.gateway):
        raise ValueError(f"--gateway: {arguments.gateway!r} is not HOST:PORT")
    slots: int = arguments.slots
    profile = profiles.profile_from(arguments, facts)
    # A share of less than one core is one thread that rests for a part of the time.
    wanted = profile.cpu_share * facts.cores
    threads: int = arguments.threads or max(1, int(wanted))
    duty = 1.0 if arguments.threads else min(1.0, max(wanted / threads, SHORTEST_DUTY))
    if slots > threads:
        raise ValueError(f"--slots {slots} need at least as many --threads, not {threads}")
    return Settings(
        gateway=arguments.gateway,
        invitation=invitation(arguments, environment),
        name=arguments.name,
        node_name=arguments.node_name,
        labels=dict(arguments.labels),
        facts=facts,
        state_dir=arguments.state_dir.expanduser(),
        cache_dir=arguments.cache_dir.expanduser(),
        cache_bytes=arguments.cache_bytes,
        memory_bytes=arguments.memory_bytes or int(profile.memory_share * (facts.memory_bytes or 1 << 30)),
        journal_bytes=arguments.journal_bytes,
        threads=threads,
        slots=slots,
        micro_batch=arguments.micro_batch,
        graph_optimization=arguments.graph_optimization,
        preload=arguments.preload,
        drain_s=arguments.drain_s,
        policy=profile.policy,
        duty=duty,
        log_level=arguments.log_level,
        history=arguments.history,
    )


def machine_facts(arguments: argparse.Namespace) -> MachineFacts:
    """Facts of this machine, with the owner's corrections."""
    facts = probe(Path("/"), environment=os.environ)
    return replace(facts, kind=arguments.kind) if arguments.kind else facts


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> argparse.Namespace:
    """The command line over environment over file; where one is wrong, the process ends with status 2."""
    known = parser(environment)
    try:
        apply_defaults(known, _config_file(arguments, environment), environment)
    except ConfigError as error:
        known.error(str(error))
    if environment.get("POCKETGRID_GATEWAY"):
        known.set_defaults(gateway=environment["POCKETGRID_GATEWAY"])
    return known.parse_args(arguments)


def _config_file(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> Path | None:
    """The file named on the command line or in the environment, else the usual one if it is there."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    named: Path | None = first.parse_known_args(arguments)[0].config
    if named is None and environment.get("POCKETGRID_CONFIG"):
        named = Path(environment["POCKETGRID_CONFIG"])
    if named is not None:
        return named
    usual = Path(environment.get("XDG_CONFIG_HOME") or _home(environment) / ".config") / "pocketgrid-agent/config.toml"
    return usual if usual.exists() else None


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or Path.home())


def invitation(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Invitation | None:
    """How to join; None if nothing was said of it.

    Raises:
        ValueError: something of it is missing; the message names the option.
    """
    joining = arguments.command == "join"
    if arguments.address and not joining:
        raise ValueError(f"{arguments.address}: only `join` takes an address; others have --gateway")
    address = arguments.address or arguments.join
    if not address:
        if joining:
            raise ValueError(
                "join HOST:PORT: the address is missing; the whole command is what the operator's people say"
            )
        return None
    if not ADDRESS.fullmatch(address):
        raise ValueError(f"{address!r} is not HOST:PORT")
    pin = arguments.ca_sha256.lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", pin):
        raise ValueError("--ca-sha256 is needed: 64 hexadecimal digits, which are in the join command")
    return Invitation(address, _token(arguments, environment), pin, arguments.tls_server_name)


def _token(arguments: argparse.Namespace, environment: Mapping[str, str]) -> str:
    if arguments.token_file is not None:
        readable = _readable(arguments.token_file, "--token-file")
        assert readable is not None
        token = readable.read_text().split("\n", 1)[0].strip()
    else:
        token = arguments.token or environment.get("POCKETGRID_JOIN_TOKEN", "").strip()
    if not token:
        raise ValueError("--token, --token-file or POCKETGRID_JOIN_TOKEN is needed to join")
    return token


def _readable(file: Path | None, option: str) -> Path | None:
    if file is not None and not os.access(file, os.R_OK):
        raise ValueError(f"{option}: cannot read {file}")
    return file
