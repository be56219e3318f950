"""Where bytes are: paths and URIs, and files that are read in ranges.

Responsible for telling local paths from everything else, for opening either as a `Source`, and for saying clearly
why that failed. Knows nothing of what the bytes mean.

Local files are read with `pread` and never mapped into memory: a user who truncates a mapped file would kill the
whole process with SIGBUS, while a short read is an error of one job. It costs nothing, since what is read travels
as `bytes` anyway. Other schemes go through fsspec with ranged reads, imported only when such a URI is met.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.storage.reasons import Refusal

BLOCK_BYTES = 4 << 20
"""Size of sequential reads: large enough to amortise a request, small enough to stay in the processor's cache."""

_STABLE_FACTS = ("size", "etag", "mtime", "lastmodified", "modified", "created", "md5", "md5hash", "crc32c",
                 "checksum", "generation", "versionid")  # fmt: skip
"""Facts by which file systems of fsspec tell one content from another; others, such as access times, are volatile."""


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
            StoreError: the bytes cannot be had, or the file changed after it was opened.
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
        return _open_remote(uri, field)
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

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        # Not waiting for the other end of a named pipe, which is refused right below.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        facts = os.fstat(self._descriptor)
        if not stat.S_ISREG(facts.st_mode):
            self.close()
            kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
            raise OSError(0, f"it is {kind}")
        self.size = facts.st_size
        self._modified_ns = facts.st_mtime_ns
        self.fingerprint = _fingerprint({"size": self.size, "mtime": self._modified_ns})

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Source.read_at`."""
        try:
            facts = os.fstat(self._descriptor)
            data = os.pread(self._descriptor, length, offset)
            while 0 < len(data) < length:  # a signal, or the kernel's limit of 2 GiB per call
                more = os.pread(self._descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise StoreError(f"cannot read {self.name}: {error.strerror}") from error
        if facts.st_size != self.size or facts.st_mtime_ns != self._modified_ns or len(data) != length:
            raise StoreError(
                f"{self.name} changed while a job reads it; restore it, or delete the job and create it again"
            )
        return data

    def close(self) -> None:
        """See `Source.close`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()


class RemoteSource:
    """A file that fsspec opens."""

    def __init__(self, name: str, filesystem: Any, path: str, facts: dict[str, Any]) -> None:
        self.name = name
        self.size = int(facts["size"])
        self.fingerprint = _fingerprint(facts)
        self._filesystem = filesystem
        self._path = path

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Source.read_at`."""
        if length == 0:
            return b""
        try:
            data = bytes(self._filesystem.cat_file(self._path, start=offset, end=offset + length))
        except Exception as error:  # each file system has errors of its own, often not even OSError
            raise StoreError(f"cannot read {self.name}: {error}") from error
        if len(data) != length:
            raise StoreError(f"{self.name} gave {len(data)} of {length} bytes at {offset}; did it change?")
        return data

    def close(self) -> None:
        """See `Source.close`; connections belong to fsspec's own cache."""


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

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the file reaches."""
        length = max(0, min(len(buffer), self._source.size - self._position))
        buffer[:length] = self._source.read_at(self._position, length)
        self._position += length
        return length


def _open_remote(uri: str, field: str) -> Source:
    import fsspec

    name = display(uri)
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise InvalidSpecError(
            Refusal.UNSUPPORTED_SCHEME, f"nothing installed here opens {name}: {error}", field=field
        ) from error
    except Exception as error:  # a file system may log in while it is made, and fail in its own way
        raise InvalidSpecError(Refusal.UNREADABLE, f"cannot reach {name}: {error}", field=field) from error
    try:
        facts = filesystem.info(path)
    except FileNotFoundError as error:
        raise InvalidSpecError(Refusal.NOT_FOUND, f"there is no file {name}", field=field) from error
    except Exception as error:  # see above
        raise InvalidSpecError(Refusal.UNREADABLE, f"cannot read {name}: {error}", field=field) from error
    if facts.get("type") == "directory":
        raise InvalidSpecError(Refusal.UNREADABLE, f"cannot read {name}: it is a folder", field=field)
    if facts.get("size") is None:
        raise InvalidSpecError(
            Refusal.UNREADABLE,
            f"cannot read {name} in ranges: the server does not say how large it is",
            field=field,
        )
    return RemoteSource(name, filesystem, path, facts)


def _fingerprint(facts: dict[str, Any]) -> str:
    known = {}
    for key, value in facts.items():
        folded = key.lower().replace("_", "").replace("-", "")
        if folded in _STABLE_FACTS:
            known[folded] = str(value)
    return hashlib.blake2b(repr(sorted(known.items())).encode(), digest_size=16).hexdigest()
