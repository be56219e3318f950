"""Laws of money in the commit log: what is held, what is earned, and that reading says the same as writing."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgrid.errors import CorruptLogError, StaleEpochError
from pocketgrid.storage.commitlog import CommitLog
from pocketgrid.storage.logentries import (
    Checked,
    Commit,
    Entry,
    Introduced,
    Plan,
    Reopened,
    Sealed,
    Share,
    Unsealed,
    Verified,
    encode_lines,
)
from pocketgrid.storage.logreading import read_log, segment_names
from pocketgrid.storage.logstate import LogState
from tests.property.test_commitlog import FINGERPRINT, a_commit, a_folder, commits, facts

PLAN = Plan(per_shard=3, items=20, shards_per_part=2, verify=True)  # 7 shards, 4 parts
STAGED = "E0000000001-S000001"

some_shards = st.sets(st.integers(0, 6), max_size=4).map(lambda shards: ",".join(map(str, sorted(shards))))
entries = st.one_of(
    commits,
    commits,
    some_shards.map(Verified),
    st.sampled_from(["0-6", "1-3", "0-1,5"]).map(Verified),
    st.builds(Reopened, st.integers(0, 6), st.just(STAGED), st.integers(0, 3)),
    st.builds(Reopened, st.integers(0, 6), st.just(STAGED), st.integers(0, 3), st.integers(1, 2), st.integers(1, 3)),
    st.builds(Checked, st.integers(1, 5), st.integers(1, 2), st.integers(0, 9), st.integers(0, 9), some_shards),
    st.builds(
        lambda part, work: Sealed(part, 6, 0, 1, "aa", work=work),
        st.integers(0, 3),
        st.sampled_from([(), (Share(1, 2, 6, 0, 20),), (Share(1, 1, 3, 0, 20), Share(2, 1, 2, 1, 5))]),
    ),
    st.builds(lambda n: Introduced(n, f"phone-{n}", "ada", "", "ort", 7 * n), st.integers(1, 2)),
    st.builds(Unsealed, st.integers(0, 3)),
)


def fold(sequence: list[Entry], plan: Plan = PLAN) -> LogState:
    state = LogState()
    state.apply(plan)
    state.apply_all(sequence)
    return state


@given(st.lists(entries, max_size=25), st.data())
def test_every_line_may_stand_twice(sequence: list[Entry], data: st.DataObject) -> None:
    once = facts(fold(sequence))
    copies = data.draw(st.lists(st.integers(1, 3), min_size=len(sequence), max_size=len(sequence)))
    assert facts(fold([e for e, n in zip(sequence, copies, strict=True) for _ in range(n)])) == once


@given(st.lists(st.lists(entries, max_size=5), max_size=8), st.integers(300, 2000))
@settings(max_examples=100, deadline=None)
def test_a_reader_that_passes_over_commits_finds_the_same_pay(batches: list[list[Entry]], rotate: int) -> None:
    with a_folder() as folder:
        log = CommitLog.open(folder, "job", FINGERPRINT, rotate_bytes=rotate)
        log.append([PLAN])
        for batch in batches:
            log.append(batch)
        assert facts(read_log(folder).state) == facts(log.state)
        log.close()


@given(st.lists(entries, max_size=30))
def test_running_sums_are_those_of_the_shards(sequence: list[Entry]) -> None:
    state = fold(sequence)
    staged = [c for part in state.staged.values() for c in part.values()]
    held: Counter[int] = Counter()
    for commit in staged:
        if commit.shard not in state.verified:
            held[commit.worker] += commit.rows
    assert state.pay.held == +held
    assert set(state.verified) <= set(state.committed)
    assert {s for part in state.sealed for s in PLAN.shards_of(part)} <= set(state.verified)
    ready = {p for p in range(PLAN.parts) if p not in state.sealed and set(PLAN.shards_of(p)) <= set(state.verified)}
    assert state.whole == ready
    prices = {number: worker.price for number, worker in state.workers.items()}
    for amount, rows in ((state.pay.held_micro, state.pay.held), (state.pay.earned_micro, state.pay.earned)):
        assert amount == sum(prices.get(worker, 0) * count for worker, count in rows.items())


@given(st.lists(entries, max_size=25))
def test_nothing_is_verified_or_paid_in_a_job_that_asks_for_no_verification(sequence: list[Entry]) -> None:
    state = fold(sequence, replace(PLAN, verify=False))
    assert not state.verified
    assert (state.pay.held, state.pay.earned, state.pay.held_micro, state.pay.earned_micro) == ({}, {}, 0, 0)
    assert state.whole == {p for p, held in state.staged.items() if len(held) == len(PLAN.shards_of(p))}


def test_a_shard_that_is_done_again_is_not_verified_by_what_was_said_of_the_first_result() -> None:
    first, second = a_commit(4, 0), a_commit(4, 1)
    state = fold([first, Reopened(4, STAGED, 0), Verified("4"), second])
    assert not state.verified
    assert state.pay.held == {second.worker: second.rows}


def test_a_verified_shard_that_is_lost_stays_paid_and_whoever_does_it_again_is_paid_too() -> None:
    workers = [Introduced(1, "phone-1", "ada", "", "ort", 5), Introduced(2, "phone-2", "bo", "", "ort", 7)]
    first, second = a_commit(4, 0), a_commit(4, 1)
    assert (first.worker, second.worker) == (1, 2)
    lost = Reopened(4, STAGED, 0, worker=1, rows=3)
    sequence = [*workers, first, Verified("4"), lost, lost, second, Verified("4"), Verified("4")]
    assert fold(sequence).pay.earned_micro == 3 * 5 + 3 * 7
    work = (Share(1, 1, 3, 0, 10), Share(2, 1, 3, 0, 10))
    sealed = [*sequence, a_commit(5, 2), Verified("4-5"), Sealed(2, 6, 0, 1, "aa", work=work)]
    assert fold(sealed).pay.earned_micro == 3 * 5 + 3 * 7 + 3 * 5
    assert fold([*sealed, Unsealed(2)]).pay.earned_micro == 3 * 5 + 3 * 7 + 3 * 5, "losing the file takes nothing back"


@pytest.mark.parametrize("text", ["7", "0-7", "x", "5-3", "1-"])
def test_shards_that_the_plan_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(CorruptLogError, match="which"):
        fold([Verified(text)])


def test_a_verification_without_a_plan_is_refused() -> None:
    with pytest.raises(CorruptLogError, match="plan is lost"):
        LogState().apply(Verified("1"))


# ---- damage ----


def a_paid_log(folder: Path) -> tuple[Path, LogState]:
    """A log of seven shards, five of them verified, one reopened, with two checks; its only segment."""
    log = CommitLog.open(folder, "job", FINGERPRINT)
    log.append([PLAN, Introduced(1, "phone-1", "ada", "", "ort", 5), Introduced(2, "phone-2", "bo", "", "ort", 7)])
    log.append([a_commit(n, n) for n in range(7)])
    log.append([Verified("0-2"), Checked(1, 1, 9, 0, "2"), Checked(2, 2, 4, 5, "0")])
    log.append([Reopened(6, STAGED, 6), a_commit(6, 71), Verified("6,3")])
    log.close()
    return folder / segment_names(folder)[0], log.state


def check_damaged(path: Path, whole: LogState, lines: int) -> None:
    found = read_log(path.parent).state
    assert set(found.verified) <= set(whole.verified)
    for worker, rows in found.pay.earned.items():
        assert rows <= whole.pay.earned[worker], "money was invented"
    commits_lost = 7 - len(found.committed)
    assert commits_lost <= lines
    assert sum(found.pay.earned.values()) >= sum(whole.pay.earned.values()) - 3 * commits_lost


def test_no_flipped_bit_loses_or_invents_more_pay_than_the_commits_it_hits() -> None:
    with a_folder() as folder:
        path, whole = a_paid_log(folder)
        data = path.read_bytes()
        rng = random.Random(5)
        newlines = [8 * i + rng.randrange(8) for i, byte in enumerate(data) if byte == ord("\n")]
        for bit in [*newlines, *(rng.randrange(8 * len(data)) for _ in range(600))]:
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            check_damaged(path, whole, 2)


def test_a_torn_log_pays_what_its_whole_lines_say() -> None:
    with a_folder() as folder:
        path, whole = a_paid_log(folder)
        data = path.read_bytes()
        earned = -1
        for cut in range(data.index(b"\n", data.rindex(b'"kind":"worker"')), len(data) + 1):
            path.write_bytes(data[:cut])
            state = read_log(folder).state
            now = sum(state.pay.earned.values())
            assert now >= earned, "an entry that came later took something back"
            earned = now
            assert set(state.verified) <= set(state.committed)
        assert facts(read_log(folder).state) == facts(whole)


def test_what_a_superseded_writer_verifies_pays_nobody() -> None:
    with a_folder() as folder:
        old = CommitLog.open(folder, "job", FINGERPRINT)
        old.append([PLAN, Introduced(1, "phone-1", "ada", "", "ort", 5), a_commit(0)])
        new = CommitLog.open(folder, "job", FINGERPRINT)
        with pytest.raises(StaleEpochError):
            old.append([Verified("0"), Checked(1, 1, 5, 0)])
        with (folder / f"{STAGED}.log").open("ab") as late:
            late.write(encode_lines([Verified("0"), Checked(1, 1, 5, 0)]))
        assert read_log(folder).state.pay.earned == {}
        new.append([Checked(1, 1, 2, 0)])
        third = CommitLog.open(folder, "job", FINGERPRINT)
        assert third.state.pay.earned == {1: 2}
        assert isinstance(third.state.staged[0][0], Commit)
