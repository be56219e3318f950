"""Laws of comparing two results: what must agree under any comparator, and what must not."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pocketgrid.model.tensors import TensorData
from pocketgrid.model.trust import Comparator, ComparatorKind
from pocketgrid.trust.comparators import agreement

EXACT = Comparator()


def dense(values: np.ndarray) -> TensorData:
    return TensorData(values.dtype.name, values.shape, values.tobytes())


def ragged(items: list[np.ndarray]) -> TensorData:
    folded = np.concatenate(items) if items else np.zeros((0,), np.float32)
    return TensorData(folded.dtype.name, folded.shape, folded.tobytes(), tuple(len(item) for item in items))


def compare(comparator: Comparator, a: TensorData, b: TensorData) -> list[bool]:
    return agreement(comparator, [a], range(a.items), [b], range(b.items)).tolist()


comparators = st.one_of(
    st.just(EXACT),
    st.builds(
        Comparator,
        st.just(ComparatorKind.ALL_CLOSE),
        rtol=st.sampled_from([0.0, 1e-3]),
        atol=st.sampled_from([0.0, 1e-2]),
    ),
    st.builds(Comparator, st.just(ComparatorKind.COSINE), minimum=st.sampled_from([1.0, 0.99, 0.5])),
    st.builds(Comparator, st.just(ComparatorKind.TOP_K), k=st.integers(1, 6), margin=st.sampled_from([0.0, 0.1, 10.0])),
)
dtypes = st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint64", "bool"])
shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5)


@st.composite
def tensors(draw):
    return draw(hnp.arrays(draw(dtypes), draw(shapes)))


@given(comparators, tensors())
def test_a_result_agrees_with_itself_whatever_is_in_it(comparator, values):
    assert all(compare(comparator, dense(values), dense(values)))


@given(comparators, st.lists(hnp.arrays("float32", st.integers(0, 4)), min_size=1, max_size=4))
def test_a_ragged_result_agrees_with_itself(comparator, items):
    assert all(compare(comparator, ragged(items), ragged(items)))


@given(comparators, tensors(), st.data())
def test_rows_are_compared_for_themselves(comparator, values, data):
    """Comparing chosen rows gives what comparing all of them gives for these."""
    other = data.draw(hnp.arrays(values.dtype, values.shape))
    everything = compare(comparator, dense(values), dense(other))
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=6))
    shuffled = other[rows] if rows else other[:0]
    got = agreement(comparator, [dense(values)], rows, [dense(shuffled)], range(len(rows)))
    assert got.tolist() == [everything[row] for row in rows]


@given(comparators, tensors(), st.data())
def test_what_is_no_floating_point_number_is_the_same_or_not(comparator, values, data):
    assume(values.dtype.kind != "f")
    other = data.draw(hnp.arrays(values.dtype, values.shape))
    expected = (values == other).reshape(len(values), -1).all(axis=1).tolist()
    assert compare(comparator, dense(values), dense(other)) == expected


@given(st.lists(hnp.arrays("float32", st.integers(1, 4)), min_size=1, max_size=4), comparators)
def test_ragged_items_of_other_lengths_differ(items, comparator):
    longer = [np.append(item, np.float32(1)) for item in items]
    assert not any(compare(comparator, ragged(items), ragged(longer)))


@given(
    hnp.arrays("float32", (3, 5), elements=st.floats(-1e6, 1e6, width=32)),
    hnp.arrays("float64", (3, 5), elements=st.floats(-1, 1)),
)
def test_top_k_forgives_shifts_of_half_the_margin(scores, shifts):
    a = scores.astype(np.float64)
    near = Comparator(ComparatorKind.TOP_K, k=3, margin=0.2 + 1e-6)
    assert all(compare(near, dense(a), dense(a + 0.1 * shifts)))


@given(hnp.arrays("float32", (2, 6), elements=st.floats(-100, 100, width=32)), st.floats(0.01, 100))
def test_cosine_sees_directions_only(vectors, factor):
    assume(np.all(np.linalg.norm(vectors, axis=1) > 0.1))
    close = Comparator(ComparatorKind.COSINE, minimum=0.999)
    a = vectors.astype(np.float64)
    assert all(compare(close, dense(a), dense(a * factor)))
    assert not any(compare(close, dense(a), dense(-a)))


@given(hnp.arrays("float32", (3, 4), elements=st.floats(-1e3, 1e3, width=32)), st.floats(0, 1), st.floats(0, 0.1))
def test_all_close_allows_what_it_says_and_no_more(canonical, atol, rtol):
    a = canonical.astype(np.float64)
    allowed = atol + rtol * np.abs(a)
    comparator = Comparator(ComparatorKind.ALL_CLOSE, rtol=rtol, atol=atol)
    assert all(compare(comparator, dense(a), dense(a + 0.99 * allowed)))
    assert not any(compare(comparator, dense(a), dense(a + 1.01 * allowed + 1e-9)))


@pytest.mark.parametrize(
    ("comparator", "a", "b", "agree"),
    [
        pytest.param(EXACT, [[0.0]], [[-0.0]], False, id="exact tells zero from minus zero"),
        pytest.param(EXACT, [[np.nan, 1.0]], [[-np.nan, 1.0]], True, id="a NaN is a NaN, whatever its bits"),
        pytest.param(
            Comparator(ComparatorKind.ALL_CLOSE, rtol=0.5), [[np.inf]], [[7.0]], False, id="nothing is near infinity"
        ),
        pytest.param(
            Comparator(ComparatorKind.ALL_CLOSE, atol=1e9), [[np.inf]], [[-np.inf]], False, id="nor are its two ends"
        ),
        pytest.param(
            Comparator(ComparatorKind.ALL_CLOSE, atol=1e9), [[1.0]], [[np.nan]], False, id="a NaN is not near a number"
        ),
        pytest.param(
            Comparator(ComparatorKind.COSINE, minimum=0.1), [[1.0, 2.0]], [[1.0, np.nan]], False, id="cosine with a NaN"
        ),
        pytest.param(
            Comparator(ComparatorKind.COSINE, minimum=0.1), [[0.0, 0.0]], [[1.0, 0.0]], False, id="no direction, one"
        ),
        pytest.param(Comparator(ComparatorKind.COSINE), [[1e300, 1e300]], [[1e-300, 1e-300]], True, id="no overflow"),
        pytest.param(Comparator(ComparatorKind.TOP_K), [[1.0, 2.0]], [[5.0, 2.0]], False, id="another winner"),
        pytest.param(
            Comparator(ComparatorKind.TOP_K, k=2), [[3.0, 2.0, 0.0]], [[2.0, 3.0, 0.0]], False, id="another order"
        ),
        pytest.param(
            Comparator(ComparatorKind.TOP_K, k=2, margin=1.0),
            [[3.0, 2.0, 0.0]],
            [[2.0, 3.0, 0.0]],
            True,
            id="near ties",
        ),
        pytest.param(
            Comparator(ComparatorKind.TOP_K, k=2, margin=1.0),
            [[3.0, 2.0, 0.0]],
            [[3.0, 0.0, 2.0]],
            False,
            id="far ones",
        ),
        pytest.param(
            Comparator(ComparatorKind.TOP_K, k=1), [[2.0, 2.0]], [[1.0, 5.0]], True, id="canonical ties are nobody's"
        ),
    ],
)
def test_examples(comparator, a, b, agree):
    assert compare(comparator, dense(np.array(a)), dense(np.array(b))) == [agree]


def test_results_of_other_form_differ():
    a = dense(np.zeros((2, 3), np.float32))
    assert compare(EXACT, a, dense(np.zeros((2, 3), np.float64))) == [False, False]
    assert compare(EXACT, a, dense(np.zeros((2, 4), np.float32))) == [False, False]
    assert compare(EXACT, a, ragged([np.zeros(3, np.float32)] * 2)) == [False, False]
    assert agreement(EXACT, [a, a], [0], [a], [0]).tolist() == [False]


def test_every_output_must_agree():
    a, b = dense(np.array([[1.0], [2.0]])), dense(np.array([[1.0], [3.0]]))
    assert agreement(EXACT, [a, a], [0, 1], [a, b], [0, 1]).tolist() == [True, False]


def test_misuse_is_named():
    a = dense(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="2 rows cannot be compared with 1"):
        agreement(EXACT, [a], [0, 1], [a], [0])
    with pytest.raises(ValueError, match="outside"):
        agreement(EXACT, [a], [2], [a], [0])
    with pytest.raises(ValueError, match="do not fill"):
        agreement(EXACT, [TensorData("float32", (2, 3), b"")], [0], [a], [0])
