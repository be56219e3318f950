"""Turning the staged records of one part into its final files.

Responsible for reading and checking records, for keys, and for putting files in place. Not responsible for the log:
the store says when a part is ready and enters it afterwards. A crash between the two leaves a file that the next
epoch writes again with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import ItemFailure, OutputFormat
from pocketgrid.model.tensors import TensorData
from pocketgrid.storage.durable import fsync_folder, make_folder, replace_durably, store_error
from pocketgrid.storage.logentries import Commit, Plan, Sealed
from pocketgrid.storage.results.columns import Column
from pocketgrid.storage.results.parts import errors_name, part_name, write_errors, write_part
from pocketgrid.storage.results.staging import Location, Staging

Keys = Callable[[int, int], "pa.Array"]
"""(start, stop) -> keys of these items, in order."""

_GROUP_ROWS = 65_536
_GROUP_BYTES = 64 << 20
"""A row group is closed after the shard that reaches one of these; it is what sealing holds in memory."""


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """The column that identifies a row: a column of the data set, or the item's number.

    Attributes:
        name: in the output.
        numbered: whether it is the item's number.
        type: the same for all parts.
    """

    name: str
    numbered: bool
    type: pa.DataType
    source: Keys

    def read(self, start: int, stop: int) -> pa.Array:
        """Keys of the items [start, stop).

        Raises:
            InvalidSpecError: the data set no longer gives the keys it promised.
        """
        if self.numbered:
            return pa.array(np.arange(start, stop, dtype=np.int64))
        keys = self.source(start, stop)
        if isinstance(keys, pa.ChunkedArray):
            keys = pa.concat_arrays(keys.chunks) if keys.num_chunks else pa.array([], keys.type)
        if len(keys) != stop - start:
            raise InvalidSpecError(
                "InputChanged",
                f"the data set has {len(keys)} keys for items {start} to {stop - 1}; it was changed after admission",
                field="spec.input.uri",
            )
        if keys.type != self.type:
            try:
                keys = keys.cast(self.type)
            except pa.ArrowInvalid as error:
                raise InvalidSpecError(
                    "KeyTypeChanges", f"the keys are not all {self.type}: {error}", field="spec.input.key"
                ) from error
        return keys


def encode_record(
    columns: Sequence[Column], outputs: Sequence[TensorData], failures: Sequence[ItemFailure]
) -> tuple[Any, bytes]:
    """The two pieces of a staged record: Arrow batch (empty if no row has a result) and failures."""
    batch: Any = b""
    if outputs and outputs[0].items:
        arrays = [c.staged_array(t) for c, t in zip(columns, outputs, strict=True)]
        batch = memoryview(pa.RecordBatch.from_arrays(arrays, [c.name for c in columns]).serialize())
    if not failures:
        return batch, b""
    return batch, json.dumps([[f.row, f.reason, f.message] for f in failures]).encode()


def decode_record(
    columns: Sequence[Column], data: bytes, batch_length: int
) -> tuple[tuple[TensorData, ...], tuple[ItemFailure, ...]]:
    """What `encode_record` was given; ragged columns have row lengths, even if they came dense."""
    failures = tuple(ItemFailure(*f) for f in json.loads(data[batch_length:])) if len(data) > batch_length else ()
    if not batch_length:
        return (), failures
    staged = pa.schema([pa.field(c.name, c.staged_type) for c in columns])
    batch = pa.ipc.read_record_batch(pa.py_buffer(memoryview(data)[:batch_length]), staged)
    return tuple(c.tensor(batch.column(n)) for n, c in enumerate(columns)), failures


@dataclass
class PartSource:
    """The checked content of one part, read shard by shard.

    Attributes:
        damaged: commits whose record is damaged; once there is one, no more chunks come.
        failures: (item number, reason, message) of rows without result, in order.
    """

    plan: Plan
    part: int
    commits: Mapping[int, Commit]
    staging: Staging
    columns: Sequence[Column]
    key: KeyColumn
    damaged: list[Commit] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    keys: pa.Array = None

    @property
    def schema(self) -> pa.Schema:
        """Of the output."""
        return output_schema(self.key, self.columns)

    def chunks(self) -> Iterator[pa.Table]:
        """Tables of whole shards in row order; each becomes a row group."""
        first, stop = self.plan.rows_of(self.part)
        self.keys = self.key.read(first, stop)
        staged = pa.schema([pa.field(c.name, c.staged_type) for c in self.columns])
        batches: list[pa.RecordBatch] = []
        kept: list[np.ndarray[Any, Any]] = []
        rows = size = 0
        with self.staging.reading() as read:
            for shard in self.plan.shards_of(self.part):
                commit = self.commits[shard]
                data = read(Location(commit.staging, commit.offset, commit.length, commit.crc))
                if data is None:
                    self.damaged.append(commit)
                if data is None or self.damaged:
                    continue
                start, end = self.plan.grid.bounds(shard)
                numbers = np.arange(start - first, end - first)
                if commit.failed:
                    numbers = self._without_failures(numbers, start, data[commit.batch_length :])
                if commit.batch_length:
                    buffer = pa.py_buffer(memoryview(data)[: commit.batch_length])
                    batches.append(pa.ipc.read_record_batch(buffer, staged))
                kept.append(numbers)
                rows += commit.rows
                size += commit.length
                if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
                    yield self._table(batches, kept, staged)
                    batches, kept, rows, size = [], [], 0, 0
        if rows and not self.damaged:
            yield self._table(batches, kept, staged)

    def _without_failures(self, numbers: np.ndarray[Any, Any], start: int, text: bytes) -> np.ndarray[Any, Any]:
        keep = np.ones(len(numbers), dtype=bool)
        for row, reason, message in json.loads(text):
            keep[row] = False
            self.failures.append((start + row, reason, message))
        return numbers[keep]

    def _table(self, batches: list[pa.RecordBatch], kept: list[np.ndarray[Any, Any]], staged: pa.Schema) -> pa.Table:
        whole = pa.Table.from_batches(batches, staged).combine_chunks()
        arrays = [self.keys.take(pa.array(np.concatenate(kept)))]
        for column, name in zip(self.columns, whole.column_names, strict=True):
            arrays.append(column.output_array(pa.concat_arrays(whole.column(name).chunks)))
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def error_lines(self) -> list[dict[str, Any]]:
        """The failed rows for the errors file; to be asked after `chunks` is exhausted."""
        first, _ = self.plan.rows_of(self.part)
        return [
            {"row": row, "key": self.keys[row - first].as_py(), "reason": reason, "message": message}
            for row, reason, message in self.failures
        ]


def output_schema(key: KeyColumn, columns: Sequence[Column]) -> pa.Schema:
    """What a reader of the output sees."""
    return pa.schema([pa.field(key.name, key.type), *(c.field for c in columns)])


def seal_part(
    source: PartSource, folder: Path, format_: OutputFormat, check_epoch: Callable[[], None]
) -> Sealed | list[Commit]:
    """Write the files of a part and put them in place, or say which records are damaged and leave all as it was.

    Raises:
        StoreError: writing failed.
        StaleEpochError: a newer writer has taken over; the part is its business now.
        InvalidSpecError: the data set no longer gives the keys it promised.
    """
    name, staging = part_name(source.part, format_), source.staging
    temporary = staging.temporary(name)
    errors, errors_temporary = folder / errors_name(source.part), staging.temporary(name + ".errors")
    try:
        data = write_part(temporary, format_, source.schema, source.chunks())
        if source.damaged:
            return source.damaged
        lines = source.error_lines()
        failed = write_errors(errors_temporary, lines) if lines else None
        # What a superseded writer would put in place has the same bytes, but it has no business here any more.
        check_epoch()
        if failed:
            make_folder(errors.parent)
            replace_durably(errors_temporary, errors)
        elif errors.exists():
            errors.unlink()
            fsync_folder(errors.parent)
        replace_durably(temporary, folder / name)
    except OSError as error:
        check_epoch()  # a newer writer removes our temporary files, which is no fault of the disk
        raise store_error("writing", folder / name, error) from error
    finally:
        staging.discard(temporary)
        staging.discard(errors_temporary)
    return Sealed(
        part=source.part,
        rows=data.rows,
        failed=len(lines),
        bytes=data.bytes,
        sha256=data.sha256,
        errors_bytes=failed.bytes if failed else 0,
        errors_sha256=failed.sha256 if failed else "",
    )
