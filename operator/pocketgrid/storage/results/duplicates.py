"""Which keys occur more than once, in bounded memory, however many rows there are.

Responsible for finding suspects: keys whose 64-bit hash another key has. Hashes are kept in memory up to a limit and
then go to temporary files, one for each value of their low byte, so that 10^9 rows take 8 GB of disk and about 64 MB of
memory. Whether a suspect truly occurs twice is for the caller to find out by a second look at the keys, since
different keys may share a hash.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

_BUCKETS = 256


def key_hash(key: Any) -> int:
    """A hash of `key` for this process, 64 bits, signed."""
    return hash(str(key) if isinstance(key, bytes | list | dict) else key)


class DuplicateFinder:
    """Collects keys; afterwards `suspects` tells which hashes occurred more than once. A context manager.

    Args:
        hashes_in_memory: beyond so many, hashes go to temporary files. 8 bytes each, and as much again for sorting.
    """

    def __init__(self, *, hashes_in_memory: int = 1 << 20) -> None:
        self._limit = hashes_in_memory
        self._held: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        self._count = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, keys: Sequence[Any]) -> None:
        """Take in some keys."""
        self._held.append(np.fromiter(map(key_hash, keys), np.int64, len(keys)))
        self._count += len(keys)
        if self._count >= self._limit:
            self._spill()

    def suspects(self, most: int) -> tuple[set[int], int]:
        """Up to `most` hashes that occurred more than once, and how many keys had a hash an earlier key had."""
        found: set[int] = set()
        excess = 0
        for hashes in self._groups():
            hashes.sort()
            again = hashes[1:][hashes[1:] == hashes[:-1]]
            excess += len(again)
            found.update(int(h) for h in again[: most - len(found)])
        return found, excess

    def _groups(self) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        if self._folder is None:
            yield np.concatenate(self._held) if self._held else np.empty(0, np.int64)
            return
        self._spill()
        for path in _paths(self._folder):
            if path.exists():
                yield np.fromfile(path, np.int64)

    def _spill(self) -> None:
        if not self._held:
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="pocketgrid-keys-")
        hashes = np.concatenate(self._held)
        bucket = (hashes & (_BUCKETS - 1)).astype(np.uint8)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket, minlength=_BUCKETS))
        for path, part in zip(_paths(self._folder), np.split(hashes[order], ends[:-1]), strict=True):
            with path.open("ab") as sink:
                sink.write(part.tobytes())
        self._held, self._count = [], 0


def _paths(folder: tempfile.TemporaryDirectory[str]) -> Iterable[Path]:
    return (Path(folder.name) / f"{n:02x}" for n in range(_BUCKETS))
