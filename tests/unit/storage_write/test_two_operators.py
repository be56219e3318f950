"""Operators that take a job over from each other, real processes: the older one never acknowledges any more."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow.parquet as pq

from pocketgrid.model.job import ShardGrid
from pocketgrid.model.ranges import IndexSet
from pocketgrid.storage.results import ResultStore, StoreLimits, verify
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys

PROCESS = Path(__file__).with_name("racing_process.py")
PER_SHARD, SHARDS, OPERATORS, MOST_SECONDS = 2, 800, 3, 40.0
ITEMS = PER_SHARD * SHARDS


def race(folder: Path, seed: int) -> list[list[str]]:
    """What the operators say, line by line."""
    command = [sys.executable, str(PROCESS), str(folder), str(ITEMS), str(PER_SHARD), str(MOST_SECONDS)]
    processes = [
        subprocess.Popen([*command, str(seed + n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(OPERATORS)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        lines: list[list[str]] = []
        readers = [threading.Thread(target=_collect, args=(p.stdout, lines)) for p in processes]
        for reader in readers:
            reader.start()
        deadline = time.monotonic() + MOST_SECONDS
        while not _enough(folder, list(lines)) and time.monotonic() < deadline:
            time.sleep(0.05)
        folder.with_name("stop").touch()
        for process, reader in zip(processes, readers, strict=True):
            reader.join(30)
            assert process.wait(30) == 0
        return lines
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def _collect(source: IO[str], lines: list[list[str]]) -> None:
    lines.extend(line.split() for line in source)


def _enough(folder: Path, lines: list[list[str]]) -> bool:
    """Whether they have taken over often, have all got somewhere, and have sealed a part."""
    opened = sum(words[0] == "open" for words in lines)
    successful = {words[1] for words in lines if words[0] == "ack"}
    return opened >= 15 and len(successful) >= 8 and any(folder.glob("part-*"))


def test_operators_that_race_for_a_job_acknowledge_each_shard_once(tmp_path: Path) -> None:
    seed = time.time_ns() % 10**6
    print("seed", seed)
    folder = tmp_path / "out"
    lines = race(folder, seed)
    opened = {int(epoch): (int(at), text) for kind, epoch, *rest in lines if kind == "open" for at, text in [rest]}
    acks = [(int(epoch), int(at), shard) for kind, epoch, *rest in lines if kind == "ack"
            for at in rest[:1] for shard in map(int, rest[1:])]  # fmt: skip
    assert _enough(folder, lines), "hardly anybody got anywhere"
    by_shard = {shard: epoch for epoch, _, shard in acks}
    assert len(by_shard) == len(acks), "a shard was acknowledged twice"
    moments = sorted((at, epoch) for epoch, (at, _) in opened.items())
    newest, sorted_epochs = 0, []
    for at, epoch in moments:
        newest = max(newest, epoch)
        sorted_epochs.append((at, newest))
    times = [at for at, _ in sorted_epochs]
    for epoch, at, shard in acks:
        before = int(np.searchsorted(times, at))
        assert not before or sorted_epochs[before - 1][1] <= epoch, f"epoch {epoch} acknowledged {shard} after a newer"
    for epoch, (_, text) in opened.items():
        seen = IndexSet.from_text("" if text == "-" else text)
        missing = [shard for older, _, shard in acks if older < epoch and shard not in seen]
        assert not missing, f"epoch {epoch} did not see {missing[:5]}"
    finish_and_compare(folder, by_shard)


def finish_and_compare(folder: Path, acknowledged: dict[int, int]) -> None:
    """Every acknowledged result, and no other, stands in the final output."""
    store = ResultStore.open(a_job(folder, ITEMS), no_keys, limits=StoreLimits(part_rows=16 * PER_SHARD))
    grid = ShardGrid(ITEMS, PER_SHARD)
    todo = [n for n in range(SHARDS) if n not in store.recovered.committed]
    store.commit([a_result(n, (np.arange(*grid.bounds(n)) * 1000,)) for n in todo])
    store.finish()
    store.close()
    assert verify(str(folder)) == []
    table = pq.read_table(folder)
    assert table["row"].to_pylist() == list(range(ITEMS))
    values = table["y"].to_numpy()
    assert np.array_equal(values // 1000, np.arange(ITEMS))
    for shard, epoch in acknowledged.items():
        assert set(values[slice(*grid.bounds(shard))] % 1000) == {epoch % 1000}
