"""An operator that takes over a job again and again, against others that do the same.

Arguments: FOLDER ITEMS PER_SHARD SECONDS SEED. Ends when a file `stop` lies beside FOLDER. Prints, with
CLOCK_MONOTONIC, which all processes of a host share:
`open EPOCH TIME SHARDS` once it has opened, `ack EPOCH TIME SHARD...` for acknowledged shards with the time before the
commit began, and `stale EPOCH`.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
import numpy as np

from pocketgrid.errors import StaleEpochError, StoreError
from pocketgrid.model.job import ShardGrid
from pocketgrid.storage.results import ResultStore, StoreLimits
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys


def main(folder: Path, items: int, per_shard: int, seconds: float, seed: int) -> None:
    grid, rng = ShardGrid(items, per_shard), random.Random(seed)
    limits = StoreLimits(segment_bytes=4_000, part_rows=16 * per_shard)
    print("ready", flush=True)
    sys.stdin.readline()
    stop, end = folder.with_name("stop"), time.monotonic() + seconds
    opening = 0.0
    while not stop.exists() and time.monotonic() < end:
        # A pause, as long as things take on this machine, so that the one that took over gets somewhere.
        time.sleep(rng.random() * 4 * opening)
        began = time.monotonic()
        try:
            store = ResultStore.open(a_job(folder, items), no_keys, take_over=True, limits=limits)
        except StoreError:
            opening = time.monotonic() - began
            continue  # another one opened at the same moment and won
        epoch, opening = store.recovered.epoch, time.monotonic() - began
        print("open", epoch, time.monotonic_ns(), store.recovered.committed.to_text() or "-", flush=True)
        try:
            store.plan(per_shard)
            todo = [n for n in range(grid.shards) if n not in store.recovered.committed]
            while todo and not stop.exists():
                group, todo = todo[:3], todo[3:]
                batch = [a_result(n, (np.arange(*grid.bounds(n)) * 1000 + epoch,)) for n in group]
                before = time.monotonic_ns()
                done = store.commit(batch)
                print("ack", epoch, before, *done.new, flush=True)
                store.seal()
        except StaleEpochError:
            print("stale", epoch, flush=True)
        store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
