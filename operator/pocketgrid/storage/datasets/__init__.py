"""Data sets: files of several formats as numbered items with named columns, read in ranges and never as a whole.

Responsible for what a row is in each format and for reading ranges of rows; not for what a model wants of them
(see `storage.encoding`). A broken row is a value, an `ItemFailure`; only a file that as a whole cannot be what the
manifest says is an error.

What an item is: JSONL and Text: a line (see those modules for blank ones); Parquet: a row; NPY and NPZ: an index of
the first axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.model.job import InputFormat, InputRef
from pocketgrid.storage.datasets.base import ColumnInfo, DataSet, Rows
from pocketgrid.storage.locations import Source, open_source
from pocketgrid.storage.reasons import Refusal

__all__ = ["ColumnInfo", "DataSet", "Rows", "open_data_set"]


def open_data_set(ref: InputRef) -> DataSet:
    """Open what `ref` points at. Blocking; formats of lines are read through once to find the lines.

    Raises:
        InvalidSpecError: blaming ``spec.input.uri`` or ``spec.input.format``.
    """
    source = open_source(ref.uri, field="spec.input.uri")
    try:
        return _opener(ref.format)(source)
    except StoreError as error:
        source.close()
        raise InvalidSpecError(Refusal.UNREADABLE, str(error), field="spec.input.uri") from error
    except BaseException:
        source.close()
        raise


def _opener(file_format: InputFormat) -> Callable[[Source], DataSet]:
    match file_format:
        case InputFormat.JSONL:
            from pocketgrid.storage.datasets.jsonl import JsonLines

            return JsonLines
        case InputFormat.TEXT:
            from pocketgrid.storage.datasets.text import TextLines

            return TextLines
        case InputFormat.PARQUET:
            from pocketgrid.storage.datasets.parquet import ParquetTable

            return ParquetTable
        case InputFormat.NPY:
            from pocketgrid.storage.datasets.arrays import open_npy

            return open_npy
        case InputFormat.NPZ:
            from pocketgrid.storage.datasets.arrays import open_npz

            return open_npz
        case _:
            assert_never(file_format)
