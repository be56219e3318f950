"""A process that commits results and says so, to be killed at any moment: committing_process.py FOLDER ITEMS PER_SHARD.

Prints `shard attempt` for every acknowledged shard, only after commit() has returned.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
import numpy as np

from pocketgrid.model.job import ShardGrid
from pocketgrid.storage.results import ResultStore, StoreLimits
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys


def main(folder: Path, items: int, per_shard: int) -> None:
    grid = ShardGrid(items, per_shard)
    store = ResultStore.open(
        a_job(folder, items), no_keys, limits=StoreLimits(segment_bytes=20_000, part_rows=8 * per_shard)
    )
    store.plan(per_shard)
    epoch = store.recovered.epoch
    print("ready", epoch, flush=True)
    rng = np.random.default_rng(epoch)
    todo = [n for n in rng.permutation(grid.shards).tolist() if n not in store.recovered.committed]
    while todo:
        group, todo = todo[:5], todo[5:]
        batch = []
        for shard in group:
            start, stop = grid.bounds(shard)
            batch.append(a_result(shard, (np.arange(start, stop) * 100 + epoch,)))
        for shard in store.commit(batch).new:
            print("done", shard, epoch, flush=True)
        store.seal()
    store.finish()
    print("finished", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
