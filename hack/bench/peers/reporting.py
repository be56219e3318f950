"""What all peers share: their options, the rows they compute, and the report they leave."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def started_at() -> float:
    """Monotonic seconds when this process was started, imports included."""
    # Field 22 of proc(5), in clock ticks since boot, which is where the monotonic clock of Linux begins.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


def options() -> argparse.Namespace:
    """What the benchmark asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="NPY file of all rows")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--per-shard", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--output", required=True, help="name of the model's output")
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    return parser.parse_args()


@dataclass(slots=True)
class Report:
    """Collects batches as they finish."""

    rows: int
    began: float
    first: float = 0.0
    last: float = 0.0
    first_rows: int = 0
    starts: list[int] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    def batch(self, start: int, values: Array) -> None:
        """The results of the rows from `start` on are here."""
        self.last = time.monotonic()
        if not self.starts:
            self.first, self.first_rows = self.last, len(values)
        self.starts.append(start)
        self.values.append(values)

    def write(self, report: Path, results: Path) -> None:
        """Leave both files."""
        order = np.argsort(self.starts)
        np.save(results, np.concatenate([self.values[i] for i in order]))
        rate = (self.rows - self.first_rows) / (self.last - self.first)
        content = {
            "items_per_second": rate,
            "first_s": self.first - self.began,
            "whole_s": self.last - self.began,
        }
        report.write_text(json.dumps(content))


class Model:
    """Bare onnxruntime with one thread."""

    def __init__(self, path: str, output: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (port,) = self._session.get_inputs()
        self._input, self._outputs = port.name, [output]

    def __call__(self, rows: Array) -> Array:
        """Results of `rows`."""
        return np.asarray(self._session.run(self._outputs, {self._input: rows})[0])
