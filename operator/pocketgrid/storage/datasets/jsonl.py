"""JSON Lines: every line is an item, a JSON object whose members are columns.

Lines are numbered as an editor numbers them, from 0: a blank line amid the file is an item that fails (EmptyLine),
so that the numbers of the lines after it stay what people see; blank lines at the end of the file are no items.

Columns are those of the first lines (up to 256 lines or 4 MB); one that is needed and not there is looked for further
on (up to line 1,024). What a line means is what Python's `json` reads,
NaN and Infinity included. Arrow's parser is several times faster and does not hold the interpreter lock, but is
laxer here and stricter there, and stops at the first bad line. So it is asked first, and believed only where both
agree; see `_read_fast`. The outcome for a row therefore does not depend on the rows it is read with. (One exception
is known: members that nobody asked for and that are nested about a thousand levels deep, which only Python refuses.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import ItemFailure
from pocketgrid.storage.datasets.base import ABSENT, BITE_BYTES, OTHER, STRING, ColumnInfo, DataSet, Rows, Values
from pocketgrid.storage.datasets.lines import LineBlock, LineFile
from pocketgrid.storage.locations import Source
from pocketgrid.storage.reasons import ItemReason, Refusal

_SAMPLE_LINES = 256
_SEARCHED_LINES = 1024
"""As many as are looked at for a good row; see `storage.binding`."""
_SAMPLE_BYTES = 4 << 20
_SMALLEST_ARROW_BLOCK = 8 << 10
"""Below it, Python's parser is done before Arrow has begun."""

_LARGEST_ARROW_BLOCK = 1 << 30
"""Arrow keeps the size of a block in 32 bits."""

_MINUS_WHOLE_ZERO = re.compile(rb"-0(?![.eE0-9])")
"""A float to Arrow, where it keeps its sign, and an integer to Python, where zero has none."""

_MOST_DIGITS = 4000
"""Python itself refuses to convert more than 4300, as that takes quadratic time."""
_TOO_LARGE = 10**400
"""Stands for integers of even more digits: beyond every type, too."""

_NUMBERS: dict[frozenset[type], str] = {
    frozenset({bool}): "bool",
    frozenset({int}): "int64",
    frozenset({float}): "float64",
    frozenset({int, float}): "float64",
}


class JsonLines(DataSet):
    """See `datasets.base.DataSet`.

    Args:
        source: closed with this data set.
        needed: columns that somebody will ask for.

    Raises:
        InvalidSpecError: none of the first lines is a JSON object.
    """

    def __init__(self, source: Source, needed: frozenset[str] = frozenset()) -> None:
        self._source = source
        self._file = LineFile(source, skip_blank_end=True)
        self.items = self._file.lines
        self.columns = self._infer_columns(needed)
        self.fingerprint = f"JSONL:{source.fingerprint}"
        self._infos = {column.name: column for column in self.columns}

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Rows:
        """See `DataSet.read`."""
        block = self._file.read(start, stop)
        values = self._read_fast(block, columns)
        failures: list[ItemFailure] = []
        if values is None:
            values, failures = _read_faithfully(block, columns, start)
        return Rows(start, stop - start, values, tuple(failures))

    def bites(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See `DataSet.bites`."""
        return self._file.bites(start, stop, BITE_BYTES)

    def close(self) -> None:
        """See `DataSet.close`."""
        self._source.close()

    def _infer_columns(self, needed: frozenset[str]) -> tuple[ColumnInfo, ...]:
        count = self._affordable(min(_SAMPLE_LINES, self.items))
        samples, first_problem = self._sample(0, count)
        searched = self._affordable(min(_SEARCHED_LINES, self.items))
        if needed - samples.keys() and searched > count:
            later, _ = self._sample(count, searched)
            for name in sorted(needed - samples.keys()):
                if name in later:
                    samples[name] = later[name]
        if searched < self.items:
            self.columns_note = f" in the first {searched:,} lines of {self._source.name}"
        if count and not samples:
            raise InvalidSpecError(
                Refusal.WRONG_FORMAT,
                f"{self._source.name} is not JSON Lines: none of the first {count} lines is a JSON object with "
                f"members; the first problem is {first_problem or 'an empty object'}",
                field="spec.input.format",
            )
        return tuple(_infer(name, values) for name, values in samples.items())

    def _affordable(self, count: int) -> int:
        while count > 1 and self._file.span_bytes(0, count) > _SAMPLE_BYTES:
            count //= 2
        return count

    def _sample(self, start: int, stop: int) -> tuple[dict[str, list[Any]], str]:
        """Values by column, and what is wrong with the first bad line."""
        block = self._file.read(start, stop)
        samples: dict[str, list[Any]] = {}
        first_problem = ""
        for row in range(len(block)):
            parsed = _parse(block.line(row))
            if isinstance(parsed, dict):
                for name, value in parsed.items():
                    samples.setdefault(name, []).append(value)
            else:
                first_problem = first_problem or parsed[1]
        return samples, first_problem

    def _read_fast(self, block: LineBlock, columns: Sequence[str]) -> dict[str, Values] | None:
        """What Arrow reads, or None unless Python's parser would certainly read the same.

        Arrow parses a run of values and ignores line ends. If every line begins with ``{`` and ends with ``}``,
        a line end can only lie between two values of that run: within a value, ``}`` is never followed by ``{``
        without a comma. As many values as lines then means one value per line. The same check keeps away what
        Arrow 26 answers with a segmentation fault: a run that begins with null.
        """
        infos = [self._infos[name] for name in columns]
        lengths = block.stops - block.starts
        if not infos or any(i.dtype == OTHER for i in infos) or not len(block) or not bool(lengths.all()):
            return None
        data = block.data
        if len(data) < _SMALLEST_ARROW_BLOCK:
            return None
        raw = np.frombuffer(data, np.uint8)
        braces = (raw[block.starts] == ord("{")) & (raw[block.stops - 1] == ord("}"))
        if not bool(braces.all()) or len(data) > _LARGEST_ARROW_BLOCK:
            return None
        # Arrow reads more spellings of these than Python, and takes any bytes for text.
        if b"NaN" in data or b"Inf" in data or not _is_utf8(data):
            return None
        if any(i.dtype == "float64" for i in infos) and _MINUS_WHOLE_ZERO.search(data):
            return None

        import pyarrow as pa
        import pyarrow.json as arrow_json

        from pocketgrid.storage.datasets.arrow_values import values_of

        schema = pa.schema([(info.name, _arrow_type(info)) for info in infos])
        try:
            table = arrow_json.read_json(
                pa.BufferReader(data),
                read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                parse_options=arrow_json.ParseOptions(
                    explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="ignore"
                ),
            )
        except (pa.ArrowException, UnicodeDecodeError):
            return None
        if table.num_rows != len(block):
            return None
        result: dict[str, Values] = {}
        for info in infos:
            array = pa.concat_arrays(table[info.name].chunks)
            if array.null_count:
                return None  # null and missing look alike here
            values = values_of(array)
            if isinstance(values, np.ndarray):
                # An integer of 400 digits is infinity to Arrow and an integer to Python.
                if values.dtype.kind == "f" and not bool(np.isfinite(values).all()):
                    return None
            elif info.dtype != STRING:
                return None  # rows of different lengths, or nulls in lists
            result[info.name] = values
        return result


def _read_faithfully(
    block: LineBlock, columns: Sequence[str], start: int
) -> tuple[dict[str, Values], list[ItemFailure]]:
    values: dict[str, list[Any]] = {name: [] for name in columns}
    failures: list[ItemFailure] = []
    for row in range(len(block)):
        parsed = _parse(block.line(row))
        if not isinstance(parsed, dict):
            reason, problem = parsed
            failures.append(ItemFailure(row, reason, f"row {start + row}: {problem}"))
            parsed = {}
        for name, column in values.items():
            column.append(parsed.get(name, ABSENT))
    return dict(values), failures


def _parse(line: bytes) -> dict[str, Any] | tuple[str, str]:
    if not line.strip():
        return ItemReason.EMPTY_LINE, "the line is blank"
    try:
        text = line.decode()
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:
            value = json.loads(text, parse_int=lambda s: int(s) if len(s) <= _MOST_DIGITS else _TOO_LARGE)
    except UnicodeDecodeError as error:
        return ItemReason.INVALID_JSON, f"not UTF-8 at byte {error.start} of the line"
    except json.JSONDecodeError as error:
        return ItemReason.INVALID_JSON, f"{error.msg} at column {error.colno} of the line"
    except RecursionError:
        return ItemReason.INVALID_JSON, "nested too deeply"
    if not isinstance(value, dict):
        return ItemReason.INVALID_JSON, f"a JSON object is needed, not {type(value).__name__}"
    return value


def _infer(name: str, values: list[Any]) -> ColumnInfo:
    """Type and shape of a column from samples: the first that is a tensor or text, widened by the others."""
    found: tuple[str, tuple[int | None, ...]] | None = None
    for value in values:
        seen = _describe(value)
        if seen is None or seen[0] == OTHER:
            continue
        if found is None:
            found = seen
        elif len(found[1]) == len(seen[1]):
            kinds = {found[0], seen[0]}
            kind = found[0]
            if STRING in kinds and kinds <= {STRING, "int64"}:
                kind = STRING  # keys such as 7 and "7a" are text
            elif kinds == {"int64", "float64"}:
                kind = "float64"
            found = kind, tuple(a if a == b else None for a, b in zip(found[1], seen[1], strict=True))
    if found is None:
        return ColumnInfo(name, OTHER, note="it holds neither numbers, nor even lists of numbers, nor text")
    return ColumnInfo(name, *found)


def _describe(value: Any) -> tuple[str, tuple[int, ...]] | None:
    """Type and shape of one value; None if it says nothing, such as null or an empty list."""
    shape: list[int] = []
    level = [value]
    while level and type(level[0]) is list:
        length = len(level[0])
        if any(type(v) is not list or len(v) != length for v in level):
            return OTHER, ()
        shape.append(length)
        level = [element for v in level for element in v]
    kinds = frozenset(map(type, level))
    if not level or type(None) in kinds:
        return None
    if kinds == {str} and not shape:
        return STRING, ()
    return _NUMBERS.get(kinds, OTHER), tuple(shape)


def _arrow_type(info: ColumnInfo) -> Any:
    import pyarrow as pa

    arrow_type = pa.string() if info.dtype == STRING else pa.from_numpy_dtype(np.dtype(info.dtype))
    for _ in info.item_shape:
        arrow_type = pa.list_(arrow_type)
    return arrow_type


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
