"""Results that cannot be an answer are refused with a reason that names what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.model.job import ItemFailure, Operation, OutputPlan
from pocketgrid.model.tensors import DTYPES, ModelSignature, TensorData, TensorSpec
from pocketgrid.trust.judge import OutputExpectation, expect_outputs, judge_structure


def tensor(dtype: str, *shape: int, lengths: tuple[int, ...] | None = None, cut: int = 0) -> TensorData:
    size = DTYPES[dtype]
    for dim in shape:
        size *= dim
    return TensorData(dtype, shape, bytes(size - cut), lengths)


DENSE = OutputExpectation("y", "float32", (4,))
OPEN = OutputExpectation("y", "float32", (None, 4))
RAGGED = OutputExpectation("y", "float32", (None, 4), ragged=True)


@pytest.mark.parametrize(
    ("expected", "answer", "problem"),
    [
        pytest.param(DENSE, tensor("float32", 3, 4), "", id="as it should be"),
        pytest.param(DENSE, tensor("float32", 2, 4), "2 rows instead of 3", id="a row is missing"),
        pytest.param(DENSE, tensor("float64", 3, 4), "dtype float64", id="another dtype"),
        pytest.param(DENSE, tensor("float32", 3, 5), "shape [5]", id="another width"),
        pytest.param(DENSE, tensor("float32", 3, 4, 1), "shape [4, 1]", id="another rank"),
        pytest.param(DENSE, tensor("float32", 3), "shape []", id="no axis of its own"),
        pytest.param(DENSE, tensor("float32", 3, 4, cut=1), "do not fill", id="bytes are missing"),
        pytest.param(DENSE, tensor("float32", 3, 4, lengths=(1, 1, 1)), "ragged by mistake", id="ragged by mistake"),
        pytest.param(OPEN, tensor("float32", 3, 9, 4), "", id="any length will do"),
        pytest.param(OPEN, tensor("float32", 3, 9, 5), "shape [9, 5]", id="but not any width"),
        pytest.param(RAGGED, tensor("float32", 6, 4, lengths=(1, 2, 3)), "", id="ragged"),
        pytest.param(RAGGED, tensor("float32", 0, 4, lengths=(0, 0, 0)), "", id="ragged and empty"),
        pytest.param(RAGGED, tensor("float32", 3, 4), "dense by mistake", id="dense by mistake"),
        pytest.param(RAGGED, tensor("float32", 6, 4, lengths=(1, 2)), "do not add up", id="lengths do not add up"),
        pytest.param(RAGGED, tensor("float32", 6, 4, lengths=(3, 3)), "2 rows instead of 3", id="a row too few"),
        pytest.param(RAGGED, tensor("float32", 6, 4, lengths=(7, -1, 0)), "do not add up", id="a negative length"),
        pytest.param(DENSE, TensorData("text", (3, 4), b""), "unknown dtype", id="no such dtype"),
        pytest.param(DENSE, TensorData("float32", (), b""), "impossible shape", id="no axes at all"),
        pytest.param(DENSE, TensorData("float32", (-3, -4), bytes(48)), "impossible shape", id="negative axes"),
    ],
)
def test_structure(expected: OutputExpectation, answer: TensorData, problem: str) -> None:
    verdict = judge_structure([expected], [answer], [], 3)
    assert verdict.accepted is (not problem)
    assert problem in verdict.message
    assert verdict.reason == ("WrongOutputs" if problem else "")


@pytest.mark.parametrize(
    ("rows", "accepted"),
    [
        pytest.param((0, 2), True, id="rows that were sent"),
        pytest.param((3,), False, id="a row that was not"),
        pytest.param((-1,), False, id="a negative row"),
        pytest.param((1, 1), False, id="a row twice"),
    ],
)
def test_failures(rows: tuple[int, ...], accepted: bool) -> None:
    failures = [ItemFailure(row, "EngineError") for row in rows]
    assert judge_structure([DENSE], [tensor("float32", 3, 4)], failures, 3).accepted is accepted


def test_the_number_of_outputs_counts() -> None:
    assert judge_structure([DENSE], [], [], 3).accepted is False
    assert judge_structure([], [tensor("float32", 3, 4)], [], 3).accepted is False


SIGNATURE = ModelSignature(
    (), (TensorSpec("h", "float32", ("b", "s", 384)), TensorSpec("p", "float16", ("b", 10))), opset=17, ir_version=8
)


@pytest.mark.parametrize(
    ("plan", "dtype", "shape"),
    [
        pytest.param(OutputPlan("h"), "float32", (None, 384), id="as the model has it"),
        pytest.param(OutputPlan("h", (Operation.MEAN_POOL,)), "float32", (384,), id="pooled"),
        pytest.param(OutputPlan("h", (Operation.MEAN_POOL, Operation.NORMALIZE)), "float32", (384,), id="normalised"),
        pytest.param(OutputPlan("p", (Operation.ARGMAX,)), "int64", (), id="the best of ten"),
        pytest.param(OutputPlan("h", (Operation.ARGMAX,), ragged=True), "int64", (None,), id="best of each"),
    ],
)
def test_expectations(plan: OutputPlan, dtype: str, shape: tuple) -> None:
    (expected,) = expect_outputs(SIGNATURE, [plan])
    assert (expected.dtype, expected.item_shape, expected.ragged) == (dtype, shape, plan.ragged)


def test_an_output_the_model_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no output 'z'"):
        expect_outputs(SIGNATURE, [OutputPlan("z")])


shapes = st.lists(st.integers(-2, 5), max_size=4).map(tuple)


@given(
    st.sampled_from([*DTYPES, "object"]),
    shapes,
    st.binary(max_size=64),
    st.none() | st.lists(st.integers(-2, 5), max_size=4).map(tuple),
    st.integers(0, 4),
)
def test_nothing_a_device_sends_makes_the_judge_stumble(dtype, shape, data, lengths, rows) -> None:
    answer = TensorData(dtype, shape, data, lengths)
    for expected in (DENSE, OPEN, RAGGED):
        if judge_structure([expected], [answer], [], rows).accepted:
            assert answer.items == rows
            assert answer.problem() is None
