"""What does a device pay for being part of the grid without work: memory, processor; and how soon is it there?

A real agent on a real gateway without jobs, heartbeats as in the product. The agent runs with its defaults, so its
engine is not loaded. The first start, which asks the engine once what it is, is measured apart.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack.bench.errors import BenchError
from hack.bench.figures import Definition, Figure
from hack.bench.grid import STOP_DEADLINE_S, wait_for_file
from hack.bench.measurements.base import Conditions, Measurement, median
from hack.controlplane.child import Child
from hack.joining import enrol_agent

DEADLINE_S = 60.0
SETTLE_S = 3.0
"""After attaching, so that what is measured is waiting and not starting."""

IDLE_S = 25.0
QUICK_IDLE_S = 2.0
STARTS_PER_ROUND = 3

MEMORY = Definition(
    name="agent_idle_rss_mb",
    unit="MB",
    goal=60.0,
    at_least=False,
    meaning="Resident memory (VmRSS) of an attached agent without work, pages it shares with others included",
    origin="what waits on a phone all day must not be what Android looks for when memory is short",
)
START = Definition(
    name="agent_start_seconds",
    unit="s",
    goal=1.5,
    at_least=False,
    meaning="From the start of an agent's process until the gateway has taken its Hello; not its first start",
    origin="Android starts a killed agent anew many times a day",
)
PROCESSOR = Definition(
    name="agent_idle_cpu_percent",
    unit="%",
    goal=0.5,
    at_least=False,
    meaning=f"Processor time of an attached agent without work, as share of one core over {IDLE_S:.0f} s, all threads",
    origin="of a core that takes 1 W this is 0.12 Wh a day, less than 1 % of a phone's battery of 15 Wh",
)


@dataclass(frozen=True, slots=True)
class _Idle:
    rss_mb: float
    pss_mb: float
    cpu_percent: float


def _run(conditions: Conditions) -> Sequence[Figure]:
    say = conditions.progress.say
    starts: list[float] = []
    idles: list[_Idle] = []
    with _gateway(conditions.folder) as (where, attached):
        first = _start_once(conditions.folder, where, attached, idle_s=0.0)[0]
        say(f"first start: {first:.2f} s")
        for number in range(1, conditions.rounds + 1):
            others = range(STARTS_PER_ROUND - 1)
            starts += [_start_once(conditions.folder, where, attached, idle_s=0.0)[0] for _ in others]
            seconds, idle = _start_once(
                conditions.folder, where, attached, idle_s=QUICK_IDLE_S if conditions.quick else IDLE_S
            )
            starts.append(seconds)
            assert idle is not None
            idles.append(idle)
            say(
                f"round {number}/{conditions.rounds}: {median(starts):.2f} s, {idle.rss_mb:.1f} MB resident "
                f"({idle.pss_mb:.1f} MB its share), {idle.cpu_percent:.3f} %"
            )
    return (
        Figure(MEMORY, tuple(i.rss_mb for i in idles), {"proportional_set_size_mb": median(i.pss_mb for i in idles)}),
        Figure(START, tuple(starts), {"first_start_seconds": first}),
        Figure(PROCESSOR, tuple(i.cpu_percent for i in idles)),
    )


@contextmanager
def _gateway(folder: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    ready, attached = folder / "ready.json", folder / "attached.json"
    module = ["hack.bench.idle_gateway", "--state-dir", str(folder / "gateway"), "--ready", str(ready)]
    gateway = _child("gateway", folder, [*module, "--attached", str(attached)])
    gateway.start()
    try:
        yield wait_for_file(ready, gateway, DEADLINE_S), attached
    finally:
        gateway.stop()


def _start_once(folder: Path, where: dict[str, Any], attached: Path, *, idle_s: float) -> tuple[float, _Idle | None]:
    """Seconds until attached, and what idling for `idle_s` costs."""
    attached.unlink(missing_ok=True)
    enrol_agent(where, folder / "agent", "bench-idle")
    agent = _child(
        "agent",
        folder,
        [
            "pocketgrid_agent", "--gateway", where["address"], "--name", "bench-idle",
            "--state-dir", str(folder / "agent"), "--cache-dir", str(folder / "models"), "--log-level", "warning",
        ],
    )  # fmt: skip
    started = time.monotonic()
    agent.start()
    try:
        seconds = wait_for_file(attached, agent, DEADLINE_S)["at"] - started
        return seconds, _idle(agent, idle_s) if idle_s else None
    finally:
        agent.stop()


def _idle(agent: Child, seconds: float) -> _Idle:
    time.sleep(SETTLE_S)
    pid = agent.pid
    if pid is None:
        raise BenchError("the agent ended while it should have waited")
    spent, began = _processor_seconds(pid), time.monotonic()
    time.sleep(seconds)
    share = (_processor_seconds(pid) - spent) / (time.monotonic() - began)
    return _Idle(_memory_mb(pid, "Rss:"), _memory_mb(pid, "Pss:"), 100 * share)


def _processor_seconds(pid: int) -> float:
    """Of all threads, to the nanosecond: the ticks of /proc/pid/stat are too coarse for so little."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def _memory_mb(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise BenchError(f"the kernel does not tell {field} of a process")


def _child(name: str, folder: Path, module: list[str]) -> Child:
    return Child(
        name,
        [sys.executable, "-m", *module],
        log=folder / f"{name}.log",
        folder=Path.cwd(),
        stop_deadline_s=STOP_DEADLINE_S,
    )


MEASUREMENT = Measurement("footprint of an idle agent", (MEMORY, START, PROCESSOR), _run)
