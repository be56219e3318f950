"""Whether the grid computed what bare onnxruntime computed: a fast wrong answer is worth nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hack.bench.errors import BenchError
from hack.bench.workloads import Workload

Array = npt.NDArray[Any]


def read_output(workload: Workload, output: Path) -> Array:
    """The job's results, in the order of the rows.

    Raises:
        BenchError: rows are missing, doubled or out of order.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    table = ds.dataset(sorted(map(str, output.glob("*.parquet"))), format="parquet").to_table()
    numbers = table["row"].to_numpy()
    order = np.argsort(numbers, kind="stable")
    if not np.array_equal(numbers[order], np.arange(workload.rows)):
        raise BenchError(
            f"{workload.name}: the grid delivered {len(numbers):,} rows that are not 0 to {workload.rows:,}"
        )
    column = table[workload.output].combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(numbers), -1)
    else:
        values = column.to_numpy(zero_copy_only=False)
    return np.asarray(values[order])


def require_equal(workload: Workload, found: Array, expected: Array) -> float:
    """Compare all values of all rows; returns the largest difference.

    Raises:
        BenchError: the shapes differ, or a value differs by more than the workload's tolerance.
    """
    if found.shape != expected.shape:
        raise BenchError(f"{workload.name}: the grid's results have shape {found.shape}, not {expected.shape}")
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    largest = float(difference.max(initial=0.0))
    if not largest <= workload.tolerance:
        worst = int(np.argmax(difference.reshape(len(difference), -1).max(axis=1)))
        raise BenchError(
            f"{workload.name}: row {worst} differs by {largest:g} from bare onnxruntime, allowed is "
            f"{workload.tolerance:g}; figures of wrong answers are not reported"
        )
    return largest
