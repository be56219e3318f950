"""Where bytes are: paths and URIs, and files that are read in ranges.

Responsible for telling local paths from everything else, for opening either as a `Source`, and for saying clearly
why that failed. Knows nothing of what the bytes mean. Remote places are in `storage.places`, imported only when such
a URI is met.

Local files are read with `pread` and never mapped into memory: a user who truncates a mapped file would kill the
whole process with SIGBUS, while a short read is an error of one job. It costs nothing, since what is read travels
as `bytes` anyway.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from pocketgrid.errors import InputChangedError, InvalidSpecError, StoreError
from pocketgrid.storage.reasons import Refusal

BLOCK_BYTES = 4 << 20
"""Size of sequential reads: large enough to amortise a request, small enough to stay in the processor's cache."""


class Source(Protocol):
    """A file of known size that is read in ranges.

    Attributes:
        name: for people, without credentials.
        size: bytes.
        fingerprint: changes when the content may have changed.
    """

    name: str
    size: int
    fingerprint: str

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; thread-safe.

        Raises:
            InputChangedError: the file changed after it was opened.
            StoreError: the bytes cannot be had just now.
        """
        ...

    def close(self) -> None:
        """Give back what is held. No read may be under way."""
        ...


def local_path(uri: str, *, field: str) -> Path | None:
    """The path that `uri` names on this machine, or None if its scheme says that it is elsewhere.

    Percent-encoding is undone in ``file://`` URIs (RFC 8089) and left alone in plain paths.

    Raises:
        InvalidSpecError: a relative path, or a ``file://`` URI naming another host.
    """
    if "://" in uri and not uri.startswith("/"):
        scheme, _, rest = uri.partition("://")
        if scheme.lower() != "file":
            return None
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise InvalidSpecError(
                Refusal.INVALID_URI,
                f"{uri!r} names the host {host!r}; write file:///path with three slashes",
                field=field,
            )
        plain = unquote(slash + path)
    else:
        plain = uri
    if not plain.startswith("/") or "\0" in plain:
        raise InvalidSpecError(
            Refusal.INVALID_URI,
            f"{uri!r} is neither an absolute path nor a URI; write /path, file:///path or scheme://…",
            field=field,
        )
    return Path(plain)


def display(uri: str) -> str:
    """`uri` without user name, password and query, which may be secrets."""
    if "://" not in uri or uri.startswith("/"):
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.partition("://")[0] + "://…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def open_source(uri: str, *, field: str) -> Source:
    """Open the file at `uri` for reading in ranges.

    Raises:
        InvalidSpecError: InvalidURI, UnsupportedScheme, NotFound or Unreadable, blaming `field`.
    """
    path = local_path(uri, field=field)
    if path is None:
        from pocketgrid.storage.places import open_place

        return open_place(uri, field=field)
    try:
        return LocalSource(path)
    except FileNotFoundError as error:
        raise InvalidSpecError(Refusal.NOT_FOUND, f"there is no file {path}", field=field) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise InvalidSpecError(Refusal.UNREADABLE, f"cannot read {path}: {why}", field=field) from error


def blocks(source: Source, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The bytes from `start` up to `stop` (default: the end) in order, `BLOCK_BYTES` at a time."""
    end = source.size if stop is None else stop
    for offset in range(start, end, BLOCK_BYTES):
        yield source.read_at(offset, min(BLOCK_BYTES, end - offset))


class LocalSource:
    """A regular file of this machine. A file replaced by renaming another over it is still read as it was.

    Args:
        path: of the file.
        keep_open: keep its descriptor; otherwise it is opened for every read, as a process may not have thousands of
            files open, and a file that was replaced counts as changed.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """

    def __init__(self, path: str | Path, *, keep_open: bool = True) -> None:
        self.name = str(path)
        self._keep_open = keep_open
        self._descriptor = self._open()
        facts = os.fstat(self._descriptor)
        if not stat.S_ISREG(facts.st_mode):
            self.close()
            kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
            raise OSError(0, f"it is {kind}")
        self.size = facts.st_size
        self._modified_ns = facts.st_mtime_ns
        self.fingerprint = fingerprint_of({"size": self.size, "mtime": self._modified_ns})
        if not keep_open:
            self.close()

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Source.read_at`."""
        try:
            descriptor = self._descriptor if self._keep_open else self._open()
            try:
                facts = os.fstat(descriptor)
                data = os.pread(descriptor, length, offset)
                while 0 < len(data) < length:  # a signal, or the kernel's limit of 2 GiB per call
                    more = os.pread(descriptor, length - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
            finally:
                if not self._keep_open:
                    os.close(descriptor)
        except OSError as error:
            raise StoreError(f"cannot read {self.name}: {error.strerror}") from error
        if facts.st_size != self.size or facts.st_mtime_ns != self._modified_ns or len(data) != length:
            raise InputChangedError(what_changed(self.name, self.size, facts))
        return data

    def close(self) -> None:
        """See `Source.close`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> int:
        # Not waiting for the other end of a named pipe, which is refused right below.
        return os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()


def what_changed(name: str, size: int, now: os.stat_result) -> str:
    """Why a local file that had `size` bytes is not what it was."""
    what = f"its size went from {size} to {now.st_size} bytes" if now.st_size != size else "it was written to"
    return change_message(name, what)


def change_message(name: str, what: str) -> str:
    """Why a job whose input changed cannot go on, and what to do."""
    return (
        f"{name} changed while a job reads it: {what}; results of both contents must not meet in one output, so create "
        "the job again, with an output folder of its own"
    )


class SourceFile(io.RawIOBase):
    """A `Source` as the file object that zip and Parquet readers want. Closing it leaves the source open."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset` from the start, the position or the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, without the copies that going by way of `readinto` makes."""
        left = max(0, self._source.size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        data = self._source.read_at(self._position, length) if length else b""
        self._position += length
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the file reaches."""
        length = max(0, min(len(buffer), self._source.size - self._position))
        buffer[:length] = self._source.read_at(self._position, length)
        self._position += length
        return length


def fingerprint_of(facts: Mapping[str, object]) -> str:
    """One word for facts that tell one content from another."""
    known = sorted((key, str(value)) for key, value in facts.items())
    return hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()
