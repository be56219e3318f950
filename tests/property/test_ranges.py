"""IndexSet against a plain set."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.model.ranges import TRUNCATED, IndexSet

indexes = st.integers(min_value=0, max_value=60)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), indexes),
        st.tuples(st.just("discard"), indexes),
        st.tuples(st.just("run"), indexes, indexes),
        st.tuples(st.just("take"), st.integers(0, 10)),
    ),
    max_size=60,
)


def replay(steps: list[tuple]) -> tuple[IndexSet, set[int]]:
    ours, plain = IndexSet(), set()
    for step in steps:
        match step:
            case ("add", i):
                assert ours.add(i) == (i not in plain)
                plain.add(i)
            case ("discard", i):
                assert ours.discard(i) == (i in plain)
                plain.discard(i)
            case ("run", a, b):
                ours.add_run(min(a, b), max(a, b))
                plain |= set(range(min(a, b), max(a, b)))
            case ("take", count):
                expected = sorted(plain)[:count]
                assert ours.take_first(count) == expected
                plain -= set(expected)
    return ours, plain


@given(operations)
def test_behaves_like_a_set(steps: list[tuple]) -> None:
    ours, plain = replay(steps)
    assert list(ours) == sorted(plain)
    assert len(ours) == len(plain)
    assert all((i in ours) == (i in plain) for i in range(62))


@given(operations)
def test_runs_are_sorted_disjoint_and_not_adjacent(steps: list[tuple]) -> None:
    ours, _ = replay(steps)
    runs = list(ours.runs())
    assert all(start < stop for start, stop in runs)
    assert all(a_stop < b_start for (_, a_stop), (b_start, _) in pairwise(runs))


@given(operations)
def test_text_says_it_all(steps: list[tuple]) -> None:
    ours, _ = replay(steps)
    assert IndexSet.from_text(ours.to_text()) == ours


@given(operations, st.integers(min_value=8, max_value=40))
def test_truncated_text_is_a_prefix_within_the_limit(steps: list[tuple], limit: int) -> None:
    ours, _ = replay(steps)
    text = ours.to_text(limit=limit)
    assert len(text) <= limit
    assert text.endswith(TRUNCATED) or text == ours.to_text()
    if text.endswith(TRUNCATED):
        shown = text.removesuffix(TRUNCATED)
        assert ours.to_text().startswith(shown)


@given(operations, st.integers(min_value=0, max_value=80))
def test_complement_is_the_rest(steps: list[tuple], size: int) -> None:
    ours, plain = replay(steps)
    assert list(ours.complement(size)) == [i for i in range(size) if i not in plain]


def test_text_is_that_of_an_indexed_job() -> None:
    assert IndexSet([(1, 2), (3, 6), (7, 9)]).to_text() == "1,3-5,7,8"


def test_worst_case_of_a_million_shards_stays_small() -> None:
    every_second = IndexSet()
    for i in range(0, 20_000, 2):
        every_second.add(i)
    assert len(every_second.to_text(limit=8192)) <= 8192
