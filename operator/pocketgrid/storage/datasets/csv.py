"""CSV: every record is an item; its cells are columns, named by the first record or by the manifest.

A cell is text. What feeds a model's input becomes the number or truth value that the model wants, by one grammar:
decimal digits with an optional sign, point and exponent, surrounded by blanks if at all; ``nan``, ``inf`` and
``infinity`` for floats; ``true``, ``false``, ``1`` and ``0``, in any case, for truth values. A cell that is not
fails its row, and so does a row with too many or too few cells. Blank records amid the file are items that fail;
at its end they are none.

Arrow's parser and conversions are asked first and believed where they certainly agree with that, as with JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import CsvOptions, ItemFailure
from pocketgrid.storage.datasets.base import BITE_BYTES, OTHER, STRING, ColumnInfo, DataSet, Rows, Values
from pocketgrid.storage.datasets.lines import LineBlock
from pocketgrid.storage.datasets.records import QUOTED_CELL, QUOTED_LIMIT_BYTES, RecordFile
from pocketgrid.storage.locations import Source
from pocketgrid.storage.reasons import ItemReason, Refusal

_SMALLEST_ARROW_BLOCK = 4 << 10
_LARGEST_ARROW_BLOCK = 1 << 30
_LONE_CARRIAGE_RETURN = re.compile(rb"\r(?!\n)")
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)
_FLOAT = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
_TRUTHS = {"true": True, "false": False, "1": True, "0": False}
_BLANKS = " \t"

_Problem = tuple[str, str]
"""Reason, and what is wrong."""


class CsvTable(DataSet):
    """See `datasets.base.DataSet`.

    Args:
        source: closed with this data set.
        options: how the file is written.
        types: what columns that feed a model become: int64, uint64, float64 or bool. All others are text.

    Raises:
        InvalidSpecError: the header cannot be read.
    """

    def __init__(self, source: Source, options: CsvOptions, types: Mapping[str, str]) -> None:
        self._source = source
        self._delimiter = options.delimiter.encode()
        self._bare_cell = re.compile(b"[^" + re.escape(self._delimiter) + b"]*+")
        self._file = RecordFile(source, options.delimiter)
        self._header = 0 if options.columns or not self._file.records else 1
        self.items = self._file.records - self._header
        self._names = options.columns or self._read_header()
        self.columns = tuple(
            ColumnInfo(name, types.get(name, STRING))
            if self._names.count(name) == 1
            else ColumnInfo(name, OTHER, note="several columns have this name")
            for name in self._names
        )
        self._types = types
        written = f"{options.delimiter}{'|'.join(options.columns)}"
        self.fingerprint = f"CSV:{written}:{source.fingerprint}"

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Rows:
        """See `DataSet.read`."""
        if not 0 <= start <= stop <= self.items:
            raise IndexError(f"rows {start}..{stop} of {self.items}")
        block = self._file.read(start + self._header, stop + self._header)
        indexes = {name: self._names.index(name) for name in columns}
        problems: dict[int, _Problem] = {}
        values = self._read_fast(block, indexes, problems)
        if values is None:
            problems.clear()
            values = self._read_faithfully(block, indexes, problems)
        failures = tuple(
            ItemFailure(row, reason, f"row {start + row}: {what}") for row, (reason, what) in sorted(problems.items())
        )
        return Rows(start, stop - start, values, failures)

    def bites(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See `DataSet.bites`."""
        for begin, end in self._file.bites(start + self._header, stop + self._header, BITE_BYTES):
            yield begin - self._header, end - self._header

    def close(self) -> None:
        """See `DataSet.close`."""
        self._source.close()

    def _read_header(self) -> tuple[str, ...]:
        if not self._header:
            return ()
        cells = _cells(self._file.read(0, 1).line(0), self._delimiter, self._bare_cell)
        if isinstance(cells, tuple):
            raise InvalidSpecError(
                Refusal.WRONG_FORMAT,
                f"the first row of {self._source.name} cannot be read as names of columns: {cells[1]}",
                field="spec.input.format",
            )
        return tuple(cells)

    def _read_fast(
        self, block: LineBlock, indexes: Mapping[str, int], problems: dict[int, _Problem]
    ) -> dict[str, Values] | None:
        """What Arrow reads, or None unless it certainly reads what `_read_faithfully` does."""
        data = block.data
        if not _SMALLEST_ARROW_BLOCK <= len(data) <= _LARGEST_ARROW_BLOCK or not indexes:
            return None
        if not bool((block.stops > block.starts).all()) or _LONE_CARRIAGE_RETURN.search(data):
            return None
        if b'"' in data and not self._quotes_are_plain(data):
            return None

        import pyarrow as pa
        import pyarrow.csv as arrow_csv

        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(data),
                read_options=arrow_csv.ReadOptions(
                    use_threads=False,
                    block_size=len(data) + 1,
                    column_names=[str(i) for i in range(len(self._names))],
                ),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=self._delimiter.decode(), newlines_in_values=True, ignore_empty_lines=False
                ),
                convert_options=arrow_csv.ConvertOptions(
                    column_types={str(i): pa.string() for i in range(len(self._names))},
                    include_columns=[str(i) for i in indexes.values()],
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowException:
            return None
        if table.num_rows != len(block):
            return None
        values: dict[str, Values] = {}
        for name, index in indexes.items():
            cells = pa.concat_arrays(table[str(index)].chunks)
            values[name] = _typed_fast(cells, self._types.get(name), data)
            if values[name] is None:
                values[name] = _typed(cells.to_pylist(), name, self._types.get(name), problems)
        return values

    def _quotes_are_plain(self, data: bytes) -> bool:
        """Whether all quotes stand where they should: cheaply, since one doubt only costs time."""
        edge = re.escape(self._delimiter)
        cell = rb"(?:^|[\n" + edge + rb"])(" + QUOTED_CELL.pattern + rb")(?=\r?\n|\r?$|" + edge + rb")"
        quotes: int = sum(found.count(b'"') for found in re.findall(cell, data))
        return quotes == data.count(b'"')

    def _read_faithfully(
        self, block: LineBlock, indexes: Mapping[str, int], problems: dict[int, _Problem]
    ) -> dict[str, Values]:
        columns: dict[str, list[str]] = {name: [] for name in indexes}
        for row in range(len(block)):
            cells = _cells(block.line(row), self._delimiter, self._bare_cell)
            if isinstance(cells, list) and len(cells) != len(self._names):
                cells = (
                    ItemReason.WRONG_CELL_COUNT,
                    f"the row has {_count(len(cells), 'cell')} where there are {_count(len(self._names), 'column')}",
                )
            if isinstance(cells, tuple):
                problems[row] = cells
            for name, index in indexes.items():
                columns[name].append(cells[index] if isinstance(cells, list) else "")
        return {name: _typed(cells, name, self._types.get(name), problems) for name, cells in columns.items()}


def _cells(record: bytes, delimiter: bytes, bare_cell: re.Pattern[bytes]) -> list[str] | _Problem:
    """The cells of a record without its line end, or why they cannot be told."""
    if not record.strip():
        return ItemReason.EMPTY_LINE, "the row is blank"
    try:
        if b'"' not in record:
            return record.decode().split(delimiter.decode())
        cells: list[str] = []
        at = 0
        while True:
            if record.startswith(b'"', at):
                quoted = QUOTED_CELL.match(record, at, QUOTED_LIMIT_BYTES)
                if quoted is None:
                    return ItemReason.INVALID_CSV, f"the quote of cell {len(cells) + 1} is never closed"
                cells.append(quoted.group()[1:-1].replace(b'""', b'"').decode())
                at = quoted.end()
                if at < len(record) and not record.startswith(delimiter, at):
                    return ItemReason.INVALID_CSV, f"cell {len(cells)} goes on after its closing quote"
            else:
                bare = bare_cell.match(record, at)
                assert bare is not None, "it also matches nothing"
                cells.append(bare.group().decode())
                at = bare.end()
            if at == len(record):
                return cells
            at += 1
    except UnicodeDecodeError as error:
        return ItemReason.INVALID_TEXT, f"not UTF-8 at byte {error.start} of a cell"


def _typed_fast(cells: Any, dtype: str | None, data: bytes) -> Any:
    """`cells`, an Arrow array of text, as values; None unless Arrow certainly reads them as `_typed` does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if dtype is None:
        return cells.to_pylist()
    if dtype == "bool" or (dtype != "float64" and (b"x" in data or b"X" in data)):  # 0x10 is a number to Arrow
        return None
    try:
        numbers = pc.cast(cells, pa.from_numpy_dtype(np.dtype(dtype))).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        return None
    if dtype == "float64" and not bool(np.isfinite(numbers).all()):
        return None
    return numbers


def _typed(cells: list[str], name: str, dtype: str | None, problems: dict[int, _Problem]) -> Values:
    """`cells` as values; rows that have a problem already hold anything, others may get one."""
    if dtype is None:
        return cells
    read = _READERS[dtype]
    values = np.zeros(len(cells), dtype)
    for row, cell in enumerate(cells):
        if row in problems:
            continue
        text = cell.strip(_BLANKS)
        value = read(text)
        if isinstance(value, tuple):
            reason, what = value
            shown = repr(cell if len(cell) <= 40 else cell[:37] + "...")
            problems[row] = reason, f"column {name!r} {what.format(shown=shown)}"
        else:
            values[row] = value
    return values


def _whole_number(dtype: str) -> Callable[[str], int | _Problem]:
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)

    def read(text: str) -> int | _Problem:
        if not _WHOLE.fullmatch(text):
            return _not_a(text, "a whole number")
        value = int(text)
        return value if low <= value <= high else (ItemReason.OUT_OF_RANGE, f"holds a number that {dtype} cannot")

    return read


def _float(text: str) -> float | _Problem:
    if not _FLOAT.fullmatch(text):
        return _not_a(text, "a number")
    value = float(text)
    if math.isinf(value) and "n" not in text.lower():
        return ItemReason.OUT_OF_RANGE, "holds a number that float64 cannot"
    return value


def _truth(text: str) -> bool | _Problem:
    value = _TRUTHS.get(text.lower())
    return _not_a(text, "true or false") if value is None else value


def _not_a(text: str, what: str) -> _Problem:
    if not text:
        return ItemReason.NULL_VALUE, "is empty"
    return ItemReason.INVALID_NUMBER, f"is {{shown}}, not {what}"


_READERS: dict[str, Callable[[str], Any]] = {
    "int64": _whole_number("int64"),
    "uint64": _whole_number("uint64"),
    "float64": _float,
    "bool": _truth,
}


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
