"""Where vitals come from: one small interface, and the files Linux shows below /proc and /sys.

Whatever a file holds, reading it gives a plausible value or None; no sensor raises. Reading takes about a millisecond.
Tools that must be asked as processes are in `tools`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from pocketgrid_agent.probe import battery_folders, memory_field, read_text
from pocketgrid_agent.vitals import CELLULAR, ETHERNET, LOOPBACK, WIFI, Vitals, merge

_PLAUSIBLE_CELSIUS = (-30.0, 150.0)
"""Readings outside are those of sensors that are switched off or speak another unit."""

GLANCE_S = 0.2
"""Enough ticks to tell a busy processor from an idle one."""

_PROCESSOR_ZONES = ("cpu", "soc", "pkg", "x86", "core", "acpitz", "tsens", "big", "little", "mtktscpu", "thermal")

_CELLULAR_INTERFACES = ("rmnet", "wwan", "ccmni", "pdp", "ppp")


class Sensor(Protocol):
    """Something that knows how this machine feels, or part of it."""

    @property
    def takes_time(self) -> bool:
        """Whether its first reading knows nothing yet."""
        ...

    def read(self, *, calm: bool = False) -> Vitals:
        """What is known now; never raises, never waits. `calm`: there is no work, and older readings will do."""
        ...

    def settle(self, deadline_s: float) -> None:
        """Wait until what `read` has set going is done, at most until the deadline."""
        ...


@dataclass(frozen=True, slots=True)
class Sensors:
    """Several sensors as one. Earlier ones count where they know something.

    Attributes:
        gateway_is_local: the grid is on this machine, so no network is used.
    """

    parts: Sequence[Sensor]
    gateway_is_local: bool = False

    @property
    def take_time(self) -> bool:
        """Whether the first reading of some of them knows nothing yet."""
        return any(part.takes_time for part in self.parts)

    def settle(self, deadline_s: float) -> None:
        """For those who read only once: let sensors find out what takes time or a second look."""
        for part in self.parts:
            part.read()
        for part in self.parts:
            part.settle(deadline_s)

    def read(self, *, calm: bool = False) -> Vitals:
        """What all of them know together."""
        vitals = merge(part.read(calm=calm) for part in self.parts)
        return replace(vitals, network=LOOPBACK, metered=False) if self.gateway_is_local else vitals


class LinuxSensor:
    """What Linux shows below `root`, at once.

    Args:
        root: where proc and sys are.
        own_seconds: processor time of this process so far, all threads.
        ticks_per_second: unit of /proc/stat.
    """

    takes_time = False

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        own_seconds: Callable[[], float] | None = None,
        ticks_per_second: int | None = None,
    ) -> None:
        self._root = root
        self._own_seconds = own_seconds or _own_seconds
        self._ticks_per_second = ticks_per_second or os.sysconf("SC_CLK_TCK")
        self._before: tuple[int, int, float] | None = None

    def read(self, *, calm: bool = False) -> Vitals:
        """A reading of now, calm or not."""
        battery = battery_of(self._root)
        kind = network(self._root)
        return Vitals(
            load1=_load1(self._root),
            memory_available_bytes=memory_field(self._root, "MemAvailable"),
            battery_percent=battery.battery_percent,
            charging=battery.charging,
            battery_celsius=battery.battery_celsius,
            processor_celsius=processor_celsius(self._root),
            network=kind,
            metered={ETHERNET: False, LOOPBACK: False, WIFI: False, CELLULAR: True}.get(kind),
            others_cpu=self._others_cpu(),
        )

    def settle(self, deadline_s: float) -> None:
        """Let some time pass between two looks at the processors."""
        time.sleep(min(deadline_s, GLANCE_S))

    def _others_cpu(self) -> float | None:
        """Since the last reading; the first knows nothing yet."""
        ticks = _processor_ticks(self._root)
        if ticks is None:
            return None
        now = (*ticks, self._own_seconds())
        before, self._before = self._before, now
        if before is None or now[0] <= before[0]:
            return None
        total, busy, own = (later - earlier for later, earlier in zip(now, before, strict=True))
        return min(1.0, max(0.0, (busy - own * self._ticks_per_second) / total))


def battery_of(root: Path) -> Vitals:
    """All batteries of /sys as one."""
    folders = battery_folders(root)
    statuses = {s for f in folders if (s := read_text(f / "status"))}
    charging: bool | None = None
    if statuses & {"Charging", "Full", "Not charging"} and "Discharging" not in statuses:
        charging = True  # plugged in is what matters; a full battery does not charge
    elif "Discharging" in statuses:
        charging = False
    percents = [p for f in folders if (p := _number(f / "capacity")) is not None and 0 <= p <= 100]
    heats = [t for f in folders if (t := _celsius(f / "temp", per_degree=10)) is not None]
    percent = sum(percents) / len(percents) if percents else None
    return Vitals(
        battery_percent=credible_charge(percent, charging), charging=charging, battery_celsius=max(heats, default=None)
    )


def credible_charge(percent: float | None, charging: bool | None) -> float | None:
    """A battery at 0 % that is not even being emptied is a sensor that does not know."""
    return None if percent == 0 and charging is not False else percent


def plausible_celsius(celsius: float) -> float | None:
    """The reading, unless no machine could have taken it."""
    low, high = _PLAUSIBLE_CELSIUS
    return celsius if low <= celsius <= high else None


def processor_celsius(root: Path) -> float | None:
    """Hottest zone that looks like the processor's."""
    heats = []
    try:
        folders = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    except OSError:
        return None
    for zone in folders:
        name = (read_text(zone / "type") or "").lower()
        if any(word in name for word in _PROCESSOR_ZONES):
            heat = _celsius(zone / "temp", per_degree=1000)
            if heat is not None:
                heats.append(heat)
    return max(heats, default=None)


def default_interface(root: Path) -> str:
    """The interface the default route goes through; empty if unknown."""
    for line in (read_text(root / "proc/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) > 2 and words[1] == "00000000":
            return words[0]
    return ""


def network(root: Path) -> str:
    """Kind of the interface the default route goes through; empty if unknown."""
    name = default_interface(root)
    folder = root / "sys/class/net" / name
    if not name or "/" in name:
        return ""
    if name == "lo":
        return LOOPBACK
    if (folder / "wireless").exists() or (folder / "phy80211").exists() or name.startswith("wl"):
        return WIFI
    if name.startswith(_CELLULAR_INTERFACES):
        return CELLULAR
    return ETHERNET if name.startswith(("eth", "en")) or read_text(folder / "type") == "1" else ""


def resident_bytes() -> int:
    """Memory of this process at the moment; 0 if it cannot be read."""
    words = (read_text(Path("/proc/self/statm")) or "").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _processor_ticks(root: Path) -> tuple[int, int] | None:
    """All ticks of all processors so far, and the busy ones among them; Android hides both from apps."""
    for line in (read_text(root / "proc/stat") or "").splitlines():
        words = line.split()
        if words[:1] == ["cpu"] and len(words) >= 5 and all(word.isdigit() for word in words[1:]):
            # user nice system idle iowait irq softirq steal; guest time is in user's already.
            ticks = [int(word) for word in words[1:9]]
            idle = sum(ticks[3:5])
            return sum(ticks), sum(ticks) - idle
    return None


def _load1(root: Path) -> float | None:
    words = (read_text(root / "proc/loadavg") or "").split()
    try:
        return float(words[0])
    except (IndexError, ValueError):
        return None


def _number(path: Path) -> float | None:
    try:
        number = float(read_text(path) or "")
    except ValueError:
        return None
    return number if abs(number) < 1e9 else None


def _celsius(path: Path, *, per_degree: int) -> float | None:
    number = _number(path)
    return None if number is None else plausible_celsius(number / per_degree)
