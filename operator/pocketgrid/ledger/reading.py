"""A job's books, recomputed from the single lines of its commit log.

Responsible for turning lines into events of `metering`, and for comparing what they come to with what the log's own
running sums, its seals and the manifest say. Every line that counts is looked at, those of sealed parts too, so
that this is another way to the same figures than the one on which the grid relies. Reads only, and fences off nobody.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pocketgrid.errors import StoreError
from pocketgrid.metering.bookkeeping import Bookkeeper
from pocketgrid.metering.books import AccountKind, broken_laws
from pocketgrid.metering.events import UNKNOWN, Believed, Confirmed, Delivered, Event, Lost, Payee, Sealed, TakenBack
from pocketgrid.metering.settlements import Statement
from pocketgrid.model.ranges import IndexSet
from pocketgrid.storage import logentries
from pocketgrid.storage.durable import output_folder, store_error
from pocketgrid.storage.logreading import LogContents, read_log
from pocketgrid.storage.logstate import LogState
from pocketgrid.storage.results.manifest import NAME as MANIFEST_NAME
from pocketgrid.storage.results.manifest import Manifest, load_manifest
from pocketgrid.storage.results.ownership import PRIVATE


class Party(NamedTuple):
    """Who is paid."""

    owner: str
    device: str


@dataclass(frozen=True, slots=True)
class JobLedger:
    """What one job's log says of pay.

    Attributes:
        uri: as it was given.
        name: ``namespace/name``, known once there is a manifest.
        verify: whether the job pays at all.
        finished: whether the manifest is written.
        keeper: the books.
        digest: SHA-256 of the bytes of the log that count.
        notes: damage that was met and what it means.
        differences: where the books and other witnesses disagree, as sentences.
    """

    uri: str
    job: str
    name: str
    verify: bool
    finished: bool
    keeper: Bookkeeper
    digest: str
    notes: tuple[str, ...]
    differences: tuple[str, ...]

    def amounts(self, kind: AccountKind) -> dict[Party, int]:
        """Balances of one kind."""
        return {Party(a.owner, a.device): b for a, b in self.keeper.books.balances.items() if a.kind is kind}

    @property
    def statement(self) -> Statement:
        """For a settlement."""
        earned: Counter[str] = Counter()
        for party, amount in self.amounts(AccountKind.EARNED).items():
            earned[party.owner] += amount
        return Statement(self.job, self.name, self.digest, dict(earned))


def read_ledger(uri: str) -> JobLedger:
    """The books of the job whose output folder is `uri`, finished or not.

    Raises:
        InvalidSpecError: `uri` names no local folder.
        CorruptLogError: the log contradicts itself.
        StoreError: there is no log, or a file could not be read.
    """
    folder = output_folder(uri, field="uri")
    log = folder / PRIVATE / "log"
    try:
        contents = read_log(log)
    except FileNotFoundError as error:
        raise StoreError(f"{log} does not exist: this is no job's output, or its log was removed") from error
    if contents.header is None:
        raise StoreError(f"{log} is empty: the job has not begun to write, or this is not its output")
    keeper = Bookkeeper(contents.header.job)
    digest = hashlib.sha256()
    position = 0
    reader = EventReader(contents.state)
    for name, length in contents.seals.items():
        data = _read(log / name, length)
        digest.update(b"%s %d\n" % (name.encode(), length) + data)
        for line in data.split(b"\n"):
            entry = logentries.decode_line(line) if line else None
            event = reader.event(entry) if entry is not None else None
            position += 1
            if event is not None:
                keeper.fold(position, event)
    manifest, differences = _manifest(folder / MANIFEST_NAME, contents)
    plan = contents.state.plan
    return JobLedger(
        uri=uri,
        job=contents.header.job,
        name=manifest.name if manifest else "",
        verify=plan is not None and plan.verify,
        finished=contents.state.finished is not None,
        keeper=keeper,
        digest=digest.hexdigest(),
        notes=contents.notes,
        differences=(*differences, *_differences(keeper, contents, manifest)),
    )


class EventReader:
    """Says of each entry what it means for money.

    Args:
        state: of the whole log, for its plan and for who is called by which number.
    """

    def __init__(self, state: LogState) -> None:
        self._plan = state.plan
        self._payees = {n: Payee(w.owner, w.device, w.price) for n, w in state.workers.items()}

    def event(self, entry: logentries.Entry) -> Event | None:
        """The event of `entry`; None if it means nothing, as all do in a job that pays nothing."""
        plan = self._plan
        if plan is None or not plan.verify:
            return None
        match entry:
            case logentries.Commit():
                return Delivered(entry.shard, (entry.staging, entry.offset), self._payee(entry.worker), entry.rows)
            case logentries.Verified():
                return Believed(tuple(range(*run) for run in IndexSet.from_text(entry.shards).runs()))
            case logentries.Checked():
                return Confirmed(entry.number, self._payee(entry.worker), entry.agreed)
            case logentries.Reopened():
                place = (entry.staging, entry.offset)
                return TakenBack(entry.shard, place, self._payee(entry.worker), entry.rows)
            case logentries.Sealed():
                work = tuple((self._payee(share.worker), share.rows) for share in entry.work)
                return Sealed(entry.part, plan.shards_of(entry.part), work)
            case logentries.Unsealed():
                return Lost(entry.part)
            case _:
                return None

    def _payee(self, number: int) -> Payee:
        return self._payees.get(number, UNKNOWN)


def _differences(keeper: Bookkeeper, contents: LogContents, manifest: Manifest | None) -> Iterator[str]:
    yield from broken_laws(keeper.books)
    pay = contents.state.pay
    held, earned = pay.amounts()
    for kind, by_number, total in (
        (AccountKind.ESCROW, held, pay.held_micro),
        (AccountKind.EARNED, earned, pay.earned_micro),
    ):
        running: Counter[Party] = Counter()
        for number, amount in by_number.items():
            worker = contents.state.workers.get(number)
            running[Party(worker.owner, worker.device) if worker else Party("", "")] += amount
        own: Mapping[Party, int] = {
            Party(a.owner, a.device): b for a, b in keeper.books.balances.items() if a.kind is kind
        }
        for party in sorted({*own, *running}):
            if own.get(party, 0) != running[party]:
                yield (
                    f"{kind} of owner {party.owner!r}, device {party.device!r}: its lines come to "
                    f"{own.get(party, 0)} micro-units, the log's running sums to {running[party]}"
                )
        if sum(running.values()) != total:
            yield f"{kind}: the sums by device come to {sum(running.values())} micro-units, that of the job to {total}"
    total = keeper.books.total(AccountKind.EARNED)
    if manifest is not None and manifest.cost != total:
        yield f"the manifest says that the job cost {manifest.cost} micro-units, the lines of the log come to {total}"


def _manifest(path: Path, contents: LogContents) -> tuple[Manifest | None, tuple[str, ...]]:
    """The manifest and what is wrong with it; none while there is none of these entries, as before a job finishes."""
    finished = contents.state.finished
    if finished is None:
        return None, ()
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != finished.manifest_sha256:
            return None, (f"{path} was changed after the job had finished: the log has another digest of it",)
        return load_manifest(path), ()
    except FileNotFoundError:
        return None, (f"{path} is missing, although the log says that the job has finished",)
    except OSError as error:
        raise store_error("reading", path, error) from error


def _read(path: Path, length: int) -> bytes:
    try:
        with path.open("rb") as source:
            return source.read(length)
    except OSError as error:
        raise store_error("reading", path, error) from error
