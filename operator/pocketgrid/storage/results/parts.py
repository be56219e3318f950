"""Files of an output part: the same rows give the same bytes, whoever computed them and however often we restarted.

Responsible for the formats. Not responsible for when a part may be written. Determinism rests on fixed row groups
(whole shards, cut by rows and bytes), fixed writer options, and nothing in the file that tells time, host or epoch;
it holds for one version of pyarrow, whose name stands in every Parquet footer.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pocketgrid.model.job import OutputFormat

SUFFIXES = {OutputFormat.PARQUET: ".parquet", OutputFormat.JSONL: ".jsonl"}


def part_name(part: int, format_: OutputFormat) -> str:
    """File name of a part, relative to the output folder."""
    return f"part-{part:05d}{SUFFIXES[format_]}"


def errors_name(part: int) -> str:
    """File name of a part's failed rows, relative to the output folder."""
    return f"_errors/part-{part:05d}.jsonl"


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was written and fsynced."""

    rows: int
    bytes: int
    sha256: str


class _Digesting(io.RawIOBase):
    """A sink that hashes and counts what goes through it."""

    def __init__(self, sink: io.BufferedWriter) -> None:
        super().__init__()
        self._sink = sink
        self._hash = hashlib.sha256()
        self._count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._sink.write(view)
        self._hash.update(view)
        self._count += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._count

    def done(self, rows: int) -> Written:
        """Make everything durable and say what it is."""
        self._sink.flush()
        os.fsync(self._sink.fileno())
        return Written(rows, self._count, self._hash.hexdigest())


def write_part(path: Path, format_: OutputFormat, schema: pa.Schema, chunks: Iterable[pa.Table]) -> Written:
    """Write `chunks`, each of them one row group, to `path` and fsync it.

    Raises:
        OSError: as the system said; `path` may hold anything.
    """
    rows = 0
    with path.open("wb") as file:
        sink = _Digesting(file)
        match format_:
            case OutputFormat.PARQUET:
                import pyarrow.parquet as pq

                words = [f.name for f in schema if pa.types.is_string(f.type)]
                with pq.ParquetWriter(
                    sink, schema, compression="snappy", use_dictionary=words, version="2.6"
                ) as writer:
                    for chunk in chunks:
                        rows += chunk.num_rows
                        writer.write_table(chunk, row_group_size=max(1, chunk.num_rows))
            case OutputFormat.JSONL:
                for chunk in chunks:
                    rows += chunk.num_rows
                    sink.write(json_lines(chunk))
        return sink.done(rows)


def write_errors(path: Path, lines: Sequence[dict[str, Any]]) -> Written:
    """Write one JSON object a line to `path` and fsync it."""
    with path.open("wb") as file:
        sink = _Digesting(file)
        for line in lines:
            sink.write(json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n")
        return sink.done(len(lines))


def json_lines(table: pa.Table) -> bytes:
    """`table` as JSON lines: numbers in their shortest form, what is no finite number as null.

    Arrow does the formatting: Python's json takes a microsecond per number, and a row may have hundreds.
    """
    if not table.num_rows:
        return b""
    texts: list[Any] = []
    for number, name in enumerate(table.column_names):
        column = table.column(number).combine_chunks()
        array = column if isinstance(column, pa.Array) else column.chunk(0)
        texts.append((", " if number else "{") + json.dumps(name, ensure_ascii=False) + ": ")
        texts.append(_json_texts(array))
    scalars = [pa.scalar(t, pa.large_string()) if isinstance(t, str) else t.cast(pa.large_string()) for t in texts]
    lines = pc.binary_join_element_wise(*scalars, pa.scalar("}\n", pa.large_string()), pa.scalar("", pa.large_string()))
    start, stop = lines.offset, lines.offset + len(lines)
    offsets = memoryview(lines.buffers()[1]).cast("q")
    return bytes(memoryview(lines.buffers()[2])[offsets[start] : offsets[stop]])


def _json_texts(array: pa.Array) -> pa.Array:
    """JSON of each value, as strings."""
    type_ = array.type
    if pa.types.is_fixed_size_list(type_):
        width = type_.list_size
        offsets = pa.array(range(0, width * len(array) + 1, width) if width else [0] * (len(array) + 1), pa.int64())
        return _brackets(pa.LargeListArray.from_arrays(offsets, _json_texts(array.flatten())))
    if pa.types.is_list(type_):
        first = array.offsets[0].as_py()
        offsets = pc.subtract(array.offsets.cast(pa.int64()), first)
        return _brackets(pa.LargeListArray.from_arrays(offsets, _json_texts(array.flatten())))
    if pa.types.is_floating(type_):
        texts = array.cast(pa.string())
        return pc.if_else(pc.fill_null(pc.is_finite(array), False), texts, "null")
    if pa.types.is_integer(type_):
        return pc.fill_null(array.cast(pa.string()), "null")
    if pa.types.is_boolean(type_):
        return pc.fill_null(pc.if_else(array, "true", "false"), "null")
    values = array.dictionary_encode()
    words = [json.dumps(v, ensure_ascii=False, default=str) for v in values.dictionary.to_pylist()]
    return pc.fill_null(pa.array(words, pa.string()).take(values.indices), "null")


def _brackets(lists: pa.Array) -> pa.Array:
    joined = pc.binary_join(lists, ", ")
    text = joined.type
    return pc.binary_join_element_wise(pa.scalar("[", text), joined, pa.scalar("]", text), pa.scalar("", text))


def columns_of(path: Path, format_: OutputFormat) -> list[dict[str, Any]] | None:
    """Columns of a part as the manifest says them; names only for JSONL, and None if there is no row to tell."""
    match format_:
        case OutputFormat.PARQUET:
            import pyarrow.parquet as pq

            return describe_columns(pq.read_schema(path))
        case OutputFormat.JSONL:
            with path.open("rb") as source:
                line = source.readline()
            return [{"name": name} for name in json.loads(line)] if line else None


def describe_columns(schema: pa.Schema) -> list[dict[str, Any]]:
    """Name and type of each column; `shape` where a list is a flattened tensor."""
    # A Parquet file calls the values of a list "element", Arrow in memory "item".
    return [
        {"name": f.name, "type": str(f.type).replace("<element: ", "<item: ")}
        | ({"shape": json.loads(f.metadata[b"shape"])} if f.metadata and b"shape" in f.metadata else {})
        for f in schema
    ]


_KEYS_TOGETHER = 65_536


def row_keys(path: Path, key: str, format_: OutputFormat) -> Iterator[list[Any]]:
    """The keys in a part, in row order, some at a time.

    Raises:
        ValueError, KeyError: the file is not what a part should be.
    """
    match format_:
        case OutputFormat.PARQUET:
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_KEYS_TOGETHER, columns=[key]):
                    yield batch.column(0).to_pylist()
        case OutputFormat.JSONL:
            # The key stands first; the rest of a line may hold thousands of numbers that nobody asks for here.
            beginning, decoder = f"{{{json.dumps(key, ensure_ascii=False)}: ", json.JSONDecoder()
            with path.open(encoding="utf-8", newline="\n") as source:
                while lines := list(itertools.islice(source, _KEYS_TOGETHER)):
                    for line in lines:
                        if not line.startswith(beginning):
                            raise ValueError(f"a line begins with {line[:40]!r} and not with the key {key!r}")
                    yield [decoder.raw_decode(line, len(beginning))[0] for line in lines]
