"""Lines of a file by number: a sparse index of offsets, made by one sequential scan.

The offset of every `STRIDE`-th line is kept, 8 bytes each, so that an index of 10^8 lines is 12 MB; a range of
lines is one read that begins up to `STRIDE` - 1 lines too early. A line ends with LF, CR LF or the end of the file;
a UTF-8 byte order mark at the start is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid.errors import InvalidSpecError
from pocketgrid.storage.locations import BLOCK_BYTES, Source, blocks
from pocketgrid.storage.reasons import Refusal

STRIDE = 64
"""Lines per index entry: at 100 bytes per line, a read is at most 13 KB longer than needed."""

LINE_LIMIT_BYTES = 64 << 20
"""A longer line is taken for a sign that the file is not one of lines: lines are read as a whole."""

_LF = 0x0A
_CR = 0x0D
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Consecutive lines.

    Attributes:
        data: their bytes and line ends, nothing else.
        starts, stops: where each line begins and ends within `data`, its line end excluded.
    """

    data: bytes
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, index: int) -> bytes:
        """One line without its end."""
        return self.data[self.starts[index] : self.stops[index]]


class LineFile:
    """A file by lines.

    Args:
        source: stays the caller's to close.
        skip_blank_end: leave out blank lines at the very end of the file.

    Raises:
        InvalidSpecError: a line is longer than `LINE_LIMIT_BYTES`.
    """

    def __init__(self, source: Source, *, skip_blank_end: bool) -> None:
        self._source = source
        self._begin = 3 if source.read_at(0, min(3, source.size)) == _BYTE_ORDER_MARK else 0
        self._end = _end_of_content(source, self._begin) if skip_blank_end else source.size
        self._marks, self.lines = _scan(source, self._begin, self._end)

    def span_bytes(self, start: int, stop: int) -> int:
        """How many bytes reading lines [start, stop) reads."""
        first, last = self._span(start, stop)
        return last - first

    def bites(self, start: int, stop: int, limit: int) -> Iterator[tuple[int, int]]:
        """Cut [start, stop) into runs that are read as at most `limit` bytes each, if a stride is not larger alone."""
        begin = start
        while begin < stop:
            end = stop
            if self.span_bytes(begin, stop) > limit:
                room = int(np.searchsorted(self._marks, self._marks[begin // STRIDE] + limit, "right")) - 1
                end = min(stop, max(room, begin // STRIDE + 1) * STRIDE)
            yield begin, end
            begin = end
        if start == stop:
            yield start, stop

    def read(self, start: int, stop: int) -> LineBlock:
        """Lines [start, stop), all of which must exist.

        Raises:
            StoreError: see `Source.read_at`.
            IndexError: there are no such lines.
        """
        if not 0 <= start <= stop <= self.lines:
            raise IndexError(f"lines {start}..{stop} of {self.lines}")
        if start == stop:
            nothing = np.empty(0, np.int64)
            return LineBlock(b"", nothing, nothing)
        offset, end = self._span(start, stop)
        data = self._source.read_at(offset, end - offset)
        skip, count = start % STRIDE, stop - start
        ends = np.flatnonzero(_bytes_of(data) == _LF)
        if len(ends) < skip + count:
            ends = np.append(ends, len(data))
        first = int(ends[skip - 1]) + 1 if skip else 0
        data = data[first : int(ends[skip + count - 1]) + 1]
        stops = ends[skip : skip + count] - first
        starts = np.empty_like(stops)
        starts[0] = 0
        starts[1:] = stops[:-1] + 1
        # data[starts - 1] of an empty line is the line end before it, never a CR.
        carriage = (stops > starts) & (_bytes_of(data)[stops - 1] == _CR) if data else np.zeros(1, bool)
        return LineBlock(data, starts, stops - carriage)

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        after = -(-stop // STRIDE)
        end = int(self._marks[after]) if after < len(self._marks) else self._end
        return int(self._marks[start // STRIDE]), end


def _bytes_of(data: bytes) -> npt.NDArray[Any]:
    return np.frombuffer(data, np.uint8)


def _scan(source: Source, begin: int, end: int) -> tuple[npt.NDArray[np.int64], int]:
    """Offsets of lines 0, STRIDE, 2 * STRIDE, ..., and the number of lines."""
    marks = [np.array([begin], np.int64)]
    finished, offset, last = 0, begin, b"\n"
    line_begin = begin
    for block in blocks(source, begin, end):
        hits = np.flatnonzero(_bytes_of(block) == _LF)
        # A line within a block is no longer than a block.
        if (offset + int(hits[0]) if len(hits) else offset + len(block)) - line_begin > LINE_LIMIT_BYTES:
            raise InvalidSpecError(
                Refusal.WRONG_FORMAT,
                f"line {finished} of {source.name} is longer than {LINE_LIMIT_BYTES >> 20} MiB; is the format right?",
                field="spec.input.format",
            )
        if len(hits):
            line_begin = offset + int(hits[-1]) + 1
        # The hit that ends line k is the beginning of line k + 1.
        marks.append(hits[-(finished + 1) % STRIDE :: STRIDE] + (offset + 1))
        finished += len(hits)
        offset += len(block)
        last = block[-1:]
    return np.concatenate(marks), finished + (last != b"\n")


def _end_of_content(source: Source, begin: int) -> int:
    """Where the last line that is not blank ends, its line end excluded."""
    end = source.size
    while end > begin:
        start = max(begin, end - BLOCK_BYTES)
        kept = source.read_at(start, end - start).rstrip(b" \t\r\n")
        if kept:
            return start + len(kept)
        end = start
    return begin
