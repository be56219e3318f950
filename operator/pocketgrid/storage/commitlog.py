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
Failures?", USENIX ATC 2020).

Recovery is reading the log. A partial last line is a torn tail and is dropped; a damaged line elsewhere is skipped
and reported, and what it said is done again unless a later line proves it.

A `CommitLog` belongs to one thread at a time; it has no locks of its own.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.errors import CorruptLogError, StaleEpochError, StoreError
from pocketgrid.model.ids import Epoch
from pocketgrid.storage.durable import fsync_folder, make_folder, store_error, write_all
from pocketgrid.storage.logentries import VERSION, Entry, Header, LogState, decode_line, encode_lines

_NAME = re.compile(r"E(\d{10})-S(\d{6})\.log")
_OPEN_ATTEMPTS = 100
"""Epochs tried before giving up when others keep opening the same log at the same moment."""


def segment_name(epoch: int, number: int) -> str:
    """Name of a segment, without suffix; its order is (epoch, number) and also that of the text."""
    return f"E{epoch:010d}-S{number:06d}"


def segment_names(folder: Path) -> list[str]:
    """File names of all segments in `folder`, oldest first."""
    return sorted(n for n in os.listdir(folder) if _NAME.fullmatch(n))  # noqa: PTH208  # names, not paths


def _epoch_of(name: str) -> int:
    return int(name[1:11])


@dataclass(frozen=True, slots=True)
class LogContents:
    """What reading the log found.

    Attributes:
        header: the authoritative header, None for a log that no writer has come to use.
        seals: segment that counts -> bytes of it that count, whole lines only.
        notes: damage that was met and what it means, as sentences.
    """

    header: Header | None
    seals: Mapping[str, int]
    state: LogState
    notes: tuple[str, ...]


def read_log(folder: Path, *, below: int | None = None, durably: bool = False) -> LogContents:
    """Read the segments of all epochs, or those before epoch `below`.

    `durably` fsyncs what was read, so that it may be relied on even if its writer had not come to do so.

    Raises:
        CorruptLogError: the log contradicts itself in a way that redoing shards cannot mend.
        StoreError: a file could not be read, or was written by a newer version.
    """
    names = [n for n in segment_names(folder) if below is None or _epoch_of(n) < below]
    header, own = _newest_header(folder, names)
    notes: list[str] = []
    if header is None:
        return LogContents(None, {}, LogState(), ())
    state, seals, seen = LogState(), {}, set()
    for name in names:
        limit = None if name == own else header.seals.get(name, 0)
        if (own < name) or limit == 0:
            continue
        data = _read(folder / name, limit, durably=durably)
        if limit is not None and len(data) < limit:
            notes.append(f"{name} has {len(data)} bytes of {limit}; the shards it lost are done again")
        whole = data.rfind(b"\n") + 1
        bad = entries = 0
        for line in _lines(data[:whole]):
            entry = decode_line(line)
            if entry is None:
                bad += 1
            else:
                entries += not isinstance(entry, Header)
                state.apply(entry)
        if bad:
            notes.append(f"{name} has {bad} damaged or unknown lines; what only they said is done again")
        if whole < len(data):
            notes.append(f"{name} ends in a partial line of {len(data) - whole} bytes, which is dropped")
        seen.add(name)
        if entries:  # a segment that holds but its header need not be kept, nor named for ever
            seals[name] = whole
    notes += [f"{name} is gone; the shards it lost are done again" for name in header.seals if name not in seen]
    return LogContents(header, seals, state, tuple(notes))


def read_header(folder: Path) -> Header | None:
    """Whose log this is, or None if nobody has come to use it. Fences off nobody.

    Raises:
        CorruptLogError: the newest header is damaged.
        StoreError: a file could not be read, or was written by a newer version.
    """
    try:
        names = segment_names(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error("listing", folder, error) from error
    return _newest_header(folder, names)[0]


def _newest_header(folder: Path, names: Sequence[str]) -> tuple[Header | None, str]:
    """The newest header that can be read and the segment it stands in."""
    for name in reversed(names):
        data = _read(folder / name, None, durably=False)
        first: Entry | None = None
        entries = 0
        for line in _lines(data[: data.rfind(b"\n") + 1]):
            entry = decode_line(line)
            if isinstance(entry, Header):
                first = entry
                break
            entries += entry is not None
        if isinstance(first, Header):
            if first.version > VERSION:
                raise StoreError(f"{folder / name} was written by a newer version of PocketGrid; use that one")
            return first, name
        if entries:
            raise CorruptLogError(
                f"both copies of the header of {folder / name} are damaged, so it cannot be told which entries count; "
                "restore the file from a backup or start again in a new output folder"
            )
    return None, ""


def _lines(data: bytes) -> Iterator[bytes]:
    start = 0
    while (stop := data.find(b"\n", start)) >= 0:
        yield data[start:stop]
        start = stop + 1


def _read(path: Path, limit: int | None, *, durably: bool) -> bytes:
    try:
        with path.open("rb") as source:
            data = source.read() if limit is None else source.read(limit)
            if durably:
                os.fsync(source.fileno())
            return data
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise store_error("reading", path, error) from error


class CommitLog:
    """The one writer of a commit log.

    Attributes:
        state: everything acknowledged so far, by this epoch and all before it.
        notes: what recovery met.
    """

    def __init__(self, folder: Path, epoch: Epoch, contents: LogContents, *, rotate_bytes: int) -> None:
        """For `open` only."""
        self.epoch = epoch
        self.state = contents.state
        self.notes = contents.notes
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
            epoch = Epoch(_epoch_of(names[-1]) + 1 if names else 1)
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
            if _epoch_of(name) < self.epoch and name not in self._seals:
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
            write_all(self._descriptor, self._length, [lines])
            os.fdatasync(self._descriptor)
            self._check_epoch()
        except OSError as error:
            self._broken = True
            self.check_epoch()  # a newer writer removes segments that do not count, which is no fault of the disk
            raise store_error("writing the commit log", self._folder / self._name, error) from error
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
        newest = _epoch_of(names[-1]) if names else 0
        if newest > self.epoch:
            self._stale = f"epoch {newest} has taken over {self._folder} from epoch {self.epoch}; this writer must stop"
        elif self._name not in names:
            self._stale = f"{self._folder / self._name} was removed while it was in use; this writer must stop"
        if self._stale:
            raise StaleEpochError(self._stale)

    def _rotate(self) -> None:
        """Go on in a new segment whose header seals the current one at its last durable byte."""
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
