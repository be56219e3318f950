"""Parquet: rows of a table, read by row group.

Shards are much smaller than row groups and are asked for one after the other, so decoded columns of the last few
row groups are kept, up to `CACHE_BYTES` (the least recently used go first; one may be larger alone). Only columns
that somebody asks for are decoded.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.storage.datasets.arrow_values import describe, is_text, values_of
from pocketgrid.storage.datasets.base import OTHER, ColumnInfo, DataSet, Rows, Values
from pocketgrid.storage.locations import Source, SourceFile
from pocketgrid.storage.reasons import Refusal

CACHE_BYTES = 64 << 20


class ParquetTable(DataSet):
    """See `datasets.base.DataSet`.

    Raises:
        InvalidSpecError: the file is not Parquet.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            self._file = pq.ParquetFile(SourceFile(source))
            metadata = self._file.metadata
            schema = self._file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise InvalidSpecError(
                Refusal.WRONG_FORMAT, f"{source.name} is not Parquet: {error}", field="spec.input.format"
            ) from error
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._group_starts = [0, *accumulate(counts)]
        self.items: int = self._group_starts[-1]
        self.columns: tuple[ColumnInfo, ...] = tuple(
            describe(f.name, f.type)
            if schema.names.count(f.name) == 1
            else ColumnInfo(f.name, OTHER, note="several columns have this name")
            for f in schema
        )
        self.fingerprint = f"Parquet:{source.fingerprint}"
        self._types = {f.name: f.type for f in schema}
        self._lock = threading.Lock()  # a ParquetFile serves one reader at a time
        self._cache: OrderedDict[tuple[int, str], Any] = OrderedDict()
        self._cached_bytes = 0

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Rows:
        """See `DataSet.read`."""
        if not 0 <= start <= stop <= self.items:
            raise IndexError(f"rows {start}..{stop} of {self.items}")
        return Rows(start, stop - start, {name: self._values(name, start, stop) for name in columns})

    def close(self) -> None:
        """See `DataSet.close`."""
        self._cache.clear()
        self._file.close()
        self._source.close()

    def _values(self, name: str, start: int, stop: int) -> Values:
        pieces: list[Any] = []
        group = bisect_right(self._group_starts, start) - 1
        while start < stop:
            first, after = self._group_starts[group], self._group_starts[group + 1]
            upto = min(stop, after)
            if upto > start:
                pieces += self._column(group, name).slice(start - first, upto - start).chunks
            start, group = max(start, upto), group + 1
        array = pa.concat_arrays(pieces) if pieces else pa.array([], self._types[name])
        if pa.types.is_dictionary(array.type) and is_text(array.type):
            array = array.dictionary_decode()
        return values_of(array)

    def _column(self, group: int, name: str) -> Any:
        with self._lock:
            key = (group, name)
            column = self._cache.get(key)
            if column is not None:
                self._cache.move_to_end(key)
                return column
            try:
                column = self._file.read_row_group(group, columns=[name], use_threads=False)[name]
            except (pa.ArrowException, OSError) as error:
                raise StoreError(f"cannot read row group {group} of {self._source.name}: {error}") from error
            self._cache[key] = column
            self._cached_bytes += column.nbytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
                _, oldest = self._cache.popitem(last=False)
                self._cached_bytes -= oldest.nbytes
            return column
