"""What others do with the same rows: Ray Data and Dask, each in an environment of its own (`make peers`).

A peer is a module that is run as a process with that environment's Python. It gets what bare onnxruntime gets, as a
skilled user of it would arrange it, and answers with a report and its results, which are compared as the grid's are.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hack.bench.comparing import require_equal
from hack.bench.errors import BenchError
from hack.bench.workloads import Workload

PYTHON = Path(".venv-peers/bin/python")
DEADLINE_S = 600.0
LAST_LINES = 15

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class PeerRun:
    """What a peer did.

    Attributes:
        items_per_second: after the first finished batch, up to the last, as for the grid.
        first_s: from the start of the process to the first finished batch, seconds.
        whole_s: from there to the last.
    """

    items_per_second: float
    first_s: float
    whole_s: float


def are_installed() -> bool:
    """Whether there is something to compare with."""
    return PYTHON.exists()


def run_peer(module: str, workload: Workload, workers: int, expected: Array, folder: Path) -> PeerRun:
    """Compute all of `workload`, whose shards have a size, with `workers` workers of one thread each.

    Args:
        expected: what bare onnxruntime gave for all rows.
        folder: for the peer's files.

    Raises:
        BenchError: it failed, took too long, or its results are wrong.
    """
    report, results, log = folder / f"{module}.json", folder / f"{module}.npy", folder / f"{module}.log"
    command = [
        str(PYTHON), "-m", f"hack.bench.peers.{module}", "--model", str(workload.model), "--data", str(workload.data),
        "--rows", str(workload.rows), "--per-shard", str(workload.per_shard), "--workers", str(workers),
        "--output", workload.output, "--report", str(report), "--results", str(results),
    ]  # fmt: skip
    # Nobody's process may report to its maker.
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as sink:
        try:
            status = subprocess.run(
                command, stdout=sink, stderr=sink, timeout=DEADLINE_S, env={**os.environ, **quiet}, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise BenchError(f"{module} took more than {DEADLINE_S:.0f} s") from None
    if status:
        end = "\n".join(log.read_text().splitlines()[-LAST_LINES:])
        raise BenchError(f"{module} ended with status {status}; the end of its log:\n{end}")
    require_equal(workload, np.load(results), expected)
    return PeerRun(**json.loads(report.read_text()))
