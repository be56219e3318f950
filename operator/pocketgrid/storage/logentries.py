"""What stands in a commit log, one entry a line.

A line is ``crc32 json``: eight hexadecimal digits over the JSON bytes, a space, compact JSON, a newline. Responsible
for the words and their text; what a sequence of entries adds up to is `logstate`. Pure: no file is touched here.

There may be a million commits, so they are short: an array of numbers, in which the device is the number under which
a `worker` entry has introduced it, and the staging segment is two numbers. That is about 90 bytes a shard, where
version 1 took 267 to say less. Its lines are still read.

What an entry means for money is in the entry: see `logpay`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pocketgrid.model.job import ShardGrid

VERSION = 3
"""3 knows `verified`, `checked` and prices. Logs of 1 and 2 are read and gone on with; nothing is paid in them."""

INLINE = -1
"""Worker number of a commit of version 1, which says itself who computed it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the job is cut, once and for all.

    Attributes:
        per_shard: items of a shard.
        items: items of the job.
        shards_per_part: consecutive shards that make one output part.
        verify: whether a shard is final, and paid, only once an entry `Verified` names it.
    """

    per_shard: int
    items: int
    shards_per_part: int
    verify: bool = False

    @property
    def grid(self) -> ShardGrid:
        """The cut into shards."""
        return ShardGrid(self.items, self.per_shard)

    @property
    def parts(self) -> int:
        """How many output parts there are."""
        return -(-self.grid.shards // self.shards_per_part)

    def part_of(self, shard: int) -> int:
        """The part `shard` belongs to."""
        return shard // self.shards_per_part

    def shards_of(self, part: int) -> range:
        """The shards of `part`."""
        start = part * self.shards_per_part
        return range(start, min(start + self.shards_per_part, self.grid.shards))

    def rows_of(self, part: int) -> tuple[int, int]:
        """Half-open range of item numbers of `part`."""
        shards = self.shards_of(part)
        return self.grid.bounds(shards[0])[0], self.grid.bounds(shards[-1])[1]


@dataclass(frozen=True, slots=True)
class Layout:
    """The result columns as they are staged, fixed before the first row is committed.

    Attributes:
        columns: for each output, name, dtype, fixed item shape and whether it is ragged.
    """

    columns: tuple[tuple[str, str, tuple[int, ...], bool], ...]


@dataclass(frozen=True, slots=True)
class Header:
    """First entry of every segment.

    Attributes:
        job: uid of the job.
        fingerprint: what must not change under a job: digests of model, input and output plan.
        token_key: hexadecimal key of the attempt tokens; made by the first epoch and repeated by all later ones.
        seals: earlier segment -> how many of its bytes count. A segment that is not named does not count at all.
        plan, layout: repeated if they are known, so that one bad line cannot lose them.
    """

    job: str
    fingerprint: Mapping[str, str]
    epoch: int
    token_key: str
    seals: Mapping[str, int]
    plan: Plan | None = None
    layout: Layout | None = None
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Worker:
    """A device as it took part. One that changes its class, engine or price in mid-job is another worker.

    Attributes:
        classes: names of its hardware classes, sorted and joined by commas; empty if it belonged to none.
        engine: inference engine and version.
        price: micro-units for each row with a result.
        numerics: numerics class: with which devices' results its own can be compared.
    """

    device: str
    owner: str
    classes: str
    engine: str
    price: int = 0
    numerics: str = ""


@dataclass(frozen=True, slots=True)
class Introduced:
    """A worker takes part from now on; later entries call it by its number."""

    number: int
    device: str
    owner: str
    classes: str
    engine: str
    price: int = 0
    numerics: str = ""

    @property
    def worker(self) -> Worker:
        """Who it is, without the number."""
        return Worker(self.device, self.owner, self.classes, self.engine, self.price, self.numerics)


class Commit(NamedTuple):
    """One shard is done. A tuple, because opening a log may make a million of them.

    Attributes:
        worker: number of who computed it; `INLINE` if `by` says who.
        rows, failed: rows with and without a result; their sum is the size of the shard.
        staging, offset, length, crc: where the staged record is; `batch_length` of its bytes are the Arrow batch,
            the rest are the failures.
    """

    shard: int
    seq: int
    worker: int
    rows: int
    failed: int
    compute_us: int
    staging: str
    offset: int
    length: int
    batch_length: int
    crc: int
    by: Worker | None = None


@dataclass(frozen=True, slots=True)
class Reopened:
    """A commit no longer counts: its staged record is damaged, or its device is not believed any more.

    Attributes:
        staging, offset: of the commit.
        worker, rows: what stays paid, since it was verified before we lost it; no rows if it had not been.
    """

    shard: int
    staging: str
    offset: int
    worker: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """These shards are believed: their results are final, and their workers have earned what was held for them.

    Attributes:
        shards: text form of an `IndexSet`. One that is not committed at this point of the log stays as it is.
    """

    shards: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A worker computed again what others had computed. What agreed is earned, what did not is not.

    Attributes:
        number: grows with every such entry of a log, so that none counts twice.
        agreed, disagreed: rows of its answer.
        shards: text form of an `IndexSet`: from which shards they were; empty if from none, such as known answers.
    """

    number: int
    worker: int
    agreed: int
    disagreed: int
    shards: str = ""


class Share(NamedTuple):
    """What one worker did of something, in shards, rows with and without a result, and microseconds of computing."""

    worker: int
    shards: int
    rows: int
    failed: int
    compute_us: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """An output part is final; proves every shard of it, whatever became of their commit entries.

    Attributes:
        work: who computed it; empty in a log of version 1.
    """

    part: int
    rows: int
    failed: int
    bytes: int
    sha256: str
    errors_bytes: int = 0
    errors_sha256: str = ""
    work: tuple[Share, ...] = ()


@dataclass(frozen=True, slots=True)
class Unsealed:
    """A sealed part was lost or cut afterwards; all its shards must be done again."""

    part: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The manifest is in place."""

    manifest_sha256: str


Entry = Header | Plan | Layout | Introduced | Commit | Reopened | Verified | Checked | Sealed | Unsealed | Finished

_KINDS: dict[str, type[Any]] = {
    "header": Header, "plan": Plan, "layout": Layout, "worker": Introduced, "commit": Commit, "reopened": Reopened,
    "verified": Verified, "checked": Checked, "sealed": Sealed, "unsealed": Unsealed, "finished": Finished,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)
_DECODER = json.JSONDecoder()
_TWICE = (Header, Plan, Layout, Introduced, Reopened, Verified, Checked, Unsealed)
"""Entries whose loss would cost more than one shard; two copies outlive any flipped bit."""

COMMIT = b'["c",'
"""How the JSON of a commit begins; the shard follows."""
_COMMIT_VALUES = 12
"""Numbers of a commit that this version knows; what stands behind them is of a later one."""


def segment_name(epoch: int, number: int) -> str:
    """Name of a segment of log or staging, without suffix; its order is (epoch, number) and also that of the text."""
    return f"E{epoch:010d}-S{number:06d}"


def _segment_numbers(name: str) -> tuple[int, int]:
    return int(name[1:11]), int(name[13:])


def _payload(entry: Entry) -> bytes:
    if isinstance(entry, Commit):
        assert entry.by is None, "commits of version 1 are read, never written"
        epoch, number = _segment_numbers(entry.staging)
        return b'["c",%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d]' % (*entry[:6], epoch, number, *entry[7:11])
    return _ENCODER.encode({"kind": _NAMES[type(entry)], **asdict(entry)}).encode("ascii")


def encode_line(entry: Entry) -> bytes:
    """One line for `entry`."""
    payload = _payload(entry)
    return b"%08x %b\n" % (zlib.crc32(payload), payload)


def encode_lines(entries: Iterable[Entry]) -> bytes:
    """The lines for `entries`; those that must not be lost stand twice.

    Between the two an empty line, or a newline that is damaged would make one damaged line of both.
    """
    lines = ((encode_line(entry), isinstance(entry, _TWICE)) for entry in entries)
    return b"".join(line + b"\n" + line if twice else line for line, twice in lines)


def checked_payload(line: bytes) -> bytes | None:
    """The JSON of `line` (without its newline), or None if the line is damaged."""
    payload = line[9:]
    try:
        return payload if int(line[:8], 16) == zlib.crc32(payload) and line[8:9] == b" " else None
    except ValueError:
        return None


def decode_line(line: bytes) -> Entry | None:
    """The entry of `line` (without its newline), or None if the line is damaged or of an unknown kind."""
    payload = checked_payload(line)
    return None if payload is None else decode_payload(payload)


def decode_payload(payload: bytes) -> Entry | None:
    """The entry of an undamaged line's JSON, or None if it is of an unknown kind."""
    try:
        document = _DECODER.decode(payload.decode("ascii"))
        if isinstance(document, list):
            return _commit(document) if document[0] == "c" else None
        return _from_object(document)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None


def decode_commits(payloads: Sequence[bytes]) -> list[Commit]:
    """The commits of undamaged lines that begin with `COMMIT`. Several times faster than one by one.

    Raises:
        ValueError: one of them is not what it seems.
    """
    documents = _DECODER.decode((b"[" + b",".join(payloads) + b"]").decode("ascii"))
    return [_commit(d) for d in documents]


_NAMES_OF_SEGMENTS: dict[tuple[int, int], str] = {}
"""So that a million commits share the names of a few segments. Bounded by `_commit`."""
_MOST_NAMES = 4096


def _commit(values: Sequence[Any]) -> Commit:
    shard, seq, worker, rows, failed, us, epoch, number, offset, length, batch_length, crc = values[
        1 : _COMMIT_VALUES + 1
    ]
    name = _NAMES_OF_SEGMENTS.get((epoch, number))
    if name is None:
        if len(_NAMES_OF_SEGMENTS) >= _MOST_NAMES:
            _NAMES_OF_SEGMENTS.clear()
        name = _NAMES_OF_SEGMENTS[epoch, number] = segment_name(epoch, number)
    return Commit(shard, seq, worker, rows, failed, us, name, offset, length, batch_length, crc)


def _from_object(document: dict[str, Any]) -> Entry | None:
    kind = _KINDS.get(document.pop("kind"))
    if kind is None:
        return None
    if kind is Commit:
        by = Worker(document.pop("device"), document.pop("owner"), "", document.pop("engine"))
        known = {name: document[name] for name in Commit._fields if name in document}
        return Commit(**{**known, "worker": INLINE, "by": by})
    known = {name: document[name] for name in kind.__slots__ if name in document}
    if kind is Header:
        known["plan"] = _from_object({"kind": "plan", **document["plan"]}) if document.get("plan") else None
        known["layout"] = _layout(document["layout"]) if document.get("layout") else None
    elif kind is Layout:
        return _layout(document)
    elif kind is Sealed:
        known["work"] = tuple(Share(*share[: len(Share._fields)]) for share in document.get("work", ()))
    return kind(**known)  # type: ignore[no-any-return]  # the union is spelt out in _KINDS


def _layout(document: Mapping[str, Any]) -> Layout:
    return Layout(tuple((n, d, tuple(s), bool(r)) for n, d, s, r in document["columns"]))
