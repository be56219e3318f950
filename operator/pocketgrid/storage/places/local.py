"""Files of this machine."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import unquote

from pocketgrid.errors import InputChangedError, StoreError
from pocketgrid.storage.locations import LocalSource, Source, change_message, what_changed
from pocketgrid.storage.places.base import UNKNOWN_SIZE, Found
from pocketgrid.storage.places.patterns import Pattern

_WILDCARDS = "*?["
_OWN_FAULT = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.ENAMETOOLONG}
"""Errors that say something of one file and not of the disk or the machine."""


def pattern_text(uri: str, path: Path) -> tuple[str, bool]:
    """The path of `uri` with its slash at the end, and whether it is a name although it may read like a glob.

    In a ``file://`` URI a wildcard that is percent-encoded is no wildcard. A file that exists is meant by its name.
    """
    slash = "/" if uri.endswith("/") and str(path) != "/" else ""
    text = str(path) + slash
    if not any(c in uri for c in _WILDCARDS):
        return text, not uri.endswith("/")
    if not slash and path.exists():
        return text, True
    if uri.lower().startswith("file://"):
        encoded = uri[len("file://") :]
        encoded = encoded[encoded.index("/") :]
        for code, character in (("%2a", "*"), ("%3f", "?"), ("%5b", "[")):
            encoded = encoded.replace(code, f"[{character}]").replace(code.upper(), f"[{character}]")
        text = unquote(encoded)
    return text, False


class LocalStore:
    """See `places.base.Store`."""

    is_local = True

    def __init__(self) -> None:
        self._root: tuple[str, int] | None = None

    def name_of(self, path: str) -> str:
        """See `Store.name_of`."""
        return path

    def look(self, path: str) -> Found:
        """See `Store.look`."""
        self._remember_root(str(Path(path).parent))
        facts = Path(path).stat()
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(0, "it is a folder" if stat.S_ISDIR(facts.st_mode) else "it is not a regular file")
        return Found(path, Path(path).name, facts.st_size, _mark(facts))

    def find(self, pattern: Pattern, *, everything: bool, most: int) -> Iterator[Found]:
        """See `Store.find`. Folders that are symbolic links are not entered: they could form a circle."""
        root = pattern.root or "/"
        self._remember_root(root)
        folders = [""]
        count = 0
        while folders:
            below = folders.pop()
            with _scan(root, below) as entries:
                for entry in entries:
                    relative = below + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if pattern.may_hold(relative, everything=everything):
                            folders.append(relative + "/")
                    elif pattern.matches(relative, everything=everything):
                        found = _facts_of(entry, relative)
                        if found is not None:
                            count += 1
                            yield found
                            if count > most:
                                return

    def open(self, path: str) -> Source:
        """See `Store.open`."""
        return LocalSource(path)

    def fetch(self, files: Sequence[Found]) -> list[bytes | OSError]:
        """See `Store.fetch`."""
        return [self._read(found) for found in files]

    def _read(self, found: Found) -> bytes | OSError:
        if found.size == UNKNOWN_SIZE:
            return OSError(0, found.mark)
        try:
            with Path(found.path).open("rb", buffering=0) as file:
                facts = os.fstat(file.fileno())
                if _mark(facts) == found.mark:
                    data = file.read(found.size + 1)
                    while data and len(data) < found.size and (more := file.read(found.size + 1 - len(data))):
                        data += more
                    facts = os.fstat(file.fileno())
                    if _mark(facts) == found.mark and len(data) == found.size:
                        return data
        except OSError as error:
            return self._judge(found, error)
        raise InputChangedError(what_changed(found.path, _size_of(found.mark), facts))

    def _judge(self, found: Found, error: OSError) -> OSError:
        """Tell a file that cannot be read from a place that cannot be reached; only the former is the file's fault."""
        if error.errno in _OWN_FAULT:
            return error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EIO) and self._root_is_there():
            if error.errno == errno.EIO:
                return error
            raise InputChangedError(change_message(found.path, "it was removed")) from error
        raise StoreError(f"cannot read {found.path}: {error.strerror}") from error

    def _remember_root(self, root: str) -> None:
        self._root = root, Path(root).stat().st_dev

    def _root_is_there(self) -> bool:
        """Not if another file system is there now, or none: then it is not mounted just now."""
        assert self._root is not None
        root, device = self._root
        try:
            if Path(root).stat().st_dev != device:
                return False
            with os.scandir(root) as entries:
                return next(entries, None) is not None
        except OSError:
            return False


def _scan(root: str, below: str) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(root + below)
    except OSError as error:
        if not below:
            raise
        # Whoever wrote the root cannot guess which of the folders in it is meant.
        raise StoreError(f"cannot read {root}{below}: {error.strerror}") from error


def _facts_of(entry: os.DirEntry[str], relative: str) -> Found | None:
    try:
        facts = entry.stat()
    except OSError as error:
        return Found(entry.path, relative, UNKNOWN_SIZE, error.strerror or str(error))
    if stat.S_ISDIR(facts.st_mode) or not stat.S_ISREG(facts.st_mode):
        return None
    return Found(entry.path, relative, facts.st_size, _mark(facts))


def _mark(facts: os.stat_result) -> str:
    return f"{facts.st_size}:{facts.st_mtime_ns}"


def _size_of(mark: str) -> int:
    return int(mark.partition(":")[0])
