"""Files as items: every file is one, with the columns ``path``, ``size`` and ``bytes``.

Files are listed when the data set is opened and read when their bytes are asked for. One that cannot be read, or is
larger than `LIMIT_BYTES`, is an item that fails; one that changed after it was listed breaks the data set.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from pocketgrid.model.job import FILE_KEY, ItemFailure
from pocketgrid.storage.datasets.base import BINARY, BITE_BYTES, STRING, ColumnInfo, DataSet, Rows, Values
from pocketgrid.storage.places import Found, Store
from pocketgrid.storage.places.base import UNKNOWN_SIZE
from pocketgrid.storage.reasons import ItemReason

SIZE_COLUMN = "size"
BYTES_COLUMN = "bytes"

LIMIT_BYTES = 32 << 20
"""Largest file that is read: an image of 100 megapixels as JPEG; several are in memory at a time."""


class FileItems(DataSet):
    """See `datasets.base.DataSet`.

    Args:
        listings: the files of each place that was named, in order.
    """

    def __init__(self, listings: Sequence[tuple[Store, list[Found]]]) -> None:
        self._stores = [store for store, _ in listings]
        self._ends = list(accumulate(len(files) for _, files in listings))
        self._files = [found for _, files in listings for found in files]
        self.items = len(self._files)
        self.columns = (
            ColumnInfo(FILE_KEY, STRING),
            ColumnInfo(SIZE_COLUMN, "int64"),
            ColumnInfo(BYTES_COLUMN, BINARY),
        )
        self.fingerprint = _fingerprint(self._files)

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Rows:
        """See `DataSet.read`."""
        if not 0 <= start <= stop <= self.items:
            raise IndexError(f"files {start}..{stop} of {self.items}")
        files = self._files[start:stop]
        values: dict[str, Values] = {}
        failures: list[ItemFailure] = []
        for name in columns:
            match name:
                case "path":
                    values[name] = [found.relative for found in files]
                case "size":
                    values[name] = np.array([found.size for found in files], np.int64)
                case "bytes":
                    values[name] = self._read_bytes(start, files, failures)
                case _:
                    raise KeyError(name)
        return Rows(start, len(files), values, tuple(failures))

    def bites(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See `DataSet.bites`."""
        begin, size = start, 0
        for item in range(start, stop):
            weight = self._files[item].size
            weight = 0 if weight > LIMIT_BYTES else weight
            if item > begin and size + weight > BITE_BYTES:
                yield begin, item
                begin, size = item, 0
            size += weight
        if begin < stop or start == stop:
            yield begin, stop

    def close(self) -> None:
        """See `DataSet.close`; nothing is held."""

    def _read_bytes(self, start: int, files: Sequence[Found], failures: list[ItemFailure]) -> list[Any]:
        contents: list[Any] = [b""] * len(files)
        wanted: list[int] = []
        for row, found in enumerate(files):
            if found.size > LIMIT_BYTES:
                what = f"the file has {found.size:,} bytes; {LIMIT_BYTES:,} are the most"
                failures.append(_failure(start, row, ItemReason.FILE_TOO_LARGE, found, what))
            elif found.size == UNKNOWN_SIZE:
                failures.append(_failure(start, row, ItemReason.UNREADABLE_FILE, found, found.mark))
            else:
                wanted.append(row)
        while wanted:
            place = bisect_right(self._ends, start + wanted[0])
            rows = [row for row in wanted if start + row < self._ends[place]]
            for row, content in zip(rows, self._stores[place].fetch([files[row] for row in rows]), strict=True):
                if isinstance(content, OSError):
                    what = f"the file cannot be read: {content.strerror or content}"
                    failures.append(_failure(start, row, ItemReason.UNREADABLE_FILE, files[row], what))
                else:
                    contents[row] = content
            wanted = wanted[len(rows) :]
        failures.sort(key=lambda failure: failure.row)
        return contents


def _failure(start: int, row: int, reason: str, found: Found, what: str) -> ItemFailure:
    printable = found.relative.encode(errors="replace").decode()
    return ItemFailure(row, reason, f"row {start + row}: {what} ({printable})")


def _fingerprint(files: Sequence[Found]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for found in files:
        digest.update(f"{found.relative}\0{found.size}\0{found.mark}\n".encode(errors="surrogateescape"))
    return f"Files:{digest.hexdigest()}"
