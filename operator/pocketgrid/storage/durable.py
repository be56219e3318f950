"""Files that survive: complete writes, folder fsync, atomic replacement, the folder lock, and what to say on failure.

Responsible for the few POSIX idioms everything durable in this room is made of. Not responsible for what is written
or when it may be acknowledged; that is the commit log's.

Why a folder must be fsynced after a file was created, renamed or removed in it: see fsync(2) and "All File Systems
Are Not Created Equal" (Pillai et al., OSDI 2014).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pocketgrid.errors import InvalidSpecError, StoreError

_IOV_MAX = 512
"""Buffers per pwritev; Linux allows 1024."""

_REMEDIES = {
    errno.ENOSPC: "free space on that file system; work goes on by itself",
    errno.EDQUOT: "raise the quota or free space; work goes on by itself",
    errno.EFBIG: "raise the limit on file size",
    errno.EROFS: "mount the file system for writing",
    errno.EACCES: "give this process the right to write there",
    errno.EPERM: "give this process the right to write there",
    errno.EIO: "check the disk",
    errno.ENOENT: "put it back as it was, and work goes on by itself",
}

PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""Errors for which not the choice of the folder is to blame: they pass, or somebody mends the disk."""


def store_error(action: str, path: Path, error: OSError) -> StoreError:
    """What to raise when `action` (such as "writing") failed on `path`: names both, the cause and the remedy."""
    cause = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "see the cause and make the path usable")
    return StoreError(f"{action} {path} failed: {cause}; {remedy}")


def output_folder(uri: str, field: str = "spec.output.uri") -> Path:
    """The local folder `uri` names.

    Raises:
        InvalidSpecError: it is neither an absolute path nor a ``file://`` URI of this host.
    """
    if uri.startswith("/"):
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return Path(unquote(parts.path))
    message = f"{uri!r} cannot be written to; give an absolute path or a file:// URI"
    raise InvalidSpecError("UnsupportedOutput", message, field=field)


def write_all(descriptor: int, offset: int, buffers: Sequence[bytes | memoryview]) -> int:
    """Write `buffers` one after the other at `offset`; return how many bytes. Not durable until fsynced.

    Raises:
        OSError: as the system said; some of the bytes may have been written.
    """
    pending = [memoryview(b).cast("B") for b in buffers if len(b)]
    pending.reverse()
    at = offset
    while pending:
        group = pending[: -_IOV_MAX - 1 : -1]
        written = os.pwritev(descriptor, group, at)
        if written == 0:
            raise OSError(errno.EIO, "no byte could be written")
        at += written
        while pending and written >= len(pending[-1]):
            written -= len(pending.pop())
        if written:
            pending[-1] = pending[-1][written:]
    return at - offset


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents durably; it may exist."""
    missing = []
    at = folder
    while not at.exists():
        missing.append(at)
        at = at.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        try:
            fsync_folder(path.parent)
        except OSError:
            # It exists now, so nobody would make its name durable the next time.
            with contextlib.suppress(OSError):
                path.rmdir()
            raise
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def replace_durably(temporary: Path, final: Path) -> None:
    """Put the already fsynced `temporary` in the place of `final`, atomically and durably."""
    temporary.replace(final)
    fsync_folder(final.parent)


def write_atomically(final: Path, temporary: Path, data: bytes) -> None:
    """Write `data` so that `final` is at every moment either as before or complete.

    Raises:
        OSError: as the system said. `temporary` is gone, since after a failed fsync its pages cannot be trusted, nor
            can it be taken for granted that `final` will outlive a power cut, even if it can be read.
    """
    try:
        with temporary.open("wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        replace_durably(temporary, final)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class FolderLock:
    """An advisory flock: the polite first line against two writers on one host.

    It dies with its process, so `kill -9` leaves nothing to clean up. It proves nothing on network file systems or
    against a writer that ignores it; the commit log's epoch does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def acquire(self, *, required: bool) -> bool:
        """Take the lock without waiting; False if another process has it and it is not `required`.

        Raises:
            StoreError: it is required and another live process holds it; the message names the holder.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "an unnamed process"
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            if not required:
                return False
            raise StoreError(
                f"{self._path.parent.parent} is being written by {holder}; stop it first, or take over explicitly"
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back; harmless if it is not held."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
