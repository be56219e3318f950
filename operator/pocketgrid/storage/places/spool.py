"""Copies of what can only be read from front to back: packed files, and files of servers without range requests.

A spool is one temporary file without a name: it vanishes with the process, however that ends. What is in it is read
in any order, with `pread`. Its size is bounded in two ways: a data set may take up to `LIMIT_BYTES`, and
`KEPT_FREE_BYTES` of the disk are left alone, since commit logs and outputs may lie on the same one.

Why a copy, and not an index into the packed file: of the four codecs only two have blocks that can be found without
reading everything before them, and files made by the usual tools are a single block even then. A copy is one pass, as
counting the lines is anyway, treats all of them alike, and makes every later read as cheap as that of a plain file.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO, Protocol

from pocketgrid.errors import StoreError
from pocketgrid.storage.locations import BLOCK_BYTES

LIMIT_BYTES = 64 << 30
KEPT_FREE_BYTES = 2 << 30


class Readable(Protocol):
    """What can be copied."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


class Spool:
    """Copies of any number of files, in one unnamed file that is closed with the last of them.

    Args:
        folder: where the file is; made if it is missing. None: the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._size = 0
        self._users = 0

    def copy(self, stream: Readable, name: str, *, fingerprint: str = "") -> SpooledSource:
        """Copy all of `stream`.

        Args:
            name: of what is copied, for people.
            fingerprint: of the copy.

        Raises:
            StoreError: the disk is full or fails, or a limit would be exceeded.
        """
        with self._lock:
            try:
                if self._file is None:
                    if self._folder is not None:
                        self._folder.mkdir(parents=True, exist_ok=True)
                    self._file = tempfile.TemporaryFile(prefix="pocketgrid-", dir=self._folder)  # noqa: SIM115
                begin = self._size
                self._file.seek(begin)
                size = 0
                while data := stream.read(BLOCK_BYTES):
                    size += len(data)
                    self._check_room(begin + size, name)
                    self._file.write(data)
                self._file.flush()
            except BaseException as error:
                self._close_if_unused()
                if isinstance(error, OSError):
                    why = error.strerror or str(error)
                    raise StoreError(f"cannot keep an unpacked copy of {name}: {why}") from error
                raise
            self._size += size
            self._users += 1
            return SpooledSource(self, name, begin, size, fingerprint)

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes.

        Raises:
            StoreError: the disk fails.
        """
        assert self._file is not None
        data = b""
        try:
            while len(data) < length:
                more = os.pread(self._file.fileno(), length - len(data), offset + len(data))
                if not more:
                    raise StoreError(f"a temporary file in {self._folder or tempfile.gettempdir()} was cut short")
                data = data + more if data else more
        except OSError as error:
            raise StoreError(f"cannot read a temporary file: {error.strerror}") from error
        return data

    def release(self) -> None:
        """One copy is not needed any more."""
        with self._lock:
            self._users -= 1
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._users == 0 and self._file is not None:
            self._file.close()
            self._file, self._size = None, 0

    def _check_room(self, size: int, name: str) -> None:
        if size > LIMIT_BYTES:
            raise StoreError(
                f"{name} takes more than {LIMIT_BYTES >> 30} GiB unpacked, with the data set's other copies; store "
                "it unpacked, or as Parquet"
            )
        folder = self._folder or Path(tempfile.gettempdir())
        if shutil.disk_usage(folder).free < KEPT_FREE_BYTES:
            raise StoreError(
                f"there is no room for an unpacked copy of {name}: less than {KEPT_FREE_BYTES >> 30} GiB are free in "
                f"{folder}; make room, or store it unpacked"
            )


class SpooledSource:
    """A copy in a spool. See `locations.Source`."""

    def __init__(self, spool: Spool, name: str, begin: int, size: int, fingerprint: str) -> None:
        self.name = name
        self.size = size
        self.fingerprint = fingerprint
        self._spool = spool
        self._begin = begin
        self._open = True

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Source.read_at`."""
        return self._spool.read_at(self._begin + offset, length) if length else b""

    def close(self) -> None:
        """See `Source.close`."""
        if self._open:
            self._open = False
            self._spool.release()
