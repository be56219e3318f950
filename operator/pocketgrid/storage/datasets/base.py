"""What a data set is to the rest of the house: numbered items with named columns, read in ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, Protocol

import numpy.typing as npt

from pocketgrid.model.job import ItemFailure

STRING: Final = "string"
BINARY: Final = "bytes"
OTHER: Final = "other"
NOT_NUMBERS: Final = frozenset({STRING, BINARY, OTHER})


class Absence(Enum):
    """Stands where a row lacks the column altogether, which is not the same as null (None)."""

    ABSENT = "absent"


ABSENT: Final[Literal[Absence.ABSENT]] = Absence.ABSENT

Values = npt.NDArray[Any] | list[Any]
"""A column over a range of rows: a little-endian array of shape (rows, ...) where all rows are alike, otherwise one
Python object per row: None for null, `ABSENT` for a missing column, anything for a row that failed as a whole."""


BITE_BYTES = 64 << 20
"""What one reading of a shard should not exceed: a shard is small on the wire, but its texts or images may not be."""


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """One column.

    Attributes:
        name: as bindings call it.
        dtype: numpy name of a number's type, `STRING`, `BINARY` for raw bytes (such as an encoded image), or `OTHER`
            for what nothing can be made of.
        item_shape: of one row's value; None where rows differ.
        note: for `OTHER`, what is wrong with it, as the end of a sentence.
    """

    name: str
    dtype: str
    item_shape: tuple[int | None, ...] = ()
    note: str = ""

    @property
    def text(self) -> str:
        """For messages, such as ``float32[8,?]``."""
        dims = ",".join("?" if d is None else str(d) for d in self.item_shape)
        return f"{self.dtype}[{dims}]" if dims else self.dtype


@dataclass(frozen=True, slots=True)
class Rows:
    """Items ``start`` to ``start + count`` of a data set.

    Attributes:
        columns: those asked for; see `Values`.
        failures: rows that could not be read at all, ascending; `row` counts from `start`.
    """

    start: int
    count: int
    columns: Mapping[str, Values]
    failures: tuple[ItemFailure, ...] = ()


class DataSet(Protocol):
    """Items numbered from 0. Implementations derive from it.

    Attributes:
        items: how many there are.
        columns: in the order of the file.
        columns_note: for messages, where the columns were looked for; empty if everywhere.
        fingerprint: changes when the content may have changed; stable otherwise, over restarts too.
    """

    items: int
    columns: tuple[ColumnInfo, ...]
    fingerprint: str
    columns_note: str = ""

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Rows:
        """Items [start, stop) of existing `columns`. Blocking and thread-safe; the same rows on every call.

        Raises:
            StoreError: the file is gone, broken or has changed since it was opened.
        """
        ...

    def bites(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut [start, stop) where one `read` of all of it might take too much memory; see `BITE_BYTES`."""
        yield start, stop

    def close(self) -> None:
        """Give back what is held. No read may be under way."""
        ...
