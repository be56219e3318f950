"""`pocketgrid-agent doctor`: what would keep an agent from working here, each with its remedy.

Every check looks at one thing, takes no longer than its own deadline, and never raises; none of them changes anything.
What cannot be seen from inside is said as such, with how to look: a doctor who claims that all is well because he
cannot see is worse than none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from pocketgrid.errors import StoreError
from pocketgrid_agent import android, credentials, network, profiles
from pocketgrid_agent.cache import SPARE_BYTES
from pocketgrid_agent.credentials import Credentials
from pocketgrid_agent.engine_facts import EngineError, ask_engine
from pocketgrid_agent.findings import Finding, Gravity, as_json, as_table, failure, note, ok, warning
from pocketgrid_agent.hours import LocalTime
from pocketgrid_agent.policy import START, Level, judge
from pocketgrid_agent.probe import MachineFacts
from pocketgrid_agent.tools import ANSWER_SECONDS, all_sensors

HEALTHY, SICK = 0, 5
"""Exit status: 5 if anything would keep an agent from working."""

OLDEST_PYTHON = (3, 11)
NEEDED = {"numpy": "1.26", "onnxruntime": "1.20", "grpcio": "1.80", "protobuf": "6.31", "cryptography": "42"}
"""Distributions the agent needs, and the oldest version of each."""

_TERMUX_PACKAGES = {
    "numpy": "python-numpy",
    "onnxruntime": "python-onnxruntime",
    "grpcio": "python-grpcio",
    "cryptography": "python-cryptography",
}

ROOM_BYTES = 256 << 20
"""Less for models or memory than this, and hardly anything can be done."""


def main(parsed: argparse.Namespace, facts: MachineFacts, environment: Mapping[str, str]) -> int:
    """Examine, report, and return the exit status."""
    findings = list(examine(parsed, facts, environment))
    sick = any(finding.gravity is Gravity.FAILURE for finding in findings)
    if parsed.json:
        print(json.dumps({"healthy": not sick, "findings": as_json(findings)}, indent=2))
    else:
        print(as_table(findings))
        print("\nAn agent cannot work here yet." if sick else "\nAn agent can work here.")
    return SICK if sick else HEALTHY


def examine(parsed: argparse.Namespace, facts: MachineFacts, environment: Mapping[str, str]) -> Iterator[Finding]:
    """All findings, in the order in which they are best mended."""
    yield from packages(android_device=facts.os == "android")
    yield _engine()
    yield _telemetry()
    yield _folder("state", parsed.state_dir.expanduser(), "--state-dir")
    yield _folder("cache", parsed.cache_dir.expanduser(), "--cache-dir")
    yield _disk(parsed.cache_dir.expanduser(), parsed.cache_bytes)
    yield from _readings(parsed, facts)
    if facts.os == "android":
        yield from android.examine(Path("/"), environment)
    held, found = joined(parsed.state_dir.expanduser(), time.time())
    yield found
    if held is not None:
        yield from network.examine(parsed.gateway or held.gateway_address, held)


def joined(folder: Path, wall: float) -> tuple[Credentials | None, Finding]:
    """This device's credentials, and what to think of them at `wall` (seconds since the Unix epoch)."""
    remedy = "ask whoever runs the operator for a join command and run it"
    try:
        held = credentials.load(folder)
        readable_by_others = held is not None and (folder / credentials.KEY_FILE).stat().st_mode & 0o077
    except (StoreError, OSError) as error:
        return None, failure("joined", str(error), remedy)
    if held is None:
        return None, failure("joined", "this device has not joined a grid", remedy)
    if readable_by_others:
        return held, failure(
            "joined", f"others can read this device's key in {folder}", f"chmod 600 {folder / credentials.KEY_FILE}"
        )
    left = held.remaining_s(wall)
    if left <= 0:
        text = f"as {held.device}; the certificate ran out {-left / 3600:.0f} h ago"
        return held, note("joined", text, "nothing: a running agent gets another one by itself")
    return held, ok("joined", f"as {held.device}; the certificate is good for {left / 3600:.0f} h")


def packages(*, android_device: bool) -> Iterator[Finding]:
    """Python and what it must find."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < OLDEST_PYTHON:
        yield failure("python", f"version {version}", "install Python 3.11 or newer")
    else:
        yield ok("python", f"version {version}")
    for name, oldest in NEEDED.items():
        remedy = f"pip install '{name}>={oldest}'"
        if android_device and name in _TERMUX_PACKAGES:
            remedy = f"pkg install {_TERMUX_PACKAGES[name]} (pip would try to compile it for hours)"
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield failure(f"package-{name}", "is not installed", remedy)
            continue
        if _numbers(found) < _numbers(oldest):
            yield failure(f"package-{name}", f"version {found} is older than {oldest}", remedy)
        else:
            yield ok(f"package-{name}", f"version {found}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _engine() -> Finding:
    try:
        facts = ask_engine()
    except EngineError as error:
        return failure(
            "engine", f"onnxruntime does not load: {error}",
            "install it anew; a build for another processor ends with signal 4 (illegal instruction)",
        )  # fmt: skip
    return ok("engine", f"{facts.description} loads, operator sets up to {facts.opset}")


def _telemetry() -> Finding:
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
        return ok("telemetry", "onnxruntime's is switched off")
    return failure("telemetry", "onnxruntime would report to its maker", "do not unset ORT_DISABLE_TELEMETRY")


def _folder(name: str, folder: Path, option: str) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remedy = f"give the agent a folder it may write to with {option}"
        return failure(f"{name}-folder", f"{folder} cannot be written: {error.strerror}", remedy)
    return ok(f"{name}-folder", f"{folder} can be written")


def _disk(folder: Path, budget_bytes: int) -> Finding:
    try:
        while not folder.exists():
            folder = folder.parent
        disk = os.statvfs(folder)
    except OSError as error:
        return note("disk", f"free space cannot be told: {error.strerror}")
    free = disk.f_bavail * disk.f_frsize
    room = free - SPARE_BYTES
    text = f"{free >> 20} MiB free at {folder}"
    if room <= 0:
        return failure("disk", text, f"make room; {SPARE_BYTES >> 20} MiB are always left to others")
    if room < min(ROOM_BYTES, budget_bytes):
        return warning("disk", text, "make room, or larger models will not fit")
    return ok("disk", text)


def _readings(parsed: argparse.Namespace, facts: MachineFacts) -> Iterator[Finding]:
    sensors = all_sensors(gateway_is_local=False)
    sensors.settle(ANSWER_SECONDS)
    vitals = sensors.read()
    available = vitals.memory_available_bytes
    if available is None:
        yield note("memory", "how much is available cannot be read")
    elif available < ROOM_BYTES:
        yield warning("memory", f"{available >> 20} MiB available", "close other apps, or models will not fit")
    else:
        yield ok("memory", f"{available >> 20} MiB available")
    profile = parsed.profile or profiles.suitable_profile(facts)
    policy = profiles.profile_from(parsed, facts).policy
    now = datetime.now().astimezone()
    verdict = judge(policy, vitals, 0.0, LocalTime(now.weekday(), now.hour * 60 + now.minute), START).verdict
    if verdict.level is Level.WORK:
        yield ok("policy", f"profile {profile}: may work now")
    else:
        doing = "would wait" if verdict.level is Level.PAUSE else "would work gently"
        remedy = 'nothing, if that is what you want; else see `pocketgrid-agent --help`, "when and how much to work"'
        yield note("policy", f"profile {profile}: {doing} now: {verdict.message} ({verdict.reason})", remedy)
    watched = {
        "the battery's charge": (policy.min_battery_percent is not None, vitals.battery_percent),
        "external power": (policy.only_charging, vitals.charging),
        "the battery's heat": (policy.max_battery_celsius is not None, vitals.battery_celsius),
        "the processor's heat": (policy.max_celsius is not None, vitals.processor_celsius),
        "whether the network is metered": (not policy.allow_metered, vitals.metered),
    }
    blind = [what for what, (wanted, value) in watched.items() if wanted and value is None]
    if blind:
        remedy = (
            "install the app Termux:API and `pkg install termux-api`" if facts.os == "android"
            else "use --pause-if-unknown for rules that must not be guessed at, or --profile stationary"
        )  # fmt: skip
        yield warning("sensors", f"the policy looks at {', '.join(blind)}, which cannot be read here", remedy)
    else:
        yield ok("sensors", "all that the policy looks at can be read")
