"""Compressed files of lines: unpacked once, as a whole, into the data set's spool. See `places.spool` for why."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from contextlib import closing
from typing import Any, assert_never

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.model.job import Compression
from pocketgrid.storage.locations import BLOCK_BYTES, Source, SourceFile
from pocketgrid.storage.places.spool import Spool
from pocketgrid.storage.reasons import Refusal

_SUFFIXES = {
    ".gz": Compression.GZIP,
    ".bz2": Compression.BZIP2,
    ".xz": Compression.XZ,
    ".zst": Compression.ZSTD,
    ".zstd": Compression.ZSTD,
}


def compression_of(name: str) -> Compression:
    """What the end of a file's name says."""
    lowered = name.lower()
    return next((packing for suffix, packing in _SUFFIXES.items() if lowered.endswith(suffix)), Compression.NONE)


def unpack(source: Source, compression: Compression, spool: Spool) -> Source:
    """All of `source` unpacked; `source` itself is closed, unless it is not compressed.

    Raises:
        InvalidSpecError: it is not so compressed, or damaged.
        StoreError: it cannot be read, or there is no room for the copy.
    """
    if compression is Compression.NONE:
        return source
    try:
        with closing(_unpacker(source, compression)) as stream:
            return spool.copy(_Unpacking(stream, source.name, compression), source.name, fingerprint=source.fingerprint)
    finally:
        source.close()


class _Unpacking:
    """A stream whose errors say whether the disk or the content is at fault."""

    def __init__(self, stream: Any, name: str, compression: Compression) -> None:
        self._stream = stream
        self._name = name
        self._compression = compression

    def read(self, size: int) -> bytes:
        """Up to `size` bytes."""
        try:
            data: bytes = self._stream.read(size)
        except StoreError:
            raise
        except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            raise InvalidSpecError(
                Refusal.WRONG_FORMAT,
                f"{self._name} cannot be unpacked as {self._compression.value}: {error}; is it whole, and is "
                "spec.input.compression right?",
                field="spec.input.compression",
            ) from error
        return data


def _unpacker(source: Source, compression: Compression) -> Any:
    file = io.BufferedReader(SourceFile(source), BLOCK_BYTES)
    match compression:
        case Compression.GZIP:
            return gzip.GzipFile(fileobj=file, mode="rb")
        case Compression.BZIP2:
            return bz2.BZ2File(file)
        case Compression.XZ:
            return lzma.LZMAFile(file)
        case Compression.ZSTD:
            import pyarrow as pa

            return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
        case Compression.NONE:
            return file
        case _:
            assert_never(compression)
