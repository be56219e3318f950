"""What the figures were measured on, without saying whose machine it is."""

from __future__ import annotations

import datetime as dt
import os
import platform
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Self

QUIET_CORES = 0.1
"""More than this taken by others, and rates say as much about them as about us."""

_DISTRIBUTIONS = ("onnxruntime", "grpcio", "numpy")


def machine_facts(today: dt.date) -> Mapping[str, str]:
    """Facts by name, in the order in which they are shown."""
    return {
        "Processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "System": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in _DISTRIBUTIONS},
        "Measured on": today.isoformat(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.machine()


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What processes that are not ours have taken of the machine since `Neighbours.begin`."""

    at: float
    all_busy_s: float
    own_s: float

    @classmethod
    def begin(cls, now: float) -> Self:
        """Begin to watch at `now`, seconds of any clock."""
        return cls(now, _all_busy_s(), _own_s())

    def cores(self, now: float) -> float:
        """Mean number of cores they kept busy until `now`. Call when all our children have ended."""
        foreign = (_all_busy_s() - self.all_busy_s) - (_own_s() - self.own_s)
        return max(0.0, foreign / max(now - self.at, 1e-9))


def _all_busy_s() -> float:
    # proc(5): user nice system idle iowait irq softirq steal; idle and waiting for the disk are not busy.
    with Path("/proc/stat").open() as stat:
        ticks = [int(field) for field in stat.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
