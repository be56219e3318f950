"""How a column of a data set becomes a dense tensor: which types and shapes fit, and what each row must meet.

Types. What numpy calls a safe cast fits, and travels in the data set's own type where that is narrower (uint8
pixels to a float32 model: a quarter of the bytes; the device casts). Beyond that, integers and floats fit any
float, since JSON and Parquet numbers are naturally wide: they are rounded, and a row fails if a finite value would
become infinite. int64 fits any integer type, and a row fails if a value would not survive. Nothing else fits: a
float is never cut to an integer, and a number never becomes a truth value.

Shapes. A row of the same rank fits where each length is equal or left open by the model; an open length is settled
once for the whole data set, by its first good row. A row of another rank fits if the model's item shape is fixed and
has as many elements: (8, 8) into [64], a scalar into [1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid.model.tensors import Dim
from pocketgrid.storage.datasets.base import ABSENT, Values
from pocketgrid.storage.reasons import ItemReason

Faults = dict[int, tuple[str, str]]
"""Row within the range -> why it failed, as the end of a sentence about the column."""


_INTEGERS: frozenset[type] = frozenset({int})
_ALLOWED: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "f": frozenset({int, float, np.float16}),
}
"""Kind of an array -> Python types of the elements it takes. A truth value is an integer to Python, but not here."""


def wire_dtype(column: str, model: str) -> str | None:
    """The type in which values of numpy type `column` travel to an input of type `model`; None if they do not fit."""
    have, want = np.dtype(column), np.dtype(model)
    if have == want:
        return model
    if np.can_cast(have, want, "safe"):
        return column if have.itemsize < want.itemsize else model
    if want.kind == "f" and have.kind in "iuf":
        return model
    if want.kind in "iu" and column == "int64":
        return model
    return None


def fits(column: Sequence[int | None], model: Sequence[Dim]) -> bool:
    """Whether rows of shape `column` can meet an item shape `model`; None is a length that differs or is open."""
    if len(column) == len(model):
        pairs = zip(column, model, strict=True)
        if all(not isinstance(want, int) or have is None or have == want for have, want in pairs):
            return True
    return _reshapes(column, model)


def row_shape(column: Sequence[int | None], model: Sequence[Dim]) -> tuple[int | None, ...]:
    """What every row must look like: `column`, completed by what the model fixes. Only if it `fits`."""
    if len(column) != len(model) or _reshapes(column, model):
        return tuple(column)
    pairs = zip(column, model, strict=True)
    return tuple(want if have is None and isinstance(want, int) else have for have, want in pairs)


def _reshapes(column: Sequence[int | None], model: Sequence[Dim]) -> bool:
    have = [d for d in column if d is not None]
    want = [d for d in model if isinstance(d, int)]
    return len(have) == len(column) and len(want) == len(model) and math.prod(have) == math.prod(want)


@dataclass(frozen=True, slots=True)
class RowCaster:
    """Casts a column to one dtype and shape, row by row where it must.

    Attributes:
        declared: numpy name of the column's type.
        wire: numpy name of the type that travels.
        row_shape: what every row must look like.
        item_shape: what one row is on the wire; as many elements as `row_shape`.
    """

    declared: str
    wire: str
    row_shape: tuple[int, ...]
    item_shape: tuple[int, ...]

    def cast(self, values: Values, count: int) -> tuple[npt.NDArray[Any], Faults]:
        """An array of shape (count, *item_shape); rows with faults hold anything."""
        faults: Faults = {}
        if isinstance(values, list):
            values = self._from_objects(values, faults)
        elif values.shape[1:] != self.row_shape:
            fault = self._wrong_shape(values.shape[1:])
            faults = dict.fromkeys(range(count), fault)
            values = np.zeros((count, *self.row_shape), self._wide)
        cast = self._narrow(values, faults)
        return cast.reshape((count, *self.item_shape)), faults

    @property
    def _wide(self) -> npt.DTypeLike:
        # A JSON column whose first numbers are whole may hold fractions later.
        whole_numbers_to_float = np.dtype(self.wire).kind == "f" and np.dtype(self.declared).kind in "iu"
        return "float64" if whole_numbers_to_float else self.declared

    def _from_objects(self, values: list[Any], faults: Faults) -> npt.NDArray[Any]:
        dense = np.zeros((len(values), *self.row_shape), self._wide)
        allowed = _ALLOWED.get(dense.dtype.kind, _INTEGERS)
        for row, value in enumerate(values):
            if value is ABSENT:
                faults[row] = ItemReason.MISSING_COLUMN, "is missing"
                continue
            if value is None:
                faults[row] = ItemReason.NULL_VALUE, "is null"
                continue
            elements = self._flatten(value)
            if isinstance(elements, tuple):
                faults[row] = elements
                continue
            kinds = set(map(type, elements))
            if type(None) in kinds:
                faults[row] = ItemReason.NULL_VALUE, "contains null"
            elif not kinds <= allowed:
                found = ", ".join(sorted(kind.__name__ for kind in kinds - allowed))
                faults[row] = ItemReason.WRONG_TYPE, f"holds {found} where {self.declared} is needed"
            else:
                try:
                    dense[row] = np.array(elements, dense.dtype).reshape(self.row_shape)
                except OverflowError:
                    faults[row] = ItemReason.OUT_OF_RANGE, f"holds a number that {dense.dtype} cannot"
        return dense

    def _flatten(self, value: Any) -> list[Any] | tuple[str, str]:
        level = [value]
        for axis, length in enumerate(self.row_shape):
            for element in level:
                if type(element) is not list:
                    kind = "null" if element is None else type(element).__name__
                    return ItemReason.WRONG_SHAPE, f"is {kind} where a list of {length} is needed"
                if len(element) != length:
                    return self._wrong_shape((*self.row_shape[:axis], len(element)))
            level = [inner for element in level for inner in element]
        if any(type(element) is list for element in level):
            return ItemReason.WRONG_SHAPE, f"is nested deeper than {list(self.row_shape)}"
        return level

    def _wrong_shape(self, shape: Sequence[int]) -> tuple[str, str]:
        return ItemReason.WRONG_SHAPE, f"has shape {list(shape)} where {list(self.row_shape)} is needed"

    def _narrow(self, values: npt.NDArray[Any], faults: Faults) -> npt.NDArray[Any]:
        want = np.dtype(self.wire)
        if values.dtype == want or np.can_cast(values.dtype, want, "safe"):
            return values.astype(want, copy=False)
        if want.kind == "f":
            if values.dtype.kind != "f":
                # By way of float64, so that whole numbers are rounded alike wherever they come from.
                values = values.astype(np.float64)
            with np.errstate(over="ignore"):
                cast = values.astype(want)
            broken = np.isinf(cast) & np.isfinite(values)
        else:
            cast = values.astype(want)
            broken = cast != values
        if broken.any():
            rows = broken.reshape(len(values), -1).any(axis=1)
            for row in np.flatnonzero(rows).tolist():
                faults.setdefault(row, (ItemReason.OUT_OF_RANGE, f"holds a number that {want} cannot"))
        return cast
