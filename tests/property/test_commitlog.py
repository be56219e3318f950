"""Laws of the commit log: what is folded, what a damaged line means, and where a reader stops."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgrid.errors import CorruptLogError, StaleEpochError, StoreError
from pocketgrid.storage.commitlog import CommitLog
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
    decode_line,
    encode_line,
    encode_lines,
    segment_name,
)
from pocketgrid.storage.logreading import read_header, read_log, segment_names
from pocketgrid.storage.logstate import UNKNOWN, LogState

PLAN = Plan(per_shard=3, items=20, shards_per_part=2)  # 7 shards, 4 parts
FINGERPRINT = {"model": "m", "input": "i", "output": "o"}


def a_commit(shard: int, offset: int = 0, failed: int = 0) -> Commit:
    return Commit(shard, 1, 1 + offset % 2, 3 - failed, failed, 10, "E0000000001-S000001", offset, 9, 9, 7)


texts = st.text(max_size=8)
commits = st.builds(a_commit, st.integers(0, 6), st.integers(0, 3), st.integers(0, 3))
entries = st.one_of(
    st.just(PLAN),
    st.just(Layout((("y", "int64", (), False),))),
    commits,
    st.builds(Reopened, st.integers(0, 6), st.just("E0000000001-S000001"), st.integers(0, 3)),
    st.builds(
        lambda part, failed, work: Sealed(part, 6 - failed, failed, 1, "aa", work=work),
        st.integers(0, 3),
        st.integers(0, 2),
        st.sampled_from([(), (Share(1, 2, 6, 0, 20),)]),
    ),
    st.builds(lambda n: Introduced(n, f"phone-{n}", "ada", "", "ort"), st.integers(1, 2)),
    st.builds(Unsealed, st.integers(0, 3)),
    st.builds(Finished, st.just("ff")),
)
any_entry = st.one_of(
    entries,
    st.builds(
        Commit,
        *[st.integers(0, 2**62)] * 2, *[st.integers(0, 2**40)] * 4,
        st.builds(segment_name, st.integers(1, 10**9), st.integers(1, 10**5)), *[st.integers(0, 2**40)] * 4, st.none(),
    ),
    st.builds(Introduced, st.integers(1, 2**40), *[texts] * 4, st.integers(0, 2**62)),
    st.builds(Reopened, st.integers(0, 99), texts, *[st.integers(0, 2**40)] * 3),
    st.builds(Verified, texts),
    st.builds(Checked, *[st.integers(0, 2**40)] * 4, texts),
    st.builds(
        Sealed, *[st.integers(0, 99)] * 4, texts, st.integers(0, 99), texts,
        st.lists(st.builds(Share, *[st.integers(0, 2**50)] * 5), max_size=3).map(tuple),
    ),
    st.builds(
        Header, job=texts, fingerprint=st.dictionaries(texts, texts, max_size=3), epoch=st.integers(1, 9),
        token_key=texts, seals=st.dictionaries(texts, st.integers(0, 99), max_size=3),
        plan=st.sampled_from([None, PLAN, replace(PLAN, verify=True)]),
        layout=st.none() | st.just(Layout((("y", "float32", (2, 3), True),))),
    ),
)  # fmt: skip


@contextmanager
def a_folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pocketgrid-log-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def fold(sequence: list[Entry]) -> LogState:
    state = LogState()
    state.apply(PLAN)
    state.apply_all(sequence)
    return state


def facts(state: LogState) -> tuple[object, ...]:
    return (
        state.plan, state.layout, state.staged, state.sealed, state.committed.to_text(), state.references,
        state.rows_done, state.rows_failed, state.damaged, state.finished, state.workers, state.numbers, state.whole,
        state.sealed_work(), state.verified.to_text(), state.checks, state.pay,
    )  # fmt: skip


@given(any_entry)
def test_a_line_says_what_was_written(entry: Entry) -> None:
    line = encode_line(entry)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == entry


@given(any_entry, st.data())
def test_no_flipped_bit_changes_what_a_line_says(entry: Entry, data: st.DataObject) -> None:
    line = bytearray(encode_line(entry)[:-1])
    at = data.draw(st.integers(0, 8 * len(line) - 1))
    line[at // 8] ^= 1 << at % 8
    assert decode_line(bytes(line)) in (None, entry)


@given(st.binary(max_size=60))
def test_garbage_is_no_entry(garbage: bytes) -> None:
    assert decode_line(garbage) is None


@given(st.lists(entries, max_size=25), st.data())
def test_every_line_may_stand_twice(sequence: list[Entry], data: st.DataObject) -> None:
    once = facts(fold(sequence))
    copies = data.draw(st.lists(st.integers(1, 3), min_size=len(sequence), max_size=len(sequence)))
    assert facts(fold([e for e, n in zip(sequence, copies, strict=True) for _ in range(n)])) == once


@given(st.lists(entries, max_size=25))
def test_counts_are_those_of_the_shards(sequence: list[Entry]) -> None:
    state = fold(sequence)
    held = {s for shards in state.staged.values() for s in shards}
    proven = {s for part in state.sealed for s in PLAN.shards_of(part)}
    assert not held & proven
    assert held | proven == set(state.committed)
    assert state.rows_done == sum(c.rows + c.failed for p in state.staged.values() for c in p.values()) + sum(
        s.rows + s.failed for s in state.sealed.values()
    )
    assert sum(state.references.values()) == len(held)


@given(st.lists(st.lists(entries, max_size=5), max_size=8), st.integers(300, 2000))
@settings(max_examples=60, deadline=None)
def test_what_is_appended_is_read_whatever_the_rotation(batches: list[list[Entry]], rotate: int) -> None:
    """Also where the reader passes over commits, because their part is sealed."""
    with a_folder() as folder:
        log = CommitLog.open(folder, "job", FINGERPRINT, rotate_bytes=rotate)
        log.append([PLAN])
        for batch in batches:
            log.append(batch)
        assert facts(read_log(folder).state) == facts(log.state)
        log.close()
        again = CommitLog.open(folder, "job", FINGERPRINT, rotate_bytes=rotate)
        assert facts(again.state) == facts(log.state)
        assert again.token_key == log.token_key
        assert again.notes == ()
        again.close()


@given(st.lists(commits | st.builds(lambda n, d: Introduced(n, d, "", "", ""), st.integers(1, 3), texts), max_size=12),
       st.lists(st.sampled_from([Worker(d, "", "", "") for d in "abc"]), max_size=4))  # fmt: skip
def test_a_number_that_was_used_is_never_given_to_another_worker(sequence: list[Entry], workers: list[Worker]) -> None:
    state = fold(sequence)
    used = {e.worker if isinstance(e, Commit) else e.number for e in sequence}
    known = dict(state.numbers)
    numbers, introductions = state.introduce(workers)
    assert set(numbers) == set(workers)
    assert {e.worker: e.number for e in introductions} == {w: n for w, n in numbers.items() if w not in known}
    assert not {e.number for e in introductions} & used
    state.apply_all(introductions)
    assert {w: state.numbers[w] for w in numbers} == numbers
    assert state.introduce(workers)[1] == []
    if UNKNOWN not in workers:
        assert all(state.workers[n] == w for w, n in numbers.items() if w not in known)


def test_a_log_cut_at_any_byte_keeps_every_whole_line() -> None:
    with a_folder() as folder:
        log = CommitLog.open(folder, "job", FINGERPRINT)
        sequence: list[Entry] = [PLAN, *(a_commit(n, n) for n in range(4))]
        sizes = [(folder / segment_names(folder)[0]).stat().st_size]
        for entry in sequence:
            log.append([entry])
            sizes.append((folder / segment_names(folder)[0]).stat().st_size)
        log.close()
        path = folder / segment_names(folder)[0]
        data = path.read_bytes()
        for cut in range(sizes[1], len(data) + 1):
            path.write_bytes(data[:cut])
            whole = sum(size <= cut for size in sizes[2:])
            contents = read_log(folder)
            assert contents.state.committed.to_text() == fold(sequence[1 : 1 + whole]).committed.to_text()
            assert bool(contents.notes) == (cut not in sizes)
        for cut in range(sizes[0]):  # not even the header is whole, so nothing was ever acknowledged after it
            path.write_bytes(data[:cut])
            assert len(read_log(folder).state.committed) == 0


def a_closed_log(folder: Path) -> tuple[Path, bytes]:
    """A log with seven committed shards, the first of them redone; its only segment and its token key."""
    log = CommitLog.open(folder, "job", FINGERPRINT)
    log.append([PLAN])
    log.append([a_commit(n, n) for n in range(7)])
    log.append([Reopened(0, "E0000000001-S000001", 0), a_commit(0, 70)])
    log.close()
    return folder / segment_names(folder)[0], log.token_key


def check_flipped(path: Path, data: bytes, bit: int, token_key: bytes) -> None:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    contents = read_log(path.parent)
    assert contents.header is not None
    assert contents.header.token_key == token_key.hex()
    assert len(contents.state.committed) >= 5
    assert contents.state.staged.get(0, {}).get(0, a_commit(0, 70)) == a_commit(0, 70)


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_one_flipped_bit_costs_at_most_the_shards_of_two_lines(seed: int) -> None:
    with a_folder() as folder:
        path, token_key = a_closed_log(folder)
        data = path.read_bytes()
        check_flipped(path, data, random.Random(seed).randrange(8 * len(data)), token_key)
        CommitLog.open(folder, "job", FINGERPRINT).close()


def test_a_damaged_end_of_line_costs_no_more_than_damage_within_one() -> None:
    with a_folder() as folder:
        path, token_key = a_closed_log(folder)
        data = path.read_bytes()
        for at in (i for i, byte in enumerate(data) if byte == ord("\n")):
            for bit in range(8):
                check_flipped(path, data, 8 * at + bit, token_key)


DEVICES = ("phone-1", "phone-2", "board-7")


def a_written_log(folder: Path, groups: int, rng: random.Random) -> tuple[Path, dict[int, Entry], dict[int, str]]:
    """A log with `groups` acknowledged groups of commits, and who did which shard."""
    plan = Plan(per_shard=3, items=300, shards_per_part=200)
    log = CommitLog.open(folder, "job", FINGERPRINT)
    log.append([plan])
    written: dict[int, Entry] = {}
    devices: dict[int, str] = {}
    for _ in range(groups):
        workers = {device: Worker(device, "ada", "", "ort") for device in DEVICES}
        numbers, introductions = log.state.introduce(workers.values())
        group: list[Entry] = []
        for _ in range(rng.randint(1, 4)):
            shard, device = len(written), rng.choice(DEVICES)
            where = ("E0000000001-S000001", 100 * shard, 9, 9, 7)
            written[shard] = Commit(shard, shard + 1, numbers[workers[device]], 3, 0, 10, *where)
            devices[shard] = device
            group.append(written[shard])
        log.append([*introductions, *group])
    log.close()
    (name,) = segment_names(folder)
    return folder / name, written, devices


def damaged(data: bytes, first: int, rng: random.Random) -> bytes:
    """`data` cut short, or with a flipped bit or a run of rubbish, at or after byte `first`."""
    at = rng.randint(first, len(data) - 1)
    match rng.randint(0, 3):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes([data[at] ^ 1 << rng.randint(0, 7)]) + data[at + 1 :]
        case 2:
            run = rng.randbytes(rng.randint(1, 400))[: len(data) - at]
            return data[:at] + run + data[at + len(run) :]
        case _:  # a block that never reached the disk
            return data[:at] + bytes(min(512, len(data) - at)) + data[at + 512 :]


@given(st.integers(0, 2**32), st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_damage_to_what_was_not_acknowledged_costs_nothing_that_was(seed: int, groups: int) -> None:
    rng = random.Random(seed)
    with a_folder() as folder:
        path, written, _ = a_written_log(folder, groups, rng)
        acknowledged = path.read_bytes()
        tail = {n: a_commit(n, 7000 + n) for n in range(len(written), len(written) + 5)}
        data = acknowledged + encode_lines(tail.values())
        path.write_bytes(damaged(data, len(acknowledged), rng))
        log = CommitLog.open(folder, "job", FINGERPRINT)
        held = {shard: entry for part in log.state.staged.values() for shard, entry in part.items()}
        assert {shard: held.get(shard) for shard in written} == written
        assert all(tail[shard] == entry for shard, entry in held.items() if shard not in written)
        log.append([a_commit(99, 9999)])  # what is written now is not joined to the torn line
        log.close()
        assert set(read_log(folder).state.committed) == {*held, 99}


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_damage_to_what_was_acknowledged_is_reported_by_name_and_never_invents(seed: int, groups: int) -> None:
    rng = random.Random(seed)
    with a_folder() as folder:
        path, written, devices = a_written_log(folder, groups, rng)
        before = path.read_bytes()
        after = damaged(before, 0, rng)
        path.write_bytes(after)
        refusal = ""
        try:
            log = CommitLog.open(folder, "job", FINGERPRINT)
        except CorruptLogError as error:
            refusal = str(error)
        if refusal:
            assert ("header" in refusal and path.name in refusal) or "its plan is lost" in refusal
            return
        if log.state.plan is None:
            assert not log.state.committed, "cut before there was a plan: nothing is believed"
            return
        held = {shard: entry for part in log.state.staged.values() for shard, entry in part.items()}
        assert all(written[shard] == entry for shard, entry in held.items())
        assert set(log.state.committed) == set(held)
        lost = set(written) - set(held)
        whole_lines_only = before.startswith(after) and after.endswith(b"\n")
        if lost and not whole_lines_only:  # a file cut between two lines is missed by what it points to, if at all
            assert any(path.name in note for note in log.notes), log.notes
        for shard, entry in held.items():
            worker = log.state.workers.get(entry.worker, UNKNOWN)
            assert worker.device in (devices[shard], "")
        log.append([written[shard]._replace(offset=5000 + shard) for shard in sorted(lost)])
        log.close()
        assert set(read_log(folder).state.committed) == set(written)


def test_a_newer_epoch_silences_the_older_writer_for_ever() -> None:
    with a_folder() as folder:
        old = CommitLog.open(folder, "job", FINGERPRINT)
        old.append([PLAN, a_commit(0)])
        new = CommitLog.open(folder, "job", FINGERPRINT)
        for _ in range(2):
            with pytest.raises(StaleEpochError, match="epoch 2 has taken over"):
                old.append([a_commit(1)])
        with pytest.raises(StaleEpochError):
            old.check_epoch()
        new.append([a_commit(2)])
        assert read_log(folder).state.committed.to_text() == "0,2"
        assert CommitLog.open(folder, "job", FINGERPRINT).state.committed.to_text() == "0,2"


def test_what_an_older_writer_forces_into_its_segments_is_void() -> None:
    with a_folder() as folder:
        old = CommitLog.open(folder, "job", FINGERPRINT)
        old.append([PLAN, a_commit(0)])
        new = CommitLog.open(folder, "job", FINGERPRINT)
        new.append([a_commit(2)])
        with (folder / "E0000000001-S000001.log").open("ab") as late:
            late.write(encode_line(a_commit(1)))
        header = replace(read_header(folder), epoch=1, seals={"E0000000001-S000001.log": 10**6})
        (folder / "E0000000001-S000002.log").write_bytes(encode_lines([header, a_commit(3)]))
        third = CommitLog.open(folder, "job", FINGERPRINT)
        assert third.state.committed.to_text() == "0,2"
        assert "E0000000001-S000002.log" not in segment_names(folder)


def test_a_writer_that_died_before_its_header_costs_nothing() -> None:
    with a_folder() as folder:
        first = CommitLog.open(folder, "job", FINGERPRINT)
        first.append([PLAN, a_commit(0)])
        (folder / "E0000000002-S000001.log").write_bytes(b'12345678 {"kind":"hea')
        third = CommitLog.open(folder, "job", FINGERPRINT)
        assert third.epoch == 3
        assert third.state.committed.to_text() == "0"
        assert third.token_key == first.token_key


def test_a_crash_loop_leaves_one_file_and_not_thousands() -> None:
    with a_folder() as folder:
        log = CommitLog.open(folder, "job", FINGERPRINT)
        log.append([PLAN, a_commit(0)])
        for _ in range(20):
            log = CommitLog.open(folder, "job", FINGERPRINT)
        assert log.epoch == 21
        assert log.state.committed.to_text() == "0"
        assert segment_names(folder) == ["E0000000001-S000001.log", "E0000000021-S000001.log"]


def test_a_log_without_any_header_is_refused_rather_than_guessed_at() -> None:
    with a_folder() as folder:
        log = CommitLog.open(folder, "job", FINGERPRINT)
        log.append([PLAN, a_commit(0)])
        path = folder / segment_names(folder)[0]
        path.write_bytes(path.read_bytes().replace(b'"epoch":1', b'"epoch":7'))
        with pytest.raises(CorruptLogError, match="both copies of the header"):
            CommitLog.open(folder, "job", FINGERPRINT)


def test_two_plans_contradict_each_other() -> None:
    with pytest.raises(CorruptLogError, match="two plans"):
        fold([replace(PLAN, per_shard=4)])


def test_what_a_failed_append_left_behind_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with a_folder() as folder:
        log = CommitLog.open(folder, "job", FINGERPRINT)
        log.append([PLAN, a_commit(0)])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", failing)
            with pytest.raises(StoreError, match="check the disk"):
                log.append([a_commit(1, 1), a_commit(2, 2)])
        assert log.state.committed.to_text() == "0"
        log.append([a_commit(2, 3)])
        assert segment_names(folder) == ["E0000000001-S000001.log", "E0000000001-S000002.log"]
        found = read_log(folder).state
        assert found.committed.to_text() == "0,2"
        assert found.staged[1][2] == a_commit(2, 3)
