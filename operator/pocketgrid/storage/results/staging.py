"""Results of committed shards that wait for the rest of their part, in append-only segments beside the log.

Responsible for making records durable before the log speaks of them, and for telling a damaged record from a good
one. Not responsible for what a record holds. Segment names are never used twice, so an entry can never point at
bytes that were written later by somebody else.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.storage.durable import fsync_folder, make_folder, store_error, write_all
from pocketgrid.storage.logentries import segment_name
from pocketgrid.storage.timings import WriteTimings

_SUFFIX = ".data"
_OPEN_SEGMENTS = 32
_EPOCH = re.compile(r"\bE(\d{10})\b")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a record is; `crc` is the CRC-32 of its bytes."""

    segment: str
    offset: int
    length: int
    crc: int


class Staging:
    """The staging folder, written by one thread of one epoch."""

    def __init__(self, folder: Path, epoch: int, *, rotate_bytes: int, timings: WriteTimings | None = None) -> None:
        self._folder = folder
        self._epoch = epoch
        self._rotate_bytes = rotate_bytes
        self._number = 0
        self._descriptor = -1
        self._segment = ""
        self._length = 0
        self._timings = timings or WriteTimings()
        try:
            make_folder(folder)
        except OSError as error:
            raise store_error("opening", folder, error) from error

    @property
    def open_segment(self) -> str:
        """The segment records are appended to; empty if there is none at the moment."""
        return self._segment

    def path(self, segment: str) -> Path:
        """File of a segment."""
        return self._folder / (segment + _SUFFIX)

    def append(self, records: Sequence[Sequence[bytes | memoryview]]) -> list[Location]:
        """Write `records`, each given in pieces, and make them durable.

        Raises:
            StoreError: writing failed; nothing points at what may have reached the disk, and a later call works
                once the cause is gone.
        """
        locations: list[Location] = []
        try:
            if self._descriptor < 0 or self._length >= self._rotate_bytes:
                self._begin()
            at = self._length
            for pieces in records:
                crc = length = 0
                for piece in pieces:
                    crc = zlib.crc32(piece, crc)
                    length += len(piece)
                locations.append(Location(self._segment, at, length, crc))
                at += length
            with self._timings.stage:
                write_all(self._descriptor, self._length, [p for pieces in records for p in pieces])
            with self._timings.sync_data:
                os.fdatasync(self._descriptor)
        except OSError as error:
            failed = self.path(self._segment) if self._segment else self._folder
            self._give_back()
            raise store_error("writing staged results to", failed, error) from error
        self._length = at
        return locations

    def close(self) -> None:
        """Let go of the open segment; the next append begins another."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._segment, self._length = -1, "", 0

    def _begin(self) -> None:
        self.close()
        self._number += 1
        segment = segment_name(self._epoch, self._number)
        descriptor = os.open(self.path(segment), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._descriptor, self._segment = descriptor, segment
        fsync_folder(self._folder)

    def _give_back(self) -> None:
        """Free the space of a failed append; the log has not spoken of it yet, so no reader can miss it."""
        descriptor, segment, length = self._descriptor, self._segment, self._length
        if descriptor < 0:
            return
        try:
            if length:
                os.ftruncate(descriptor, length)
            else:
                self.path(segment).unlink(missing_ok=True)
        except OSError:
            pass  # the space comes back when the segment is removed
        self.close()

    @contextmanager
    def reading(self) -> Iterator[Callable[[Location], bytes | None]]:
        """A function that gives the bytes of a record, or None if they are damaged or gone.

        Segments stay open between calls, since a part has thousands of records in a few segments. The function raises
        StoreError if the system refuses to read.
        """
        descriptors: dict[str, int] = {}

        def close_all() -> None:
            while descriptors:
                os.close(descriptors.popitem()[1])

        def read(location: Location) -> bytes | None:
            try:
                descriptor = descriptors.get(location.segment)
                if descriptor is None:
                    if len(descriptors) >= _OPEN_SEGMENTS:
                        close_all()
                    descriptor = os.open(self.path(location.segment), os.O_RDONLY | os.O_CLOEXEC)
                    descriptors[location.segment] = descriptor
                data = os.pread(descriptor, location.length, location.offset)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise store_error("reading", self.path(location.segment), error) from error
            return data if len(data) == location.length and zlib.crc32(data) == location.crc else None

        try:
            yield read
        finally:
            close_all()

    def size(self, segment: str) -> int:
        """Bytes of a segment; 0 if it is gone."""
        try:
            return self.path(segment).stat().st_size
        except FileNotFoundError:
            return 0

    def temporary(self, name: str) -> Path:
        """Where a file that will become `name` is prepared; no other epoch prepares it there."""
        return self._folder / f"{name}.E{self._epoch:010d}.tmp"

    def sweep(self, live: Container[str]) -> None:
        """Remove every file that holds no record of a `live` segment and is not being written.

        Files of newer epochs are left alone: a writer that took over a moment ago, after our last look at the log,
        may have acknowledged what they hold.
        """
        try:
            names = os.listdir(self._folder)  # noqa: PTH208  # names, not paths
        except OSError as error:
            raise store_error("listing", self._folder, error) from error
        for name in sorted(names):
            segment = name.removesuffix(_SUFFIX)
            found = _EPOCH.search(name)
            ours = found is not None and int(found[1]) <= self._epoch
            if ours and segment not in live and segment != self._segment:
                self.discard(self._folder / name)

    @staticmethod
    def discard(path: Path) -> None:
        """Remove a file nobody needs. If that fails it costs space, and the next sweep tries again."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
