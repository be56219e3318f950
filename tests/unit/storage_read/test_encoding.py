"""How columns meet a model's inputs: what is refused at once, and which single rows fail and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef, TensorBinding, TokenizerRef
from pocketgrid.model.tensors import Dim, ModelSignature, TensorData, TensorSpec
from pocketgrid.storage.encoding import Encoder, open_encoder


def model(**inputs: tuple[str, tuple[Dim, ...]]) -> ModelSignature:
    return ModelSignature(tuple(TensorSpec(n, t, ("N", *s)) for n, (t, s) in inputs.items()), (), 17, 9)


def columns(**bound: str) -> tuple[ColumnBinding, ...]:
    return tuple(ColumnBinding(column, name) for name, column in bound.items())


def json_lines(path: Path, *rows: Any, key: str = "", **bound: str) -> InputRef:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (path / "data.jsonl").write_text("\n".join(lines))
    return InputRef(str(path / "data.jsonl"), InputFormat.JSONL, key=key, columns=columns(**bound))


def parquet(path: Path, key: str = "", bound: dict[str, str] | None = None, **arrays: Any) -> InputRef:
    pq.write_table(pa.table(arrays), path / "data.parquet")
    return InputRef(str(path / "data.parquet"), InputFormat.PARQUET, key=key, columns=columns(**(bound or {})))


def npz(path: Path, bound: dict[str, str], **arrays: Any) -> InputRef:
    np.savez(path / "data.npz", **arrays)
    return InputRef(str(path / "data.npz"), InputFormat.NPZ, columns=columns(**bound))


def values(tensor: TensorData) -> Any:
    assert tensor.problem() is None
    return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape).tolist()


def all_of(encoder: Encoder) -> tuple[list[Any], dict[int, str]]:
    shard = encoder.encode(0, encoder.items)
    encoder.close()
    assert shard.rows == encoder.items - len(shard.failures)
    assert all(f"row {f.row}" in f.message for f in shard.failures)
    return [values(tensor) for tensor in shard.inputs], {f.row: f.reason for f in shard.failures}


# ---- refused at once ----

X = model(X=("float32", (2,)))
GOOD = {"x": [1.5, 2], "id": "a", "n": 1, "t": "text", "o": {"a": 1}}


@pytest.mark.parametrize(
    ("rows", "bound", "signature", "reason", "field"),
    [
        pytest.param([], {"X": "x"}, X, "EmptyDataSet", "uri", id="no items"),
        pytest.param([GOOD], {}, X, "InvalidBinding", "", id="neither columns nor tokenizer"),
        pytest.param([GOOD], {"X": "y"}, X, "UnknownColumn", "columns[0].column", id="column that is not there"),
        pytest.param([GOOD], {"Y": "x"}, X, "UnknownInput", "columns[0].input", id="input that is not there"),
        pytest.param(
            [GOOD], {"X": "x"}, model(X=("float32", (2,)), Y=("float32", ())), "UnboundInput", "columns",
            id="input that nothing feeds",
        ),
        pytest.param([GOOD], {"X": "t"}, X, "WrongType", "columns[0]", id="text without a tokenizer"),
        pytest.param([GOOD], {"X": "o"}, X, "WrongType", "columns[0]", id="an object"),
        pytest.param(
            [GOOD], {"X": "x"}, model(X=("int64", (2,))), "WrongType", "columns[0]", id="fractions into integers"
        ),
        pytest.param([GOOD], {"X": "n"}, model(X=("bool", ())), "WrongType", "columns[0]", id="number into bool"),
        pytest.param([GOOD], {"X": "x"}, model(X=("float32", (3,))), "WrongShape", "columns[0]", id="wrong length"),
        pytest.param([GOOD], {"X": "n"}, X, "WrongShape", "columns[0]", id="scalar into a vector"),
        pytest.param(
            [GOOD], {"X": "n"}, model(X=("float32", (None,))), "WrongShape", "columns[0]",
            id="scalar into a vector of open length",
        ),
        pytest.param(
            [GOOD], {"X": "x"}, model(X=("float32", ("a", "b"))), "WrongShape", "columns[0]",
            id="vector into an open matrix",
        ),
        pytest.param(
            [{"x": [1, 2], "y": [1, 2, 3]}], {"X": "x", "Y": "y"},
            model(X=("float32", ("s",)), Y=("float32", ("s",))), "WrongShape", "columns[1]",
            id="one symbol, two lengths",
        ),
        pytest.param(
            [{"x": [1]}, {"x": [1, 2, 3]}], {"X": "x"}, X, "NoUsableRow", "", id="no row has the right length"
        ),
        pytest.param(
            [{"x": [1, None]}, {"x": [1]}, {"x": [1, 2, 3]}], {"X": "x"}, model(X=("uint8", (2,))), "NoUsableRow", "",
            id="every row fails in its own way",
        ),
    ],
)  # fmt: skip
def test_what_can_never_fit_is_refused(
    tmp_path: Path, rows: list[Any], bound: dict[str, str], signature: ModelSignature, reason: str, field: str
) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(json_lines(tmp_path, *rows, **bound), signature)
    assert refusal.value.reason == reason
    assert refusal.value.field == ("spec.input." + field).rstrip(".")


def test_one_input_is_not_fed_twice(tmp_path: Path) -> None:
    ref = json_lines(tmp_path, {"x": [1, 2], "y": [1, 2]})
    twice = InputRef(ref.uri, ref.format, columns=(ColumnBinding("x", "X"), ColumnBinding("y", "X")))
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(twice, X)
    assert (refusal.value.reason, refusal.value.field) == ("DuplicateBinding", "spec.input.columns[1].input")


def test_an_unknown_column_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpecError, match=r"'x', 'id'"):
        open_encoder(json_lines(tmp_path, {"x": [1, 2], "id": 1}, X="z"), X)


# ---- types ----


@pytest.mark.parametrize(
    ("column", "wanted", "wire"),
    [
        ("uint8", "float32", "uint8"),
        ("int8", "float32", "int8"),
        ("bool", "float32", "bool"),
        ("float16", "float32", "float16"),
        ("int32", "int64", "int32"),
        ("int32", "float32", "float32"),
        ("int64", "float64", "float64"),
        ("float64", "float32", "float32"),
        ("float32", "float16", "float16"),
        ("int64", "int32", "int32"),
        ("int64", "uint8", "uint8"),
        ("float32", "float32", "float32"),
        ("bool", "uint8", "uint8"),
        ("int32", "int8", None),
        ("uint64", "int64", None),
        ("float32", "int64", None),
        ("uint8", "bool", None),
    ],
)
def test_values_travel_in_the_narrower_type(tmp_path: Path, column: str, wanted: str, wire: str | None) -> None:
    array = np.array([[0, 1], [1, 1]]).astype(column)
    ref = npz(tmp_path, {"X": "x"}, x=array)
    if wire is None:
        with pytest.raises(InvalidSpecError) as refusal:
            open_encoder(ref, model(X=(wanted, (2,))))
        assert refusal.value.reason == "WrongType"
        return
    encoder = open_encoder(ref, model(X=(wanted, (2,))))
    assert encoder.bindings == (TensorBinding("X", 0, wanted, item_shape=(2,)),)
    tensor = encoder.encode(0, 2).inputs[0]
    encoder.close()
    assert tensor.dtype == wire
    assert values(tensor) == [[0, 1], [1, 1]]
    assert encoder.bytes_per_item == 2 * np.dtype(wire).itemsize


@pytest.mark.parametrize("as_table", [True, False])
@pytest.mark.parametrize(
    ("wanted", "given", "good", "bad"),
    [
        ("int32", [2**31 - 1, 2**31, -(2**31), -(2**31) - 1], [2**31 - 1, -(2**31)], [1, 3]),
        ("uint8", [0, 255, 256, -1], [0, 255], [2, 3]),
        ("float32", [1.5, 1e300, -1e300, 0.0], [1.5, 0.0], [1, 2]),
        ("float16", [1.5, 1e5, 2.0, -65520.0], [1.5, 2.0], [1, 3]),
        ("uint64", [0, -1, 2**62, -5], [0, 2**62], [1, 3]),
    ],
)
def test_a_number_that_would_not_survive_fails_its_row(
    tmp_path: Path, as_table: bool, wanted: str, given: list[Any], good: list[Any], bad: list[int]
) -> None:
    if as_table:
        ref = parquet(tmp_path, bound={"X": "x"}, x=given)
    else:
        ref = json_lines(tmp_path, *({"x": v} for v in given), X="x")
    (found,), failures = all_of(open_encoder(ref, model(X=(wanted, ()))))
    assert found == good
    assert failures == dict.fromkeys(bad, "OutOfRange")


def test_infinities_and_nan_of_the_data_are_passed_on(tmp_path: Path) -> None:
    (found,), failures = all_of(
        open_encoder(npz(tmp_path, {"X": "x"}, x=np.array([np.inf, -np.inf, np.nan])), model(X=("float32", ())))
    )
    assert found[:2] == [np.inf, -np.inf]
    assert np.isnan(found[2])
    assert not failures


# ---- shapes ----


@pytest.mark.parametrize(
    ("rows_of", "wanted", "sent"),
    [
        ((8, 8), (64,), (64,)),
        ((64,), (8, 8), (8, 8)),
        ((), (1,), (1,)),
        ((1,), (), ()),
        ((8, 8), (8, 8), (8, 8)),
        ((8, 8), ("h", None), (8, 8)),
        ((3, 4), ("h", 4), (3, 4)),
        ((2, 6), (3, 4), (3, 4)),
        ((8, 8), (None,), None),
        ((8, 8), (63,), None),
        ((8, 8), ("h", 7), None),
        ((8, 8), (1, "h", 8), None),
    ],
)
def test_rows_are_reshaped_only_where_nothing_is_open(
    tmp_path: Path, rows_of: tuple[int, ...], wanted: tuple[Dim, ...], sent: tuple[int, ...] | None
) -> None:
    array = np.arange(2 * int(np.prod(rows_of)), dtype=np.float32).reshape((2, *rows_of))
    ref = npz(tmp_path, {"X": "x"}, x=array)
    if sent is None:
        with pytest.raises(InvalidSpecError) as refusal:
            open_encoder(ref, model(X=("float32", wanted)))
        assert refusal.value.reason == "WrongShape"
        return
    encoder = open_encoder(ref, model(X=("float32", wanted)))
    tensor = encoder.encode(0, 2).inputs[0]
    encoder.close()
    assert tensor.shape == (2, *sent)
    assert values(tensor) == array.reshape((2, *sent)).tolist()


def test_an_open_length_is_settled_by_the_first_good_row_for_every_shard(tmp_path: Path) -> None:
    rows = [{"x": ["a", "b"]}, {"x": [1, None, 3, 4]}, {"x": [1, 2, 3]}, {"x": [1, 2]}, {"x": [1, 2]}, {"x": [4, 5, 6]}]
    encoder = open_encoder(json_lines(tmp_path, *rows, X="x"), model(X=("float32", ("n",))))
    assert encoder.encode(3, 5).inputs[0].shape == (0, 3)
    (found,), failures = all_of(encoder)
    assert found == [[1, 2, 3], [4, 5, 6]]
    assert failures == dict.fromkeys((0, 1, 3, 4), "WrongShape")


# ---- single rows ----


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("", "EmptyLine"),
        ("{", "InvalidJSON"),
        ('{"x":[1,2]} trailing', "InvalidJSON"),
        ("[1,2]", "InvalidJSON"),
        ("null", "InvalidJSON"),
        ('{"x":' + "[" * 100_000, "InvalidJSON"),
        ({"y": [1, 2]}, "MissingColumn"),
        ({"x": None}, "NullValue"),
        ({"x": [1, None]}, "NullValue"),
        ({"x": "1,2"}, "WrongShape"),
        ({"x": ["1", "2"]}, "WrongType"),
        ({"x": [True, False]}, "WrongType"),
        ({"x": [True, 1]}, "WrongType"),
        ({"x": [{}, {}]}, "WrongType"),
        ({"x": 1}, "WrongShape"),
        ({"x": [1]}, "WrongShape"),
        ({"x": [1, 2, 3]}, "WrongShape"),
        ({"x": [[1], [2]]}, "WrongShape"),
        ({"x": []}, "WrongShape"),
        ('{"x":[1,' + "9" * 400 + "]}", "OutOfRange"),
        ('{"x":[1,' + "9" * 5000 + "]}", "OutOfRange"),
    ],
)
def test_a_bad_json_row_fails_alone(tmp_path: Path, row: Any, reason: str) -> None:
    good = {"x": [1, 2.5]}
    encoder = open_encoder(json_lines(tmp_path, good, row, good, X="x"), X)
    alone = encoder.encode(1, 2)
    assert [(f.row, f.reason) for f in alone.failures] == [(0, reason)]
    (found,), failures = all_of(encoder)
    assert found == [[1, 2.5], [1, 2.5]]
    assert failures == {1: reason}


def test_members_that_nobody_asked_for_may_hold_anything(tmp_path: Path) -> None:
    good = {"x": [1, 2]}
    lines = ['{"x":[1,2],"z":' + z + "}" for z in ("9" * 5000, "NaN", "[" * 99 + "]" * 99, '{"x":[9]}', '"\\ud800"')]
    (found,), failures = all_of(open_encoder(json_lines(tmp_path, good, *lines, X="x"), X))
    assert found == [[1, 2]] * 6
    assert not failures


def test_zero_has_the_sign_that_python_reads_in_every_shard(tmp_path: Path) -> None:
    encoder = open_encoder(json_lines(tmp_path, '{"x":[0.5,1]}', '{"x":[-0,-0.0]}', "{", X="x"), X)
    assert encoder.encode(1, 2).inputs == encoder.encode(1, 3).inputs
    assert encoder.encode(1, 2).inputs[0].data == np.array([0.0, -0.0], np.float32).tobytes()
    encoder.close()


def test_whole_numbers_are_rounded_alike_in_every_shard(tmp_path: Path) -> None:
    # Just above the middle of two float32: rounded up at once, but down by way of float64.
    row = {"x": [2**60 + 2**36 + 1, 0]}
    encoder = open_encoder(json_lines(tmp_path, row, row, "{", X="x"), X)
    assert encoder.encode(1, 2).inputs == encoder.encode(1, 3).inputs
    encoder.close()


def test_nulls_of_a_table_fail_their_rows(tmp_path: Path) -> None:
    vectors = pa.array([[1, 2], None, [3, None], [5, 6], [7], [8, 9]], pa.list_(pa.float32()))
    scalars = pa.array([1, 2, 3, 4, 5, None], pa.int32())
    ref = parquet(tmp_path, bound={"X": "x", "Y": "y"}, x=vectors, y=scalars)
    (x, y), failures = all_of(open_encoder(ref, model(X=("float32", (2,)), Y=("int64", ()))))
    assert (x, y) == ([[1, 2], [5, 6]], [1, 4])
    assert failures == {1: "NullValue", 2: "NullValue", 4: "WrongShape", 5: "NullValue"}


def test_numbers_may_be_whole_at_first_and_fractions_later(tmp_path: Path) -> None:
    rows = [{"x": [1, 2]}] * 300 + [{"x": [0.5, 2]}]
    (found,), failures = all_of(open_encoder(json_lines(tmp_path, *rows, X="x"), X))
    assert found[-1] == [0.5, 2]
    assert not failures


def test_a_shard_without_a_good_row_has_empty_tensors(tmp_path: Path) -> None:
    encoder = open_encoder(json_lines(tmp_path, {"x": [1, 2]}, "{", "{", X="x"), X)
    shard = encoder.encode(1, 3)
    encoder.close()
    assert (shard.rows, len(shard.failures)) == (0, 2)
    assert shard.inputs == (TensorData("float32", (0, 2), b""),)


def test_values_read_from_a_file_are_not_copied_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((8, 2), np.uint8))
    ref = InputRef(str(tmp_path / "x.npy"), InputFormat.NPY, columns=columns(X="data"))
    encoder = open_encoder(ref, X)
    made: list[bytes] = []
    source = encoder._data_set._sources[0]  # type: ignore[attr-defined]
    read_at = source.read_at
    source.read_at = lambda *at: made.append(read_at(*at)) or made[-1]
    assert encoder.encode(2, 5).inputs[0].data is made[0]
    encoder.close()


# ---- keys ----


def test_row_numbers_are_the_keys_unless_a_column_is_named(tmp_path: Path) -> None:
    encoder = open_encoder(json_lines(tmp_path, *[{"x": [1, 2]}] * 5, X="x"), X)
    assert encoder.keys(2, 5).equals(pa.array([2, 3, 4], pa.int64()))
    encoder.close()


@pytest.mark.parametrize(
    ("ids", "expected", "failures"),
    [
        (["a", "b", "c"], pa.array(["a", "b", "c"]), {}),
        (["a", 7, None], pa.array(["a", "7", None]), {2: "KeyMissing"}),
        (["a", 1.5, True], pa.array(["a", None, None]), {1: "KeyWrongType", 2: "KeyWrongType"}),
        ([1, 2, 3], pa.array([1, 2, 3], pa.int64()), {}),
        ([1, 2**63, [1]], pa.array([1, None, None], pa.int64()), {1: "KeyWrongType", 2: "KeyWrongType"}),
        (["a", "\ud800", "c"], pa.array(["a", None, "c"]), {1: "KeyWrongType"}),
    ],
)
def test_json_keys(tmp_path: Path, ids: list[Any], expected: pa.Array, failures: dict[int, str]) -> None:
    rows = [{"x": [1, 2], "id": value} for value in ids]
    encoder = open_encoder(json_lines(tmp_path, *rows, key="id", X="x"), X)
    assert encoder.keys(0, 3).equals(expected)
    assert encoder.keys(2, 3).equals(expected.slice(2))
    assert all_of(encoder)[1] == failures


def test_a_row_without_the_key_column_fails_and_its_key_is_null(tmp_path: Path) -> None:
    rows = [{"x": [1, 2], "id": "a"}, {"x": [1, 2]}, "{"]
    encoder = open_encoder(json_lines(tmp_path, *rows, key="id", X="x"), X)
    assert encoder.keys(0, 3).to_pylist() == ["a", None, None]
    assert all_of(encoder)[1] == {1: "KeyMissing", 2: "InvalidJSON"}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([1, 2], pa.int16()), pa.array([1, 2], pa.int64())),
        (pa.array([1, 2**64 - 1], pa.uint64()), pa.array([1, 2**64 - 1], pa.uint64())),
        (pa.array([1, None], pa.uint32()), pa.array([1, None], pa.int64())),
        (pa.array(["a", "b"], pa.large_string()), pa.array(["a", "b"])),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "b"])),
    ],
)
def test_table_keys(tmp_path: Path, ids: pa.Array, expected: pa.Array) -> None:
    ref = parquet(tmp_path, key="id", bound={"X": "x"}, x=[1.0, 2.0], id=ids)
    encoder = open_encoder(ref, model(X=("float32", ())))
    assert encoder.keys(0, 2).equals(expected)
    encoder.close()


@pytest.mark.parametrize(
    ("key", "reason"),
    [("nothing", "UnknownColumn"), ("x", "InvalidKey"), ("flag", "InvalidKey"), ("o", "InvalidKey")],
)
def test_a_column_that_cannot_be_a_key_is_refused(tmp_path: Path, key: str, reason: str) -> None:
    row = {"x": [1, 2], "flag": True, "o": {}}
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(json_lines(tmp_path, row, key=key, X="x"), X)
    assert (refusal.value.reason, refusal.value.field) == (reason, "spec.input.key")


def test_keys_may_occur_twice_and_stay_in_the_order_of_their_rows(tmp_path: Path) -> None:
    rows = [{"x": [n, n], "id": key} for n, key in enumerate(["a", "b", "a", "a"])]
    encoder = open_encoder(json_lines(tmp_path, *rows, key="id", X="x"), X)
    assert encoder.keys(0, 4).to_pylist() == ["a", "b", "a", "a"]
    assert all_of(encoder) == ([[[0, 0], [1, 1], [2, 2], [3, 3]]], {})


# ---- columns that appear late ----


@pytest.mark.parametrize("first_at", [1, 255, 256, 1000])
def test_a_column_first_seen_after_many_lines_is_found(tmp_path: Path, first_at: int) -> None:
    rows: list[Any] = [{"other": 1}] * first_at + [{"x": [1, 2], "id": "a"}] * 3
    encoder = open_encoder(json_lines(tmp_path, *rows, key="id", X="x"), X)
    shard = encoder.encode(0, encoder.items)
    assert shard.rows == 3
    assert {f.reason for f in shard.failures} == {"KeyMissing"}
    assert encoder.keys(first_at, first_at + 1).to_pylist() == ["a"]
    encoder.close()


def test_a_column_first_seen_too_late_is_refused_with_how_far_was_looked(tmp_path: Path) -> None:
    rows: list[Any] = [{"other": 1}] * 1024 + [{"x": [1, 2]}]
    with pytest.raises(InvalidSpecError, match=r"no column 'x' in the first 1,024 lines of .*; there are 'other'") as e:
        open_encoder(json_lines(tmp_path, *rows, X="x"), X)
    assert (e.value.reason, e.value.field) == ("UnknownColumn", "spec.input.columns[0].column")


# ---- what identifies the input ----


def test_the_fingerprint_covers_data_and_tokenizer(tmp_path: Path) -> None:
    ref = json_lines(tmp_path, {"x": [1, 2], "t": "a"}, X="x")
    by_columns = open_encoder(ref, X)
    again = open_encoder(ref, X)
    assert by_columns.fingerprint == again.fingerprint
    tokens = model(input_ids=("int64", ("s",)))
    prints = set()
    for name in ("one", "two"):
        path = tmp_path / f"{name}.json"
        path.write_text(word_tokenizer("a", name))
        text_ref = InputRef(ref.uri, ref.format, tokenizer=TokenizerRef(str(path), "t", 8))
        encoder = open_encoder(text_ref, tokens)
        prints.add(encoder.fingerprint)
        encoder.close()
    assert len(prints | {by_columns.fingerprint}) == 3
    by_columns.close()
    again.close()


def word_tokenizer(*words: str) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return str(tokenizer.to_str())
