"""Records of a CSV file by number: like `datasets.lines`, but a line end within quotes ends no record (RFC 4180).

Quotes matter only where a cell begins; anywhere else they are text, as in ``5" disk``. A quote that opens a cell must
be closed within `QUOTED_LIMIT_BYTES` of the record's beginning, or it opens nothing: one forgotten quote then spoils
its own line and not the rest of the file. Where all quotes stand where they should, whether a line end is within
quotes is a matter of counting them, which numpy does; elsewhere a slower scan goes cell by cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid.errors import InvalidSpecError
from pocketgrid.storage.datasets.lines import STRIDE, LineBlock
from pocketgrid.storage.locations import Source, blocks
from pocketgrid.storage.reasons import Refusal

QUOTED_LIMIT_BYTES = 1 << 20
RECORD_LIMIT_BYTES = 64 << 20
"""A longer record is taken for a sign that the file is no CSV at all."""

_LF, _CR, _QUOTE = 0x0A, 0x0D, 0x22
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
QUOTED_CELL = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')

Offsets = npt.NDArray[np.int64]


class RecordFile:
    """A file by records.

    Args:
        source: stays the caller's to close.
        delimiter: one ASCII character.

    Raises:
        InvalidSpecError: a record is longer than `RECORD_LIMIT_BYTES`.
        StoreError: see `Source.read_at`.
    """

    def __init__(self, source: Source, delimiter: str) -> None:
        self._source = source
        self._delimiter = delimiter.encode()
        self._bare_cell = re.compile(b"[^" + re.escape(self._delimiter) + b"\n]*+")
        begin = 3 if source.read_at(0, min(3, source.size)) == _BYTE_ORDER_MARK else 0
        self._marks, self.records = self._scan(begin)

    def read(self, start: int, stop: int) -> LineBlock:
        """Records [start, stop), all of which must exist.

        Raises:
            StoreError: see `Source.read_at`.
            IndexError: there are no such records.
        """
        if not 0 <= start <= stop <= self.records:
            raise IndexError(f"records {start}..{stop} of {self.records}")
        if start == stop:
            nothing = np.empty(0, np.int64)
            return LineBlock(b"", nothing, nothing)
        offset, end = self._span(start, stop)
        data = self._source.read_at(offset, end - offset)
        skip, count = start % STRIDE, stop - start
        ends = self._split(data, final=True)
        first = int(ends[skip - 1]) if skip else 0
        ends = ends[skip : skip + count] - first
        data = data[first : first + int(ends[-1])]
        raw = np.frombuffer(data, np.uint8)
        starts = np.concatenate(([0], ends[:-1]))
        stops = ends - ((ends > starts) & (raw[ends - 1] == _LF))
        stops -= (stops > starts) & (raw[stops - 1] == _CR)
        return LineBlock(data, starts, stops)

    def bites(self, start: int, stop: int, limit: int) -> Iterator[tuple[int, int]]:
        """See `LineFile.bites`."""
        begin = start
        while begin < stop:
            first, last = self._span(begin, stop)
            end = stop
            if last - first > limit:
                room = int(np.searchsorted(self._marks, first + limit, "right")) - 1
                end = min(stop, max(room, begin // STRIDE + 1) * STRIDE)
            yield begin, end
            begin = end
        if start == stop:
            yield start, stop

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        after = -(-stop // STRIDE)
        end = int(self._marks[after]) if after < len(self._marks) else self._end
        return int(self._marks[start // STRIDE]), end

    def _scan(self, begin: int) -> tuple[Offsets, int]:
        """Offsets of records 0, STRIDE, 2 * STRIDE, ..., and the number of records without blank ones at the end."""
        marks = [np.array([begin], np.int64)]
        finished, offset, rest, filled = 0, begin, b"", 0
        self._end = begin
        pieces = blocks(self._source, begin)
        while True:
            block = next(pieces, b"")
            data = rest + block if rest else block
            ends = self._split(data, final=not block)
            if len(ends):
                marks.append(ends[-(finished + 1) % STRIDE :: STRIDE] + offset)
                last = _last_filled(data, ends)
                if last is not None:
                    filled = finished + last + 1
                    self._end = offset + int(ends[last])
                finished += len(ends)
                done = int(ends[-1])
                offset, rest = offset + done, data[done:]
            else:
                rest = data
            if not block:
                break
            if len(rest) > RECORD_LIMIT_BYTES:
                raise InvalidSpecError(
                    Refusal.WRONG_FORMAT,
                    f"{self._source.name} is not CSV: row {finished} is longer than {RECORD_LIMIT_BYTES >> 20} MiB",
                    field="spec.input.format",
                )
        return np.concatenate(marks)[: -(-filled // STRIDE) or 1], filled

    def _split(self, data: bytes, *, final: bool) -> Offsets:
        """Where each record of `data`, which begins with one, ends, its line end included.

        Args:
            data: bytes of the file.
            final: nothing follows; otherwise a record without its end is left out.
        """
        raw = np.frombuffer(data, np.uint8)
        newlines = np.flatnonzero(raw == _LF)
        quotes = np.flatnonzero(raw == _QUOTE)
        ends = newlines + 1
        if len(quotes):
            if not self._well_placed(raw, quotes):
                return self._split_slowly(data, final=final)
            ends = ends[np.searchsorted(quotes, newlines) % 2 == 0]
            tail = len(data) - (int(ends[-1]) if len(ends) else 0)
            longest = max(tail, int(np.diff(ends, prepend=0).max()) if len(ends) else 0)
            if longest > QUOTED_LIMIT_BYTES or (final and len(quotes) % 2):
                return self._split_slowly(data, final=final)
        if final and len(data) > (int(ends[-1]) if len(ends) else 0):
            ends = np.append(ends, len(data))
        return ends

    def _well_placed(self, raw: npt.NDArray[Any], quotes: Offsets) -> bool:
        """Whether quotes open only where a cell begins, and close only where one ends or another quote follows."""
        opening, closing = quotes[::2], quotes[1::2]
        before = raw[opening[opening > 0] - 1]
        good = (before == ord(self._delimiter)) | (before == _LF) | (before == _QUOTE)
        if not bool(good.all()):
            return False
        closing = closing[closing + 1 < len(raw)]
        after = raw[closing + 1]
        line_end = raw[np.minimum(closing + 2, len(raw) - 1)] == _LF
        return bool(
            ((after == ord(self._delimiter)) | (after == _LF) | (after == _QUOTE) | ((after == _CR) & line_end)).all()
        )

    def _split_slowly(self, data: bytes, *, final: bool) -> Offsets:
        ends: list[int] = []
        at = 0
        while at < len(data):
            end = self._record_end(data, at, final=final)
            if end is None:
                break
            ends.append(end)
            at = end
        return np.array(ends, np.int64)

    def _record_end(self, data: bytes, start: int, *, final: bool) -> int | None:
        """Where the record at `start` ends, or None if that cannot be known yet."""
        at = start
        while True:
            if data.startswith(b'"', at):
                limit = min(len(data), start + QUOTED_LIMIT_BYTES)
                cell = QUOTED_CELL.match(data, at, limit)
                if not final and limit == len(data) < start + QUOTED_LIMIT_BYTES and (not cell or cell.end() == limit):
                    return None
                if cell:
                    at = cell.end()
            bare = self._bare_cell.match(data, at)
            assert bare is not None, "it also matches nothing"
            at = bare.end()
            if at == len(data):
                return at if final else None
            at += 1
            if data[at - 1] == _LF:
                return at


def _last_filled(data: bytes, ends: Offsets) -> int | None:
    """Index of the last record that is not blank."""
    length = len(data[: int(ends[-1])].rstrip(b" \t\r\n"))
    return int(np.searchsorted(ends, length - 1, "right")) if length else None
