"""Results of slow shards travel a few together; nothing waits without need."""

from hypothesis import given
from hypothesis import strategies as st

from pocketgrid_agent.pacing import GROUP, LONGEST_SECONDS, DeliveryPacer


def sends(finishes: list[float]) -> list[float]:
    """When results that are ready at `finishes` are sent, on a device that has more to do."""
    pacer, sent = DeliveryPacer(), []
    due: float | None = None
    for now in [*finishes, finishes[-1] + 10]:
        if due is not None and due <= now:
            sent.append(due)
            pacer.sent(due)
            due = None
        if now == finishes[-1] + 10:
            break
        pacer.finished(now)
        wait = pacer.wait(now, last=False)
        if not wait:
            sent.append(now)
            pacer.sent(now)
            due = None
        elif due is None:
            due = now + wait
    return sent


def test_the_first_result_never_waits() -> None:
    pacer = DeliveryPacer()
    pacer.finished(5.0)
    assert pacer.wait(5.0, last=False) == 0.0


def test_shards_of_a_tenth_of_a_second_travel_about_four_together() -> None:
    finishes = [i / 10 for i in range(100)]
    assert len(finishes) / (GROUP + 1) <= len(sends(finishes)) <= len(finishes) / (GROUP - 1)


def test_shards_of_a_millisecond_are_left_to_the_journals_grouping() -> None:
    finishes = [i / 1000 for i in range(1000)]
    assert len(sends(finishes)) == len(finishes)


def test_shards_of_seconds_are_sent_one_by_one() -> None:
    finishes = [2.0 * i for i in range(10)]
    assert sends(finishes) == finishes


def test_a_device_without_more_to_do_sends_at_once() -> None:
    pacer = DeliveryPacer()
    for now in (0.0, 0.1, 0.2):
        pacer.finished(now)
        pacer.sent(now)
    assert pacer.wait(0.21, last=False) > 0
    assert pacer.wait(0.21, last=True) == 0.0


@given(st.lists(st.floats(0, 5), min_size=1, max_size=50))
def test_no_result_waits_longer_than_promised(gaps: list[float]) -> None:
    finishes, now = [], 0.0
    for gap in gaps:
        now += gap
        finishes.append(now)
    times = sends(finishes)
    for finish in finishes:
        assert any(finish <= sent <= finish + LONGEST_SECONDS + 1e-9 for sent in times)
