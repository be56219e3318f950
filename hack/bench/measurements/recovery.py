"""What does it cost when the operator dies, or when a device falls silent without its link ending?

The operator is killed in the middle of a job and started again at once, on the same state and port: the time is that
to the first commit after it, with the start of a process, the reading of the log and the devices' return in it. The
silent device is stopped (SIGSTOP), which is what a half-open link looks like from the other end: nothing comes any more
and nothing says so. Its time ends with the first lease that the other device gets after it was given up.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hack.bench import workloads
from hack.bench.errors import BenchError
from hack.bench.figures import Definition, Figure
from hack.bench.grid import Grid, committed_shards
from hack.bench.load.crowd import Crowd
from hack.bench.measurements.agent_loss import LEASE_SECONDS, release_times
from hack.bench.measurements.base import AGENTS, Conditions, Measurement, median
from hack.controlplane.child import Child
from hack.joining import enrol_agent

RESTART_ROWS = 3_000
SILENCE_ROWS = 6_000
"""The other device must not run out of work before the silent one is given up: it would make copies of its shards."""

WAKE_S = 20.0
"""A stopped process does not hear that it is to end, so it is woken after this time, when all has been measured."""

BEGUN_SHARDS = 4
DEADLINE_S = 120.0
POLL_S = 0.01

RESTART = Definition(
    name="operator_loss_to_commit_seconds",
    unit="s",
    goal=5.0,
    at_least=False,
    meaning="SIGKILL of the operator in the middle of a job, started again at once, until the next commit",
    origin="a start of the process, and as long again for the devices to return",
)
SILENCE = Definition(
    name="silent_agent_to_release_seconds",
    unit="s",
    goal=13.0,
    at_least=False,
    meaning="SIGSTOP of one of two agents in the middle of a job, until its shards are handed to the other",
    origin="a half-open link is found within 10 s, and leases go out again within 3 s of that",
)


def _run_restart(conditions: Conditions) -> Sequence[Figure]:
    workload = workloads.embedding(conditions.folder / "rows", RESTART_ROWS)
    waited = []
    with Crowd(conditions.folder / "grid", devices=0, processes=1) as crowd:
        agents = _start_agents(crowd, conditions.folder)
        try:
            for number in range(1, conditions.rounds + 1):
                waited.append(_restart_once(crowd, workload, conditions.folder / f"output-{number}", number))
                conditions.progress.say(f"restart {number}/{conditions.rounds}: commits again after {waited[-1]:.2f} s")
        finally:
            for agent in agents:
                agent.stop()
    return (Figure(RESTART, tuple(waited)),)


def _start_agents(crowd: Crowd, folder: Path) -> list[Child]:
    where = json.loads((folder / "grid" / "ready.json").read_text())
    agents = []
    for number in range(1, AGENTS + 1):
        enrol_agent(where, folder / f"agent-{number}", f"agent-{number}")
        agent = crowd.child(
            f"agent-{number}",
            [
                "pocketgrid_agent", "--gateway", where["address"], "--name", f"agent-{number}", "--threads", "1",
                "--state-dir", str(folder / f"agent-{number}"), "--cache-dir", str(folder / "models"),
            ],
        )  # fmt: skip
        agent.start()
        agents.append(agent)
    return agents


def _restart_once(crowd: Crowd, workload: workloads.Workload, output: Path, number: int) -> float:
    manifest = crowd.jobs / f"restart-{number}.json"
    done = manifest.with_suffix(".done")
    part = manifest.with_suffix(".part")
    part.write_text(json.dumps(workload.document(output, name=manifest.stem)))
    part.replace(manifest)
    _until(lambda: committed_shards(output) >= BEGUN_SHARDS, "no shard was committed")
    killed_at = crowd.kill_operator()
    before = committed_shards(output)
    crowd.start_operator()
    _until(lambda: committed_shards(output) > before, "nothing was committed after the restart")
    waited = time.monotonic() - killed_at
    _until(done.exists, "the job did not end")
    said = json.loads(done.read_text())
    if said["failed"] or said["items"] <= 0:
        raise BenchError(f"the job went wrong after the restart: {said}")
    # Or the next operator would run it again.
    manifest.unlink()
    return waited


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"{what} within {DEADLINE_S:.0f} s")
        time.sleep(POLL_S)


def _run_silence(conditions: Conditions) -> Sequence[Figure]:
    workload = workloads.embedding(conditions.folder / "rows", SILENCE_ROWS)
    grid = Grid(conditions.folder / "grid", AGENTS)
    handed_out, given_up = [], []
    for number in range(1, conditions.rounds + 1):
        lost, leased = _silence_once(workload, grid)
        handed_out.append(leased)
        given_up.append(lost)
        conditions.progress.say(
            f"silence {number}/{conditions.rounds}: given up after {lost:.2f} s, handed out again after {leased:.2f} s"
        )
    return (Figure(SILENCE, tuple(handed_out), {"given_up_seconds": median(given_up)}),)


def _silence_once(workload: workloads.Workload, grid: Grid) -> tuple[float, float]:
    stopped: list[tuple[str, float]] = []
    wakers: list[threading.Timer] = []

    def strike(output: Path, agents: dict[str, Child]) -> None:
        _until(lambda: committed_shards(output) >= BEGUN_SHARDS, "no shard was committed")
        name = min(agents)
        pid = agents[name].pid
        if pid is None:
            raise BenchError(f"{name} ended by itself")
        stopped.append((name, time.monotonic()))
        os.kill(pid, signal.SIGSTOP)
        wakers.append(threading.Timer(WAKE_S, os.kill, (pid, signal.SIGCONT)))
        wakers[0].start()

    try:
        run = grid.run(workload, lease_seconds=LEASE_SECONDS, record_log=True, meanwhile=strike)
    finally:
        for waker in wakers:
            waker.cancel()
    grid.discard(run)
    ((victim, at),) = stopped
    return release_times(run.lines, victim, at)


RESTARTED = Measurement("restart of the operator", (RESTART,), _run_restart)
SILENT = Measurement("a silent agent", (SILENCE,), _run_silence)
