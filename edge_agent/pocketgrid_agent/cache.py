"""Model files by SHA-256, under a disk budget, shared by any number of agents on one machine.

Files: ``<digest>.onnx`` is a whole model that was right when it was put there; ``<digest>.<bytes>.part`` is one on its
way, counted at its full size. Models whose work order brings a key lie encrypted (see `sealing`), as
``<digest>.<name of the key>.sealed`` and ``<digest>.<name of the key>.<bytes>.part``. Every claim is a lock (flock) on
the file itself, which the kernel drops when a process dies, so a SIGKILL at any point leaves nothing to clean up: a
shared lock means "in use", an exclusive one "being fetched", none "may be evicted". Changes of the folder's population
happen under ``.lock``.

What is on disk is never trusted: a model is hashed each time it is opened, because cards and phones rot files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pocketgrid.errors import PocketGridError, StoreError
from pocketgrid_agent import sealing

_PART = re.compile(r"^[0-9a-f]{64}(\.[0-9a-f]{16})?\.(\d+)\.part$")
_MODEL = re.compile(r"^([0-9a-f]{64})\.(?:onnx|[0-9a-f]{16}\.sealed)$")
_BLOCK = 1 << 20

SPARE_BYTES = 64 << 20
"""Left free on the disk for journal, logs and everyone else."""


class DigestMismatchError(PocketGridError):
    """Bytes do not hash to the digest they were asked for by."""


class BudgetError(StoreError):
    """A model cannot be stored within the disk budget, or the disk is full."""


@dataclass(frozen=True, slots=True)
class _Resident:
    path: Path
    bytes: int
    last_used: float


@dataclass
class OpenModel:
    """A verified model file, protected from eviction until closed. Of a sealed one, the file is of no use by itself."""

    path: Path
    _file: BinaryIO = field(repr=False)

    def close(self) -> None:
        """Let the cache evict it again."""
        self._file.close()


class PartialModel:
    """A model being fetched; append to it from `offset`, then `finish`. Closing early keeps what is there."""

    def __init__(self, finished: Path, digest: str, path: Path, file: BinaryIO, total: int) -> None:
        self._finished = finished
        self._digest = digest
        self._path = path
        self._file = file
        self._total = total
        self._hash = hashlib.sha256()
        self.offset = 0
        self._take_up()
        if self.offset > total:
            self._restart()

    def _take_up(self) -> None:
        while block := self._file.read(_BLOCK):
            self._hash.update(block)
            self.offset += len(block)

    def _restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.offset = 0

    def append(self, data: bytes) -> None:
        """Add the bytes at `offset`.

        Raises:
            BudgetError: more bytes than the model was said to have, or the disk is full.
        """
        if self.offset + len(data) > self._total:
            raise BudgetError(f"model {self._digest} was to have {self._total} bytes and has more")
        try:
            self._store(data)
        except OSError as error:
            raise BudgetError(f"cannot store model {self._digest}: {error.strerror}") from error
        self._hash.update(data)
        self.offset += len(data)

    def _store(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> None:
        """Turn the part into a model.

        Raises:
            DigestMismatchError: it is not what was asked for; nothing of it is kept.
            BudgetError: the disk is full.
        """
        try:
            if self.offset != self._total or self._hash.hexdigest() != self._digest:
                actual = self._hash.hexdigest()
                self._restart()
                self._path.unlink(missing_ok=True)
                raise DigestMismatchError(
                    f"the bytes fetched for model {self._digest} hash to {actual}; the source is wrong or damaged"
                )
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise BudgetError(f"cannot store model {self._digest}: {error.strerror}") from error
            self._path.rename(self._finished)
            _sync_folder(self._finished.parent)
        finally:
            self.close()

    def close(self) -> None:
        """Give up for now; the bytes stay for another try."""
        with contextlib.suppress(OSError):  # a full disk on closing: the tail is fetched again
            self._file.close()


class SealedPartialModel(PartialModel):
    """The same, encrypted. Only whole blocks are on disk; of the rest, less than one block is in memory."""

    def __init__(self, finished: Path, digest: str, path: Path, file: BinaryIO, total: int, key: bytes) -> None:
        self._key = key
        self._pending = bytearray()
        self._blocks = 0
        self._seal: sealing.Seal
        super().__init__(finished, digest, path, file, total)

    def _take_up(self) -> None:
        salt = sealing.read_header(self._file)
        if salt is None:
            self._restart()
            return
        self._seal = sealing.Seal(self._key, self._digest, self._total, salt)
        end = sealing.HEADER_BYTES
        while sealed := self._file.read(sealing.BLOCK_BYTES + sealing.TAG_BYTES):
            try:
                block = self._seal.open_block(self._blocks, sealed)
            except sealing.SealBrokenError:
                break  # torn by a kill or a full disk: go on from here
            self._hash.update(block)
            self.offset += len(block)
            self._blocks += 1
            end += len(sealed)
        self._file.seek(end)
        self._file.truncate()

    def _restart(self) -> None:
        super()._restart()
        self._pending.clear()
        self._blocks = 0
        self._seal = sealing.Seal(self._key, self._digest, self._total)
        self._file.write(self._seal.header)

    def _store(self, data: bytes) -> None:
        self._pending += data
        whole = self.offset + len(data) == self._total
        while len(self._pending) >= sealing.BLOCK_BYTES or (whole and self._pending):
            block = bytes(self._pending[: sealing.BLOCK_BYTES])
            self._file.write(self._seal.close_block(self._blocks, block))
            del self._pending[: sealing.BLOCK_BYTES]
            self._blocks += 1


class ModelCache:
    """The cache in `folder`; made if absent.

    Args:
        folder: may be shared with other agents, which must be given the same budget.
        budget_bytes: whole and partial models together never exceed it.

    Raises:
        StoreError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, *, budget_bytes: int) -> None:
        self.folder = folder
        self._budget_bytes = budget_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
        except OSError as error:
            raise StoreError(f"cannot use the model cache {folder}: {error.strerror}") from error

    def digests(self) -> list[str]:
        """Models that are here, sorted; not verified before they are opened."""
        return sorted({m[1] for path in self.folder.iterdir() if (m := _MODEL.match(path.name))})

    def holds(self, digest: str, key: bytes = b"") -> bool:
        """Whether a model is here, sealed with `key` if there is one; not verified."""
        return self._whole(digest, key).exists()

    def open(self, digest: str, key: bytes = b"", into: BinaryIO | None = None) -> OpenModel | None:
        """A model, verified and protected from eviction; None if it is not here or was damaged (and is now gone).

        Args:
            key: it was sealed with; empty if it lies there as it is.
            into: gets the model's bytes.
        """
        path = self._whole(digest, key)
        file = _open_locked(path, fcntl.LOCK_SH, create=False)
        if file is None:
            return None
        actual = hashlib.sha256()
        try:
            for block in sealing.blocks(file, key, digest) if key else iter(lambda: file.read(_BLOCK), b""):
                actual.update(block)
                if into is not None:
                    into.write(block)
        except (OSError, sealing.SealBrokenError):
            actual = hashlib.sha256(b"unreadable")
        if actual.hexdigest() != digest:
            path.unlink(missing_ok=True)
            file.close()
            return None
        with contextlib.suppress(OSError):  # on a read-only disk the order of eviction does not matter
            os.utime(path)
        return OpenModel(path, file)

    def fetch(self, digest: str, total_bytes: int, key: bytes = b"") -> PartialModel | None:
        """Begin, or go on, fetching a model. Blocks for as long as hashing what is there takes.

        Args:
            key: to seal it with; empty to leave it as it is. What of the same model lies here unsealed is then removed.

        Returns:
            Where to put the bytes; None if another process is fetching it at the moment, or has just done
            so: try `open` again.

        Raises:
            BudgetError: it does not fit, even with everything evicted that is not in use.
        """
        infix = f".{sealing.name_of(key)}" if key else ""
        path = self.folder / f"{digest}{infix}.{total_bytes}.part"
        with self._population():
            if key:
                for bare in (self.folder / f"{digest}.onnx", self.folder / f"{digest}.{total_bytes}.part"):
                    _evict(bare)
            if self.holds(digest, key):
                return None
            self._make_room(path, sealing.sealed_size(total_bytes) if key else total_bytes)
            try:
                file = _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create=True)
            except OSError as error:
                raise BudgetError(f"cannot store model {digest}: {error.strerror}") from error
        if file is None:
            return None
        finished = self._whole(digest, key)
        if key:
            return SealedPartialModel(finished, digest, path, file, total_bytes, key)
        return PartialModel(finished, digest, path, file, total_bytes)

    def _whole(self, digest: str, key: bytes) -> Path:
        return self.folder / (f"{digest}.{sealing.name_of(key)}.sealed" if key else f"{digest}.onnx")

    def used_bytes(self) -> int:
        """What counts against the budget."""
        return sum(resident.bytes for resident in self._residents())

    @contextlib.contextmanager
    def _population(self) -> Iterator[None]:
        with (self.folder / ".lock").open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, wanted: Path, total_bytes: int) -> None:
        residents = [r for r in self._residents() if r.path != wanted]
        used = sum(resident.bytes for resident in residents)
        already = wanted.stat().st_size if wanted.exists() else 0
        residents.sort(key=lambda resident: resident.last_used)
        while used + total_bytes > self._budget_bytes or self._free_bytes() < total_bytes - already:
            victim = next((r for r in residents if _evict(r.path)), None)
            if victim is None:
                raise BudgetError(
                    f"a model of {total_bytes} bytes does not fit: {used} of {self._budget_bytes} bytes of the "
                    f"cache budget are in use, and {self._free_bytes()} bytes of {self.folder} are free; "
                    "raise --cache-budget or make room"
                )
            residents.remove(victim)
            used -= victim.bytes

    def _free_bytes(self) -> int:
        disk = os.statvfs(self.folder)
        return max(0, disk.f_bavail * disk.f_frsize - SPARE_BYTES)

    def _residents(self) -> list[_Resident]:
        residents = []
        for path in self.folder.iterdir():
            part = _PART.match(path.name)
            if part is None and _MODEL.match(path.name) is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                full = status.st_size
                if part is not None:
                    full = sealing.sealed_size(int(part[2])) if part[1] else int(part[2])
                residents.append(_Resident(path, full, status.st_mtime))
        return residents


def _open_locked(path: Path, lock: int, *, create: bool) -> BinaryIO | None:
    """Open and lock; None if it is absent, or locked by another and `lock` does not wait."""
    while True:
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600), "r+b")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, lock)
        except BlockingIOError:
            file.close()
            return None
        # Between opening and locking, another process may have evicted or finished the file.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _evict(path: Path) -> bool:
    """Remove a file nobody uses. Whether it is gone."""
    try:
        file = _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create=False)
    except OSError:
        return False
    if file is None:
        return not path.exists()
    path.unlink(missing_ok=True)
    file.close()
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
