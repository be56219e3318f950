"""Ray Data: the NPY file as blocks, a pool of actors that keep the model, results iterated as they are ready.

The rows are handed over as ranges of the mapped file, so that they need not be copied through the object store first;
each actor's batch is one shard.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hack.bench.peers.reporting import Array, Model, Report, options, started_at


class Shards:
    """An actor: computes the rows of the ranges it is given."""

    def __init__(self, model: str, output: str, data: str, per_shard: int, rows: int) -> None:
        self._model = Model(model, output)
        self._data = np.load(data, mmap_mode="r")
        self._per_shard = per_shard
        self._rows = rows

    def __call__(self, batch: dict[str, Array]) -> dict[str, Array]:
        """Results of the shards whose numbers are in `batch`, one row an item."""
        numbers, values = [], []
        for shard in batch["id"].tolist():
            start = shard * self._per_shard
            stop = min(start + self._per_shard, self._rows)
            values.append(self._model(self._data[start:stop]))
            numbers.append(np.arange(start, stop))
        return {"row": np.concatenate(numbers), "value": np.concatenate(values)}


SHARDS_A_CALL = 16
"""Ranges given to an actor at a time: with one, its calls would be all that is measured."""


def main() -> None:
    """Compute everything and report."""
    began = started_at()
    asked = options()
    import ray
    import ray.data

    ray.init(num_cpus=asked.workers + 1, include_dashboard=False, configure_logging=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = -(-asked.rows // asked.per_shard)
    per_call = max(1, min(SHARDS_A_CALL, shards // (8 * asked.workers)))
    fixed: dict[str, Any] = {
        "model": asked.model, "output": asked.output, "data": asked.data,
        "per_shard": asked.per_shard, "rows": asked.rows,
    }  # fmt: skip
    computed = ray.data.range(shards, override_num_blocks=max(1, shards // per_call)).map_batches(
        Shards, fn_constructor_kwargs=fixed, batch_size=per_call, concurrency=asked.workers, num_cpus=1
    )
    report = Report(asked.rows, began)
    for batch in computed.iter_batches(batch_size=None, prefetch_batches=4):
        report.batch(int(batch["row"][0]), batch["value"])
    ray.shutdown()
    report.write(asked.report, asked.results)


if __name__ == "__main__":
    main()
