"""Several files as one data set: their items one after the other, their columns the same.

A column that is needed must be in every file and fit together: of one type and shape, or, where types are read off
the first lines as in JSON, of types that can be widened to one. Columns that nobody needs may differ.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import ItemFailure
from pocketgrid.storage.datasets.base import NOT_NUMBERS, OTHER, STRING, ColumnInfo, DataSet, Rows, Values
from pocketgrid.storage.reasons import Refusal


class FileSet(DataSet):
    """See `datasets.base.DataSet`.

    Args:
        parts: each file with its name, in order; closed with this data set.
        needed: columns that somebody will ask for.
        inferred: whether the files' columns were read off their first rows.
        field: to blame.

    Raises:
        InvalidSpecError: reason SchemaDiffers, naming file and column.
    """

    def __init__(
        self, parts: Sequence[tuple[str, DataSet]], needed: frozenset[str], *, inferred: bool, field: str
    ) -> None:
        self._names = [name for name, _ in parts]
        self._parts = [part for _, part in parts]
        self._starts = [0, *accumulate(part.items for part in self._parts)]
        self.items = self._starts[-1]
        self.columns = _merge(parts, needed, inferred, field)
        self._types = {column.name: column.dtype for column in self.columns}
        self.columns_note = next((part.columns_note for part in self._parts if part.columns_note), "")
        digest = hashlib.blake2b(digest_size=16)
        for name, part in parts:
            digest.update(f"{name}\0{part.fingerprint}\n".encode(errors="surrogateescape"))
        self.fingerprint = f"{len(parts)} files:{digest.hexdigest()}"

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Rows:
        """See `DataSet.read`."""
        if not 0 <= start <= stop <= self.items:
            raise IndexError(f"rows {start}..{stop} of {self.items}")
        pieces = [
            (index, begin, self._parts[index].read(begin, end, columns)) for index, begin, end in self._cut(start, stop)
        ]
        failures = [
            self._renumbered(failure, index, begin, start) for index, begin, rows in pieces for failure in rows.failures
        ]
        values = {name: self._joined(name, [rows.columns[name] for _, _, rows in pieces]) for name in columns}
        return Rows(start, stop - start, values, tuple(failures))

    def bites(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See `DataSet.bites`."""
        if start == stop:
            yield start, stop
        for index, begin, end in self._cut(start, stop):
            for first, after in self._parts[index].bites(begin, end):
                yield self._starts[index] + first, self._starts[index] + after

    def close(self) -> None:
        """See `DataSet.close`."""
        for part in self._parts:
            part.close()

    def _joined(self, name: str, pieces: list[Values]) -> Values:
        if self._types[name] == STRING:
            # Keys that are numbers in one file and text in another: as within one file, all are read as they are.
            pieces = [piece.tolist() if isinstance(piece, np.ndarray) else piece for piece in pieces]
        return _join(pieces)

    def _cut(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Which rows of which parts make up [start, stop)."""
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            first, after = self._starts[index], self._starts[index + 1]
            upto = min(stop, after)
            if upto > start:
                yield index, start - first, upto - first
            start, index = max(start, upto), index + 1

    def _renumbered(self, failure: ItemFailure, index: int, begin: int, start: int) -> ItemFailure:
        local = begin + failure.row
        row = self._starts[index] + local
        problem = failure.message.removeprefix(f"row {local}: ")
        where = f"(row {local} of {self._names[index]})"
        return replace(failure, row=row - start, message=f"row {row}: {problem} {where}")


def _join(pieces: list[Values]) -> Values:
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        return []
    arrays = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    kinds = {(array.dtype, array.shape[1:]) for array in arrays}
    if len(arrays) == len(pieces) and len(kinds) == 1:
        return np.concatenate(arrays)
    joined: list[Any] = []
    for piece in pieces:
        joined += piece.tolist() if isinstance(piece, np.ndarray) else piece
    return joined


def _merge(
    parts: Sequence[tuple[str, DataSet]], needed: frozenset[str], inferred: bool, field: str
) -> tuple[ColumnInfo, ...]:
    filled = [(name, part) for name, part in parts if part.items] or list(parts[:1])
    first = filled[0][0]
    merged = {column.name: column for column in filled[0][1].columns}
    origin = dict.fromkeys(merged, first)
    apart: set[str] = set()
    for name, part in filled[1:]:
        own = {column.name: column for column in part.columns}
        for column in (merged | own).keys() - apart:
            before, now = merged.get(column), own.get(column)
            both = _widen(before, now, inferred) if before is not None and now is not None else None
            if both is not None:
                merged[column] = both
                continue
            if now is None:
                problem = f"{name} has no column {column!r}, but {origin[column]} has"
            elif before is None:
                problem = f"{first} has no column {column!r}, but {name} has"
            else:
                problem = f"column {column!r} is {now.text} in {name}, but {before.text} in {origin[column]}"
            if column in needed:
                raise InvalidSpecError(
                    Refusal.SCHEMA_DIFFERS,
                    f"{problem}; the files of a data set must have the same columns, as far as they are used",
                    field=field,
                )
            apart.add(column)
            merged[column] = ColumnInfo(column, OTHER, note=problem)
    return tuple(merged.values())


def _widen(one: ColumnInfo, other: ColumnInfo, inferred: bool) -> ColumnInfo | None:
    """A column that both are, or None."""
    if one == other:
        return one
    if OTHER in (one.dtype, other.dtype):
        # Of JSON, a file may have shown nothing but nulls so far.
        known = other if one.dtype == OTHER else one
        return known if inferred or one.dtype == other.dtype else None
    shape: tuple[int | None, ...] = one.item_shape
    if one.item_shape != other.item_shape:
        open_lengths = inferred or None in (*one.item_shape, *other.item_shape)
        if len(one.item_shape) != len(other.item_shape) or not open_lengths:
            return None
        shape = tuple(a if a == b else None for a, b in zip(one.item_shape, other.item_shape, strict=True))
    dtype = one.dtype if one.dtype == other.dtype else _wider(one.dtype, other.dtype, inferred)
    return None if dtype is None else ColumnInfo(one.name, dtype, shape)


def _wider(one: str, other: str, inferred: bool) -> str | None:
    kinds = {one, other}
    if inferred and STRING in kinds and kinds <= {STRING, "int64"}:
        return STRING
    if inferred and kinds == {"int64", "float64"}:
        return "float64"
    if kinds & NOT_NUMBERS or "bool" in kinds:
        return None
    if np.can_cast(one, other, "safe"):
        return other
    return one if np.can_cast(other, one, "safe") else None
