"""The commit log: append-only segments, durable before they are acknowledged, one writer at a time by epoch.

Responsible for segments, their order and validity, and for the promise that `append` returns only if every later
reader will see what was appended. Not responsible for the meaning of the entries (`logentries`), nor for the data
they point to.

Fencing. A segment is named by its writer's epoch: ``E0000000003-S000001.log``. A new writer

1. creates the first segment of the next epoch with O_CREAT | O_EXCL, so two writers never share an epoch,
2. only *then* lists and reads the segments of earlier epochs, up to their last whole line, and makes them durable,
3. writes into its header how many bytes of each earlier segment count: its seals,
4. and looks whether a still newer epoch has appeared.

A writer appends, fsyncs, and *then* lists the folder; it acknowledges only if no newer epoch exists. Why no
acknowledged entry can be lost, and no entry of a superseded writer can count later:

- Let the old writer acknowledge entry X. Its check found no newer segment, so the newer segment was created after
  the check, hence after X was durable. The new writer reads after it created its segment, so it reads X whole, and
  its seal includes X.
- Let the new writer miss X. Then X was not yet written when the new writer read, so the old writer's check comes
  after the new segment was created, finds it, and X is never acknowledged. X lies beyond the seal, and every later
  reader stops at the seal. A segment the old writer creates afterwards is named in no header of the new epoch and
  counts for nothing.
- A newer writer may adopt an entry that was never acknowledged. That is harmless: the entry is whole, and its data
  was durable before the entry was written.

The argument needs one thing of the file system: once a name has been created, a later listing by any process shows
it. Local file systems promise that; NFS does when mounted with ``lookupcache=none,actimeo=0``. Clocks, process ids
and locks play no part.

The seals of the *newest* readable header are the only authority; each writer repeats, never longer, what it found.
The same mechanism undoes a failed append: the next append opens a new segment whose header seals the failed one at
its last durable byte. Nothing is ever truncated and no segment that failed an fsync is written again, because after
a failed fsync the page cache may no longer match the disk (Rebello et al., "Can Applications Recover from fsync
Failures?", USENIX ATC 2020). For the same reason a new writer drops the cached pages of what it reads first.

What is asked of whoever else uses the folder: to leave it where it is. A segment whose name is gone can still be
written and fsynced, so each append also looks whether the name still leads to the open file.

Recovery is reading the log. A partial last line is a torn tail and is dropped; a damaged line elsewhere is skipped
and reported, and what it said is done again unless a later line proves it.

A `CommitLog` belongs to one thread at a time; it has no locks of its own.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from pocketgrid.errors import StaleEpochError, StoreError
from pocketgrid.model.ids import Epoch
from pocketgrid.storage.durable import fsync_folder, make_folder, store_error, write_all
from pocketgrid.storage.logentries import Entry, Header, encode_lines, segment_name
from pocketgrid.storage.logreading import LogContents, epoch_of, read_log, segment_names
from pocketgrid.storage.timings import Spent

_OPEN_ATTEMPTS = 100
"""Epochs tried before giving up when others keep opening the same log at the same moment."""


class CommitLog:
    """The one writer of a commit log.

    Attributes:
        state: everything acknowledged so far, by this epoch and all before it.
        notes: what recovery met.
        spent: time spent on appending.
    """

    def __init__(self, folder: Path, epoch: Epoch, contents: LogContents, *, rotate_bytes: int) -> None:
        """For `open` only."""
        self.epoch = epoch
        self.state = contents.state
        self.notes = contents.notes
        self.spent = Spent()
        self._folder = folder
        self._rotate_bytes = rotate_bytes
        self._seals = dict(contents.seals)
        self._identity = contents.header
        self._descriptor = -1
        self._name = ""
        self._length = 0
        self._header_length = 0
        self._next_number = 1
        self._broken = False
        self._stale = ""

    @classmethod
    def open(cls, folder: Path, job: str, fingerprint: Mapping[str, str], *, rotate_bytes: int = 64 << 20) -> CommitLog:
        """Become the writer: fence off all earlier ones, recover, and be durable about both.

        The caller has checked with `read_log` that the folder belongs to `job`; opening fences off whoever writes.

        Raises:
            StoreError: reading or writing failed.
            StaleEpochError: another writer opened the log at the same time and won.
            CorruptLogError: see `read_log`.
        """
        try:
            make_folder(folder)
            epoch, descriptor = cls._claim(folder)
        except OSError as error:
            raise store_error("opening the commit log", folder, error) from error
        try:
            contents = read_log(folder, below=epoch, durably=True)
            log = cls(folder, epoch, contents, rotate_bytes=rotate_bytes)
            found = contents.header
            if found is not None and found.job != job:
                raise StoreError(f"{folder} was begun by job {found.job} just now; use another output folder")
            log._identity = Header(
                job=found.job if found else job,
                fingerprint=found.fingerprint if found else fingerprint,
                epoch=epoch,
                token_key=found.token_key if found else secrets.token_hex(32),
                seals={},
            )
            log._name, log._next_number = segment_name(epoch, 1) + ".log", 2
            log._begin_segment(descriptor)
            log._check_epoch()
            log._drop_void_segments()
        except BaseException as error:
            os.close(descriptor)
            # This epoch never acknowledged anything, so its name may vanish and even be used again.
            (folder / (segment_name(epoch, 1) + ".log")).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise store_error("opening the commit log", folder, error) from error
            raise
        return log

    @property
    def token_key(self) -> bytes:
        """Key of the attempt tokens; the same for the whole life of the job."""
        return bytes.fromhex(self._header.token_key)

    @property
    def stale(self) -> bool:
        """Whether a newer writer has been seen; nothing can be appended any more."""
        return bool(self._stale)

    @property
    def _header(self) -> Header:
        assert self._identity is not None
        return self._identity

    @staticmethod
    def _claim(folder: Path) -> tuple[Epoch, int]:
        """Create the first segment of the next epoch, before anything older is read."""
        for _ in range(_OPEN_ATTEMPTS):
            names = segment_names(folder)
            epoch = Epoch(epoch_of(names[-1]) + 1 if names else 1)
            path = folder / (segment_name(epoch, 1) + ".log")
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            try:
                fsync_folder(folder)
            except OSError:
                os.close(descriptor)
                raise
            return epoch, descriptor
        raise StoreError(f"{folder} is being opened by too many writers at once; let one of them run")

    def _begin_segment(self, descriptor: int) -> None:
        """Write the header into the empty segment `descriptor` and make it durable."""
        header = self._header
        header = Header(
            job=header.job,
            fingerprint=header.fingerprint,
            epoch=self.epoch,
            token_key=header.token_key,
            seals=dict(self._seals),
            plan=self.state.plan,
            layout=self.state.layout,
        )
        length = write_all(descriptor, 0, [encode_lines([header])])
        os.fsync(descriptor)
        self._descriptor, self._length, self._header_length = descriptor, length, length

    def _drop_void_segments(self) -> None:
        """Remove earlier segments of which nothing counts, so that a crash loop leaves one file and not thousands.

        Safe because our durable header names none of them: no reader will look into them again.
        """
        for name in segment_names(self._folder):
            if epoch_of(name) < self.epoch and name not in self._seals:
                (self._folder / name).unlink(missing_ok=True)

    def append(self, entries: Sequence[Entry]) -> None:
        """Append `entries`, make them durable and fold them into `state`; all or nothing.

        Raises:
            StaleEpochError: a newer writer exists. Nothing is acknowledged, and this log stays unusable.
            StoreError: writing failed, such as on a full disk. `state` is as before, what reached the disk will not
                count, and a later append works once the cause is gone.
        """
        if self._stale:
            raise StaleEpochError(self._stale)
        lines = encode_lines(entries)
        try:
            if self._broken or (self._length > self._header_length and self._length + len(lines) > self._rotate_bytes):
                self._rotate()
            with self.spent:
                write_all(self._descriptor, self._length, [lines])
                os.fdatasync(self._descriptor)
            self._check_epoch()
        except OSError as error:
            self._broken = True
            self.check_epoch()  # a newer writer removes segments that do not count, which is no fault of the disk
            path = Path(error.filename) if error.filename else self._folder / self._name
            raise store_error("writing the commit log", path, error) from error
        self._length += len(lines)
        self.state.apply_all(entries)

    def check_epoch(self) -> None:
        """Refuse to go on if a newer writer exists; for acts outside the log, such as putting a part in place.

        Raises:
            StaleEpochError: a newer writer exists.
            StoreError: the folder could not be read.
        """
        if self._stale:
            raise StaleEpochError(self._stale)
        try:
            self._check_epoch()
        except OSError as error:
            raise store_error("listing", self._folder, error) from error

    def _check_epoch(self) -> None:
        names = segment_names(self._folder)
        newest = epoch_of(names[-1]) if names else 0
        if newest > self.epoch:
            self._stale = f"epoch {newest} has taken over {self._folder} from epoch {self.epoch}; this writer must stop"
        else:
            self._check_place()
        if self._stale:
            raise StaleEpochError(self._stale)

    def _check_place(self) -> None:
        """See whether our segment is still what its name leads to.

        A file can be written and fsynced long after its name is gone: somebody removed or moved the folder, or
        unmounted it. Nobody would ever read what is acknowledged then.
        """
        path = self._folder / self._name
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "it was removed or moved while in use", str(path)) from error
        held = os.fstat(self._descriptor)
        if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
            self._stale = f"{path} is another file than before: somebody else writes there; this writer must stop"

    def _rotate(self) -> None:
        """Go on in a new segment whose header seals the current one at its last durable byte."""
        self._check_epoch()
        names = set(segment_names(self._folder))
        if gone := sorted(set(self._seals) - names):
            # The next reader would believe a log that begins in the middle, and have the shards of the rest done again.
            raise FileNotFoundError(errno.ENOENT, "it was removed or moved while in use", str(self._folder / gone[0]))
        if self._length > self._header_length:
            self._seals[self._name] = self._length
        name = segment_name(self.epoch, self._next_number) + ".log"
        self._next_number += 1  # never reused: another reader may already have looked into a failed one
        path = self._folder / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        previous = self._descriptor
        try:
            fsync_folder(self._folder)
            self._begin_segment(descriptor)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        os.close(previous)
        self._name, self._broken = name, False

    def close(self) -> None:
        """Let go of the segment; nothing is written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._stale = self._stale or f"{self._folder} was closed by this writer"
