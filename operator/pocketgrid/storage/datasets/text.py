"""Plain text: every line is an item with one column, ``text``; a blank line is an item with empty text.

Lines are UTF-8; one that is not fails by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pocketgrid.model.job import ItemFailure
from pocketgrid.storage.datasets.base import BITE_BYTES, STRING, ColumnInfo, DataSet, Rows
from pocketgrid.storage.datasets.lines import LineFile
from pocketgrid.storage.locations import Source
from pocketgrid.storage.reasons import ItemReason

TEXT_COLUMN = "text"


class TextLines(DataSet):
    """See `datasets.base.DataSet`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._file = LineFile(source, skip_blank_end=False)
        self.items = self._file.lines
        self.columns: tuple[ColumnInfo, ...] = (ColumnInfo(TEXT_COLUMN, STRING),)
        self.fingerprint = f"Text:{source.fingerprint}"

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Rows:
        """See `DataSet.read`."""
        block = self._file.read(start, stop)
        values: list[str] = []
        failures: list[ItemFailure] = []
        for row in range(len(block)):
            try:
                values.append(block.line(row).decode())
            except UnicodeDecodeError as error:
                message = f"row {start + row}: not UTF-8 at byte {error.start} of the line"
                failures.append(ItemFailure(row, ItemReason.INVALID_TEXT, message))
                values.append("")
        return Rows(start, stop - start, dict.fromkeys(columns, values), tuple(failures))

    def bites(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See `DataSet.bites`."""
        return self._file.bites(start, stop, BITE_BYTES)

    def close(self) -> None:
        """See `DataSet.close`."""
        self._source.close()
