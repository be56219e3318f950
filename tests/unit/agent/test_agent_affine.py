"""Arithmetic on inputs: bit by bit what plain numpy in float32 gives, whatever the micro-batch; and orders that ask for
what an agent does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgrid.errors import ProtocolError
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import affine, codec, measure, postprocess
from pocketgrid_agent.batching import BatchSize, Column, MalformedShardError, ShardRunner
from pocketgrid_agent.events import ARGMAX, BATCH_FIRST, Affine, Binding, Order, Output
from pocketgrid_agent.runtime import Port

IMAGENET = Affine(0, (0.00392156862745098,), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PIXELS = np.random.default_rng(3).integers(0, 256, (11, 3, 5, 7), np.uint8)


def an_order(binding: Binding, *outputs: Output, fixed_batch: int = 0) -> Order:
    return Order("job", "d" * 64, 1, (binding,), outputs or (Output("y"),), fixed_batch)


class Recorder:
    """A model that gives back what it is fed."""

    def __init__(self, *ports: Port) -> None:
        self.inputs = {"x": ports[0]} if ports else {}
        self.outputs = frozenset({"y"})
        self.fed: list[np.ndarray] = []

    def run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.fed.append(feeds["x"])
        return [feeds["x"]]


def reference(pixels: np.ndarray, told: Affine) -> np.ndarray:
    """As the field writes it, every operand and every step in float32."""
    shape = [1, 1, 1]
    shape[told.axis] = -1
    scale, mean, std = (
        np.array(v, np.float32).reshape(shape if len(v) > 1 else [1, 1, 1]) for v in (told.scale, told.mean, told.std)
    )
    return (pixels.astype(np.float32) * scale - mean) / std


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 11, 64])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_a_shard_is_scaled_bit_by_bit_as_by_plain_numpy(micro_batch, dtype) -> None:
    model = Recorder()
    runner = ShardRunner(an_order(Binding("x", 0, dtype, IMAGENET)), model.run)
    output = runner.compute([Column(PIXELS)], 11, BatchSize(micro_batch))
    assert output is not None
    expected = reference(PIXELS, IMAGENET).astype(dtype)
    assert output.columns[0].values.dtype == expected.dtype
    assert output.columns[0].values.tobytes() == expected.tobytes()
    assert max(len(fed) for fed in model.fed) <= micro_batch, "never the whole shard at once"


# A manifest knows no negative zero.
numbers = st.floats(-1000, 1000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6).map(lambda x: x + 0.0)
divisors = numbers.filter(lambda x: x != 0)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(0, 2), st.sampled_from(["uint8", "int16", "int32", "float32"]))
def test_any_factors_along_any_axis_give_the_bits_of_the_reference(data, axis, dtype) -> None:
    values = np.arange(-60, 60).astype(dtype).reshape(2, 3, 4, 5)
    length = values.shape[1 + axis]

    def some(kind: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(
            data.draw(st.lists(kind, min_size=1, max_size=1) | st.lists(kind, min_size=length, max_size=length))
        )

    told = Affine(axis, some(numbers), some(numbers), some(divisors))
    assert affine.problem(told, values.shape[1:]) is None
    with np.errstate(over="ignore"):
        assert affine.apply(told, values).tobytes() == reference(values, told).tobytes()


@pytest.mark.parametrize(
    ("column", "told", "words"),
    [
        pytest.param(
            Column(np.zeros((2, 4, 5), np.uint8)), IMAGENET, "3 values for the 4 entries of axis 0", id="axis"
        ),
        pytest.param(
            Column(np.zeros(2, np.uint8)), IMAGENET, "values along axis 0 and items have shape []", id="scalars"
        ),
        pytest.param(Column(np.zeros(3, np.uint8), np.array([1, 2])), Affine(), "it is ragged", id="ragged"),
    ],
)
def test_what_cannot_be_scaled_is_malformed(column, told, words) -> None:
    runner = ShardRunner(an_order(Binding("x", 0, "float32", told)), Recorder().run)
    with pytest.raises(MalformedShardError) as error:
        runner.compute([column], 2, BatchSize(4))
    assert words in str(error.value)


def test_a_fixed_batch_is_filled_after_scaling() -> None:
    model = Recorder()
    runner = ShardRunner(an_order(Binding("x", 0, "float32", IMAGENET), fixed_batch=4), model.run)
    output = runner.compute([Column(PIXELS)], 11, BatchSize(64))
    assert output is not None
    np.testing.assert_array_equal(output.columns[0].values, reference(PIXELS, IMAGENET))
    assert {len(fed) for fed in model.fed} == {4}


# ---- outputs with the batch axis second ----


@pytest.mark.parametrize("fixed_batch", [0, 4])
def test_sequence_first_outputs_are_cut_into_items(fixed_batch) -> None:
    values = np.random.default_rng(5).standard_normal((10, 6, 3)).astype(np.float32)

    def run(names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.ascontiguousarray(feeds["x"].swapaxes(0, 1)) for _ in names]

    plans = (Output("y", (BATCH_FIRST,)), Output("y", (BATCH_FIRST, ARGMAX)))
    runner = ShardRunner(an_order(Binding("x", 0, "float32"), *plans, fixed_batch=fixed_batch), run)
    output = runner.compute([Column(values)], 10, BatchSize(3))
    assert output is not None
    whole, best = output.columns
    np.testing.assert_array_equal(whole.values, values)
    np.testing.assert_array_equal(best.values, values.argmax(-1))


def test_an_output_without_a_second_axis_fails_its_items() -> None:
    assert postprocess.batch_first(np.zeros(3), (BATCH_FIRST,))[0].shape == (3,)
    runner = ShardRunner(
        an_order(Binding("x", 0, "float32"), Output("y", (BATCH_FIRST,)), fixed_batch=1),
        lambda names, feeds: [np.zeros(7, np.float32)],
    )
    output = runner.compute([Column(np.zeros((2, 3), np.float32))], 2, BatchSize(1))
    assert output is not None
    assert [f.row for f in output.failures] == [0, 1]
    assert "shape (7,) for 1 items" in output.failures[0].message


# ---- work orders ----


def a_work_order(**binding: object) -> pb.WorkOrder:
    bindings = [pb.TensorBinding(input="x", source=0, dtype="float32", **binding)]
    return pb.WorkOrder(job="job", model_sha256="a" * 64, bindings=bindings, outputs=[pb.OutputPlan(output="y")])


def test_an_order_with_arithmetic_is_understood() -> None:
    told = pb.Affine(axis=0, scale=[0.5], std=[2.0, 3.0, 4.0])
    (binding,) = codec.order_of(a_work_order(affine=told, item_shape=[3, 8, 8])).bindings
    assert binding == Binding("x", 0, "float32", Affine(0, (0.5,), (0.0,), (2.0, 3.0, 4.0)), (3, 8, 8))
    (plain,) = codec.order_of(a_work_order()).bindings
    assert plain == Binding("x", 0, "float32", None, ())


@pytest.mark.parametrize(
    "binding",
    [
        pytest.param({"affine": pb.Affine(std=[1.0, 0.0, 1.0])}, id="division by zero"),
        pytest.param({"affine": pb.Affine(scale=[2.0]), "source": -1}, id="a mask"),
        pytest.param({"affine": pb.Affine(scale=[2.0]), "dtype": "int64"}, id="integers"),
    ],
)
def test_arithmetic_that_cannot_be_done_is_refused(binding) -> None:
    order = a_work_order()
    told = {"input": "x", "source": 0, "dtype": "float32", **binding}
    order.bindings[0].CopyFrom(pb.TensorBinding(**told))
    with pytest.raises(ProtocolError, match="cannot be scaled"):
        codec.order_of(order)


def test_an_order_that_requires_what_this_agent_does_not_know_is_refused() -> None:
    order = a_work_order()
    order.requires.append(pb.FEATURE_AFFINE_INPUTS)
    assert codec.order_of(order).bindings
    order.requires.append(4711)
    with pytest.raises(ProtocolError, match="too old for feature 4711"):
        codec.order_of(order)


def test_a_device_measures_itself_with_items_of_the_shape_that_will_come() -> None:
    model = Recorder(Port("float32", (None, None, None, None)))
    (column,) = measure._synthetic(model, an_order(Binding("x", 0, "float32", IMAGENET, (3, 8, 9))), 5, 32)
    assert column.lengths is None
    assert column.values.shape == (5, 3, 8, 9)
