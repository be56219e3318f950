"""Lets the disk be full at one place after the other, and has the store go on: FOLDER [LOG_FOLDER].

FOLDER is on a small file system. LOG_FOLDER is one of its own, for the log of one job. Without LOG_FOLDER, FOLDER may
be anywhere, and a limit on the size of files takes the part of the full disk; no rights are needed for that.
"""

from __future__ import annotations

import errno
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
import numpy as np
import pyarrow.parquet as pq

from pocketgrid.errors import StoreError
from pocketgrid.storage.results import ResultStore, StoreLimits, verify
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys


@dataclass(frozen=True)
class FullDisk:
    """A file system that is filled to the last byte."""

    ballast: Path

    def fill(self) -> None:
        with self.ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        self.ballast.unlink()


@dataclass(frozen=True)
class FileSizeLimit:
    """Files that may not grow beyond some bytes: too few for what is written at the place in question."""

    limit: int

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def refused(step: Callable[[], Any]) -> str:
    """Why `step` was refused; empty if it was not."""
    try:
        step()
    except StoreError as error:
        if "free space" not in str(error) and "limit on file size" not in str(error):
            raise
        return str(error)
    return ""


def run(out: Path, place: str, disk: FullDisk | FileSizeLimit, where: str, *, per_shard: int, shards: int) -> None:
    limits = StoreLimits(part_rows=per_shard * 6, segment_bytes=100_000 if isinstance(disk, FullDisk) else 1)
    job = a_job(out, per_shard * shards)
    acknowledged: list[int] = []

    def opened() -> ResultStore:
        store = ResultStore.open(job, no_keys, limits=limits)
        store.plan(per_shard)
        return store

    def commit() -> None:
        shard = len(acknowledged)
        values = np.arange(per_shard) + shard * per_shard
        assert store.commit([a_result(shard, (values,))]).new == (shard,)
        acknowledged.append(shard)

    store = opened()
    for _ in range({"log": 2, "staging": 2, "part": 6, "manifest": shards}[place]):
        commit()
        if place == "manifest":
            store.seal()
    disk.fill()
    step: Callable[[], Any] = {"part": store.seal, "manifest": store.finish}.get(place, commit)
    why = ""
    for _ in range(shards - 3):  # the last page of a file may still have room
        if why := refused(step):
            break
    assert where in why, (place, why)
    for _ in range(3):
        assert refused(step)
        assert list(store._log.state.committed) == acknowledged
    assert not (out / "_manifest.json").exists()
    store.close()
    still_full = refused(lambda: opened().close())  # an operator that starts while there is no room
    disk.free()
    store = opened()
    assert list(store.recovered.committed) == acknowledged, (place, store.recovered, acknowledged)
    while len(acknowledged) < shards:
        commit()
        store.seal()
    store.finish()
    store.close()
    assert verify(str(out)) == []
    table = pq.read_table(out)
    assert table["row"].to_pylist() == table["y"].to_pylist() == list(range(per_shard * shards))
    assert list((out / "_pocketgrid/staging").iterdir()) == []
    print(place, "full, then fine;", "not opened meanwhile" if still_full else "opened meanwhile")


def main(folder: Path, log_folder: Path | None) -> None:
    for place, where, limit in (
        ("log", "/_pocketgrid/log/", 500),  # too little for a header, enough for the record of a small shard
        ("staging", "/_pocketgrid/staging/", 100),
        ("part", "/part-00000.parquet", 400),
        ("manifest", "/_manifest.json", 400),
    ):
        out = folder / place
        if log_folder is None:
            run(out, place, FileSizeLimit(limit), where, per_shard=8, shards=12)
        else:
            if place == "log":
                (out / "_pocketgrid").mkdir(parents=True)
                (out / "_pocketgrid/log").symlink_to(log_folder)
            disk = FullDisk((log_folder if place == "log" else folder) / "ballast")
            run(out, place, disk, where, per_shard=1024, shards=60)
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
