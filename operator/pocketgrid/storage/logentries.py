"""What stands in a commit log, one entry a line, and what a sequence of entries adds up to.

A line is ``crc32 json``: eight hexadecimal digits over the JSON bytes, a space, compact JSON, a newline. Folding the
entries in order gives the state; folding an entry a second time changes nothing, so a line that stands twice and a
header that repeats what is known are harmless. Pure: no file is touched here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, assert_never

from pocketgrid.errors import CorruptLogError
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.ranges import IndexSet

VERSION = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How the job is cut, once and for all.

    Attributes:
        per_shard: items of a shard.
        items: items of the job.
        shards_per_part: consecutive shards that make one output part.
    """

    per_shard: int
    items: int
    shards_per_part: int

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
class Commit:
    """One shard is done.

    Attributes:
        rows, failed: rows with and without a result; their sum is the size of the shard.
        staging, offset, length, crc: where the staged record is; `batch_length` of its bytes are the Arrow batch,
            the rest are the failures.
    """

    shard: int
    seq: int
    device: str
    owner: str
    engine: str
    rows: int
    failed: int
    compute_us: int
    staging: str
    offset: int
    length: int
    batch_length: int
    crc: int


@dataclass(frozen=True, slots=True)
class Reopened:
    """A staged record turned out to be damaged, so its commit no longer counts."""

    shard: int
    staging: str
    offset: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """An output part is final; proves every shard of it, whatever became of their commit entries."""

    part: int
    rows: int
    failed: int
    bytes: int
    sha256: str
    errors_bytes: int = 0
    errors_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Unsealed:
    """A sealed part was lost or cut afterwards; all its shards must be done again."""

    part: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The manifest is in place."""

    manifest_sha256: str


Entry = Header | Plan | Layout | Commit | Reopened | Sealed | Unsealed | Finished

_KINDS: dict[str, type[Any]] = {
    "header": Header, "plan": Plan, "layout": Layout, "commit": Commit, "reopened": Reopened,
    "sealed": Sealed, "unsealed": Unsealed, "finished": Finished,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _KINDS.items()}
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)
_DECODER = json.JSONDecoder()
_COMMIT_FIELDS = frozenset(Commit.__slots__)
_TWICE = (Header, Plan, Layout, Reopened, Unsealed)
"""Entries whose loss would cost more than one shard; two copies outlive any single bad sector or flipped bit."""


def _fields(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, Commit):  # asdict costs 20 us, and there may be a million of these
        return {name: getattr(entry, name) for name in Commit.__slots__}
    return asdict(entry)


def encode_line(entry: Entry) -> bytes:
    """One line for `entry`."""
    payload = _ENCODER.encode({"kind": _NAMES[type(entry)], **_fields(entry)}).encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(payload), payload)


def encode_lines(entries: Iterable[Entry]) -> bytes:
    """The lines for `entries`; those that must not be lost stand twice."""
    return b"".join(
        line * (2 if isinstance(entry, _TWICE) else 1) for entry in entries for line in [encode_line(entry)]
    )


def decode_line(line: bytes) -> Entry | None:
    """The entry of `line` (without its newline), or None if the line is damaged or of an unknown kind."""
    if len(line) < 10 or line[8:9] != b" ":
        return None
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        document = _DECODER.decode(line[9:].decode("ascii"))
        kind = _KINDS.get(document.pop("kind"))
        if kind is None:
            return None
        if kind is Commit and document.keys() == _COMMIT_FIELDS:
            return Commit(**document)
        known = {name: document[name] for name in kind.__slots__ if name in document}
        if kind is Header:
            known["plan"] = Plan(**document["plan"]) if document.get("plan") else None
            known["layout"] = _layout(document["layout"]) if document.get("layout") else None
        elif kind is Layout:
            return _layout(document)
        return kind(**known)  # type: ignore[no-any-return]  # the union is spelt out in _KINDS
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _layout(document: Mapping[str, Any]) -> Layout:
    return Layout(tuple((n, d, tuple(s), bool(r)) for n, d, s, r in document["columns"]))


@dataclass
class LogState:
    """What the entries so far add up to.

    Attributes:
        shards: how many the plan has; 0 without one.
        staged: part -> shard -> its commit, for parts that are not sealed.
        references: staging segment -> number of staged commits in it.
        rows_done: rows of committed shards, failed ones included.
    """

    plan: Plan | None = None
    shards: int = 0
    layout: Layout | None = None
    staged: dict[int, dict[int, Commit]] = field(default_factory=dict)
    sealed: dict[int, Sealed] = field(default_factory=dict)
    finished: Finished | None = None
    committed: IndexSet = field(default_factory=IndexSet)
    references: dict[str, int] = field(default_factory=dict)
    rows_done: int = 0
    rows_failed: int = 0
    damaged: set[tuple[str, int]] = field(default_factory=set)

    def apply_all(self, entries: Sequence[Entry]) -> None:
        """Fold `entries` in order."""
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        """Fold one entry. The first commit of a shard wins; an entry that stands twice counts once.

        Raises:
            CorruptLogError: the entry contradicts the plan, or there is no plan it could refer to.
        """
        match entry:
            case Header():
                if entry.plan is not None:
                    self._set_plan(entry.plan)
                if entry.layout is not None:
                    self.layout = self.layout or entry.layout
            case Plan():
                self._set_plan(entry)
            case Layout():
                self.layout = self.layout or entry
            case Commit():
                self._commit(entry)
            case Reopened():
                self._reopen(entry)
            case Sealed():
                self._seal(entry)
            case Unsealed():
                self._unseal(entry)
            case Finished():
                self.finished = entry
            case _:
                assert_never(entry)

    def ready_part(self) -> int | None:
        """The lowest part whose shards are all committed and which is not sealed."""
        plan = self.plan
        if plan is None:
            return None
        whole = (p for p, shards in self.staged.items() if len(shards) == len(plan.shards_of(p)))
        return min(whole, default=None)

    @property
    def complete(self) -> bool:
        """Whether every shard is committed."""
        return self.plan is not None and len(self.committed) == self.shards

    def _set_plan(self, plan: Plan) -> None:
        if self.plan is not None and self.plan != plan:
            raise CorruptLogError(f"the commit log holds two plans: {self.plan} and {plan}")
        if self.plan is None:
            self.plan, self.shards = plan, plan.grid.shards

    def _planned(self, entry: Commit | Reopened | Sealed | Unsealed) -> Plan:
        plan = self.plan
        if plan is None:
            raise CorruptLogError(f"the commit log speaks of {entry} but its plan is lost; use a new output folder")
        inside = (
            0 <= entry.shard < self.shards if isinstance(entry, Commit | Reopened) else 0 <= entry.part < plan.parts
        )
        if not inside:
            raise CorruptLogError(f"the commit log speaks of {entry}, which {plan} does not have")
        return plan

    def _commit(self, entry: Commit) -> None:
        part = self._planned(entry).part_of(entry.shard)
        if (self.damaged and (entry.staging, entry.offset) in self.damaged) or not self.committed.add(entry.shard):
            return
        self.staged.setdefault(part, {})[entry.shard] = entry
        self.references[entry.staging] = self.references.get(entry.staging, 0) + 1
        self.rows_done += entry.rows + entry.failed
        self.rows_failed += entry.failed

    def _unstage(self, part: int, shard: int) -> None:
        entry = self.staged[part].pop(shard)
        if not self.staged[part]:
            del self.staged[part]
        self.references[entry.staging] -= 1
        if not self.references[entry.staging]:
            del self.references[entry.staging]
        self.committed.discard(shard)
        self.rows_done -= entry.rows + entry.failed
        self.rows_failed -= entry.failed

    def _reopen(self, entry: Reopened) -> None:
        part = self._planned(entry).part_of(entry.shard)
        self.damaged.add((entry.staging, entry.offset))
        held = self.staged.get(part, {}).get(entry.shard)
        if held is not None and (held.staging, held.offset) == (entry.staging, entry.offset):
            self._unstage(part, entry.shard)

    def _seal(self, entry: Sealed) -> None:
        plan = self._planned(entry)
        for shard in list(self.staged.get(entry.part, ())):
            self._unstage(entry.part, shard)
        if entry.part not in self.sealed:
            shards = plan.shards_of(entry.part)
            self.committed.add_run(shards.start, shards.stop)
            self.rows_done += entry.rows + entry.failed
            self.rows_failed += entry.failed
            self.sealed[entry.part] = entry

    def _unseal(self, entry: Unsealed) -> None:
        plan = self._planned(entry)
        self.finished = None
        held = self.sealed.pop(entry.part, None)
        if held is None:
            return
        for shard in plan.shards_of(entry.part):
            self.committed.discard(shard)
        self.rows_done -= held.rows + held.failed
        self.rows_failed -= held.failed
