"""Laws of pay: nothing is paid twice, lost or invented, whatever the order of events, and however often they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgrid.ledger.reading import EventReader, read_ledger
from pocketgrid.metering.bookkeeping import Bookkeeper
from pocketgrid.metering.books import AccountKind, broken_laws
from pocketgrid.metering.budgets import BudgetState, Exposure, affordable_rows, budget_state
from pocketgrid.metering.events import Believed, Confirmed, Delivered, Event, Lost, Payee, Sealed, TakenBack
from pocketgrid.model.money import Budget, BudgetAction
from pocketgrid.storage.commitlog import CommitLog
from pocketgrid.storage.logentries import (
    Checked,
    Commit,
    Entry,
    Plan,
    Share,
    Unsealed,
    Verified,
    Worker,
)
from pocketgrid.storage.logentries import Sealed as SealedPart
from pocketgrid.storage.logstate import LogState
from pocketgrid.storage.results.judging import reopening
from tests.property.test_commitlog import FINGERPRINT, a_folder

PAYEES = [Payee("ada", "phone-1", 5), Payee("ada", "phone-2", 5), Payee("bo", "board-1", 11), Payee("", "", 0)]
SHARDS, SIZE = 4, 2  # few, so that events often meet

payees = st.sampled_from(PAYEES)
shards = st.integers(0, SHARDS - 1)


def a_piece(shard: int, place: int, payee: Payee) -> Delivered:
    return Delivered(shard, ("s", place * SHARDS + shard), payee, 1 + place)


pieces = st.builds(a_piece, shards, st.integers(0, 1), payees)
events = st.one_of(
    pieces,
    pieces,
    st.just(Believed((range(SHARDS),))),
    st.lists(shards, max_size=4).map(lambda chosen: Believed(tuple(range(s, s + 1) for s in chosen))),
    st.builds(lambda p, rows: TakenBack(p.shard, p.place, p.payee, rows), pieces, st.integers(0, 3)),
    st.builds(Confirmed, st.integers(1, 6), payees, st.integers(0, 9)),
    st.builds(
        lambda part, work: Sealed(part, range(part * SIZE, (part + 1) * SIZE), tuple(work)),
        st.integers(0, SHARDS // SIZE - 1),
        st.lists(st.tuples(payees, st.integers(0, 5)), max_size=2),
    ),
    st.integers(0, SHARDS // SIZE - 1).map(Lost),
)


def kept(history: Sequence[Event]) -> Bookkeeper:
    keeper = Bookkeeper("job")
    for position, event in enumerate(history):
        keeper.fold(position, event)
    return keeper


def facts(keeper: Bookkeeper) -> tuple[object, ...]:
    return dict(keeper.books.balances), keeper.rows, keeper.mended


def earnings(keeper: Bookkeeper) -> Counter[str]:
    return Counter(
        {f"{a.owner}/{a.device}": b for a, b in keeper.books.balances.items() if a.kind is AccountKind.EARNED}
    )


@given(st.lists(events, max_size=30))
def test_books_balance_and_earnings_never_shrink_in_any_order_of_events(history: list[Event]) -> None:
    keeper = Bookkeeper("job")
    before: Counter[str] = Counter()
    for position, event in enumerate(history):
        keeper.fold(position, event)
        assert list(broken_laws(keeper.books)) == []
        now = earnings(keeper)
        assert before <= now
        before = now
    paid = sum(rows * payee.price for by in keeper.rows for payee, rows in by.items())
    assert keeper.books.total(AccountKind.EARNED) == paid


@given(
    st.lists(events, min_size=8, max_size=30), st.lists(st.tuples(st.integers(5, 30), st.integers(0, 4)), max_size=3)
)
def test_a_history_that_is_read_again_from_anywhere_pays_nobody_twice(
    history: list[Event], crashes: list[tuple[int, int]]
) -> None:
    keeper = Bookkeeper("job")
    for until, again_from in crashes:  # read up to some place, crash, begin again at or before it
        start = min(again_from, keeper.position + 1)
        for position in range(start, min(until, len(history))):
            keeper.fold(position, history[position])
    for position in range(min(keeper.position + 1, len(history)), len(history)):
        keeper.fold(position, history[position])
    assert facts(keeper) == facts(kept(history))


@given(st.lists(events, max_size=25), st.data())
def test_every_event_may_come_twice(history: list[Event], data: st.DataObject) -> None:
    copies = data.draw(st.lists(st.integers(1, 3), min_size=len(history), max_size=len(history)))
    assert facts(kept([e for e, n in zip(history, copies, strict=True) for _ in range(n)])) == facts(kept(history))


def claim(most: Counter[Payee], event: Delivered | TakenBack | Confirmed) -> None:
    most[event.payee] = max(most[event.payee], event.rows)


@given(st.lists(events.filter(lambda e: not isinstance(e, Sealed | Lost)), max_size=40))
def test_a_piece_is_paid_at_most_once(history: list[Event]) -> None:
    """A place names one piece for ever, and the number of a check one check."""
    by_place: dict[tuple[str, int], Counter[Payee]] = {}
    by_number: dict[int, Counter[Payee]] = {}
    for event in history:
        match event:
            case Delivered() | TakenBack():
                claim(by_place.setdefault(event.place, Counter()), event)
            case Confirmed():
                claim(by_number.setdefault(event.number, Counter()), event)
            case _:
                pass
    for paid, claims in zip(kept(history).rows, (by_place, by_number), strict=True):
        for payee, rows in paid.items():
            assert rows <= sum(most[payee] for most in claims.values())


# ---- the same from the log: running sums, seals, and single lines ----

PLAN = Plan(per_shard=3, items=3 * SHARDS, shards_per_part=SIZE, verify=True)
WORKERS = [Worker(*who) for who in (("p-1", "ada", "", "ort", 5), ("p-2", "bo", "", "ort", 7), ("p-3", "", "", "", 3))]


@dataclass
class Writer:
    """Writes what a store would write, by the same rules."""

    state: LogState = field(default_factory=LogState)
    place: int = 0

    def step(self, kind: int, shard: int, who: int, rows: int) -> list[Entry]:
        state, part = self.state, shard // SIZE
        match kind:
            case 0 | 1 | 2 if shard not in state.committed:
                numbers, entries = state.introduce([WORKERS[who]])
                self.place += 1
                staged = ("E0000000001-S000001", self.place, 1, 1, 7)
                return [*entries, Commit(shard, 1, numbers[WORKERS[who]], rows, 3 - rows, 9, *staged)]
            case 3 | 4:
                chosen = [s for s in (shard, (shard + 1) % SHARDS) if s in state.committed and s not in state.verified]
                return [Verified(",".join(map(str, sorted(chosen))))] if chosen else []
            case 5 | 6 if (held := state.staged_commit(shard)) is not None:
                return [reopening(state, held)]
            case 7:
                numbers, entries = state.introduce([WORKERS[who]])
                return [*entries, Checked(state.checks + 1, numbers[WORKERS[who]], rows, 3 - rows, str(shard))]
            case 8 if part in state.whole:
                work = state.staged_work(part)
                numbers, entries = state.introduce(work)
                shares = tuple(sorted(Share(numbers[w], *s[1:]) for w, s in work.items()))
                return [*entries, SealedPart(part, sum(s.rows for s in shares), 0, 1, "a", work=shares)]
            case 9 if part in state.sealed:
                return [Unsealed(part)]
            case _:
                return []


steps = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, SHARDS - 1), st.integers(0, 2), st.integers(0, 3)), max_size=60
)


@given(steps)
def test_the_log_and_the_books_pay_the_same(script: list[tuple[int, int, int, int]]) -> None:
    writer = Writer()
    writer.state.apply(PLAN)
    history: list[Entry] = []
    for step in script:
        entries = writer.step(*step)
        before = dict(writer.state.pay.earned)
        for entry in entries:
            writer.state.apply(entry)
        assert Counter(before) <= Counter(writer.state.pay.earned), "what was earned was taken back"
        history += entries
    reader = EventReader(writer.state)
    keeper = kept([e for e in map(reader.event, history) if e is not None])
    assert list(broken_laws(keeper.books)) == []
    assert keeper.mended == 0
    pay = writer.state.pay
    assert keeper.books.total(AccountKind.EARNED) == pay.earned_micro
    assert keeper.books.total(AccountKind.ESCROW) == pay.held_micro
    by_owner: Counter[str] = Counter()
    for number, amount in pay.amounts()[1].items():
        by_owner[writer.state.workers[number].owner] += amount
    for owner, amount in by_owner.items():
        assert keeper.books.total(AccountKind.EARNED, owner=owner) == amount


@given(steps, st.lists(st.integers(0, 60), max_size=3), st.integers(400, 3000))
@settings(max_examples=40, deadline=None)
def test_the_ledger_of_a_log_on_disk_has_no_differences(
    script: list[tuple[int, int, int, int]], restarts: list[int], rotate: int
) -> None:
    """Over segments, restarts and sealed parts, whose lines the log itself passes over."""
    with a_folder() as folder:
        path = folder / "_pocketgrid" / "log"
        log = CommitLog.open(path, "job", FINGERPRINT, rotate_bytes=rotate)
        log.append([PLAN])
        writer = Writer(log.state)
        for number, step in enumerate(script):
            if entries := writer.step(*step):
                log.append(entries)
            if number in restarts:
                log.close()
                log = CommitLog.open(path, "job", FINGERPRINT, rotate_bytes=rotate)
                writer.state = log.state
        log.close()
        ledger = read_ledger(str(folder))
        assert ledger.differences == ()
        assert sum(ledger.statement.earned.values()) == log.state.pay.earned_micro
        again = CommitLog.open(path, "job", FINGERPRINT, rotate_bytes=rotate)
        again.close()
        assert read_ledger(str(folder)).digest == ledger.digest, "opening a log is no new evidence"


# ---- budgets ----


acts = st.sampled_from(["lease", "commit", "lose", "verify", "reopen"])


@given(st.integers(1, 300), st.lists(st.tuples(acts, st.integers(0, 9), st.integers(0, 9)), max_size=60))
def test_a_job_that_is_to_stop_never_owes_more_than_its_limit(limit: int, script: list[tuple[str, int, int]]) -> None:
    budget = Budget(limit, BudgetAction.STOP)
    earned, held, leases = 0, 0, []
    for what, price, rows in script:
        exposure = Exposure(earned, held, sum(p * r for p, r in leases))
        assert exposure.total <= limit
        match what:
            case "lease":
                granted = affordable_rows(budget, exposure, price, rows)
                assert 0 <= granted <= rows
                if granted < rows:  # as many as possible
                    assert exposure.total + (granted + 1) * price > limit
                leases.append((price, granted))
            case "commit" if leases:
                p, r = leases.pop()
                held += p * max(0, r - 1)  # a row failed
            case "lose" if leases:
                leases.pop(0)
            case "verify":
                earned, held = earned + held, 0
            case "reopen":
                held = 0


def test_a_job_that_is_to_warn_goes_on() -> None:
    budget = Budget(100, BudgetAction.WARN)
    assert affordable_rows(budget, Exposure(90, 90, 0), 7, 5) == 5
    assert budget_state(budget, Exposure(90, 10, 0), 7) is BudgetState.WITHIN
    assert budget_state(budget, Exposure(90, 10, 1), 7) is BudgetState.EXCEEDED


def test_a_job_is_exhausted_when_not_one_row_can_be_paid() -> None:
    budget = Budget(100, BudgetAction.STOP)
    assert budget_state(budget, Exposure(90, 3, 0), 7) is BudgetState.WITHIN
    assert budget_state(budget, Exposure(90, 3, 1), 7) is BudgetState.EXHAUSTED
    assert budget_state(budget, Exposure(90, 3, 1), 0) is BudgetState.WITHIN, "what costs nothing is always possible"
    assert budget_state(None, Exposure(90, 3, 1), 7) is BudgetState.WITHIN
    assert affordable_rows(None, Exposure(90, 3, 1), 7, 5) == 5
