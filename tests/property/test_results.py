"""Promise 1 at the writing side: no acknowledged row lost, none twice, none invented, whatever happens to the writer.

A state machine commits, seals, crashes at any system call, loses what was not fsynced, meets a full disk, and lets
superseded writers go on. After every step, and again in the finished output, what was acknowledged must be there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pocketgrid.errors import CorruptLogError, StaleEpochError, StoreError
from pocketgrid.storage.results import ResultStore, ShardCommit, StoreLimits, verify
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys

PER_SHARD, ITEMS = 3, 41
SHARDS = 14  # the last one has two rows; seven parts of two shards
LIMITS = StoreLimits(segment_bytes=900, part_rows=6)

Content = tuple[tuple[int, int], ...]  # (row number, value) of the rows that have a result


def sizes(shard: int) -> int:
    return min(PER_SHARD, ITEMS - shard * PER_SHARD)


def a_content(shard: int, attempt: int) -> tuple[ShardCommit, Content]:
    """A result that no other attempt has; every third one lets a row fail, every seventh all of them."""
    rows = list(range(sizes(shard)))
    failed = rows if attempt % 7 == 6 else [attempt % len(rows)] if attempt % 3 == 2 else []
    good = [r for r in rows if r not in failed]
    values = np.array([attempt * 1000 + shard * 10 + r for r in good], np.int64)
    outputs = (values,) if good else ()
    content = tuple((shard * PER_SHARD + r, int(v)) for r, v in zip(good, values, strict=True))
    return a_result(shard, outputs, tuple(failed), counter=attempt), content


class Killed(BaseException):
    """The process is gone; nothing of it runs any more."""


SYSTEM_CALLS = ("pwritev", "fsync", "fdatasync", "replace", "unlink", "ftruncate", "mkdir", "listdir", "posix_fadvise")
SYNCS = ("fsync", "fdatasync")


class Disk:
    """The system calls of the writer, and what can go wrong at each of them."""

    def __init__(self) -> None:
        self.durable: dict[str, int] = {}
        self.unwritten: dict[int, list[tuple[int, int]]] = {}
        self.only: tuple[str, ...] = SYSTEM_CALLS
        self.left: int | None = None
        self.act: Callable[[], None] | None = None
        self.dead = False
        self.rng = random.Random(0)

    @contextmanager
    def trouble(
        self, after: int | None, act: Callable[[], None] | None, only: tuple[str, ...] = SYSTEM_CALLS
    ) -> Iterator[None]:
        """Do `act` before the `after`-th system call from now on, counting those in `only`."""
        self.left, self.act, self.dead, self.only = after, act, False, only
        try:
            yield
        finally:
            self.left, self.act, self.dead = None, None, False

    def step(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.dead:
            raise Killed
        if self.left is not None and name in self.only:
            self.left -= 1
            if self.left < 0:
                act, self.left = self.act, None
                if name == "pwritev":  # part of it may have reached the disk
                    data = b"".join(bytes(b) for b in args[1])
                    REAL["pwritev"](args[0], [data[: self.rng.randint(0, len(data))]], args[2])
                assert act is not None
                try:
                    act()
                except OSError:
                    if name in SYNCS:
                        self.forget_pages(args[0])
                    raise
        if name in SYNCS:  # what it promises is kept here; the real one would only cost time
            self.durable[str(Path(f"/proc/self/fd/{args[0]}").readlink())] = os.fstat(args[0]).st_size
            return None
        if name == "posix_fadvise":
            self.drop_pages(Path(f"/proc/self/fd/{args[0]}").readlink())
        if name in ("unlink", "replace"):
            with suppress(FileNotFoundError):
                self.unwritten.pop(Path(args[-1]).stat().st_ino, None)
        return real(*args, **kwargs)

    def forget_pages(self, descriptor: int) -> None:
        """What Linux does when an fsync fails: dirty pages become clean without having reached the disk."""
        facts = os.fstat(descriptor)
        if stat.S_ISREG(facts.st_mode):
            written = self.durable.get(str(Path(f"/proc/self/fd/{descriptor}").readlink()), 0)
            self.unwritten.setdefault(facts.st_ino, []).append((min(written, facts.st_size), facts.st_size))

    def drop_pages(self, path: Path) -> None:
        """Show what the disk has in place of what the cache has."""
        ranges = self.unwritten.pop(path.stat().st_ino, [])
        if ranges:
            data = bytearray(path.read_bytes())
            for start, stop in ranges:
                data[start:stop] = bytes(max(0, min(stop, len(data)) - start))
            with path.open("r+b") as file:  # the same file, for whoever has it open
                file.write(data)

    def kill(self) -> None:
        self.dead = True
        raise Killed

    def lose_power(self, folder: Path) -> None:
        """Cut log and staging anywhere behind the last fsync, leave rubbish there, and show what the disk has."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.drop_pages(path)
        for path in sorted([*folder.glob("_pocketgrid/log/*"), *folder.glob("_pocketgrid/staging/*")]):
            size = path.stat().st_size
            kept = self.rng.randint(min(self.durable.get(str(path), 0), size), size)
            rubbish = self.rng.randbytes(self.rng.randint(0, 40)) if self.rng.random() < 0.5 else b""
            path.write_bytes(path.read_bytes()[:kept] + rubbish)
            self.durable[str(path)] = path.stat().st_size


REAL = {name: getattr(os, name) for name in SYSTEM_CALLS}
DISK = Disk()


@pytest.fixture(autouse=True, scope="module")
def _disk() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    for name, real in REAL.items():
        patch.setattr(os, name, lambda *a, _n=name, _r=real, **k: DISK.step(_n, _r, *a, **k))
    yield
    patch.undo()


moments = st.integers(0, 14)
shard_lists = st.lists(st.integers(0, SHARDS - 1), min_size=1, max_size=4)


class WriterUnderFire(RuleBasedStateMachine):
    """One job, any number of writers, one of them legitimate."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="pocketgrid-results-"))
        self.output = self.folder / "out"
        self.store: ResultStore | None = None
        self.superseded: list[ResultStore] = []
        self.acknowledged: dict[int, Content] = {}
        self.possible: dict[int, set[Content]] = {n: set() for n in range(SHARDS)}
        self.known: set[int] = set()
        self.attempt = 0
        self.checked: dict[str, str] = {}
        DISK.durable, DISK.unwritten, DISK.rng = {}, {}, random.Random(0)
        self.open(take_over=False)

    # ---- what the test does to the store ----

    def batch(self, shards: list[int]) -> list[tuple[ShardCommit, Content]]:
        made = []
        for shard in shards:
            self.attempt += 1
            made.append(a_content(shard, self.attempt))
        return made

    def new_store(self, *, take_over: bool) -> ResultStore:
        # A superseded writer that lives on holds the lock, so only taking over gets past it.
        take_over = take_over or bool(self.superseded)
        store = ResultStore.open(a_job(self.output, ITEMS), no_keys, take_over=take_over, limits=LIMITS)
        assert all("partial line" in note or "damaged" in note for note in store.recovered.notes), store.recovered.notes
        assert set(self.acknowledged) <= set(store.recovered.committed)
        if store.recovered.per_shard == 0:
            store.plan(PER_SHARD)
        return store

    def open(self, *, take_over: bool) -> None:
        store = self.new_store(take_over=take_over)
        for shard in store.recovered.committed:
            assert self.possible[shard], f"shard {shard} was invented"
        assert set(store.recovered.committed) >= self.known
        self.store, self.known = store, set(store.recovered.committed)

    def drop(self) -> None:
        """What the kernel does to a killed process."""
        assert self.store is not None
        self.store._lock.release()
        self.store = None

    def record(self, made: list[tuple[ShardCommit, Content]], committed: Any) -> None:
        contents: dict[int, Content] = {}
        for shard, content in made:
            contents.setdefault(shard.shard, content)
        assert not committed.refused
        for shard in committed.new:
            assert shard not in self.known
            self.acknowledged[shard] = contents[shard]
            self.known.add(shard)
        assert set(committed.already) <= self.known

    def attempt_commit(self, store: ResultStore, made: list[tuple[ShardCommit, Content]]) -> Any:
        for shard, content in made:
            self.possible[shard.shard].add(content)
        return store.commit([s for s, _ in made])

    # ---- rules ----

    @precondition(lambda self: self.store is not None)
    @rule(shards=shard_lists)
    def commit(self, shards: list[int]) -> None:
        made = self.batch(shards)
        self.record(made, self.attempt_commit(self.store, made))

    @precondition(lambda self: self.store is not None)
    @rule()
    def seal(self) -> None:
        self.store.seal()
        assert self.store.take_reopened() == []

    @precondition(lambda self: self.store is not None and len(self.known) == SHARDS)
    @rule()
    def finish(self) -> None:
        assert self.store.finish().items == ITEMS

    @precondition(lambda self: self.store is not None)
    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open(take_over=False)

    @precondition(lambda self: self.store is not None)
    @rule(moment=moments, shards=shard_lists, what=st.sampled_from(["commit", "seal", "finish"]), power=st.booleans())
    def die(self, moment: int, shards: list[int], what: str, power: bool) -> None:
        made = self.batch(shards)
        try:
            with DISK.trouble(moment, DISK.kill):
                self.do(what, self.store, made)
        except Killed:
            pass
        self.drop()
        if power:
            DISK.lose_power(self.output)
        self.open(take_over=False)

    @precondition(lambda self: self.store is not None)
    @rule(moment=moments, power=st.booleans())
    def die_while_opening(self, moment: int, power: bool) -> None:
        self.store.close()
        self.store = None
        opened: list[ResultStore] = []
        locks: list[Any] = []
        real = ResultStore._recover
        patch = pytest.MonkeyPatch()
        patch.setattr(ResultStore, "_recover", lambda store: (locks.append(store._lock), real(store))[1])
        try:
            with DISK.trouble(moment, DISK.kill):
                opened.append(self.new_store(take_over=False))
        except Killed:
            pass
        finally:
            patch.undo()
        for lock in locks:
            lock.release()
        if power:
            DISK.lose_power(self.output)
        self.open(take_over=False)

    @precondition(lambda self: self.store is not None)
    @rule(moment=moments, shards=shard_lists, what=st.sampled_from(["commit", "seal", "finish"]))
    def run_out_of_space(self, moment: int, shards: list[int], what: str) -> None:
        def full() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        made = self.batch(shards)
        try:
            with DISK.trouble(moment, full):
                self.do(what, self.store, made)
        except StoreError as error:
            expected = "free space" in str(error) or "cannot be finished" in str(error)
            if isinstance(error, StaleEpochError) or not expected:
                raise
        again = self.batch(shards)
        self.record(again, self.attempt_commit(self.store, again))

    @precondition(lambda self: self.store is not None)
    @rule(
        moment=st.integers(0, 6), shards=shard_lists, what=st.sampled_from(["commit", "seal", "finish", "open"]),
        then=st.sampled_from(["go on", "die", "lose power"]),
    )  # fmt: skip
    def fail_to_sync(self, moment: int, shards: list[int], what: str, then: str) -> None:
        """The disk fails an fsync, and the next one on the same file succeeds without having written anything."""

        def fail() -> None:
            raise OSError(errno.EIO, "Input/output error")

        made = self.batch(shards)
        try:
            with DISK.trouble(moment, fail, SYNCS):
                if what == "open":
                    self.store.close()
                    self.store = None
                    self.open(take_over=False)
                else:
                    self.do(what, self.store, made)
        except StoreError as error:
            expected = "check the disk" in str(error) or "cannot be finished" in str(error)
            if isinstance(error, StaleEpochError) or not expected:
                raise
        if then == "go on" and self.store is not None:
            again = self.batch(shards)
            self.record(again, self.attempt_commit(self.store, again))
            return
        if self.store is not None:
            self.drop()
        if then == "lose power":
            DISK.lose_power(self.output)
        self.open(take_over=False)

    @precondition(lambda self: self.store is not None)
    @rule()
    def supersede(self) -> None:
        self.superseded.append(self.store)
        self.open(take_over=True)

    @precondition(lambda self: self.store is not None)
    @rule(moment=moments, shards=shard_lists, what=st.sampled_from(["commit", "seal", "finish"]))
    def supersede_meanwhile(self, moment: int, shards: list[int], what: str) -> None:
        """Another writer opens at any moment of what this one does; never may both believe they own a shard."""
        old, made = self.store, self.batch(shards)
        newer: list[ResultStore] = []

        def take_over() -> None:
            self.open(take_over=True)
            newer.append(self.store)
            fresh = self.batch([n for n in range(SHARDS) if n not in self.known][:2])
            self.record(fresh, self.attempt_commit(self.store, fresh))

        try:
            with DISK.trouble(moment, take_over):
                self.do(what, old, made, opened=newer)
        except StaleEpochError:
            assert newer
        if newer:
            self.superseded.append(old)

    def do(
        self,
        what: str,
        store: ResultStore,
        made: list[tuple[ShardCommit, Content]],
        opened: list[ResultStore] | None = None,
    ) -> None:
        match what:
            case "commit":
                committed = self.attempt_commit(store, made)
                if opened:  # it was acknowledged, so the writer that opened meanwhile must have seen it
                    assert set(committed.new) <= set(opened[0].recovered.committed)
                    self.known -= set(committed.new)
                self.record(made, committed)
            case "seal":
                store.seal()
            case "finish":
                try:
                    store.finish()
                except StoreError as error:
                    if isinstance(error, StaleEpochError) or len(self.known) == SHARDS:
                        raise

    @initialize(seed=st.integers(0, 2**32))
    def vary(self, seed: int) -> None:
        DISK.rng = random.Random(seed)

    @precondition(lambda self: self.superseded)
    @rule(data=st.data(), shards=shard_lists, what=st.sampled_from(["commit", "seal", "finish"]))
    def superseded_writer_goes_on(self, data: st.DataObject, shards: list[int], what: str) -> None:
        zombie = data.draw(st.sampled_from(self.superseded))
        state = zombie._log.state
        before = self.picture()
        match what:
            case "commit":
                made = [s for s, _ in self.batch(shards) if s.shard not in state.committed]
                if made:
                    with pytest.raises(StaleEpochError):
                        zombie.commit(made)
            case "seal":
                if state.ready_part() is not None:
                    with pytest.raises(StaleEpochError):
                        zombie.seal()
            case "finish":
                if len(state.committed) == SHARDS:
                    with pytest.raises(StaleEpochError):
                        zombie.finish()
        assert self.picture() == before

    def picture(self) -> dict[str, str]:
        """The final files and what they hold."""
        files = [*self.output.glob("part-*"), *self.output.glob("_errors/*"), *self.output.glob("_manifest.json")]
        return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    # ---- what must hold ----

    @invariant()
    def state_is_what_was_acknowledged(self) -> None:
        if self.store is not None:
            assert set(self.store._log.state.committed) == self.known
            assert set(self.acknowledged) <= self.known

    @invariant()
    def sealed_rows_are_acknowledged_rows(self) -> None:
        picture = self.picture()
        if picture != self.checked:
            self.check_rows(complete=False)
            self.checked = picture

    def check_rows(self, *, complete: bool) -> None:
        rows: dict[int, int] = {}
        for path in sorted(self.output.glob("part-*.parquet")):
            table = pq.read_table(path).to_pydict()
            for row, value in zip(table["row"], table["y"], strict=True):
                assert row not in rows, f"row {row} stands twice"
                rows[row] = value
        for shard in range(SHARDS):
            own = range(shard * PER_SHARD, shard * PER_SHARD + sizes(shard))
            content = tuple((r, rows[r]) for r in own if r in rows)
            if shard in self.acknowledged and (complete or content):
                assert content == self.acknowledged[shard]
            elif complete or content:
                assert content in self.possible[shard]

    def teardown(self) -> None:
        try:
            if self.store is not None:
                self.store.close()
            self.open(take_over=False)
            missing = [n for n in range(SHARDS) if n not in self.known]
            made = self.batch(missing)
            self.record(made, self.attempt_commit(self.store, made))
            assert self.store.finish().items == ITEMS
            assert self.store.finish().items == ITEMS
            assert verify(str(self.output)) == []
            self.check_rows(complete=True)
            assert list(self.output.glob("_pocketgrid/staging/*")) == []
            self.store.close()
            for store in self.superseded:
                store.close()
        finally:
            shutil.rmtree(self.folder)


WriterUnderFire.TestCase.settings = settings(
    max_examples=80, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWriterUnderFire = WriterUnderFire.TestCase


@pytest.mark.parametrize("failing", range(4))
def test_what_only_the_cache_has_is_never_believed(tmp_path: Path, failing: int) -> None:
    """An fsync fails, the writer is killed before it can seal anything off, and the next one finds it all in the cache.

    What that one believes must be there after a power cut, although its own fsync of the file has succeeded.
    """
    DISK.durable, DISK.unwritten, DISK.rng = {}, {}, random.Random(0)
    store = ResultStore.open(a_job(tmp_path / "out", ITEMS), no_keys, limits=LIMITS)
    store.plan(PER_SHARD)
    assert store.commit([a_content(0, 0)[0]]).new == (0,)

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with suppress(StoreError), DISK.trouble(failing, fail, SYNCS):
        store.commit([a_content(1, 1)[0]])
    store._lock.release()  # kill -9
    second = ResultStore.open(a_job(tmp_path / "out", ITEMS), no_keys, limits=LIMITS)
    believed = set(second.recovered.committed)
    assert 0 in believed
    second._lock.release()
    DISK.lose_power(tmp_path / "out")
    third = ResultStore.open(a_job(tmp_path / "out", ITEMS), no_keys, limits=LIMITS)
    assert set(third.recovered.committed) >= believed
    third.close()


def outcome(folder: Path) -> dict[str, bytes]:
    """All final files of an output folder."""
    paths = [*folder.glob("part-*"), *folder.glob("_errors/*"), folder / "_manifest.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@given(
    order=st.permutations(range(SHARDS)),
    cuts=st.lists(st.booleans(), min_size=SHARDS, max_size=SHARDS),
    device=st.sampled_from(["phone-1", "board-7"]),
)
@settings(max_examples=30, deadline=None)
def test_output_is_the_same_bytes_whatever_the_order_and_the_restarts(
    order: list[int], cuts: list[bool], device: str
) -> None:
    root = Path(tempfile.mkdtemp(prefix="pocketgrid-same-"))
    try:
        outcomes = []
        for name, shards, restarts in (("a", range(SHARDS), [False] * SHARDS), ("b", order, cuts)):
            job = a_job(root / name, ITEMS)
            store = ResultStore.open(job, no_keys, limits=LIMITS)
            store.plan(PER_SHARD)
            for shard, restart in zip(shards, restarts, strict=True):
                store.commit([a_content(shard, shard)[0]])
                store.seal()
                if restart:
                    store.close()
                    store = ResultStore.open(job, no_keys, limits=LIMITS)
            store.finish()
            store.close()
            outcomes.append(outcome(root / name))
        assert outcomes[0] == outcomes[1]
        assert len(outcomes[0]) > 4
    finally:
        shutil.rmtree(root)


def with_damage(data: bytes, rng: random.Random) -> bytes:
    """`data` with one flipped bit, or with a run of other bytes."""
    at = rng.randrange(len(data))
    run = bytes([data[at] ^ 1 << rng.randrange(8)]) if rng.random() < 0.6 else rng.randbytes(rng.randint(1, 300))
    return data[:at] + run[: len(data) - at] + data[at + len(run) :]


@given(seed=st.integers(0, 2**32), where=st.sampled_from(["log", "staging"]))
@settings(max_examples=60, deadline=None)
def test_damage_is_mended_by_doing_shards_again_or_refused_by_name(seed: int, where: str) -> None:
    rng = random.Random(seed)
    root = Path(tempfile.mkdtemp(prefix="pocketgrid-flip-"))
    try:
        job = a_job(root / "out", ITEMS)
        store = ResultStore.open(job, no_keys, limits=LIMITS)
        store.plan(PER_SHARD)
        possible: dict[int, set[Content]] = {n: set() for n in range(SHARDS)}
        for attempt, shard in enumerate(rng.sample(range(SHARDS), rng.randint(1, SHARDS))):
            result, content = a_content(shard, attempt)
            possible[shard].add(content)
            store.commit([result])
            if rng.random() < 0.3:
                store.seal()
        store.close()
        files = [p for p in (root / "out" / "_pocketgrid" / where).iterdir() if p.stat().st_size]
        if files:
            path = rng.choice(files)
            path.write_bytes(with_damage(path.read_bytes(), rng))
        refusal = ""
        try:
            store = ResultStore.open(job, no_keys, limits=LIMITS)
        except CorruptLogError as error:
            refusal = str(error)
        if refusal:
            assert where == "log"
            assert "both copies of the header of" in refusal or "its plan is lost" in refusal
            return
        if not store.recovered.per_shard:
            store.plan(PER_SHARD)
        todo, attempt = [n for n in range(SHARDS) if n not in store.recovered.committed], 100
        for _ in range(1 + SHARDS):  # a part is looked at as a whole, but one part after the other
            for shard in todo:
                result, content = a_content(shard, attempt := attempt + 1)
                possible[shard].add(content)
                assert store.commit([result]).new == (shard,)
            while store.seal():
                pass
            todo = store.take_reopened()
            if not todo:
                break
            store.close()  # a reopened shard stays open over a restart
            store = ResultStore.open(job, no_keys, limits=LIMITS)
            assert not set(todo) & set(store.recovered.committed)
        store.finish()
        store.close()
        assert verify(str(root / "out")) == []
        rows: dict[int, int] = {}
        for path in sorted((root / "out").glob("part-*.parquet")):
            table = pq.read_table(path).to_pydict()
            rows.update(zip(table["row"], table["y"], strict=True))
        for shard in range(SHARDS):
            own = range(shard * PER_SHARD, shard * PER_SHARD + sizes(shard))
            assert tuple((r, rows[r]) for r in own if r in rows) in possible[shard]
    finally:
        shutil.rmtree(root)
