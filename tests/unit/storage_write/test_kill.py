"""kill -9 for real: whatever a killed process had acknowledged is in the final output, once, as acknowledged."""

from __future__ import annotations

import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from pocketgrid.storage.results import read_manifest, verify

PROCESS = Path(__file__).with_name("committing_process.py")
PER_SHARD, SHARDS = 4, 1500
ITEMS = PER_SHARD * SHARDS - 1


def run_until(folder: Path, lines: int | None, acknowledged: dict[int, int]) -> bool:
    """Run the process and kill it after so many acknowledged shards; whether it finished by itself."""
    process = subprocess.Popen(
        [sys.executable, str(PROCESS), str(folder), str(ITEMS), str(PER_SHARD)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        deadline = time.monotonic() + 60
        data, seen = b"", 0
        while True:
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, "the process said nothing for too long"
            block = process.stdout.read1(1 << 16)
            if not block:
                break
            data += block
            if lines is not None and data.count(b"done") >= lines and not seen:
                process.kill()
                seen = 1
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
    finished = False
    for line in data.split(b"\n")[:-1]:
        words = line.split()
        if words[0] == b"done":
            shard, epoch = int(words[1]), int(words[2])
            assert shard not in acknowledged, "a shard was acknowledged twice"
            acknowledged[shard] = epoch
        finished |= words[0] == b"finished"
    return finished


def test_ten_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    folder, acknowledged, rng = tmp_path / "out", {}, random.Random(time.time_ns())
    for _ in range(10):
        assert not run_until(folder, rng.randint(1, 130), acknowledged)
    assert 10 <= len(acknowledged) < SHARDS
    assert run_until(folder, None, acknowledged)
    assert verify(str(folder)) == []
    assert read_manifest(str(folder)).rows == ITEMS
    rows: dict[int, int] = {}
    for path in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(path).to_pydict()
        rows.update(zip(table["row"], table["y"], strict=True))
    assert sorted(rows) == list(range(ITEMS))
    for row, value in rows.items():
        shard = row // PER_SHARD
        assert value // 100 == row
        # A shard may have become durable just before the kill without being acknowledged; then any epoch will do.
        assert value % 100 == acknowledged.get(shard, value % 100)


def test_a_finished_output_stays_as_it_is(tmp_path: Path) -> None:
    folder, acknowledged = tmp_path / "out", {}
    assert run_until(folder, None, acknowledged)
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("[p_]*") if p.is_file()}
    assert run_until(folder, None, acknowledged)
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("[p_]*") if p.is_file()} == before
    assert len(acknowledged) == SHARDS
