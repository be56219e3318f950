"""Reads a large Parquet file shard by shard and says what that cost, in a process of its own.

``write PATH ROWS`` makes the file; ``read PATH`` reads it and prints one line of JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef
from pocketgrid.model.tensors import ModelSignature, TensorSpec
from pocketgrid.storage.encoding import open_encoder

ROWS_PER_GROUP = 1 << 17
ROWS_PER_SHARD = 12_288
"""As the grid chooses for the digits network."""

RANDOM_SHARDS = 200


def write(path: Path, rows: int) -> None:
    schema = pa.schema({"id": pa.int64(), "a": pa.float32(), "b": pa.float32()})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, ROWS_PER_GROUP):
            ids = np.arange(start, min(start + ROWS_PER_GROUP, rows))
            values = ids.astype(np.float32)
            writer.write_table(pa.table({"id": ids, "a": values, "b": -values}, schema), row_group_size=ROWS_PER_GROUP)


def peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def read(path: Path) -> dict[str, float]:
    signature = ModelSignature(tuple(TensorSpec(name, "float32", ("N",)) for name in "AB"), (), 17, 9)
    bound = (ColumnBinding("a", "A"), ColumnBinding("b", "B"))
    small = path.with_name("small.parquet")
    write(small, 10)
    open_encoder(InputRef(str(small), InputFormat.PARQUET, key="id", columns=bound), signature).close()
    Path("/proc/self/clear_refs").write_text("5")  # let VmHWM begin anew; see proc(5)
    before = peak_kb()

    begun = time.perf_counter()
    encoder = open_encoder(InputRef(str(path), InputFormat.PARQUET, key="id", columns=bound), signature)
    opened = time.perf_counter()
    starts = list(range(0, encoder.items, ROWS_PER_SHARD))
    seen = 0
    for start in starts:
        seen += encoder.encode(start, min(start + ROWS_PER_SHARD, encoder.items)).rows
    sequential = time.perf_counter()
    for start in random.Random(7).choices(starts, k=RANDOM_SHARDS):
        shard = encoder.encode(start, min(start + ROWS_PER_SHARD, encoder.items))
        assert np.frombuffer(shard.inputs[0].data, np.float32)[0] == np.float32(start)
    for start in range(0, encoder.items, 1_000_000):
        keys = encoder.keys(start, min(start + 1_000_000, encoder.items))
        assert keys[0].as_py() == start
    return {
        "rows": seen,
        "peak_mb": (peak_kb() - before) / 1024,
        "open_seconds": opened - begun,
        "rows_per_second": seen / (sequential - opened),
    }


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", target, count]:
            write(Path(target), int(count))
        case ["read", target]:
            print(json.dumps(read(Path(target))))
