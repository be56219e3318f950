"""Reading a commit log: which segments count, up to which byte, and what they add up to.

Responsible for telling what counts from what does not, and what is damaged. Writing, and why an acknowledged entry is
always among those that count, is `commitlog`.

Reading is the whole recovery, and a log may hold a million commits, so the ones that no longer matter are passed over:
a first look at each segment finds the parts that are sealed for good, and of their commits only the checksum is
verified. The rest are decoded many at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.errors import CorruptLogError, StoreError
from pocketgrid.storage.durable import store_error
from pocketgrid.storage.logentries import (
    COMMIT,
    VERSION,
    Header,
    Plan,
    Sealed,
    Unsealed,
    checked_payload,
    decode_commits,
    decode_line,
    decode_payload,
)
from pocketgrid.storage.logstate import LogState

_NAME = re.compile(r"E(\d{10})-S(\d{6})\.log")
_LANDMARK = re.compile(rb'^[0-9a-f]{8} \{"kind":"(?:header|plan|sealed|unsealed)".*$', re.MULTILINE)
_HEAD = 64 << 10
"""A header stands at the beginning; only where it does not is the whole segment looked through."""
_TOGETHER = 4096
"""Commits decoded at a time; more would only cost memory."""


def segment_names(folder: Path) -> list[str]:
    """File names of all segments in `folder`, oldest first."""
    return sorted(n for n in os.listdir(folder) if _NAME.fullmatch(n))  # noqa: PTH208  # names, not paths


def epoch_of(name: str) -> int:
    """Epoch of the segment called `name`."""
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

    `durably` makes sure that what is read is what the disk holds, so that it may be relied on even if its writer had
    not come to do so.

    Raises:
        CorruptLogError: the log contradicts itself in a way that redoing shards cannot mend.
        StoreError: a file could not be read, or was written by a newer version.
    """
    names = [n for n in segment_names(folder) if below is None or epoch_of(n) < below]
    if not durably:
        return _read_segments(folder, names)
    with _settled(folder, names) as descriptors:
        contents = _read_segments(folder, names)
        try:
            # What a writer that does not yet know of us has added meanwhile; a failure of its own shows here as well.
            for descriptor in descriptors:
                os.fsync(descriptor)
        except OSError as error:
            raise store_error("reading", folder, error) from error
    return contents


def _read_segments(folder: Path, names: Sequence[str]) -> LogContents:
    header, own = _newest_header(folder, names)
    notes: list[str] = []
    if header is None:
        return LogContents(None, {}, LogState(), ())
    counted: dict[str, int | None] = {}
    for name in names:
        limit = None if name == own else header.seals.get(name, 0)
        if name <= own and limit != 0:
            counted[name] = limit
    state, seals = LogState(), {}
    settled = _settled_shards(folder, counted)
    for name, limit in counted.items():
        data = _read(folder / name, limit)
        if limit is not None and len(data) < limit:
            notes.append(f"{name} has {len(data)} bytes of {limit}; the shards it lost are done again")
        whole = data.rfind(b"\n") + 1
        entries, bad = _fold(state, data[:whole], settled)
        if bad:
            notes.append(f"{name} has {bad} damaged or unknown lines; what only they said is done again")
        if whole < len(data):
            notes.append(f"{name} ends in a partial line of {len(data) - whole} bytes, which is dropped")
        if entries:  # a segment that holds but its header need not be kept, nor named for ever
            seals[name] = whole
    notes += [f"{name} is gone; the shards it lost are done again" for name in header.seals if name not in counted]
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
        first, entries = _first_header(_read(folder / name, _HEAD))
        if first is None:
            first, entries = _first_header(_read(folder / name, None))
        if first is not None:
            if first.version > VERSION:
                raise StoreError(f"{folder / name} was written by a newer version of PocketGrid; use that one")
            return first, name
        if entries:
            raise CorruptLogError(
                f"both copies of the header of {folder / name} are damaged, so it cannot be told which entries count; "
                "restore the file from a backup or start again in a new output folder"
            )
    return None, ""


def _first_header(data: bytes) -> tuple[Header | None, int]:
    """The first header in `data`, and how many entries stand before it."""
    entries = start = 0
    while (stop := data.find(b"\n", start)) >= 0:
        entry = decode_line(data[start:stop])
        if isinstance(entry, Header):
            return entry, entries
        entries += entry is not None
        start = stop + 1
    return None, entries


def _settled_shards(folder: Path, counted: Mapping[str, int | None]) -> bytearray:
    """For each shard, 1 if its part is sealed for good and says itself who computed it; empty without a plan."""
    plan: Plan | None = None
    sealed: dict[int, bool] = {}
    unsealed: set[int] = set()
    for name, limit in counted.items():
        for line in _LANDMARK.finditer(_read(folder / name, limit)):
            match decode_line(line[0]):
                case Plan() as entry:
                    plan = plan or entry
                case Header(plan=Plan() as entry):
                    plan = plan or entry
                case Sealed(part=part, work=work):
                    sealed.setdefault(part, bool(work))  # the first one counts, as in `LogState`
                case Unsealed(part=part):
                    unsealed.add(part)
                case _:
                    pass
    if plan is None:
        return bytearray()
    settled = bytearray(plan.grid.shards)
    for part, says_who in sealed.items():
        if says_who and part not in unsealed and 0 <= part < plan.parts:
            shards = plan.shards_of(part)
            settled[shards.start : shards.stop] = b"\1" * len(shards)
    return settled


def _fold(state: LogState, data: bytes, settled: bytearray) -> tuple[int, int]:
    """Fold the lines of `data` into `state`; return how many were entries other than headers, and how many none."""
    entries = bad = 0
    prefix, known = len(COMMIT), len(settled)
    waiting: list[bytes] = []
    before = b""
    for line in data.split(b"\n")[:-1]:
        if not line or line == before:
            continue  # a second copy says nothing new
        payload = checked_payload(line)
        if payload is None:
            bad += 1
            continue
        before = line
        if payload.startswith(COMMIT):
            shard = int(payload[prefix : payload.index(b",", prefix)])
            entries += 1
            if shard < known and settled[shard]:
                continue
            waiting.append(payload)
            if len(waiting) == _TOGETHER:
                state.apply_all(decode_commits(waiting))
                waiting.clear()
            continue
        if waiting:
            state.apply_all(decode_commits(waiting))
            waiting.clear()
        entry = decode_payload(payload)
        if entry is None:
            bad += 1
        else:
            entries += not isinstance(entry, Header)
            state.apply(entry)
    if waiting:
        state.apply_all(decode_commits(waiting))
    return entries, bad


def _read(path: Path, limit: int | None) -> bytes:
    try:
        with path.open("rb") as source:
            return source.read() if limit is None else source.read(limit)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise store_error("reading", path, error) from error


@contextmanager
def _settled(folder: Path, names: Sequence[str]) -> Iterator[list[int]]:
    """See to it that reading these segments shows what the disk holds; hold them open meanwhile.

    After a failed fsync Linux marks pages clean that never reached the disk, and a later fsync succeeds without writing
    them (see `commitlog`). If the writer whose fsync failed died before it sealed the segment off, its last entries
    would be read from such pages, believed, and be gone after a power cut. So the pages are written if they are dirty,
    then dropped, and read anew.
    """
    descriptors: list[int] = []
    try:
        for name in names:
            try:
                descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            descriptors.append(descriptor)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        _close(descriptors)
        raise store_error("reading", folder, error) from error
    try:
        yield descriptors
    finally:
        _close(descriptors)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
