"""Commits until the disk (or the limit on file size) is full, makes room, and goes on: FOLDER LIMIT_BYTES.

LIMIT_BYTES 0 means that FOLDER's file system is small and holds a file `ballast` that can be removed.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
import numpy as np

from pocketgrid.errors import StoreError
from pocketgrid.storage.results import ResultStore, StoreLimits, verify
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys

PER_SHARD, SHARDS = 512, 60


def main(folder: Path, limit: int) -> None:
    job = a_job(folder / "out", PER_SHARD * SHARDS)
    store = ResultStore.open(job, no_keys, limits=StoreLimits(segment_bytes=200_000, part_rows=PER_SHARD * 8))
    store.plan(PER_SHARD)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    committed, refusals, messages = set(), 0, set()
    for shard in range(SHARDS):
        values = np.arange(PER_SHARD) + shard * PER_SHARD
        for attempt in range(20):
            try:
                assert store.commit([a_result(shard, (values,))]).new == (shard,)
                break
            except StoreError as error:
                messages.add(str(error))
                refusals += 1
                assert set(store._log.state.committed) == committed
                if attempt == 10:  # the same batch is refused again and again without harm, until there is room
                    (folder / "ballast").unlink()
        committed.add(shard)
    # A limit on file size is got round by the next segment; a full disk refuses until there is room.
    assert refusals >= (1 if limit else 10), refusals
    assert all(str(folder) in m and ("free space" in m or "file size" in m) for m in messages), messages
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.close()
    store = ResultStore.open(job, no_keys, limits=StoreLimits(segment_bytes=200_000, part_rows=PER_SHARD * 8))
    assert set(store.recovered.committed) == committed
    assert store.finish().rows == PER_SHARD * SHARDS
    assert verify(str(folder / "out")) == []
    log = list((folder / "out" / "_pocketgrid" / "log").iterdir())
    assert limit or len(log) < 10, log
    print("refused", refusals, "then fine")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
