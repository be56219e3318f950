"""NPY and NPZ: the first axis counts the items. An NPY file has one column, ``data``; an NPZ file one per array.

Items are read straight from where they lie in the file. Members of an NPZ file that are compressed are first
unpacked into the data set's spool, up to `UNPACKED_LIMIT_BYTES` of a file. Pickled objects are never read.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import numpy as np

from pocketgrid.errors import InvalidSpecError
from pocketgrid.loglines import one_line
from pocketgrid.model.tensors import DTYPES
from pocketgrid.storage.datasets.base import OTHER, STRING, ColumnInfo, DataSet, Rows, Values
from pocketgrid.storage.locations import Source, SourceFile
from pocketgrid.storage.places import Spool
from pocketgrid.storage.reasons import Refusal

ARRAY_COLUMN = "data"
UNPACKED_LIMIT_BYTES = 2 << 30

_HEADER_LIMIT_BYTES = 1 << 16
_LONGEST_REASON = 300
_LOCAL_FILE_HEADER_BYTES = 30
_NAME_AND_EXTRA_LENGTH = struct.Struct("<HH")  # at byte 26 of a zip member's local header (APPNOTE 4.3.7)


def open_npy(source: Source) -> ArrayItems:
    """Open one array.

    Raises:
        InvalidSpecError: not NPY, or a scalar.
    """
    array = _read_header(ARRAY_COLUMN, source, 0, source.size)
    if not array.shape:
        raise _wrong_format(source, "the array is a scalar; its first axis must count the items")
    return ArrayItems(f"NPY:{source.fingerprint}", (array,), (source,))


def open_npz(source: Source, spool: Spool) -> ArrayItems:
    """Open the arrays of an archive; scalars are left out.

    Raises:
        InvalidSpecError: not NPZ, no arrays, arrays of different lengths, or too large to unpack.
        StoreError: there is no room for what must be unpacked.
    """
    unpacked: list[Source] = []
    try:
        arrays = _open_members(source, spool, unpacked)
    except BaseException:
        for copy in unpacked:
            copy.close()
        raise
    return ArrayItems(f"NPZ:{source.fingerprint}", arrays, (source, *unpacked))


@dataclass(frozen=True, slots=True)
class _Array:
    name: str
    source: Source
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool

    def info(self) -> ColumnInfo:
        if self.dtype.kind == "U" and len(self.shape) == 1:
            return ColumnInfo(self.name, STRING)
        if self.dtype.name not in DTYPES:
            return ColumnInfo(self.name, OTHER, note=f"arrays of {self.dtype} are neither numbers nor text")
        if self.fortran_order and len(self.shape) > 1:
            note = "its items are scattered over the file (Fortran order); save numpy.ascontiguousarray(it)"
            return ColumnInfo(self.name, OTHER, note=note)
        return ColumnInfo(self.name, self.dtype.name, self.shape[1:])

    def read(self, start: int, stop: int) -> Values:
        item_shape = self.shape[1:]
        item_bytes = self.dtype.itemsize * math.prod(item_shape)
        data = self.source.read_at(self.offset + start * item_bytes, (stop - start) * item_bytes)
        array = np.frombuffer(data, self.dtype).reshape((stop - start, *item_shape))
        if self.dtype.kind == "U":
            return list(array.tolist())
        return array.astype(self.dtype.newbyteorder("<"), copy=False)


class ArrayItems(DataSet):
    """See `datasets.base.DataSet`."""

    def __init__(self, fingerprint: str, arrays: tuple[_Array, ...], sources: tuple[Source, ...]) -> None:
        self.items = arrays[0].shape[0]
        self.columns = tuple(array.info() for array in arrays)
        self.fingerprint = fingerprint
        self._arrays = {array.name: array for array in arrays}
        self._sources = sources

    def read(self, start: int, stop: int, columns: Sequence[str]) -> Rows:
        """See `DataSet.read`."""
        if not 0 <= start <= stop <= self.items:
            raise IndexError(f"rows {start}..{stop} of {self.items}")
        return Rows(start, stop - start, {name: self._arrays[name].read(start, stop) for name in columns})

    def close(self) -> None:
        """See `DataSet.close`."""
        for source in self._sources:
            source.close()


def _open_members(source: Source, spool: Spool, unpacked: list[Source]) -> tuple[_Array, ...]:
    try:
        with zipfile.ZipFile(io.BufferedReader(SourceFile(source))) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            arrays = [_open_member(archive, member, source, spool, unpacked) for member in members]
    # Damaged names are a ValueError, damaged headers a struct.error.
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, OverflowError, struct.error) as error:
        raise _wrong_format(source, one_line(str(error), _LONGEST_REASON)) from error
    arrays = [array for array in arrays if array.shape]
    lengths = {array.name: array.shape[0] for array in arrays}
    if not arrays:
        raise _wrong_format(source, "it holds no arrays")
    if len(set(lengths.values())) > 1:
        raise _wrong_format(source, f"the first axes must be equal to count the same items, not {lengths}")
    return tuple(arrays)


def _open_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: Source, spool: Spool, unpacked: list[Source]
) -> _Array:
    name = member.filename.removesuffix(".npy")
    if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
        header = source.read_at(member.header_offset, _LOCAL_FILE_HEADER_BYTES)
        begin = member.header_offset + len(header) + sum(_NAME_AND_EXTRA_LENGTH.unpack_from(header, 26))
        return _read_header(name, source, begin, begin + member.file_size)
    if sum(copy.size for copy in unpacked) + member.file_size > UNPACKED_LIMIT_BYTES:
        raise InvalidSpecError(
            Refusal.WRONG_FORMAT,
            f"{source.name} is compressed and unpacks to more than {UNPACKED_LIMIT_BYTES >> 30} GiB; save it with "
            "numpy.savez instead of numpy.savez_compressed, or as Parquet",
            field="spec.input.format",
        )
    with archive.open(member) as stream:
        copy = spool.copy(stream, source.name)
    unpacked.append(copy)
    if copy.size != member.file_size:
        raise EOFError(f"member {member.filename!r} of the archive ends early")
    return _read_header(name, copy, 0, copy.size)


def _read_header(name: str, source: Source, begin: int, end: int) -> _Array:
    stream = io.BytesIO(source.read_at(begin, max(0, min(_HEADER_LIMIT_BYTES, end - begin))))
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"version {version} of the format is not supported")
        if any(length < 0 for length in shape):
            raise ValueError(f"no array has the shape {shape}")
    # The header is a Python literal, and damaged ones fail in all the ways in which Python can fail to read one.
    except (ValueError, SyntaxError, TypeError, TokenError, RecursionError, MemoryError) as error:
        raise _wrong_format(source, one_line(str(error), _LONGEST_REASON)) from error
    offset = begin + stream.tell()
    if not dtype.hasobject and offset + math.prod(shape) * dtype.itemsize > end:
        raise _wrong_format(source, f"array {name!r} of shape {shape} is longer than the file")
    return _Array(name, source, offset, dtype, shape, fortran_order)


def _wrong_format(source: Source, why: str) -> InvalidSpecError:
    return InvalidSpecError(
        Refusal.WRONG_FORMAT,
        f"{source.name} is not what it should be: {why}; is the format right?",
        field="spec.input.format",
    )
