"""The limit: bare onnxruntime processes on the same rows, shards and micro-batches, as a skilled person would write it.

No network, no disk, no checks: each process takes the next shard from a shared counter, which balances them better
than halves would, sorts its rows by length, pads each micro-batch to its longest row, and keeps the results in memory.
All processes load and warm up first and then begin together.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hack.bench.errors import BenchError
from hack.bench.workloads import Workload

DEADLINE_S = 600.0
LOAD_DEADLINE_S = 120.0

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class LimitRun:
    """What bare onnxruntime did.

    Attributes:
        items_per_second: after the first finished shard, up to the last.
        first_s: from the start of the processes to the first finished shard, seconds.
        whole_s: from there to the end of the last shard, loading included.
        cpu_us_per_item: processor time of all processes after loading, per item.
        results: of all rows in order.
    """

    items_per_second: float
    first_s: float
    whole_s: float
    cpu_us_per_item: float
    results: Array


def run_limit(workload: Workload, processes: int) -> LimitRun:
    """Compute all of `workload` with `processes` processes of one thread each.

    Raises:
        BenchError: one of them failed or took too long.
    """
    # Spawned, not forked: they start as the grid's agents do, from nothing.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    barrier = context.Barrier(processes)
    reports: multiprocessing.Queue[Any] = context.Queue()
    with tempfile.TemporaryDirectory(prefix="limit-", dir=workload.arrays) as folder:
        started = time.monotonic()
        workers = [
            context.Process(target=_work, args=(workload, counter, barrier, Path(folder) / f"{number}.npz", reports))
            for number in range(processes)
        ]
        for worker in workers:
            worker.start()
        try:
            files = [_next_report(reports, workers) for _ in workers]
        finally:
            for worker in workers:
                worker.join(5.0)
                if worker.is_alive():
                    worker.kill()
        parts = [dict(np.load(file)) for file in files]
    ends = np.concatenate([part["ends"] for part in parts])
    shards = np.concatenate([part["shards"] for part in parts])
    by_end = np.argsort(ends)
    sizes = np.minimum((shards + 1) * workload.per_shard, workload.rows) - shards * workload.per_shard
    return LimitRun(
        items_per_second=float((workload.rows - sizes[by_end[0]]) / (ends.max() - ends.min())),
        first_s=float(ends.min() - started),
        whole_s=float(ends.max() - started),
        cpu_us_per_item=1e6 * sum(float(part["cpu_s"]) for part in parts) / workload.rows,
        results=_in_order(parts, workload.rows),
    )


def _next_report(reports: multiprocessing.Queue[Any], workers: list[Any]) -> Path:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        try:
            return Path(reports.get(timeout=0.2))
        except queue.Empty:
            if any(worker.exitcode not in (None, 0) for worker in workers):
                break
    raise BenchError("a bare onnxruntime process ended without a result; its traceback is above")


def _in_order(parts: list[dict[str, Array]], rows: int) -> Array:
    first = parts[0]["values"]
    results = np.zeros((rows, *first.shape[1:]), first.dtype)
    for part in parts:
        results[part["rows"]] = part["values"]
    return results


def _work(
    workload: Workload, counter: Synchronized[int], barrier: Barrier, target: Path, reports: multiprocessing.Queue[Any]
) -> None:
    """One process. Its results go into a file, its file's name into `reports`."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    compute = _program(workload)
    shard_count = -(-workload.rows // workload.per_shard)
    compute(0, min(workload.per_shard, workload.rows))  # the first run allocates and packs weights
    barrier.wait(LOAD_DEADLINE_S)
    cpu_before = time.process_time()
    shards, ends, values = [], [], []
    while (shard := _take(counter)) < shard_count:
        values.append(compute(shard * workload.per_shard, min((shard + 1) * workload.per_shard, workload.rows)))
        ends.append(time.monotonic())
        shards.append(shard)
    cpu_s = time.process_time() - cpu_before
    rows = [np.arange(s * workload.per_shard, min((s + 1) * workload.per_shard, workload.rows)) for s in shards]
    np.savez(target, shards=shards, ends=ends, cpu_s=cpu_s, rows=np.concatenate(rows), values=np.concatenate(values))
    reports.put(str(target))


def _take(counter: Synchronized[int]) -> int:
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    return number


def _program(workload: Workload) -> Callable[[int, int], Array]:
    """What computes the rows [start, stop)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(workload.model), options, providers=["CPUExecutionProvider"])
    names = [workload.output]
    if not workload.pooled:
        values = np.load(workload.arrays / "values.npy", mmap_mode="r")
        (port,) = session.get_inputs()
        return lambda start, stop: np.asarray(session.run(names, {port.name: values[start:stop]})[0])
    tokens = np.load(workload.arrays / "values.npy")
    lengths = np.load(workload.arrays / "lengths.npy")
    starts = np.cumsum(lengths) - lengths

    def embed(start: int, stop: int) -> Array:
        pooled = np.empty((stop - start, 0), np.float32)
        for rows in _micro_batches(lengths[start:stop], workload.micro_batch):
            own = lengths[start + rows]
            mask = np.arange(own.max()) < own[:, None]
            ids = np.zeros(mask.shape, np.int64)
            ids[mask] = tokens[(starts[start + rows][:, None] + np.arange(own.max()))[mask]]
            feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
            (hidden,) = session.run(names, feeds)
            if not pooled.shape[1]:
                pooled = np.empty((stop - start, hidden.shape[2]), np.float32)
            for row, states, length in zip(rows.tolist(), hidden, own.tolist(), strict=True):
                mean = states[:length].mean(axis=0)  # without the padding; half the time of a masked sum over all
                pooled[row] = mean / np.sqrt(mean @ mean)
        return pooled

    return embed


def _micro_batches(lengths: Array, size: int) -> Iterator[Array]:
    """Row numbers of each micro-batch; rows of like length are together, so that little is padding."""
    by_length = np.argsort(lengths, kind="stable")
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]
