"""Parquet: rows of a table, read by row group.

Shards are much smaller than row groups and are asked for one after the other, so decoded columns of the last few
row groups are kept, up to `CACHE_BYTES` (the least recently used go first). Only columns that somebody asks for are
decoded. Where they are larger than `WHOLE_BYTES` together within one row group, they are decoded batch by batch
instead, from the beginning to what is asked for; going back begins anew.

Of many files, only the last few that were read have their facts and decoded columns in memory; see `Open`.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.storage.datasets.arrow_values import describe, is_text, values_of
from pocketgrid.storage.datasets.base import BITE_BYTES, OTHER, ColumnInfo, DataSet, Rows, Values
from pocketgrid.storage.locations import Source, SourceFile
from pocketgrid.storage.reasons import Refusal

CACHE_BYTES = 32 << 20
WHOLE_BYTES = CACHE_BYTES // 2
BATCH_BYTES = CACHE_BYTES // 8
"""Batches of all columns together; small enough that what threads beside one another read is not decoded twice."""

OPEN_FILES = 3
"""Two threads read, and one of them may be about to go on to the next file."""

_READ_AHEAD_BYTES = 1 << 20

_LEVEL_BYTES = 4
_VALUE_BYTES = {
    "BOOLEAN": 1 + _LEVEL_BYTES,
    "INT32": 4 + _LEVEL_BYTES,
    "INT64": 8 + _LEVEL_BYTES,
    "FLOAT": 4 + _LEVEL_BYTES,
    "DOUBLE": 8 + _LEVEL_BYTES,
}
"""Of a decoded value, and of the two levels by which Parquet says where lists begin and what is null. Few different
values are stored in a fraction of it."""

_Key = tuple[int, str, int, int]
"""Row group, column, rows in a batch (0: all), first row."""


@dataclass(slots=True)
class _Stream:
    """A column of a row group on its way from the first to the last row."""

    batches: Iterator[Any]
    next_row: int = 0
    rest: Any = None

    def take(self, rows: int) -> Any:
        """The next `rows`, or fewer at the end; Arrow's own batches may be shorter than it was asked for."""
        pieces = [] if self.rest is None else [self.rest]
        while (have := sum(map(len, pieces))) < rows:
            batch = next(self.batches, None)
            if batch is None:
                break
            pieces.append(batch.column(0))
        whole = pa.concat_arrays(pieces) if len(pieces) != 1 else pieces[0]
        self.rest = whole.slice(rows) if have > rows else None
        self.next_row += min(rows, have)
        return whole.slice(0, rows)


class Open:
    """The tables of a data set that are in memory: the `limit` last ones that were read."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._tables: OrderedDict[int, ParquetTable] = OrderedDict()

    def used(self, table: ParquetTable) -> None:
        """`table` is about to be read; its own lock is held, so nobody releases it now."""
        with self._lock:
            self._tables[id(table)] = table
            self._tables.move_to_end(id(table))
            oldest = list(self._tables.values())[: -self._limit]
        for other in oldest:
            # One that is being read stays, and is looked at again next time.
            if other.try_release():
                self.closed(other)

    def closed(self, table: ParquetTable) -> None:
        """`table` has nothing in memory any more."""
        with self._lock:
            self._tables.pop(id(table), None)


class ParquetTable(DataSet):
    """See `datasets.base.DataSet`.

    Args:
        source: closed with this data set.
        opened: shared by the files of a data set.

    Raises:
        InvalidSpecError: the file is not Parquet.
    """

    def __init__(self, source: Source, opened: Open | None = None) -> None:
        self._source = source
        self._opened = opened or Open()
        try:
            self._file: Any = pq.ParquetFile(SourceFile(source))
            metadata = self._file.metadata
            schema = self._file.schema_arrow
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            if any(group.num_rows < 0 for group in groups):
                raise ValueError("a row group has a negative number of rows")
        except (pa.ArrowException, OSError, ValueError) as error:  # names that are no text are a ValueError
            raise InvalidSpecError(
                Refusal.WRONG_FORMAT, f"{source.name} is not Parquet: {error}", field="spec.input.format"
            ) from error
        self._group_starts = [0, *accumulate(group.num_rows for group in groups)]
        self._row_bytes = [group.total_byte_size / max(group.num_rows, 1) for group in groups]
        self.items: int = self._group_starts[-1]
        self.columns: tuple[ColumnInfo, ...] = tuple(
            describe(f.name, f.type)
            if schema.names.count(f.name) == 1
            else ColumnInfo(f.name, OTHER, note="several columns have this name")
            for f in schema
        )
        self.fingerprint = f"Parquet:{source.fingerprint}"
        self._types = {f.name: f.type for f in schema}
        # One that buffers its reads, for columns that are never in memory as a whole.
        self._buffering: Any = None
        self._lock = threading.Lock()  # a ParquetFile serves one reader at a time
        self._cache: OrderedDict[_Key, Any] = OrderedDict()
        self._cached_bytes = 0
        self._streams: dict[tuple[int, str, int], _Stream] = {}
        self._sizes: dict[tuple[int, str], int] = {}
        with self._lock:
            self._opened.used(self)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Rows:
        """See `DataSet.read`."""
        if not 0 <= start <= stop <= self.items:
            raise IndexError(f"rows {start}..{stop} of {self.items}")
        pieces: dict[str, list[Any]] = {name: [] for name in columns}
        group, at = bisect_right(self._group_starts, start) - 1, start
        with self._lock:
            self._opened.used(self)
            while at < stop:
                first, after = self._group_starts[group], self._group_starts[group + 1]
                upto = min(stop, after)
                if upto > at:
                    self._read_group(group, at - first, upto - first, pieces)
                at, group = max(at, upto), group + 1
        return Rows(start, stop - start, {name: self._joined(name, found) for name, found in pieces.items()})

    def bites(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See `DataSet.bites`. By the mean weight of a group's rows, over all columns."""
        begin = start
        while begin < stop:
            group = bisect_right(self._group_starts, begin) - 1
            room = max(1, int(BITE_BYTES / max(self._row_bytes[group], 1.0)))
            end = stop
            if room < stop - begin:
                # Rows weigh much here, and may weigh more in the next group.
                end = min(begin + room, self._group_starts[group + 1])
            yield begin, end
            begin = end
        if start == stop:
            yield start, stop

    def close(self) -> None:
        """See `DataSet.close`."""
        self._opened.closed(self)
        self._release()
        self._source.close()

    def try_release(self) -> bool:
        """Give back what can be had again, unless the table is being read just now."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._release()
        finally:
            self._lock.release()
        return True

    def _release(self) -> None:
        self._cache.clear()
        self._cached_bytes = 0
        self._streams.clear()
        self._sizes.clear()
        for file in (self._file, self._buffering):
            if file is not None:
                file.close()
        self._file = self._buffering = None

    def _joined(self, name: str, pieces: list[Any]) -> Values:
        array = pa.concat_arrays(pieces) if pieces else pa.array([], self._types[name])
        if pa.types.is_dictionary(array.type) and is_text(array.type):
            array = array.dictionary_decode()
        return values_of(array)

    def _read_group(self, group: int, start: int, stop: int, pieces: dict[str, list[Any]]) -> None:
        """Add rows [start, stop) of one row group to the pieces of each column."""
        try:
            if self._file is None:
                self._file = pq.ParquetFile(SourceFile(self._source))
            total = sum(self._size_of(group, name) for name in pieces)
            for name, found in pieces.items():
                if total <= WHOLE_BYTES:
                    found.extend(self._whole(group, name).slice(start, stop - start).chunks)
                else:
                    found.extend(self._read_in_batches(group, name, start, stop, total))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(f"cannot read row group {group} of {self._source.name}: {error}") from error

    def _whole(self, group: int, name: str) -> Any:
        key = (group, name, 0, 0)
        column = self._cached(key)
        if column is None:
            column = self._file.read_row_group(group, columns=[name], use_threads=False)[name]
            rows = self._group_starts[group + 1] - self._group_starts[group]
            if len(column) != rows:
                raise StoreError(f"row group {group} of {self._source.name} has {len(column)} rows instead of {rows}")
            self._keep(key, column)
        return column

    def _read_in_batches(self, group: int, name: str, start: int, stop: int, total: int) -> Iterator[Any]:
        rows = self._group_starts[group + 1] - self._group_starts[group]
        per_batch = max(1, rows * BATCH_BYTES // total)
        for first in range(start - start % per_batch, stop, per_batch):
            batch = self._cached((group, name, per_batch, first))
            if batch is None:
                batch = self._decode_until(group, name, first, per_batch)
            begin = max(start - first, 0)
            yield batch.slice(begin, min(stop - first, len(batch)) - begin)

    def _decode_until(self, group: int, name: str, first: int, per_batch: int) -> Any:
        """The batch whose first row is `first`; those before it are kept on the way, as far as there is room."""
        stream = self._streams.pop((group, name, per_batch), None)
        if stream is None or stream.next_row > first:
            if self._buffering is None:
                self._buffering = pq.ParquetFile(
                    SourceFile(self._source),
                    metadata=self._file.metadata,
                    buffer_size=_READ_AHEAD_BYTES,
                    pre_buffer=False,  # otherwise it fetches the whole column first
                )
            stream = _Stream(
                self._buffering.iter_batches(per_batch, row_groups=[group], columns=[name], use_threads=False)
            )
        while True:
            at = stream.next_row
            rows = min(per_batch, self._group_starts[group + 1] - self._group_starts[group] - at)
            column = stream.take(rows)
            if len(column) < rows:
                raise StoreError(f"row group {group} of {self._source.name} ends early, at row {stream.next_row}")
            self._keep((group, name, per_batch, at), column)
            if at == first:
                # One that has ended, or was left behind, would keep megabytes for each row group of the file.
                for other in [key for key in self._streams if abs(key[0] - group) > 1]:
                    del self._streams[other]
                if self._group_starts[group] + stream.next_row < self._group_starts[group + 1]:
                    self._streams[group, name, per_batch] = stream
                return column

    def _cached(self, key: _Key) -> Any:
        column = self._cache.get(key)
        if column is not None:
            self._cache.move_to_end(key)
        return column

    def _keep(self, key: _Key, column: Any) -> None:
        replaced = self._cache.pop(key, None)
        self._cached_bytes += column.nbytes - (replaced.nbytes if replaced is not None else 0)
        self._cache[key] = column
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.nbytes

    def _size_of(self, group: int, name: str) -> int:
        """Bytes of a column in a row group while it is decoded, at least."""
        size = self._sizes.get((group, name))
        if size is None:
            metadata = self._file.metadata.row_group(group)
            columns = (metadata.column(i) for i in range(metadata.num_columns))
            size = sum(
                max(c.total_uncompressed_size, c.num_values * _VALUE_BYTES.get(c.physical_type, 0))
                for c in columns
                if c.path_in_schema == name or c.path_in_schema.startswith(f"{name}.")
            )
            self._sizes[group, name] = size
        return size
