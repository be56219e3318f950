"""Dask: a local cluster of processes, one task a shard, results gathered as they finish.

Workers map the file and keep the model; tasks name ranges, so no row travels to a worker. Results go back to the client
in batches of what is done, the quickest way Dask has.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from hack.bench.peers.reporting import Array, Model, Report, options, started_at


@lru_cache(1)
def _loaded(model: str, output: str, data: str) -> tuple[Model, Array]:
    return Model(model, output), np.load(data, mmap_mode="r")


def compute(start: int, stop: int, model: str, output: str, data: str) -> tuple[int, Array]:
    """One shard."""
    run, rows = _loaded(model, output, data)
    return start, run(rows[start:stop])


def main() -> None:
    """Compute everything and report."""
    began = started_at()
    asked = options()
    import dask
    from distributed import Client, LocalCluster, as_completed

    # Nothing here may look for anybody but this process's own workers.
    dask.config.set({"distributed.worker.daemon": True, "distributed.admin.system-monitor.gil.enabled": False})
    report = Report(asked.rows, began)
    with (
        LocalCluster(
            n_workers=asked.workers, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        Client(cluster) as client,
    ):
        starts = range(0, asked.rows, asked.per_shard)
        stops = [min(start + asked.per_shard, asked.rows) for start in starts]
        fixed: dict[str, Any] = {"model": asked.model, "output": asked.output, "data": asked.data}
        futures = client.map(compute, list(starts), stops, pure=False, batch_size=1_000, **fixed)
        for batch in as_completed(futures, with_results=True).batches():
            for _, (start, values) in batch:
                report.batch(start, values)
    report.write(asked.report, asked.results)


if __name__ == "__main__":
    main()
