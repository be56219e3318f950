"""The agent's rules: histories in, effects out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketgrid_agent import events as ev
from pocketgrid_agent.events import Attempt, Order
from pocketgrid_agent.machine import Held, Limits, Machine
from pocketgrid_agent.policy import ALLOWED, Level, Verdict

ORDER = Order("job", "d" * 64, 1000, (ev.Binding("x", 0, "float32"),), (ev.Output("y"),))
FAST = ev.Ready(items_per_second=100_000.0, micro_batch=64)
SLOW = ev.Ready(items_per_second=100.0, micro_batch=1)
LIMITS = Limits(slots=1, credit_shards=8, credit_bytes=8000, held_bytes=10_000)


def attempt(shard: int, *, token: bytes | None = None, job: str = "job", size: int = 100) -> Attempt:
    return Attempt(job, shard, token or b"t%d" % shard, items=100, input_bytes=size)


def machine(speed: ev.Ready = SLOW, limits: Limits = LIMITS) -> Machine:
    """Attached, and ready for `job`."""
    made = Machine(limits)
    made.handle(ev.Welcomed())
    made.handle(ev.Ordered(ORDER))
    made.handle(ev.Prepared(ORDER, speed))
    return made


def test_a_shard_goes_its_whole_way() -> None:
    m = machine()
    one = attempt(1)
    assert m.handle(ev.Leased((one,))) == [ev.Compute(one, ORDER)]
    assert m.handle(ev.Finished(one.token, 40)) == [ev.Keep(one.token)]
    assert m.handle(ev.Journaled((one.token,))) == [ev.Deliver("job", (one.token,))]
    assert m.handle(ev.Settled((one.token,))) == [ev.Forget((one.token,))]
    assert m.announce() == []


def test_a_slow_device_begins_one_per_slot_and_a_fast_one_looks_ahead() -> None:
    shards = tuple(attempt(i) for i in range(5))
    slow = machine(SLOW, replace(LIMITS, slots=2))
    assert slow.handle(ev.Leased(shards)) == [ev.Compute(a, ORDER) for a in shards[:2]]
    fast = machine(FAST)  # 1 ms a shard
    assert fast.handle(ev.Leased(shards)) == [ev.Compute(a, ORDER) for a in shards]


def test_of_unknown_speed_nothing_is_begun_ahead() -> None:
    m = machine(ev.Ready(0.0, 1))
    effects = m.handle(ev.Leased((attempt(1), attempt(2))))
    assert effects == [ev.Compute(attempt(1), ORDER)]


def test_revoking_takes_back_only_what_was_not_begun() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2), attempt(3))))
    effects = m.handle(ev.Revoked("job", (b"t1", b"t2", b"unheard-of")))
    assert effects == [ev.GiveBack("job", (b"t2",), "Revoked")]
    assert m.handle(ev.Finished(b"t1", 1)) == [ev.Keep(b"t1"), ev.Compute(attempt(3), ORDER)]


def test_cancelling_attempts_needs_no_answer() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2))))
    assert m.handle(ev.Cancelled("job", (b"t1", b"t2"))) == [ev.Abandon((b"t1",))]
    # A result that was ready before the slot looked is not kept: nobody waits for it.
    assert m.handle(ev.Finished(b"t1", 1)) == []
    assert m.announce() == []


def test_cancelling_a_job_dismisses_it_and_keeps_what_is_finished() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2), attempt(3))))
    m.handle(ev.Finished(b"t1", 1))
    assert m.handle(ev.Cancelled("job", ())) == [ev.Dismiss("job"), ev.Abandon((b"t2",))]
    assert m.handle(ev.Abandoned(b"t2")) == []
    assert m.handle(ev.Journaled((b"t1",))) == [ev.Deliver("job", (b"t1",))]
    assert m.handle(ev.Leased((attempt(4),))) == [ev.GiveBack("job", (b"t4",), "UnknownJob")]


def test_results_of_another_attempt_make_ours_superfluous() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2))))
    assert m.handle(ev.Settled((b"t1", b"t2"))) == [ev.Abandon((b"t1",))]


def test_offline_it_computes_on_and_delivers_after_the_next_welcome() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2))))
    m.handle(ev.LinkLost())
    assert m.handle(ev.Finished(b"t1", 1)) == [ev.Keep(b"t1"), ev.Compute(attempt(2), ORDER)]
    assert m.handle(ev.Journaled((b"t1",))) == []
    assert m.announce() == [
        Held("job", 2, b"t2", finished=False),
        Held("job", 1, b"t1", finished=True, result_bytes=1),
    ]
    assert m.handle(ev.Welcomed()) == [ev.Deliver("job", (b"t1",))]


def test_results_restored_from_a_journal_are_announced_and_delivered() -> None:
    m = Machine(LIMITS)
    m.restore([Held("job", 5, b"old", result_bytes=7)])
    assert m.announce() == [Held("job", 5, b"old", finished=True, result_bytes=7)]
    assert m.handle(ev.Welcomed()) == [ev.Deliver("job", (b"old",))]


def test_a_finished_shard_is_not_computed_again_for_a_new_token() -> None:
    m = machine()
    m.restore([Held("job", 5, b"old", result_bytes=7)])
    again = attempt(5, token=b"new")
    assert m.handle(ev.Leased((again,))) == [ev.Reissue(b"old", b"new")]
    assert m.handle(ev.Journaled((b"new",))) == [ev.Deliver("job", (b"new",))]
    assert m.handle(ev.Settled((b"old", b"new"))) == [ev.Forget((b"old", b"new"))]


def test_a_failed_attempt_is_no_answer_to_a_new_lease() -> None:
    m = machine()
    m.restore([Held("job", 5, b"old", result_bytes=7, failed=True)])
    again = attempt(5, token=b"new")
    assert m.handle(ev.Leased((again,))) == [ev.Compute(again, ORDER)]


def test_a_shard_leased_twice_is_computed_once() -> None:
    m = machine(FAST, replace(LIMITS, slots=2))
    first, second = attempt(5, token=b"first"), attempt(5, token=b"second")
    assert m.handle(ev.Leased((first, second))) == [ev.Compute(first, ORDER)]
    assert m.handle(ev.Finished(b"first", 1)) == [ev.Keep(b"first"), ev.Reissue(b"first", b"second")]


def test_a_lease_said_twice_changes_nothing() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2))))
    assert m.handle(ev.Leased((attempt(1), attempt(2)))) == []
    m.handle(ev.Finished(b"t1", 1))
    m.handle(ev.Journaled((b"t1",)))
    assert m.handle(ev.Leased((attempt(1),))) == [ev.Deliver("job", (b"t1",))]


def test_leases_far_beyond_the_credits_go_back() -> None:
    m = machine()
    effects = m.handle(ev.Leased(tuple(attempt(i, size=1) for i in range(20))))
    (given,) = [e for e in effects if isinstance(e, ev.GiveBack)]
    assert given.reason == "CreditsExceeded"
    assert given.tokens == tuple(b"t%d" % i for i in range(16, 20))


def test_one_shard_alone_may_exceed_the_credit_in_bytes() -> None:
    m = machine()
    big = attempt(1, size=1_000_000)
    assert m.handle(ev.Leased((big, attempt(2)))) == [
        ev.GiveBack("job", (b"t2",), "CreditsExceeded"),
        ev.Compute(big, ORDER),
    ]


def test_nothing_is_begun_while_too_many_results_are_unsettled() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2))))
    assert m.handle(ev.Finished(b"t1", LIMITS.held_bytes)) == [ev.Keep(b"t1")]
    m.handle(ev.Journaled((b"t1",)))
    assert m.handle(ev.Settled((b"t1",))) == [ev.Forget((b"t1",)), ev.Compute(attempt(2), ORDER)]


def test_orders_are_prepared_once_and_reported_in_each_session() -> None:
    m = Machine(LIMITS)
    m.handle(ev.Welcomed())
    assert m.handle(ev.Ordered(ORDER)) == [ev.Prepare(ORDER)]
    assert m.handle(ev.Ordered(ORDER)) == []
    assert m.handle(ev.Prepared(ORDER, ev.Ready(5.0, 4, fetch_ms=9, load_ms=8))) == [
        ev.Report(ORDER, ev.Ready(5.0, 4, fetch_ms=9, load_ms=8))
    ]
    m.handle(ev.LinkLost())
    m.handle(ev.Welcomed())
    assert m.handle(ev.Ordered(ORDER)) == [ev.Report(ORDER, ev.Ready(5.0, 4))]


def test_a_preparation_that_ends_offline_is_reported_when_the_order_comes_again() -> None:
    m = Machine(LIMITS)
    m.handle(ev.Welcomed())
    m.handle(ev.Ordered(ORDER))
    m.handle(ev.LinkLost())
    assert m.handle(ev.Prepared(ORDER, FAST)) == []
    m.handle(ev.Welcomed())
    assert m.handle(ev.Ordered(ORDER)) == [ev.Report(ORDER, ev.Ready(FAST.items_per_second, 64))]


def test_a_failed_preparation_is_reported_and_tried_again_when_asked() -> None:
    m = Machine(LIMITS)
    m.handle(ev.Welcomed())
    m.handle(ev.Ordered(ORDER))
    failure = ev.NotReady("DiskFull", "no room")
    assert m.handle(ev.Prepared(ORDER, failure)) == [ev.Report(ORDER, failure)]
    assert m.handle(ev.Leased((attempt(1),))) == [ev.GiveBack("job", (b"t1",), "DiskFull")]
    assert m.handle(ev.Ordered(ORDER)) == [ev.Prepare(ORDER)]


def test_jobs_the_gateway_no_longer_mentions_are_dismissed_after_a_session() -> None:
    m = machine()
    m.handle(ev.LinkLost())
    assert m.handle(ev.Welcomed()) == []
    m.handle(ev.LinkLost())
    assert m.handle(ev.Welcomed()) == [ev.Dismiss("job")]


def test_draining_to_leave() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2))))
    assert m.handle(ev.DrainRequested("Terminated", leave=True)) == [
        ev.AnnounceDraining("Terminated"),
        ev.GiveBack("job", (b"t2",), "Draining"),
    ]
    assert m.handle(ev.Leased((attempt(3),))) == [ev.GiveBack("job", (b"t3",), "Draining")]
    assert m.handle(ev.Finished(b"t1", 1)) == [ev.Keep(b"t1")]
    assert m.handle(ev.Journaled((b"t1",))) == [ev.Deliver("job", (b"t1",))]
    assert m.handle(ev.Settled((b"t1",))) == [ev.Forget((b"t1",)), ev.Leave()]


def test_leaving_while_detached_waits_for_the_journal_only() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1),)))
    m.handle(ev.LinkLost())
    assert m.handle(ev.DrainRequested("Terminated", leave=True)) == []
    assert m.handle(ev.Finished(b"t1", 1)) == [ev.Keep(b"t1")]
    assert m.handle(ev.Journaled((b"t1",))) == [ev.Leave()]


def test_a_gateway_that_drains_us_is_left_and_dialled_again() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2))))
    assert m.handle(ev.DrainRequested("OperatorStopping", leave=False)) == [ev.GiveBack("job", (b"t2",), "Draining")]
    m.handle(ev.Finished(b"t1", 1))
    m.handle(ev.Journaled((b"t1",)))
    assert m.handle(ev.Settled((b"t1",))) == [ev.Forget((b"t1",)), ev.Disconnect("OperatorStopping")]
    m.handle(ev.LinkLost())
    m.handle(ev.Welcomed())
    m.handle(ev.Ordered(ORDER))
    assert m.handle(ev.Leased((attempt(9),))) == [ev.Compute(attempt(9), ORDER)]


LOW = Verdict(Level.PAUSE, "BatteryLow", "battery at 10 %")
WARM = Verdict(Level.EASE, "BatteryWarm", "battery at 41 °C")


def test_policy_stops_new_work_and_takes_it_up_again_in_the_same_session() -> None:
    m = machine()
    m.handle(ev.Leased((attempt(1), attempt(2))))
    assert m.handle(ev.PolicyChanged(LOW)) == [ev.Restrain(LOW), ev.GiveBack("job", (b"t2",), "BatteryLow")]
    assert m.handle(ev.Leased((attempt(3),))) == [ev.GiveBack("job", (b"t3",), "BatteryLow")]
    assert m.handle(ev.PolicyChanged(replace(LOW, message="battery at 9 %"))) == []
    m.handle(ev.LinkLost())
    assert m.handle(ev.Welcomed()) == [ev.Restrain(replace(LOW, message="battery at 9 %"))]
    m.handle(ev.Ordered(ORDER))
    m.handle(ev.Finished(b"t1", 1))
    assert m.handle(ev.PolicyChanged(ALLOWED)) == [ev.Restrain(ALLOWED)]
    assert m.handle(ev.Leased((attempt(4),))) == [ev.Compute(attempt(4), ORDER)]


def test_a_device_that_is_to_work_gently_says_so_and_works() -> None:
    m = machine()
    assert m.handle(ev.PolicyChanged(WARM)) == [ev.Restrain(WARM)]
    assert m.handle(ev.Leased((attempt(1),))) == [ev.Compute(attempt(1), ORDER)]


def test_a_pause_stops_getting_ready_and_its_end_begins_it_again() -> None:
    m = Machine(LIMITS)
    m.handle(ev.Welcomed())
    assert m.handle(ev.Ordered(ORDER)) == [ev.Prepare(ORDER)]
    assert m.handle(ev.PolicyChanged(LOW)) == [ev.Restrain(LOW), ev.Postpone("job")]
    other = replace(ORDER, job="other")
    assert m.handle(ev.Ordered(other)) == []
    assert m.handle(ev.PolicyChanged(ALLOWED)) == [ev.Restrain(ALLOWED), ev.Prepare(ORDER), ev.Prepare(other)]


@pytest.mark.parametrize(
    "event", [ev.Finished(b"?", 1), ev.Abandoned(b"?"), ev.Journaled((b"?",)), ev.Settled((b"?",))]
)
def test_news_of_unknown_attempts_is_ignored(event: ev.Event) -> None:
    assert machine().handle(event) == []
