"""Result columns: what is accepted, what a reader gets back, in both formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pocketgrid.model.job import Operation, OutputFormat, OutputPlan, PostprocessStep
from pocketgrid.model.tensors import TensorData, TensorSpec
from pocketgrid.storage.results import ResultStore, verify
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys, tensor, word_keys

RNG = np.random.default_rng(7)
ROWS = 5


def ragged(lengths: tuple[int, ...], *own: int) -> TensorData:
    return tensor(RNG.random((sum(lengths), *own), dtype=np.float32), lengths)


def one_shard(folder: Path, values: TensorData, spec: TensorSpec, **job: object) -> Path:
    """The output folder of a finished job of one shard."""
    admitted = a_job(folder, values.items, outputs=(spec,), **job)
    store = ResultStore.open(admitted, no_keys)
    store.plan(values.items)
    assert store.conforms((values,), values.items) is None
    assert store.commit([a_result(0, (values,))]).new == (0,)
    store.finish()
    store.close()
    assert verify(str(folder)) == []
    return folder


CASES = {
    "scalar int64": (TensorSpec("y", "int64", ("b",)), tensor(np.arange(ROWS)), pa.int64()),
    "scalar bool": (TensorSpec("y", "bool", ("b",)), tensor(np.array([True, False, True, True, False])), pa.bool_()),
    "scalar float16": (TensorSpec("y", "float16", ("b",)), tensor(np.arange(ROWS).astype(np.float16)), pa.float32()),
    "scalar uint8": (TensorSpec("y", "uint8", ("b",)), tensor(np.arange(ROWS, dtype=np.uint8)), pa.uint8()),
    "vector": (
        TensorSpec("y", "float32", ("b", 3)), tensor(RNG.random((ROWS, 3), np.float32)), pa.list_(pa.float32(), 3),
    ),
    "vector of bool": (TensorSpec("y", "bool", ("b", 2)), tensor(RNG.random((ROWS, 2)) < 0.5), pa.list_(pa.bool_(), 2)),
    "one value in a list": (
        TensorSpec("y", "float64", ("b", 1)), tensor(RNG.random((ROWS, 1))), pa.list_(pa.float64(), 1),
    ),
    "matrix": (TensorSpec("y", "int32", ("b", 2, 3)), tensor(np.arange(30, dtype=np.int32).reshape(5, 2, 3)),
               pa.list_(pa.int32(), 6)),
    "length known from the first result only": (
        TensorSpec("y", "float32", ("b", "features")), tensor(RNG.random((ROWS, 4), dtype=np.float32)),
        pa.list_(pa.float32(), 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_parquet_gives_back_the_values(tmp_path: Path, case: str) -> None:
    spec, values, type_ = CASES[case]
    table = pq.read_table(one_shard(tmp_path / "out", values, spec) / "part-00000.parquet")
    assert table.column_names == ["row", "y"]
    assert table.schema.field("y").type == type_
    expected = np.frombuffer(values.data, values.dtype).reshape(values.shape[0], -1)
    got = table["y"].to_pylist()
    assert [np.atleast_1d(v).tolist() for v in got] == expected.tolist()
    if len(values.shape) > 2:
        assert json.loads(table.schema.field("y").metadata[b"shape"]) == list(values.shape[1:])


@pytest.mark.parametrize("case", CASES)
def test_jsonl_gives_back_the_values(tmp_path: Path, case: str) -> None:
    spec, values, _ = CASES[case]
    out = one_shard(tmp_path / "out", values, spec, format_=OutputFormat.JSONL) / "part-00000.jsonl"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(ROWS))
    expected = np.frombuffer(values.data, values.dtype).reshape(values.shape[0], -1)
    got = np.array([np.atleast_1d(line["y"]) for line in lines]).astype(values.dtype)
    np.testing.assert_array_equal(got, expected)  # the shortest form reads back as the same number


@pytest.mark.parametrize("format_", OutputFormat)
@pytest.mark.parametrize("own", [(), (4,), (2, 2)])
def test_ragged_results_keep_their_lengths(tmp_path: Path, format_: OutputFormat, own: tuple[int, ...]) -> None:
    lengths = (3, 0, 1, 2)
    values = ragged(lengths, *own)
    spec = TensorSpec("y", "float32", ("b", "s", *own))
    plans = (OutputPlan("y", ragged=True),)
    out = one_shard(tmp_path / "out", values, spec, plans=plans, format_=format_)
    if format_ is OutputFormat.PARQUET:
        rows = pq.read_table(out / "part-00000.parquet")["y"].to_pylist()
    else:
        rows = [json.loads(line)["y"] for line in (out / "part-00000.jsonl").read_text().splitlines()]
    assert tuple(map(len, rows)) == lengths
    flat = np.array([n for row in rows for n in np.asarray(row, np.float32).ravel()], np.float32)
    assert flat.tobytes() == values.data


@pytest.mark.parametrize("format_", OutputFormat)
def test_argmax_writes_labels_if_there_are_any(tmp_path: Path, format_: OutputFormat) -> None:
    steps = (PostprocessStep(Operation.ARGMAX, "y", ("cat", 'a "dog"\n', "été")),)
    plans = (OutputPlan("y", (Operation.ARGMAX,)),)
    spec = TensorSpec("y", "float32", ("b", 3))
    values = tensor(np.array([2, 0, 1, 1], np.int64))
    out = one_shard(tmp_path / "out", values, spec, plans=plans, steps=steps, format_=format_)
    if format_ is OutputFormat.PARQUET:
        rows = pq.read_table(out / "part-00000.parquet")["y"].to_pylist()
    else:
        rows = [json.loads(line)["y"] for line in (out / "part-00000.jsonl").read_text().splitlines()]
    assert rows == ["été", "cat", 'a "dog"\n', 'a "dog"\n']


def test_numbers_that_are_none_are_null_in_json(tmp_path: Path) -> None:
    values = tensor(np.array([[1.5, np.nan], [np.inf, -0.0], [1e-30, 3.4e38]], np.float32))
    out = one_shard(tmp_path / "out", values, TensorSpec("y", "float32", ("b", 2)), format_=OutputFormat.JSONL)
    rows = [json.loads(line)["y"] for line in (out / "part-00000.jsonl").read_text().splitlines()]
    assert rows == [[1.5, None], [None, 0.0], [1e-30, 3.4e38]]


@pytest.mark.parametrize(
    ("values", "rows", "word"),
    [
        ((tensor(np.zeros((4, 3), np.float64)),), 4, "float64, not float32"),
        ((tensor(np.zeros((4, 2), np.float32)),), 4, r"item shape \[2\], not \[3\]"),
        ((tensor(np.zeros((4, 3), np.float32)),), 5, "4 rows where 5 are due"),
        ((), 4, "0 outputs where 1 are due"),
        ((tensor(np.zeros((4, 3), np.float32)),) * 2, 4, "2 outputs where 1"),
        ((TensorData("float32", (4, 3), b"short"),), 4, "do not fill"),
        ((tensor(np.zeros((4, 3), np.float32), (1, 3)),), 2, "item shape"),
    ],
)
def test_what_does_not_fit_is_a_value_and_never_committed(
    tmp_path: Path, values: tuple[TensorData, ...], rows: int, word: str
) -> None:
    store = ResultStore.open(a_job(tmp_path, 8, outputs=(TensorSpec("y", "float32", ("b", 3)),)), no_keys)
    store.plan(rows)
    problem = store.conforms(values, rows)
    assert problem is not None
    with pytest.raises(AssertionError, match=word):
        raise AssertionError(problem)
    committed = store.commit([a_result(0, values)])
    assert committed.new == ()
    assert committed.refused == ((0, problem),)
    store.close()


def test_a_class_without_a_label_does_not_fit(tmp_path: Path) -> None:
    steps = (PostprocessStep(Operation.ARGMAX, "y", ("cat", "dog")),)
    job = a_job(
        tmp_path, 4, outputs=(TensorSpec("y", "float32", ("b", 2)),), plans=(OutputPlan("y", (Operation.ARGMAX,)),),
        steps=steps,
    )  # fmt: skip
    store = ResultStore.open(job, no_keys)
    assert store.conforms((tensor(np.array([0, 1])),), 2) is None
    for wrong in (2, -1):
        assert f"class {wrong}" in str(store.conforms((tensor(np.array([0, wrong])),), 2))
    store.close()


def test_the_first_result_settles_open_lengths_for_all_later_ones_and_writers(tmp_path: Path) -> None:
    job = a_job(tmp_path / "out", 6, outputs=(TensorSpec("y", "float32", ("b", None)),))
    store = ResultStore.open(job, no_keys)
    store.plan(2)
    narrow, wide = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)
    assert store.conforms((tensor(wide),), 2) is None
    committed = store.commit([a_result(1, (narrow,)), a_result(0, (wide,))])
    assert committed.new == (1,)
    assert committed.refused[0][0] == 0
    store.close()
    store = ResultStore.open(job, no_keys)
    assert "not [3]" in str(store.conforms((tensor(wide),), 2))
    store.commit([a_result(0, (narrow,)), a_result(2, (narrow,))])
    store.finish()
    store.close()
    assert pq.read_table(tmp_path / "out" / "part-00000.parquet")["y"].type == pa.list_(pa.float32(), 3)


def test_keys_failures_and_the_errors_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    store = ResultStore.open(a_job(out, 5, key="id"), word_keys)
    store.plan(3)
    store.commit([a_result(1, (), (0, 1)), a_result(0, (np.array([7, 9]),), (1,))])
    manifest = store.finish()
    store.close()
    table = pq.read_table(out / "part-00000.parquet").to_pydict()
    assert table == {"id": ["k0", "k2"], "y": [7, 9]}
    lines = [json.loads(line) for line in (out / "_errors" / "part-00000.jsonl").read_text().splitlines()]
    assert [(line["row"], line["key"], line["reason"]) for line in lines] == [
        (1, "k1", "BadRow"), (3, "k3", "BadRow"), (4, "k4", "BadRow"),
    ]  # fmt: skip
    assert (manifest.items, manifest.rows, manifest.failed, manifest.key) == (5, 2, 3, "id")
    assert verify(str(out)) == []


def test_the_output_folder_is_a_data_set(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = a_job(out, 70, outputs=(TensorSpec("e", "float32", ("b", 4)),))
    store = ResultStore.open(job, no_keys)
    store.plan(10)
    for shard in range(7):
        store.commit([a_result(shard, (RNG.random((9, 4), dtype=np.float32),), (3,))])
    store.finish()
    store.close()
    assert (out / "_errors").is_dir()
    assert ds.dataset(out, format="parquet").to_table().num_rows == 63
    assert pq.read_table(out).num_rows == 63


def test_a_job_without_rows_and_one_without_results_finish(tmp_path: Path) -> None:
    for name, items in (("none", 0), ("failed", 4)):
        out = tmp_path / name
        store = ResultStore.open(a_job(out, items, outputs=(TensorSpec("y", "float32", ("b", None)),)), no_keys)
        store.plan(2)
        store.commit([a_result(n, (), (0, 1)) for n in range(items // 2)])
        manifest = store.finish()
        store.close()
        assert (manifest.rows, manifest.failed) == (0, items)
        assert verify(str(out)) == []
