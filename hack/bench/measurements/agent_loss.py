"""What does it cost when a device dies: how long until another has its work?

Measured in the engine's own log, on the monotonic clock that all processes of a machine share: from just before the
SIGKILL to the first lease that another device gets after the engine has given the dead one up. Shards are handed out
lowest number first, and the lost ones are lower than all that were never handed out, so that lease holds lost shards.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from hack.bench import workloads
from hack.bench.errors import BenchError
from hack.bench.figures import Definition, Figure
from hack.bench.grid import Grid, committed_shards, kill
from hack.bench.measurements.base import AGENTS, Conditions, Measurement, median
from hack.controlplane.child import Child

ROWS = 1_500
BEGUN_SHARDS = 6
LEASE_SECONDS = 1
"""The survivor asks for more when half of this is left, so the figure holds at most half a second of its own work."""

DEADLINE_S = 120.0
POLL_S = 0.01
RUNS_PER_ROUND = 2

RELEASE = Definition(
    name="agent_loss_to_release_seconds",
    unit="s",
    goal=3.0,
    at_least=False,
    meaning="SIGKILL of one of two agents in the middle of a job, until its shards are handed to the other",
    origin="a device that stops answering costs seconds, not minutes",
)


def _run(conditions: Conditions) -> Sequence[Figure]:
    workload = workloads.embedding(conditions.folder / "rows", ROWS)
    grid = Grid(conditions.folder / "grid", AGENTS)
    handed_out, given_up = [], []
    for number in range(1, RUNS_PER_ROUND * conditions.rounds + 1):
        lost, leased = _kill_once(workload, grid)
        handed_out.append(leased)
        given_up.append(lost)
        conditions.progress.say(
            f"loss {number}/{RUNS_PER_ROUND * conditions.rounds}: given up after {lost:.2f} s, "
            f"handed out again after {leased:.2f} s"
        )
    return (Figure(RELEASE, tuple(handed_out), {"given_up_seconds": median(given_up)}),)


def _kill_once(workload: workloads.Workload, grid: Grid) -> tuple[float, float]:
    """Seconds until the engine gives the dead device up, and until the other one gets a lease."""
    killed: list[tuple[str, float]] = []

    def strike(output: Path, agents: dict[str, Child]) -> None:
        end = time.monotonic() + DEADLINE_S
        while committed_shards(output) < BEGUN_SHARDS:
            if time.monotonic() > end:
                raise BenchError("no shard was committed that a death could interrupt")
            time.sleep(POLL_S)
        victim = min(agents)
        killed.append((victim, kill(agents[victim])))

    run = grid.run(workload, lease_seconds=LEASE_SECONDS, record_log=True, meanwhile=strike)
    grid.discard(run)
    ((victim, at),) = killed
    return release_times(run.lines, victim, at)


def release_times(lines: Sequence[tuple[float, str]], victim: str, killed_at: float) -> tuple[float, float]:
    """Read the two times out of the engine's log.

    Raises:
        BenchError: the log does not tell them; its lines may have changed.
    """
    lost_at = next((at for at, line in lines if at >= killed_at and line == f"lost device={victim}"), None)
    if lost_at is None:
        raise BenchError(f"the engine's log does not say that {victim} was lost")
    for at, line in lines:
        lease = re.match(r"lease job=\S+ device=(\S+) ", line)
        if at >= lost_at and lease is not None and lease[1] != victim:
            return lost_at - killed_at, at - killed_at
    raise BenchError(f"the engine's log names no lease after the loss of {victim}; had the job too few rows?")


MEASUREMENT = Measurement("loss of an agent", (RELEASE,), _run)
