"""How long does a person wait from typing `pocketgrid run` to the first result that cannot be lost any more?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hack.bench import workloads
from hack.bench.errors import BenchError
from hack.bench.figures import Definition, Figure
from hack.bench.grid import committed_shards
from hack.bench.limit import run_limit
from hack.bench.measurements.base import AGENTS, Conditions, Measurement, median

ROWS = 256
POLL_S = 0.005
DEADLINE_S = 120.0
RUNS_PER_ROUND = 3
"""A start takes two seconds and varies more than a rate does."""

START = Definition(
    name="start_to_first_result_seconds",
    unit="s",
    goal=2.0,
    at_least=False,
    meaning="`pocketgrid run` with two agents that have MiniLM in their cache, from the start of the process to the "
    "first committed shard",
    origin="0.96 s for a coordinator without features, 1.9 s for the quickest task system measured for the design",
)


def _run(conditions: Conditions) -> Sequence[Figure]:
    workload = workloads.embedding(conditions.folder / "rows", ROWS)
    say = conditions.progress.say
    say("warming up")
    _start_once(workload, conditions.folder, 0)
    seconds, bare = [], []
    for number in range(1, RUNS_PER_ROUND * conditions.rounds + 1):
        seconds.append(_start_once(workload, conditions.folder, number))
        bare.append(run_limit(workload, AGENTS).first_s)
        say(f"start {number}/{RUNS_PER_ROUND * conditions.rounds}: {seconds[-1]:.2f} s, bare {bare[-1]:.2f} s")
    return (Figure(START, tuple(seconds), {"bare_seconds": median(bare)}),)


def _start_once(workload: workloads.Workload, folder: Path, number: int) -> float:
    output = folder / f"output-{number}"
    manifest = folder / f"job-{number}.yaml"
    manifest.write_text(json.dumps(workload.document(output, name=f"start-{number}")))
    log = folder / f"run-{number}.log"
    command = [sys.executable, "-m", "pocketgrid", "run", str(manifest), "--agents", str(AGENTS), "--threads", "1"]
    with log.open("wb") as messages:
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, "--state-dir", str(folder / "state")],
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=subprocess.STDOUT,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )
        try:
            while not committed_shards(output):
                if process.poll() is not None or time.monotonic() - started > DEADLINE_S:
                    raise BenchError(f"pocketgrid run committed nothing:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(POLL_S)
            seconds = time.monotonic() - started
            # The rest is a second's work; letting it finish is how agents end in good order.
            process.wait(DEADLINE_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(DEADLINE_S)
    return seconds


MEASUREMENT = Measurement("start", (START,), _run)
