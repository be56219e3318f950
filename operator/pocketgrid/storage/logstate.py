"""What the entries of a commit log add up to.

Folding the entries in order gives the state; folding an entry a second time changes nothing, so a line that stands
twice and a header that repeats what is known are harmless. Pure: no file is touched here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import assert_never

from pocketgrid.errors import CorruptLogError
from pocketgrid.model.ranges import IndexSet
from pocketgrid.storage.logentries import (
    Checked,
    Commit,
    Entry,
    Finished,
    Header,
    Introduced,
    Layout,
    Plan,
    Reopened,
    Sealed,
    Share,
    Unsealed,
    Verified,
    Worker,
)
from pocketgrid.storage.logpay import RunningPay

UNKNOWN = Worker("", "", "", "")
"""Who computed a shard whose worker's introduction is lost. The shard counts all the same."""


@dataclass
class LogState:
    """What the entries so far add up to.

    Attributes:
        shards: how many the plan has; 0 without one.
        staged: part -> shard -> its commit, for parts that are not sealed.
        references: staging segment -> number of staged commits in it.
        rows_done: rows of committed shards, failed ones included.
        workers: by number; `numbers` is the way back.
        whole: parts that are not sealed and whose shards are all committed, and verified if the plan says so.
        verified: shards that are final; empty unless the plan verifies.
        checks: number of the last `Checked`.
        pay: what is held for the workers, and what they have earned; empty unless the plan verifies.
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
    workers: dict[int, Worker] = field(default_factory=dict)
    numbers: dict[Worker, int] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)
    verified: IndexSet = field(default_factory=IndexSet)
    checks: int = 0
    pay: RunningPay = field(default_factory=RunningPay)
    _highest: int = 0
    _believed: dict[int, int] = field(default_factory=dict)
    _derived: dict[int, dict[Worker, Share]] = field(default_factory=dict)

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
            case Commit():
                self._commit(entry)
            case Header():
                if entry.plan is not None:
                    self._set_plan(entry.plan)
                if entry.layout is not None:
                    self.layout = self.layout or entry.layout
            case Plan():
                self._set_plan(entry)
            case Layout():
                self.layout = self.layout or entry
            case Introduced():
                self.workers.setdefault(entry.number, entry.worker)
                self.numbers.setdefault(entry.worker, entry.number)
                self.pay.introduce(entry.number, entry.price)
                self._highest = max(self._highest, entry.number)
            case Reopened():
                self._reopen(entry)
            case Verified():
                self._verify(entry)
            case Checked():
                self._check(entry)
            case Sealed():
                self._seal(entry)
            case Unsealed():
                self._unseal(entry)
            case Finished():
                self.finished = entry
            case _:
                assert_never(entry)

    def ready_part(self) -> int | None:
        """The lowest part that is not sealed and whose shards are all committed, and verified if the plan says so."""
        return min(self.whole, default=None)

    @property
    def complete(self) -> bool:
        """Whether every shard is committed."""
        return self.plan is not None and len(self.committed) == self.shards

    # ---- who computed what ----

    def introduce(self, workers: Iterable[Worker]) -> tuple[dict[Worker, int], list[Introduced]]:
        """Numbers for `workers`, and the entries that must be written before those numbers are used.

        Nothing changes before these entries are folded. A number that any entry has used is never given again, even if
        its introduction is lost: a shard nobody can be named for is better than one the wrong device is named for.
        """
        numbers: dict[Worker, int] = {}
        entries: list[Introduced] = []
        for worker in workers:
            if worker in numbers:
                continue
            known = self.numbers.get(worker)
            if known is None:
                known = self._highest + len(entries) + 1
                entries.append(Introduced(known, *astuple(worker)))
            numbers[worker] = known
        return numbers, entries

    def staged_commit(self, shard: int) -> Commit | None:
        """The commit of a shard whose part is not sealed, if there is one."""
        if self.plan is None:
            return None
        return self.staged.get(self.plan.part_of(shard), {}).get(shard)

    def worker_of(self, commit: Commit) -> Worker:
        """Who computed it; `UNKNOWN` if the introduction is lost."""
        return commit.by or self.workers.get(commit.worker, UNKNOWN)

    def pay_by_device(self) -> dict[str, tuple[int, int]]:
        """Micro-units earned and held, by device; all of its workers, whatever their class, engine or price."""
        sums: dict[str, tuple[int, int]] = {}
        held, earned = self.pay.amounts()
        for number in {*held, *earned}:
            device = self.workers.get(number, UNKNOWN).device
            known = sums.get(device, (0, 0))
            sums[device] = (known[0] + earned.get(number, 0), known[1] + held.get(number, 0))
        return sums

    def staged_work(self, part: int) -> dict[Worker, Share]:
        """Who computed the committed shards of an unsealed part; the numbers in the shares are 0."""
        work: dict[Worker, Share] = {}
        for commit in self.staged.get(part, {}).values():
            _add(work, self.worker_of(commit), Share(0, 1, commit.rows, commit.failed, commit.compute_us))
        return work

    def sealed_work(self) -> dict[Worker, Share]:
        """Who computed the sealed parts; the numbers in the shares are 0."""
        work: dict[Worker, Share] = {}
        for worker, share in self._shares():
            _add(work, worker, share)
        return work

    def _shares(self) -> Iterator[tuple[Worker, Share]]:
        for part, sealed in self.sealed.items():
            if not sealed.work:
                yield from self._derived.get(part, {}).items()
            for share in sealed.work:
                yield self.workers.get(share.worker, UNKNOWN), share

    # ---- folding ----

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
        plan = self.plan
        if plan is None or not 0 <= entry.shard < self.shards:
            plan = self._planned(entry)
        if entry.worker > self._highest:
            self._highest = entry.worker
        if (self.damaged and (entry.staging, entry.offset) in self.damaged) or not self.committed.add(entry.shard):
            return
        part = entry.shard // plan.shards_per_part
        held = self.staged.setdefault(part, {})
        held[entry.shard] = entry
        if plan.verify:
            self.pay.hold(entry.worker, entry.rows)
        elif len(held) == min(plan.shards_per_part, self.shards - part * plan.shards_per_part):
            self.whole.add(part)
        self.references[entry.staging] = self.references.get(entry.staging, 0) + 1
        self.rows_done += entry.rows + entry.failed
        self.rows_failed += entry.failed

    def _unstage(self, plan: Plan, part: int, shard: int) -> None:
        entry = self.staged[part].pop(shard)
        self.whole.discard(part)
        if not self.staged[part]:
            del self.staged[part]
        self.committed.discard(shard)
        self._forget(entry)
        if plan.verify:
            self._take_back(part, entry)

    def _take_back(self, part: int, entry: Commit) -> None:
        """Undo what a commit, and its being verified, meant for money."""
        if self.verified.discard(entry.shard):
            self._believed[part] -= 1
            self.pay.earn(entry.worker, -entry.rows)
        else:
            self.pay.hold(entry.worker, -entry.rows)

    def _forget(self, entry: Commit) -> None:
        self.references[entry.staging] -= 1
        if not self.references[entry.staging]:
            del self.references[entry.staging]
        self.rows_done -= entry.rows + entry.failed
        self.rows_failed -= entry.failed

    def _reopen(self, entry: Reopened) -> None:
        plan = self._planned(entry)
        part, place = plan.part_of(entry.shard), (entry.staging, entry.offset)
        self._highest = max(self._highest, entry.worker)
        if plan.verify and entry.rows and place not in self.damaged:
            # Said here, since a reader passes over the commit if its part is sealed later on.
            self.pay.earn(entry.worker, entry.rows)
        self.damaged.add(place)
        held = self.staged.get(part, {}).get(entry.shard)
        if held is not None and (held.staging, held.offset) == place:
            self._unstage(plan, part, entry.shard)

    def _verify(self, entry: Verified) -> None:
        plan = self.plan
        if plan is None:
            raise CorruptLogError(f"the commit log speaks of {entry} but its plan is lost; use a new output folder")
        size, staged, touched = plan.shards_per_part, self.staged, set()
        for start, stop in self._runs(entry, plan):
            for part in range(start // size, -(-stop // size)):
                held = staged.get(part)
                if held is None:
                    continue  # sealed, or nothing of it is committed
                for shard in range(max(start, part * size), min(stop, (part + 1) * size)):
                    commit = held.get(shard)
                    if commit is not None and self.verified.add(shard):
                        self.pay.release(commit.worker, commit.rows)
                        self._believed[part] = self._believed.get(part, 0) + 1
                        touched.add(part)
        self.whole.update(p for p in touched if self._believed[p] == len(plan.shards_of(p)))

    def _runs(self, entry: Verified, plan: Plan) -> list[tuple[int, int]]:
        """The named shards; none if the plan does not verify. Not an `IndexSet`: there may be a million of them."""
        try:
            ends = [tuple(map(int, run.split("-"))) for run in entry.shards.split(",")] if entry.shards else []
            runs = [(end[0], end[-1] + 1) for end in ends]
        except (ValueError, AttributeError) as error:
            raise CorruptLogError(f"the commit log speaks of {entry}, which names no shards") from error
        if any(not 0 <= start < stop <= self.shards for start, stop in runs):
            raise CorruptLogError(f"the commit log speaks of {entry}, which {plan} does not have")
        return runs if plan.verify else []

    def _check(self, entry: Checked) -> None:
        self._highest = max(self._highest, entry.worker)
        if entry.number <= self.checks:
            return
        self.checks = entry.number
        if self.plan is not None and self.plan.verify:
            self.pay.earn(entry.worker, entry.agreed)

    def _seal(self, entry: Sealed) -> None:
        plan = self._planned(entry)
        if entry.part not in self.sealed and not entry.work:
            self._derived[entry.part] = self.staged_work(entry.part)
        for share in entry.work:
            self._highest = max(self._highest, share.worker)
        staged = self.staged.pop(entry.part, {}).values()
        for commit in staged:
            self._forget(commit)
            if plan.verify:
                self._take_back(entry.part, commit)
        self._believed.pop(entry.part, None)
        self.whole.discard(entry.part)
        if entry.part not in self.sealed:
            shards = plan.shards_of(entry.part)
            self.committed.add_run(shards.start, shards.stop)
            self.rows_done += entry.rows + entry.failed
            self.rows_failed += entry.failed
            self.sealed[entry.part] = entry
            if plan.verify:
                self.verified.add_run(shards.start, shards.stop)
                for worker, rows in [(s.worker, s.rows) for s in entry.work or staged]:
                    self.pay.earn(worker, rows)

    def _unseal(self, entry: Unsealed) -> None:
        plan = self._planned(entry)
        self.finished = None
        held = self.sealed.pop(entry.part, None)
        if held is None:
            return
        self._derived.pop(entry.part, None)
        # What was earned stays earned: it may have been paid out, and losing the file is not the workers' fault.
        for shard in plan.shards_of(entry.part):
            self.committed.discard(shard)
            self.verified.discard(shard)
        self.rows_done -= held.rows + held.failed
        self.rows_failed -= held.failed


def _add(work: dict[Worker, Share], worker: Worker, share: Share) -> None:
    known = work.get(worker)
    if known is None:
        work[worker] = Share(0, *share[1:])
    else:
        work[worker] = Share(0, *(a + b for a, b in zip(known[1:], share[1:], strict=True)))
