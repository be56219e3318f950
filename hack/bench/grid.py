"""One job on the real product: an operator process and agent processes over TLS on loopback, with all features on."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack.bench.breakdown import AgentTimes, agent_times, break_down
from hack.bench.errors import BenchError
from hack.bench.workloads import Workload
from hack.controlplane.child import Child
from hack.controlplane.errors import last_lines
from hack.joining import enrol_agent
from pocketgrid.storage.logentries import COMMIT, Commit, decode_line

READY_DEADLINE_S = 60.0
JOB_DEADLINE_S = 600.0
STOP_DEADLINE_S = 10.0
POLL_S = 0.01
SEGMENTS = "_pocketgrid/log/*.log"


@dataclass(frozen=True, slots=True)
class GridRun:
    """What the grid did.

    Attributes:
        items_per_second: after the first commit, up to the last.
        first_s: from the start of the operator to the first commit, seconds.
        whole_s: from there to the last commit.
        ended_s: from there to the finished output.
        coordinator_ms_per_shard: processor time of the operator between first and last commit, per shard committed.
        cpu_us_per_item: processor time of operator and agents in the same span, per item.
        stages: the same by stage of a shard's way.
        per_shard: items per shard.
        compute_s: time the agents say they computed, all together.
        output: folder with the results.
        lines: what the engine logged, with monotonic times, if that was asked for.
    """

    items_per_second: float
    first_s: float
    whole_s: float
    ended_s: float
    coordinator_ms_per_shard: float
    cpu_us_per_item: float
    stages: Mapping[str, float]
    per_shard: int
    compute_s: float
    output: Path
    lines: tuple[tuple[float, str], ...]


class Grid:
    """Runs jobs one after the other, each with fresh processes. Agents keep their cached models between jobs.

    Args:
        folder: for state, output and logs.
        agents: how many, of one thread each.
    """

    def __init__(self, folder: Path, agents: int) -> None:
        self._folder = folder
        self._names = [f"bench-{number}" for number in range(1, agents + 1)]
        self._jobs = itertools.count(1)
        folder.mkdir(parents=True)

    def run(
        self,
        workload: Workload,
        *,
        lease_seconds: int | None = None,
        record_log: bool = False,
        meanwhile: Callable[[Path, dict[str, Child]], None] | None = None,
    ) -> GridRun:
        """Run one job to its end.

        Args:
            workload: the job.
            lease_seconds: if not the product's default.
            record_log: give the engine's log lines, at debug level, in the result.
            meanwhile: called with the output folder and the agents by name, once all processes are started.

        Raises:
            BenchError: the job failed or took too long.
        """
        folder = self._folder / f"job-{next(self._jobs)}"
        folder.mkdir()
        output = folder / "output"
        manifest = folder / "job.yaml"
        # JSON is YAML, and needs no library to be written.
        manifest.write_text(json.dumps(workload.document(output, lease_seconds=lease_seconds)))
        ready, begun, report = folder / "ready.json", folder / "begun.json", folder / "report.json"
        options = ["--record-log"] if record_log else []
        operator = self._child(
            "operator",
            folder,
            [
                "hack.bench.operator_process", str(manifest), "--state-dir", str(self._folder / "state"),
                "--ready", str(ready), "--begun", str(begun), "--report", str(report), *options,
            ],
        )  # fmt: skip
        children = [operator]
        started = time.monotonic()
        operator.start()
        try:
            where = wait_for_file(ready, operator, READY_DEADLINE_S)
            agents = {name: self._agent(name, folder, where, workload.micro_batch) for name in self._names}
            for agent in agents.values():
                children.append(agent)
                agent.start()
            if meanwhile is not None:
                meanwhile(output, agents)
            wait_for_file(begun, operator, JOB_DEADLINE_S)
            before = agent_times(agents.values())
            said = wait_for_file(report, operator, JOB_DEADLINE_S)
            used = agent_times(agents.values()).since(before)
        finally:
            for child in reversed(children):
                child.stop()
        if not said["complete"] or said["last"] is None:
            raise BenchError(f"{workload.name}: the job did not complete: {said['why']}")
        return _understand(workload, said, started, len(agents), used, output)

    def discard(self, run: GridRun) -> None:
        """Remove all files of a run; results of millions of rows need not pile up."""
        shutil.rmtree(run.output.parent)

    def _agent(self, name: str, folder: Path, where: dict[str, Any], micro_batch: int) -> Child:
        options = ["--micro-batch", str(micro_batch)] if micro_batch else []
        enrol_agent(where, self._folder / name, name)
        return self._child(
            name,
            folder,
            [
                "pocketgrid_agent", "--gateway", where["address"], "--name", name, "--threads", "1",
                "--state-dir", str(self._folder / name), "--cache-dir", str(self._folder / "models"),
                "--log-level", "info", *options,
            ],
        )  # fmt: skip

    @staticmethod
    def _child(name: str, folder: Path, module: list[str]) -> Child:
        # From the folder we were started in: that is where package hack is.
        return Child(
            name,
            [sys.executable, "-m", *module],
            log=folder / f"{name}.log",
            folder=Path.cwd(),
            stop_deadline_s=STOP_DEADLINE_S,
        )


def kill(child: Child) -> float:
    """SIGKILL a process; returns the monotonic time just before."""
    pid = child.pid
    if pid is None:
        raise BenchError(f"{child.name} ended by itself; the end of its log:\n{last_lines(child.log)}")
    now = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return now


def committed_shards(output: Path) -> int:
    """How many shards the commit log of a job speaks of, read as any other process could."""
    count = 0
    for segment in output.glob(SEGMENTS):
        # Each line begins with a checksum and a space.
        count += segment.read_bytes().count(b" " + COMMIT)
    return count


def wait_for_file(path: Path, child: Child, deadline_s: float) -> dict[str, Any]:
    """The JSON in a file that a child is going to write, whole. Raises BenchError."""
    end = time.monotonic() + deadline_s
    while not path.exists():
        if child.pid is None or time.monotonic() > end:
            raise BenchError(f"{child.name} did not write {path.name}; the end of its log:\n{last_lines(child.log)}")
        time.sleep(POLL_S)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _understand(
    workload: Workload, said: dict[str, Any], started: float, agents: int, used: AgentTimes, output: Path
) -> GridRun:
    first, last = said["first"], said["last"]
    seconds = last["at"] - first["at"]
    shards = last["shards"] - first["shards"]
    if seconds <= 0 or shards < agents:
        raise BenchError(f"{workload.name}: all shards were committed at once; there are too few rows to measure with")
    items = last["items"] - first["items"]
    operator_cpu_s = last["cpu_s"] - first["cpu_s"]
    # When the first shard is committed the other agents have computed theirs, or nearly: not counting those items
    # errs against us by less than counting them would err for us.
    computed = items - (agents - 1) * said["per_shard"]
    return GridRun(
        items_per_second=items / seconds,
        first_s=first["at"] - started,
        whole_s=last["at"] - started,
        ended_s=said["ended_at"] - started,
        coordinator_ms_per_shard=1e3 * operator_cpu_s / shards,
        cpu_us_per_item=1e6 * (operator_cpu_s + used.total) / computed,
        stages=break_down(first, last, used, computed),
        per_shard=said["per_shard"],
        compute_s=_compute_s(output),
        output=output,
        lines=tuple((at, line) for at, line in said["lines"]),
    )


def _compute_s(output: Path) -> float:
    total_us = 0
    for segment in output.glob(SEGMENTS):
        for line in segment.read_bytes().splitlines():
            entry = decode_line(line)
            if isinstance(entry, Commit):
                total_us += entry.compute_us
    return total_us / 1e6
