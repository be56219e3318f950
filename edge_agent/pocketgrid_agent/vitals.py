"""How this machine feels at the moment: load, memory, battery, heat, network.

Read anew for each heartbeat; a few small files, about a millisecond. What cannot be read is None, never 0: a phone
whose battery is hidden from apps must not look empty.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketgrid_agent.probe import battery_folders, memory_field, read_text

_PLAUSIBLE_CELSIUS = (-30.0, 150.0)
"""Readings outside are those of sensors that are switched off or speak another unit."""

_PROCESSOR_ZONES = ("cpu", "soc", "pkg", "x86", "core", "acpitz", "tsens", "big", "little", "mtktscpu", "thermal")

TERMUX_BATTERY_COMMAND = "termux-battery-status"
TERMUX_BATTERY_SECONDS = 30.0
"""Termux:API starts a process per question, and Android counts processes; so ask rarely."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """A reading. None means unknown.

    Attributes:
        network: ethernet, wifi, cellular or loopback; empty if unknown.
    """

    load1: float | None = None
    memory_available_bytes: int | None = None
    battery_percent: float | None = None
    charging: bool | None = None
    battery_celsius: float | None = None
    processor_celsius: float | None = None
    network: str = ""

    @property
    def temperature_celsius(self) -> float | None:
        """The hottest of what is known."""
        return max((h for h in (self.battery_celsius, self.processor_celsius) if h is not None), default=None)


@dataclass(frozen=True, slots=True)
class Battery:
    """A reading of all batteries together."""

    percent: float | None = None
    charging: bool | None = None
    celsius: float | None = None


class VitalsReader:
    """Reads vitals below `root`.

    Args:
        root: where proc and sys are.
        ask_termux: gives the text of termux-battery-status, or None; used when /sys shows no battery.
        now: monotonic seconds, for asking Termux rarely.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        ask_termux: Callable[[], str | None] | None = None,
        now: Callable[[], float],
    ) -> None:
        self._root = root
        self._ask_termux = ask_termux
        self._now = now
        self._termux = Battery()
        self._termux_due = 0.0

    def read(self, *, gateway_is_local: bool = False) -> Vitals:
        """A reading of now."""
        battery = battery_of(self._root) or self._termux_battery()
        return Vitals(
            load1=_load1(self._root),
            memory_available_bytes=memory_field(self._root, "MemAvailable"),
            battery_percent=battery.percent,
            charging=battery.charging,
            battery_celsius=battery.celsius,
            processor_celsius=processor_celsius(self._root),
            network="loopback" if gateway_is_local else network(self._root),
        )

    def _termux_battery(self) -> Battery:
        if self._ask_termux is not None and self._now() >= self._termux_due:
            self._termux_due = self._now() + TERMUX_BATTERY_SECONDS
            self._termux = termux_battery(self._ask_termux())
        return self._termux


def termux_command() -> Callable[[], str | None] | None:
    """How to ask Termux:API for the battery; None if it is not installed."""
    command = shutil.which(TERMUX_BATTERY_COMMAND)
    if command is None:
        return None

    def ask() -> str | None:
        try:
            # The command hangs for good when the app half of Termux:API is missing.
            answer = subprocess.run([command], capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout if answer.returncode == 0 else None

    return ask


def termux_battery(text: str | None) -> Battery:
    """What termux-battery-status says; all unknown if it is not understood."""
    try:
        answer: Any = json.loads(text or "")
    except ValueError:
        return Battery()
    if not isinstance(answer, dict):
        return Battery()
    percent, celsius = answer.get("percentage"), answer.get("temperature")
    status, plugged = str(answer.get("status", "")), str(answer.get("plugged", ""))
    charging = None
    if status in ("CHARGING", "FULL") or plugged.startswith("PLUGGED"):
        charging = True
    elif status in ("DISCHARGING", "NOT_CHARGING") or plugged == "UNPLUGGED":
        charging = False
    return Battery(
        percent=float(percent) if isinstance(percent, int | float) and 0 <= percent <= 100 else None,
        charging=charging,
        celsius=_plausible(float(celsius)) if isinstance(celsius, int | float) else None,
    )


def battery_of(root: Path) -> Battery | None:
    """All batteries of /sys as one; None if there is none to be seen."""
    folders = battery_folders(root)
    if not folders:
        return None
    percents = [p for f in folders if (p := _number(f / "capacity")) is not None and 0 <= p <= 100]
    heats = [t for f in folders if (t := _celsius(f / "temp", per_degree=10)) is not None]
    statuses = {s for f in folders if (s := read_text(f / "status"))}
    charging: bool | None = None
    if statuses & {"Charging", "Full", "Not charging"} and "Discharging" not in statuses:
        charging = True  # plugged in is what matters; a full battery does not charge
    elif "Discharging" in statuses:
        charging = False
    percent = sum(percents) / len(percents) if percents else None
    return Battery(percent=percent, charging=charging, celsius=max(heats, default=None))


def processor_celsius(root: Path) -> float | None:
    """Hottest zone that looks like the processor's."""
    heats = []
    zones = root / "sys/class/thermal"
    try:
        folders = sorted(zones.glob("thermal_zone*"))
    except OSError:
        return None
    for zone in folders:
        name = (read_text(zone / "type") or "").lower()
        if any(word in name for word in _PROCESSOR_ZONES):
            heat = _celsius(zone / "temp", per_degree=1000)
            if heat is not None:
                heats.append(heat)
    return max(heats, default=None)


def network(root: Path) -> str:
    """Kind of the interface the default route goes through; empty if unknown."""
    for line in (read_text(root / "proc/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) > 2 and words[1] == "00000000":
            return _kind_of_interface(root, words[0])
    return ""


def resident_bytes() -> int:
    """Memory of this process at the moment; 0 if it cannot be read."""
    words = (read_text(Path("/proc/self/statm")) or "").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0


def _kind_of_interface(root: Path, name: str) -> str:
    folder = root / "sys/class/net" / name
    if name == "lo":
        return "loopback"
    if (folder / "wireless").exists() or (folder / "phy80211").exists() or name.startswith("wl"):
        return "wifi"
    if name.startswith(("rmnet", "wwan", "ccmni", "pdp", "ppp")):
        return "cellular"
    return "ethernet" if name.startswith(("eth", "en")) or read_text(folder / "type") == "1" else ""


def _load1(root: Path) -> float | None:
    words = (read_text(root / "proc/loadavg") or "").split()
    try:
        return float(words[0])
    except (IndexError, ValueError):
        return None


def _number(path: Path) -> float | None:
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None


def _celsius(path: Path, *, per_degree: int) -> float | None:
    number = _number(path)
    return None if number is None else _plausible(number / per_degree)


def _plausible(celsius: float) -> float | None:
    low, high = _PLAUSIBLE_CELSIUS
    return celsius if low <= celsius <= high else None
