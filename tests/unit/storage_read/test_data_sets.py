"""Every format: what an item is, what the columns are, and which files are refused as a whole."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.model.job import InputFormat, InputRef
from pocketgrid.storage.datasets import DataSet, arrays, open_data_set
from pocketgrid.storage.datasets.base import ABSENT
from pocketgrid.storage.datasets.lines import STRIDE
from pocketgrid.storage.locations import BLOCK_BYTES

Opener = Callable[..., DataSet]


@pytest.fixture
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Opener:
    def open_content(content: bytes, file_format: InputFormat) -> DataSet:
        path = tmp_path / "data"
        path.write_bytes(content)
        data_set = open_data_set(InputRef(str(path), file_format))
        request.addfinalizer(data_set.close)
        return data_set

    return open_content


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(compressed: bool = False, **named: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **named)
    return buffer.getvalue()


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


# ---- lines ----


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        pytest.param(b"", [], id="no bytes, no items"),
        pytest.param(b"a", ["a"], id="the last line needs no line end"),
        pytest.param(b"a\nb\n", ["a", "b"], id="a final line end begins no line"),
        pytest.param(b"a\r\nb\r\n", ["a", "b"], id="Windows line ends"),
        pytest.param(b"a\r\n\r\nb", ["a", "", "b"], id="a blank Windows line"),
        pytest.param(b"a\n\n\n", ["a", "", ""], id="blank lines are empty texts"),
        pytest.param(b"\xef\xbb\xbfa\nb", ["a", "b"], id="a byte order mark is no text"),
        pytest.param(b"a\rb\x0b\xe2\x80\xa8c\n", ["a\rb\x0b\u2028c"], id="only LF ends a line"),
        pytest.param(b"\n" * STRIDE, [""] * STRIDE, id="exactly one stride"),
        pytest.param(b"x\n" * (2 * STRIDE), ["x"] * (2 * STRIDE), id="exactly two strides"),
        pytest.param(b"x\n" * STRIDE + b"y", ["x"] * STRIDE + ["y"], id="one line more than a stride"),
    ],
)
def test_a_text_item_is_a_line(opened: Opener, content: bytes, lines: list[str]) -> None:
    data_set = opened(content, InputFormat.TEXT)
    assert data_set.items == len(lines)
    assert data_set.read(0, len(lines), ["text"]).columns["text"] == lines
    for row, line in enumerate(lines):
        assert data_set.read(row, row + 1, ["text"]).columns["text"] == [line]


def test_lines_longer_than_a_block_and_line_ends_on_its_edge_are_found(opened: Opener) -> None:
    lines = ["a" * (BLOCK_BYTES - 1), "b" * (2 * BLOCK_BYTES + 7), "c", "d" * BLOCK_BYTES]
    data_set = opened("\n".join(lines).encode(), InputFormat.TEXT)
    assert data_set.items == 4
    assert [data_set.read(i, i + 1, ["text"]).columns["text"][0] for i in range(4)] == lines


def test_a_line_that_is_not_utf8_fails_alone(opened: Opener) -> None:
    rows = opened(b"good\nb\xffd\nalso good\n", InputFormat.TEXT).read(0, 3, ["text"])
    assert [(f.row, f.reason) for f in rows.failures] == [(1, "InvalidText")]
    assert "row 1" in rows.failures[0].message
    assert rows.columns["text"][2] == "also good"


def test_blank_json_lines_count_amid_the_file_but_not_at_its_end(opened: Opener) -> None:
    data_set = opened(b'{"a":1}\n\n{"a":2}\n \r\n\t\n', InputFormat.JSONL)
    assert data_set.items == 3
    rows = data_set.read(0, 3, ["a"])
    assert [(f.row, f.reason) for f in rows.failures] == [(1, "EmptyLine")]
    assert (rows.columns["a"][0], rows.columns["a"][2]) == (1, 2)


def test_json_columns_are_described_from_the_first_lines(opened: Opener) -> None:
    lines = [
        b'{"whole":1,"mixed":1,"text":"a","flag":true,"vector":[1,2],"lists":[1],"deep":[[1,2.5],[3,4]],"none":null}',
        b'{"whole":2,"mixed":1.5,"text":"b","flag":false,"vector":[3,4],"lists":[1,2],"object":{"a":1},"id":1}',
        b'{"id":"a7"}',
    ]
    columns = {c.name: (c.dtype, c.item_shape) for c in opened(b"\n".join(lines), InputFormat.JSONL).columns}
    assert columns == {
        "whole": ("int64", ()),
        "mixed": ("float64", ()),
        "text": ("string", ()),
        "flag": ("bool", ()),
        "vector": ("int64", (2,)),
        "lists": ("int64", (None,)),
        "deep": ("float64", (2, 2)),
        "none": ("other", ()),
        "object": ("other", ()),
        "id": ("string", ()),
    }


# ---- tables and arrays ----


def test_parquet_columns_are_described_from_the_schema(opened: Opener) -> None:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8, dtype=np.float32).reshape(2, 2, 2))
    data_set = opened(
        parquet(
            number=pa.array([1, 2], pa.uint16()),
            text=["a", "b"],
            category=pa.array(["a", "b"]).dictionary_encode(),
            lists=[[1.0], [2.0, 3.0]],
            fixed=pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
            tensor=tensor,
            blob=[b"a", b"b"],
            record=[{"a": 1}, {"a": 2}],
        ),
        InputFormat.PARQUET,
    )
    assert {c.name: (c.dtype, c.item_shape) for c in data_set.columns} == {
        "number": ("uint16", ()),
        "text": ("string", ()),
        "category": ("string", ()),
        "lists": ("float64", (None,)),
        "fixed": ("int8", (2,)),
        "tensor": ("float32", (2, 2)),
        "blob": ("bytes", ()),
        "record": ("other", ()),
    }
    rows = data_set.read(0, 2, ["category", "tensor", "fixed"])
    assert rows.columns["category"] == ["a", "b"]
    np.testing.assert_array_equal(rows.columns["tensor"], np.arange(8).reshape(2, 2, 2))
    np.testing.assert_array_equal(rows.columns["fixed"], [[1, 2], [3, 4]])


def test_a_parquet_file_with_more_than_the_cache_holds_is_read_right(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketgrid.storage.datasets.parquet.CACHE_BYTES", 1000)
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": range(1000), "b": range(1000, 2000)}), sink, row_group_size=100)
    data_set = opened(sink.getvalue(), InputFormat.PARQUET)
    for start in (0, 950, 50, 450):
        rows = data_set.read(start, start + 50, ["a", "b"])
        np.testing.assert_array_equal(rows.columns["a"], range(start, start + 50))
        np.testing.assert_array_equal(rows.columns["b"], range(start + 1000, start + 1050))


def test_decoded_row_groups_are_kept_but_only_up_to_the_bound(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": range(1000)}), sink, row_group_size=100)
    data_set = opened(sink.getvalue(), InputFormat.PARQUET)
    decoded: list[int] = []
    read_row_group = data_set._file.read_row_group
    monkeypatch.setattr(
        data_set, "_file", SimpleNamespace(
            read_row_group=lambda group, **options: decoded.append(group) or read_row_group(group, **options),
            metadata=data_set._file.metadata,
            close=data_set._file.close,
        ),
    )  # fmt: skip
    monkeypatch.setattr("pocketgrid.storage.datasets.parquet.CACHE_BYTES", 2 * 900)
    for start in (0, 50, 100, 0, 200, 100, 0):
        data_set.read(start, start + 50, ["a"])
    assert decoded == [0, 1, 2, 1, 0]
    assert data_set._cached_bytes <= 2 * 900


def test_arrays_of_an_archive_are_columns_and_scalars_are_not(opened: Opener) -> None:
    data_set = opened(
        npz(image=np.zeros((3, 2, 2), np.uint8), name=np.array(["a", "b", "c"]), version=np.int64(7)), InputFormat.NPZ
    )
    assert data_set.items == 3
    assert {c.name: c.text for c in data_set.columns} == {"image": "uint8[2,2]", "name": "string"}


def test_columns_that_cannot_be_used_say_why(opened: Opener) -> None:
    data_set = opened(
        npz(f=np.asfortranarray(np.ones((2, 3))), c=np.ones(2, np.complex64), o=np.array([{}, {}])), InputFormat.NPZ
    )
    notes = {c.name: c.note for c in data_set.columns if c.dtype == "other"}
    assert "ascontiguousarray" in notes["f"]
    assert "complex64" in notes["c"]
    assert "object" in notes["o"]


# ---- refused as a whole ----

J, T, P, A, Z = InputFormat.JSONL, InputFormat.TEXT, InputFormat.PARQUET, InputFormat.NPY, InputFormat.NPZ


@pytest.mark.parametrize(
    ("content", "file_format", "told"),
    [
        pytest.param(b"PAR1 or not", P, "not Parquet", id="text as Parquet"),
        pytest.param(b"", P, "not Parquet", id="nothing as Parquet"),
        pytest.param(b"[1]\n[2]\n", J, "list", id="JSON that is no object"),
        pytest.param(parquet(a=[1]), J, "JSON Lines", id="Parquet as JSON Lines"),
        pytest.param(b"[[1,2],[3,4]]", A, "magic", id="text as NPY"),
        pytest.param(npy(np.float32(1)), A, "scalar", id="a scalar counts no items"),
        pytest.param(npy(np.zeros((9, 9)))[:-1], A, "longer than the file", id="an array cut short"),
        pytest.param(npy(np.zeros(3)), Z, "zip", id="NPY as NPZ"),
        pytest.param(npz(a=np.zeros(2), b=np.zeros(3)), Z, "'a': 2, 'b': 3", id="arrays of different lengths"),
        pytest.param(npz(), Z, "no arrays", id="an archive of nothing"),
    ],
)
def test_what_is_not_of_its_format_is_refused(
    opened: Opener, content: bytes, file_format: InputFormat, told: str
) -> None:
    with pytest.raises(InvalidSpecError, match=told) as refusal:
        opened(content, file_format)
    assert (refusal.value.reason, refusal.value.field) == ("WrongFormat", "spec.input.format")


def test_a_compressed_archive_beyond_the_limit_is_refused_with_the_remedy(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = npz(compressed=True, a=np.zeros((100, 100)))
    assert opened(content, Z).items == 100
    monkeypatch.setattr(arrays, "UNPACKED_LIMIT_BYTES", 1000)
    with pytest.raises(InvalidSpecError, match="savez instead"):
        opened(content, Z)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("/no/such/file", "NotFound"),
        ("file:///no/such/file", "NotFound"),
        ("/etc", "Unreadable"),
        ("/dev/null", "Unreadable"),
        ("data.txt", "InvalidURI"),
        ("file://elsewhere/data.txt", "InvalidURI"),
        ("file:relative", "InvalidURI"),
        ("", "InvalidURI"),
        ("nosuchscheme://bucket/key", "UnsupportedScheme"),
        ("memory://no/such/file", "NotFound"),
    ],
)
def test_what_cannot_be_opened_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        open_data_set(InputRef(uri, T))
    assert (refusal.value.reason, refusal.value.field) == (reason, "spec.input.uri")


def test_credentials_in_a_uri_are_not_repeated() -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        open_data_set(InputRef("nosuchscheme://user:s3cret@host/key?token=s3cret", T))
    assert "s3cret" not in str(refusal.value)


# ---- where it is ----


def test_a_plain_path_may_look_like_a_uri(tmp_path: Path) -> None:
    path = tmp_path / "s3:" / "a%20b"
    path.parent.mkdir()
    path.write_text("one\n")
    data_set = open_data_set(InputRef(f"{tmp_path}/s3://a%20b", T))
    assert data_set.items == 1
    data_set.close()


@pytest.mark.parametrize("spelling", ["{path}", "file://{path}", "file://localhost{path}", "{quoted}"])
def test_a_local_file_may_be_named_in_several_ways(tmp_path: Path, spelling: str) -> None:
    path = tmp_path / "a b.txt"
    path.write_text("one\ntwo\n")
    data_set = open_data_set(InputRef(spelling.format(path=path, quoted=path.as_uri()), T))
    assert data_set.items == 2
    data_set.close()


@pytest.mark.parametrize(
    ("content", "file_format", "column", "expected"),
    [
        (b"one\ntwo\nthree", T, "text", ["two", "three"]),
        (b'{"a":1}\n{"a":2}\n{"a":3}\n', J, "a", [2, 3]),
        (parquet(a=[1, 2, 3]), P, "a", [2, 3]),
        (npy(np.array([1, 2, 3])), A, "data", [2, 3]),
        (npz(a=np.array([1, 2, 3])), Z, "a", [2, 3]),
        (npz(compressed=True, a=np.array([1, 2, 3])), Z, "a", [2, 3]),
    ],
)
def test_every_format_is_read_through_fsspec_too(
    content: bytes, file_format: InputFormat, column: str, expected: list[Any]
) -> None:
    fsspec.filesystem("memory").pipe_file("/room/data", content)
    data_set = open_data_set(InputRef("memory://room/data", file_format))
    assert data_set.items == 3
    assert list(data_set.read(1, 3, [column]).columns[column]) == expected
    data_set.close()


# ---- change ----


def test_the_fingerprint_is_stable_until_the_content_may_have_changed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("one\ntwo\n")
    os.utime(path, ns=(10**18, 10**18))

    def fingerprint() -> str:
        data_set = open_data_set(InputRef(str(path), T))
        data_set.close()
        return data_set.fingerprint

    first = fingerprint()
    path.read_bytes()
    assert fingerprint() == first
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert fingerprint() != first
    os.utime(path, ns=(10**18, 10**18))
    assert fingerprint() == first
    path.write_text("one\ntwo\nthree\n")
    os.utime(path, ns=(10**18, 10**18))
    assert fingerprint() != first


@pytest.mark.parametrize(
    ("content", "file_format"),
    [(b"a\nb\n", T), (b'{"data":1}\n' * 9, J), (parquet(data=[1, 2]), P), (npy(np.arange(9)), A)],
)
def test_a_file_that_changes_under_a_job_is_an_error_and_not_a_crash(
    tmp_path: Path, content: bytes, file_format: InputFormat
) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    data_set = open_data_set(InputRef(str(path), file_format))
    path.write_bytes(content[:2])
    with pytest.raises(StoreError, match="changed"):
        data_set.read(0, 2, [data_set.columns[0].name])
    data_set.close()


def test_a_file_rewritten_with_as_many_bytes_is_noticed_too(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("one\ntwo\n")
    data_set = open_data_set(InputRef(str(path), T))
    path.write_text("two\none\n")
    os.utime(path, ns=(10**18, 10**18))
    with pytest.raises(StoreError, match="changed"):
        data_set.read(0, 2, ["text"])
    data_set.close()


def test_a_file_that_is_replaced_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("one\ntwo\n")
    data_set = open_data_set(InputRef(str(path), T))
    (tmp_path / "new").write_text("three\n")
    (tmp_path / "new").replace(path)
    assert data_set.read(0, 2, ["text"]).columns["text"] == ["one", "two"]
    data_set.close()


def test_rows_beyond_the_end_are_a_fault_of_the_caller(opened: Opener) -> None:
    for content, file_format in ((b"a\n", T), (b'{"a":1}', J), (parquet(a=[1]), P), (npy(np.zeros(1)), A)):
        with pytest.raises(IndexError):
            opened(content, file_format).read(0, 2, [])


def test_many_threads_read_the_same_as_one(opened: Opener) -> None:
    count = 2000
    vectors = np.arange(2 * count).reshape(count, 2)
    sink = io.BytesIO()
    pq.write_table(pa.table({"v": list(vectors)}), sink, row_group_size=300)
    contents = {
        J: b"".join(json.dumps({"v": v.tolist()}).encode() + b"\n" for v in vectors),
        P: sink.getvalue(),
        A: npy(vectors),
        Z: npz(compressed=True, v=vectors),
    }
    for file_format, content in contents.items():
        data_set = opened(content, file_format)
        name = data_set.columns[0].name

        def read(start: int, data_set: DataSet = data_set, name: str = name) -> Any:
            return data_set.read(start, start + 50, [name]).columns[name]

        starts = [i * 37 % (count - 50) for i in range(300)]
        with ThreadPoolExecutor(8) as pool:
            for start, found in zip(starts, pool.map(read, starts), strict=True):
                np.testing.assert_array_equal(found, vectors[start : start + 50])


def test_parquet_columns_may_have_odd_names_and_twins_cannot_be_used(opened: Opener) -> None:
    table = pa.Table.from_arrays([pa.array([n, n]) for n in range(4)], names=["a.b", "a", "twin", "twin"])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    data_set = opened(sink.getvalue(), P)
    assert [c.dtype for c in data_set.columns] == ["int64", "int64", "other", "other"]
    rows = data_set.read(0, 2, ["a", "a.b"])
    assert {name: list(values) for name, values in rows.columns.items()} == {"a": [1, 1], "a.b": [0, 0]}


# ---- two parsers, one meaning ----


@pytest.mark.parametrize(
    "line",
    [
        b'{"x":[1,2],"n":1,"t":"a"}',
        b'{"x":[1,2],"z":Inf}',
        b'{"x":[1,2],"z":NaN}',
        b'{"x":[Infinity,2]}',
        b'{"x":[NaN,2]}',
        b'{"x":[' + b"9" * 400 + b",2]}",
        b'{"x":[1e999,2]}',
        b'{"x":[1,2],"z":"\xff"}',
        b'{"t":"\xff"}',
        b'{"t":"\\ud800"}',
        b'{"t":"\\ud83d\\ude00\\u0000"}',
        b'{"n":1,"n":2}',
        b'{"n":null}',
        b'{"n":-0,"x":[-0.0,5e-324]}',
        b'{"n":9223372036854775808}',
        b'{"n":1.0}',
        b'{"n":true}',
        b'{"t":1}',
        b'{"x":[1,null]}',
        b'{"x":[]}',
        b'{"x":[[1],[2]]}',
        b'{"x":[0.1234567890123456789,12345678901234567890.0]}',
        b"{}",
        b"null",
        b"null{}",
        b"{}{}",
        b"{}null{}",
        b'{"n":01}',
        b'{"n":1,}',
        b"{'n':1}",
        b'{"\\u006e":5}',
        b"{}\x00",
        b'{"t":"\t"}',
        b' {"n":1} ',
        b'{"n":1}\r',
    ],
)
@pytest.mark.parametrize("columns", [["x"], ["n"], ["t"], ["x", "n", "t"]])
def test_a_json_line_means_what_python_reads(opened: Opener, line: bytes, columns: list[str]) -> None:
    data_set = opened(b'{"x":[0.5,1],"n":1,"t":"a"}\n' + line + b'\n{"n":2}', InputFormat.JSONL)
    rows = data_set.read(1, 2, columns)
    try:
        meant = json.loads(line)
    except ValueError:
        meant = None
    if not isinstance(meant, dict):
        assert [f.reason for f in rows.failures] == ["InvalidJSON"]
        return
    assert not rows.failures
    for name in columns:
        found = rows.columns[name]
        value = found.tolist()[0] if isinstance(found, np.ndarray) else found[0]
        expected = meant.get(name, ABSENT)
        assert value == expected or repr(value) == repr(expected)


# ---- large row groups ----


@pytest.fixture
def in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every column of every row group were too large to be decoded as a whole."""
    monkeypatch.setattr("pocketgrid.storage.datasets.parquet.WHOLE_BYTES", 0)
    monkeypatch.setattr("pocketgrid.storage.datasets.parquet.BATCH_BYTES", 900)


@pytest.mark.usefixtures("in_batches")
def test_a_large_row_group_is_read_in_any_order(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketgrid.storage.datasets.parquet.CACHE_BYTES", 3000)
    vectors = np.arange(4000).reshape(1000, 4)
    sink = io.BytesIO()
    table = pa.table({"id": [str(i) for i in range(1000)], "v": list(vectors), "a.b": range(1000)})
    pq.write_table(table, sink, row_group_size=700)
    data_set = opened(sink.getvalue(), P)
    for start in (0, 10, 500, 650, 40, 990, 0, 695):
        rows = data_set.read(start, start + 10, ["v", "id", "a.b"])
        np.testing.assert_array_equal(rows.columns["v"], vectors[start : start + 10])
        assert rows.columns["id"] == [str(i) for i in range(start, start + 10)]
        assert data_set._cached_bytes <= 3000
    np.testing.assert_array_equal(data_set.read(0, 1000, ["v"]).columns["v"], vectors)


@pytest.mark.usefixtures("in_batches")
def test_a_large_row_group_is_decoded_once_from_front_to_back(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": range(1000)}), sink)
    data_set = opened(sink.getvalue(), P)
    data_set.read(0, 1, ["a"])
    begun: list[int] = []
    real = data_set._buffering
    monkeypatch.setattr(
        data_set, "_buffering", SimpleNamespace(
            iter_batches=lambda *a, **options: begun.append(1) or real.iter_batches(*a, **options), close=real.close
        ),
    )  # fmt: skip
    for start in range(0, 1000, 50):
        np.testing.assert_array_equal(data_set.read(start, start + 50, ["a"]).columns["a"], range(start, start + 50))
    assert not begun
    data_set._cache.clear()
    data_set.read(0, 1, ["a"])
    assert len(begun) == 1


@pytest.mark.usefixtures("in_batches")
def test_row_groups_that_are_read_through_leave_nothing_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketgrid.storage.datasets.parquet.BATCH_BYTES", 1 << 20)
    monkeypatch.setattr("pocketgrid.storage.datasets.parquet.CACHE_BYTES", 4 << 20)
    rows, groups, step = 20_000, 12, 5_000
    path = tmp_path / "data"
    values = np.random.default_rng(1).random((rows, 64))
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 64)})
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(groups):
            writer.write_table(table)
    before = pa.total_allocated_bytes()
    data_set = open_data_set(InputRef(str(path), P))
    held = []
    for start in range(0, rows * groups, step):
        found = data_set.read(start, start + step, ["x"]).columns["x"]
        np.testing.assert_array_equal(found, values[start % rows :][:step])
        del found
        held.append(pa.total_allocated_bytes() - before)
    data_set.close()
    half = len(held) // 2
    assert max(held[half:]) < 1.2 * max(held[:half]), held


@pytest.mark.usefixtures("in_batches")
def test_a_large_row_group_that_changes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(parquet(a=np.random.default_rng(1).random(400_000)))
    data_set = open_data_set(InputRef(str(path), P))
    data_set.read(0, 10, ["a"])
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="changed"):
        data_set.read(0, 400_000, ["a"])
    data_set.close()


def test_rows_that_weigh_much_are_read_a_few_at_a_time(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = opened(parquet(blob=[bytes(1000)] * 100), P)
    assert list(data_set.bites(0, 100)) == [(0, 100)]
    monkeypatch.setattr("pocketgrid.storage.datasets.parquet.BITE_BYTES", 100)
    bites = list(data_set.bites(0, 100))
    assert len(bites) > 5
    assert [row for begin, end in bites for row in range(begin, end)] == list(range(100))
    assert list(data_set.bites(7, 7)) == [(7, 7)]
