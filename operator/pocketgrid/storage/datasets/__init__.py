"""Data sets: files of several formats as numbered items with named columns, read in ranges and never as a whole.

Responsible for what a row is in each format and for reading ranges of rows; not for what a model wants of them
(see `storage.encoding`). A broken row is a value, an `ItemFailure`; only a file that as a whole cannot be what the
manifest says is an error.

What an item is: JSONL and Text: a line (see those modules for blank ones); CSV: a record; Parquet: a row; NPY and NPZ:
an index of the first axis; Files: a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import assert_never

from pocketgrid.errors import InputChangedError, InvalidSpecError, StoreError
from pocketgrid.model.job import Compression, InputFormat, InputRef
from pocketgrid.storage.datasets.base import ColumnInfo, DataSet, Rows
from pocketgrid.storage.locations import Source
from pocketgrid.storage.places import Found, Spool, Store, find_files, open_found
from pocketgrid.storage.reasons import Refusal

__all__ = ["ColumnInfo", "DataSet", "Rows", "open_data_set"]

MOST_ITEM_FILES = 500_000
"""Files that are items: each takes some 200 bytes of memory for as long as the job runs."""

MOST_FILES = 10_000
"""Files that hold items: each is opened and looked at when the job is admitted."""

_KEPT_OPEN = 64
"""Files of a data set whose descriptors are kept; with more of them, none is."""

_PACKABLE = (InputFormat.JSONL, InputFormat.CSV, InputFormat.TEXT)

_Listing = tuple[Store, list[Found]]


def open_data_set(
    ref: InputRef, *, types: Mapping[str, str] | None = None, spool_folder: Path | None = None
) -> DataSet:
    """Open what `ref` points at. Blocking; formats of lines are read through once to find the lines.

    Args:
        ref: what the user wrote.
        types: for formats without types of their own, what columns that feed a model become; see `datasets.csv`.
        spool_folder: where unpacked copies are kept; None: the system's folder for temporary files.

    Raises:
        InvalidSpecError: blaming a field under ``spec.input``.
    """
    spool = Spool(spool_folder)
    listings = _list_files(ref, spool)
    if ref.format is InputFormat.FILES:
        from pocketgrid.storage.datasets.files import FileItems

        return FileItems(listings)
    opener = _opener(ref, types or {}, spool)
    count = sum(len(files) for _, files in listings)
    parts: list[tuple[str, DataSet]] = []
    try:
        for index, (store, files) in enumerate(listings):
            field = _field(ref, index)
            for found in files:
                source = open_found(store, found, field=field, keep_open=count <= _KEPT_OPEN)
                parts.append((source.name, _open_part(source, ref, opener, spool, field)))
        if count == 1:
            return parts[0][1]
        from pocketgrid.storage.datasets.fileset import FileSet

        return FileSet(parts, needed_columns(ref), inferred=ref.format is InputFormat.JSONL, field=_field(ref))
    except BaseException:
        for _, part in parts:
            part.close()
        raise


def needed_columns(ref: InputRef) -> frozenset[str]:
    """The columns that a job will read."""
    names = {binding.column for binding in ref.columns} | {ref.key}
    if ref.tokenizer is not None:
        names.add(ref.tokenizer.column)
    return frozenset(names - {""})


def _field(ref: InputRef, index: int | None = None) -> str:
    if not ref.uris:
        return "spec.input.uri"
    return "spec.input.uris" if index is None else f"spec.input.uris[{index}]"


def _list_files(ref: InputRef, spool: Spool) -> list[_Listing]:
    as_items = ref.format is InputFormat.FILES
    most = MOST_ITEM_FILES if as_items else MOST_FILES
    listings: list[_Listing] = []
    seen: set[str] = set()
    for index, uri in enumerate(ref.places):
        field = _field(ref, index)
        store, files = find_files(uri, field=field, most=most - len(seen), spool=spool, as_items=as_items)
        for found in files:
            name = store.name_of(found.path)
            if name in seen:
                raise InvalidSpecError(
                    Refusal.DUPLICATE_FILE, f"{name} is named twice, so its rows would be done twice", field=field
                )
            seen.add(name)
        listings.append((store, files))
    return listings


def _open_part(source: Source, ref: InputRef, opener: Callable[[Source], DataSet], spool: Spool, field: str) -> DataSet:
    from pocketgrid.storage.datasets.packing import compression_of, unpack

    packing = Compression.NONE
    if ref.format in _PACKABLE:
        packing = compression_of(source.name) if ref.compression is None else ref.compression
    try:
        source = unpack(source, packing, spool)
        return opener(source)
    except InputChangedError:
        source.close()
        raise
    except StoreError as error:
        source.close()
        raise InvalidSpecError(Refusal.UNREADABLE, str(error), field=field) from error
    except BaseException:
        source.close()
        raise


def _opener(ref: InputRef, types: Mapping[str, str], spool: Spool) -> Callable[[Source], DataSet]:
    match ref.format:
        case InputFormat.JSONL:
            from pocketgrid.storage.datasets.jsonl import JsonLines

            return partial(JsonLines, needed=needed_columns(ref))
        case InputFormat.TEXT:
            from pocketgrid.storage.datasets.text import TextLines

            return TextLines
        case InputFormat.CSV:
            from pocketgrid.storage.datasets.csv import CsvTable

            return partial(CsvTable, options=ref.csv, types=types)
        case InputFormat.PARQUET:
            from pocketgrid.storage.datasets.parquet import Open, ParquetTable

            return partial(ParquetTable, opened=Open())
        case InputFormat.NPY:
            from pocketgrid.storage.datasets.arrays import open_npy

            return open_npy
        case InputFormat.NPZ:
            from pocketgrid.storage.datasets.arrays import open_npz

            return partial(open_npz, spool=spool)
        case InputFormat.FILES:
            raise AssertionError("has no files to open")
        case _:
            assert_never(ref.format)
