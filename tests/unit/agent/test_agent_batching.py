"""Shards through micro-batches give what each item alone would have given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgrid_agent import postprocess
from pocketgrid_agent.batching import BatchSize, Column, MalformedShardError, RunError, ShardRunner
from pocketgrid_agent.events import MASK_SOURCE, ZEROS_SOURCE, Binding, Order, Output
from pocketgrid_agent.runtime import Model, OnnxRuntime
from tests.unit.agent import onnx_models

TOKEN_BINDINGS = (
    Binding("ids", 0, "int64"),
    Binding("mask", MASK_SOURCE, "int64"),
    Binding("types", ZEROS_SOURCE, "int64"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    engine = OnnxRuntime(threads=1, spin=False)
    loaded = {}
    for name, data in {
        "mlp": onnx_models.mlp(),
        "mlp4": onnx_models.mlp(batch=4),
        "tokens": onnx_models.tokens(),
        "tokens3": onnx_models.tokens(batch=3),
        "tokens_s16": onnx_models.tokens(sequence=16),
    }.items():
        path: Path = folder / f"{name}.onnx"
        path.write_bytes(data)
        loaded[name] = engine.load(path)
    return loaded


def order(
    *outputs: Output, bindings: tuple[Binding, ...] = TOKEN_BINDINGS, fixed_batch: int = 0, pad: int = 0
) -> Order:
    return Order("job", "d" * 64, 1, bindings, outputs, fixed_batch, pad)


def ragged(rows: list[list[int]], dtype: str = "int32") -> Column:
    return Column(np.array([i for row in rows for i in row], dtype), np.array([len(r) for r in rows], np.int64))


def alone(model: Model, row: list[int]) -> np.ndarray:
    """What the engine says to one unpadded row."""
    ids = np.array([row], np.int64)
    (hidden,) = model.run(["hidden"], {"ids": ids, "mask": np.ones_like(ids), "types": np.zeros_like(ids)})
    return hidden[0]


rows_of_tokens = st.lists(
    st.lists(st.integers(0, onnx_models.VOCABULARY - 1), min_size=1, max_size=16), min_size=1, max_size=20
)


@settings(max_examples=60, deadline=None)
@given(
    rows=rows_of_tokens,
    micro_batch=st.integers(1, 9),
    positions=st.sampled_from([0, 1, 20, 100]),
    kind=st.sampled_from(["tokens", "tokens3", "tokens_s16"]),
    pad=st.integers(0, onnx_models.VOCABULARY - 1),
)
def test_ragged_rows_come_out_in_order_and_as_computed_alone(
    models: dict[str, Model], rows: list[list[int]], micro_batch: int, positions: int, kind: str, pad: int
) -> None:
    pooled = Output("hidden", (postprocess.MEAN_POOL,))
    unit = Output("hidden", (postprocess.MEAN_POOL, postprocess.NORMALIZE))
    best = Output("hidden", (postprocess.ARGMAX,), ragged=True)
    full = Output("hidden", (), ragged=True)
    runner = ShardRunner(
        order(pooled, full, unit, best, fixed_batch=3 if kind == "tokens3" else 0, pad=pad),
        models[kind].run,
        fixed_lengths={"ids": 16, "mask": 16, "types": 16} if kind == "tokens_s16" else None,
    )
    result = runner.compute([ragged(rows)], len(rows), BatchSize(micro_batch, positions))
    assert result is not None
    assert result.failures == ()
    means, hidden, units, bests = result.columns
    assert hidden.lengths is not None
    assert hidden.lengths.tolist() == [len(row) for row in rows]
    starts = np.cumsum(hidden.lengths) - hidden.lengths
    for number, row in enumerate(rows):
        expected = alone(models["tokens"], row)
        own = slice(int(starts[number]), int(starts[number]) + len(row))
        np.testing.assert_array_equal(hidden.values[own], expected)
        np.testing.assert_array_equal(bests.values[own], expected.argmax(-1))
        np.testing.assert_allclose(means.values[number], expected.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            units.values[number], expected.mean(0) / np.linalg.norm(expected.mean(0)), rtol=1e-4, atol=1e-5
        )
    assert means.values.dtype == units.values.dtype == np.float32
    assert bests.values.dtype == np.int64


@settings(max_examples=30, deadline=None)
@given(items=st.integers(1, 40), micro_batch=st.integers(1, 50), kind=st.sampled_from(["mlp", "mlp4"]))
def test_dense_rows_equal_one_run_over_all(models: dict[str, Model], items: int, micro_batch: int, kind: str) -> None:
    x = np.random.default_rng(items).standard_normal((items, 64)).astype(np.float64)
    runner = ShardRunner(
        order(
            Output("y"),
            Output("y", (postprocess.ARGMAX,)),
            bindings=(Binding("x", 0, "float32"),),
            fixed_batch=4 if kind == "mlp4" else 0,
        ),
        models[kind].run,
    )
    result = runner.compute([Column(x)], items, BatchSize(micro_batch))
    assert result is not None
    (expected,) = models["mlp"].run(["y"], {"x": x.astype(np.float32)})
    np.testing.assert_allclose(result.columns[0].values, expected, rtol=1e-4, atol=1e-4)
    assert result.columns[1].values.shape == (items,)
    np.testing.assert_array_equal(result.columns[1].values, result.columns[0].values.argmax(-1))


@settings(max_examples=40, deadline=None)
@given(rows=rows_of_tokens, data=st.data(), micro_batch=st.integers(1, 20))
def test_only_bad_items_fail(
    models: dict[str, Model], rows: list[list[int]], data: st.DataObject, micro_batch: int
) -> None:
    bad = data.draw(st.sets(st.integers(0, len(rows) - 1)))
    poisoned = [[*row, onnx_models.VOCABULARY + 7] if n in bad else row for n, row in enumerate(rows)]
    runner = ShardRunner(
        order(Output("hidden", (postprocess.MEAN_POOL,)), Output("hidden", (), ragged=True)),
        models["tokens"].run,
    )
    result = runner.compute([ragged(poisoned)], len(rows), BatchSize(micro_batch))
    assert result is not None
    assert [f.row for f in result.failures] == sorted(bad)
    assert all(f.reason == "EngineRefusedItem" and f.message for f in result.failures)
    if len(bad) == len(rows):
        assert result.columns == ()
        return
    pooled, hidden = result.columns
    assert hidden.lengths is not None
    for number, row in enumerate(rows):
        if number in bad:
            assert not pooled.values[number].any()
            assert hidden.lengths[number] == 0
        else:
            np.testing.assert_allclose(
                pooled.values[number], alone(models["tokens"], row).mean(0), rtol=1e-5, atol=1e-6
            )


class Recorder:
    """An engine that notes the shapes it is given and may run out of memory."""

    def __init__(self, *, memory_for: int = 1000) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.memory_for = memory_for

    def __call__(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        (values,) = feeds.values()
        if len(values) > self.memory_for:
            raise MemoryError("too large")
        self.shapes.append(values.shape)
        return [np.zeros((len(values), 2), np.float32) for _ in names]


IDS_ONLY = (Binding("ids", 0, "int64"),)


def test_rows_of_like_length_are_padded_together() -> None:
    recorder = Recorder()
    lengths = [9, 1, 8, 2, 9, 1]
    runner = ShardRunner(order(Output("y"), bindings=IDS_ONLY), recorder)
    runner.compute([ragged([[1] * n for n in lengths])], 6, BatchSize(2))
    assert recorder.shapes == [(2, 1), (2, 8), (2, 9)]


def test_long_rows_go_in_smaller_runs() -> None:
    recorder = Recorder()
    runner = ShardRunner(order(Output("y"), bindings=IDS_ONLY), recorder)
    runner.compute([ragged([[1] * n for n in (2, 2, 2, 2, 5, 30)])], 6, BatchSize(8, positions=10))
    assert recorder.shapes == [(4, 2), (1, 5), (1, 30)]


def test_a_fixed_batch_is_always_full() -> None:
    recorder = Recorder()
    runner = ShardRunner(order(Output("y"), bindings=IDS_ONLY, fixed_batch=4), recorder)
    result = runner.compute([ragged([[1], [1], [1], [1], [1]])], 5, BatchSize(2))
    assert recorder.shapes == [(4, 1), (4, 1)]
    assert result is not None
    assert result.columns[0].values.shape == (5, 2)


def test_running_out_of_memory_is_not_blamed_on_items() -> None:
    runner = ShardRunner(order(Output("y"), bindings=IDS_ONLY), Recorder(memory_for=1))
    with pytest.raises(MemoryError):
        runner.compute([ragged([[1], [1]])], 2, BatchSize(2))


def test_cancelling_stops_before_the_next_micro_batch() -> None:
    recorder = Recorder()
    runner = ShardRunner(order(Output("y"), bindings=IDS_ONLY), recorder)
    result = runner.compute([ragged([[1]] * 6)], 6, BatchSize(2), lambda: len(recorder.shapes) == 2)
    assert result is None
    assert len(recorder.shapes) == 2


def test_rows_of_length_zero_are_fed_as_padding_and_pool_to_zeros(models: dict[str, Model]) -> None:
    runner = ShardRunner(
        order(Output("hidden", (postprocess.MEAN_POOL,)), Output("hidden", (), ragged=True)),
        models["tokens"].run,
    )
    result = runner.compute([ragged([[], [3]])], 2, BatchSize(2))
    assert result is not None
    assert not result.columns[0].values[0].any()
    assert result.columns[1].lengths is not None
    assert result.columns[1].lengths.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("inputs", "items", "complaint"),
    [
        ([Column(np.zeros((2, 1)))], 3, "has 2 items"),
        ([], 1, "has no tensors"),
        ([Column(np.zeros((0, 1)))], 0, "no items"),
        ([Column(np.zeros((2, 1)))], 2, "made from row lengths"),
    ],
)
def test_shards_that_contradict_their_order_are_refused(inputs: list[Column], items: int, complaint: str) -> None:
    runner = ShardRunner(order(Output("y")), Recorder())
    with pytest.raises(MalformedShardError, match=complaint):
        runner.compute(inputs, items, BatchSize(2))


def test_an_output_that_is_not_one_row_per_item_fails_the_items() -> None:
    runner = ShardRunner(order(Output("y"), bindings=IDS_ONLY), lambda names, feeds: [np.zeros((99, 1), np.float32)])
    result = runner.compute([ragged([[1], [2]])], 2, BatchSize(2))
    assert result is not None
    assert [f.row for f in result.failures] == [0, 1]


def test_pooling_ignores_what_is_in_the_padding() -> None:
    values = np.array([[[1.0], [np.inf]], [[2.0], [4.0]]], np.float32)
    pooled = postprocess.mean_pool(values, np.array([1, 2]))
    assert pooled.tolist() == [[1.0], [3.0]]


def test_normalising_keeps_zeros() -> None:
    assert postprocess.normalize(np.zeros((1, 3), np.float32)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("operation", [postprocess.MEAN_POOL, postprocess.ARGMAX, "Softmax"])
def test_operations_that_do_not_fit_are_refused(operation: str) -> None:
    with pytest.raises(ValueError, match=r"MeanPool needs|Argmax needs|unknown operation"):
        postprocess.apply(operation, np.zeros(3, np.float32), None)


def test_run_errors_of_the_engine_are_told_apart_from_ours(models: dict[str, Model]) -> None:
    with pytest.raises(RunError):
        models["mlp"].run(["y"], {"x": np.zeros((2, 65), np.float32)})
