"""Several files as one data set: which files a URI names, in which order, and what they must have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketgrid.errors import InputChangedError, InvalidSpecError, StoreError
from pocketgrid.model.job import ColumnBinding, CsvOptions, InputFormat, InputRef
from pocketgrid.model.tensors import ModelSignature, TensorSpec
from pocketgrid.storage import datasets
from pocketgrid.storage.datasets import open_data_set
from pocketgrid.storage.encoding import open_encoder
from pocketgrid.storage.places.patterns import Pattern, split_pattern

T, J, P, A, C = InputFormat.TEXT, InputFormat.JSONL, InputFormat.PARQUET, InputFormat.NPY, InputFormat.CSV
NOBODY = 65534
X = ModelSignature((TensorSpec("X", "float32", ("N",)),), (), 17, 9)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Every file holds its own path; some are not data by their names."""
    for name in ("b.txt", "a.txt", "a.csv", "sub/c.txt", "sub/deep/d.txt", ".hidden.txt", "_private.txt", "_log/e.txt"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    return tmp_path / "data"


def texts(*uris: str) -> list[str]:
    ref = InputRef("", T, uris=uris) if len(uris) > 1 else InputRef(uris[0], T)
    data_set = open_data_set(ref)
    try:
        return list(data_set.read(0, data_set.items, ["text"]).columns["text"])
    finally:
        data_set.close()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# ---- which files ----


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["a.csv", "a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]),
        ("sub/", ["sub/c.txt", "sub/deep/d.txt"]),
        ("*.txt", ["_private.txt", "a.txt", "b.txt"]),
        ("[!_]*.txt", ["a.txt", "b.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["_log/e.txt", "_private.txt", "a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]),
        ("**/d*", ["sub/deep/d.txt"]),
        ("sub/**", ["sub/c.txt", "sub/deep/d.txt"]),
        ("sub*/*", ["sub/c.txt"]),
        ("s[tu]b/*/", ["sub/deep/d.txt"]),
        (".h*", [".hidden.txt"]),
        ("a.{txt}", None),
        ("*.json", None),
        ("sub/deep/", ["sub/deep/d.txt"]),
        ("nothing/", None),
        ("nothing/*", None),
        ("nothing.txt", None),
        ("sub", None),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_uri_names_these_files_in_the_order_of_their_names(
    tree: Path, scheme: str, pattern: str, found: list[str] | None
) -> None:
    uri = f"{scheme}{tree}/{pattern}"
    if found is None:
        with pytest.raises(InvalidSpecError) as refusal:
            texts(uri)
        assert refusal.value.reason in ("NotFound", "Unreadable")
        assert refusal.value.field == "spec.input.uri"
        assert str(tree) in str(refusal.value)
    else:
        assert texts(uri) == found


def test_places_keep_the_order_in_which_they_are_listed(tree: Path) -> None:
    assert texts(f"{tree}/sub/", f"{tree}/b.txt", f"{tree}/a.*") == [
        "sub/c.txt", "sub/deep/d.txt", "b.txt", "a.csv", "a.txt"
    ]  # fmt: skip


def test_an_existing_file_and_an_encoded_wildcard_are_no_globs(tree: Path) -> None:
    (tree / "a*.txt").write_text("star\n")
    assert texts(f"{tree}/a*.txt") == ["star"]
    assert texts(f"file://{tree}/a%2A.txt") == ["star"]
    assert texts(f"file://{tree}/a[*]*") == ["star"]
    (tree / "a*.txt").unlink()
    assert texts(f"{tree}/a*.txt") == ["a.txt"]
    with pytest.raises(InvalidSpecError, match="there is no file"):
        texts(f"file://{tree}/a%2A.txt")


def test_a_file_that_is_named_twice_is_refused(tree: Path) -> None:
    with pytest.raises(InvalidSpecError, match=r"b\.txt is named twice") as refusal:
        texts(f"{tree}/b.txt", f"{tree}/*.txt")
    assert (refusal.value.reason, refusal.value.field) == ("DuplicateFile", "spec.input.uris[1]")


def test_too_many_files_are_refused_with_the_remedy(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MOST_FILES", 4)
    with pytest.raises(InvalidSpecError, match="more than 4 files; pack them") as refusal:
        texts(f"{tree}/")
    assert refusal.value.reason == "TooManyFiles"


def test_links_to_folders_are_not_followed_round_in_circles(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "sub" / "link.txt").symlink_to(tree / "a.txt")
    assert texts(f"{tree}/sub/") == ["sub/c.txt", "sub/deep/d.txt", "a.txt"]


def test_what_is_no_file_is_left_out_of_a_folder(tree: Path) -> None:
    os.mkfifo(tree / "sub" / "pipe")
    assert texts(f"{tree}/sub/") == ["sub/c.txt", "sub/deep/d.txt"]


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """For root, who may read everything, with the rights of somebody who owns nothing."""
    folder.chmod(0o755)
    effective = os.geteuid()
    os.seteuid(NOBODY if effective == 0 else effective)
    try:
        yield
    finally:
        os.seteuid(effective)


@pytest.mark.parametrize(("forbidden", "named"), [("sub", "sub"), ("sub/c.txt", "c.txt")])
def test_a_folder_or_file_that_may_not_be_read_is_refused_by_name(forbidden: str, named: str) -> None:
    # Below pytest's own folder nobody but its owner may go.
    with TemporaryDirectory() as folder:
        (Path(folder) / "sub").mkdir()
        (Path(folder) / "sub/c.txt").write_text("c\n")
        (Path(folder) / forbidden).chmod(0)
        with as_nobody(Path(folder)), pytest.raises(InvalidSpecError, match="Permission denied") as refusal:
            texts(f"{folder}/")
        (Path(folder) / forbidden).chmod(0o755)
    assert named in str(refusal.value)
    assert refusal.value.field == "spec.input.uri"


def test_a_file_among_others_that_cannot_be_read_is_refused_by_name(tree: Path) -> None:
    (tree / "sub" / "gone.txt").symlink_to(tree / "nowhere")
    with pytest.raises(InvalidSpecError, match=r"gone\.txt") as refusal:
        texts(f"{tree}/sub/")
    assert refusal.value.field == "spec.input.uri"


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/a/b.txt", None),
        ("/a/b/", Pattern("/a/b/", ())),
        ("/a/*.txt", Pattern("/a/", ("*.txt",))),
        ("b/**/c?", Pattern("b/", ("**", "c?"))),
        ("*", Pattern("", ("*",))),
        ("/a/[bc]/", Pattern("/a/", ("[bc]", "**"))),
    ],
)
def test_a_pattern_is_taken_apart_at_its_first_wildcard(path: str, pattern: Pattern | None) -> None:
    assert split_pattern(path) == pattern


@pytest.mark.parametrize(
    ("segments", "matching", "others"),
    [
        (("**",), ["a", "a/b", "a/b/c"], [".a", "a/.b", ".a/b"]),
        (("**", "x"), ["x", "a/x", "a/b/x"], ["a", "x/a", "a/xx", ".a/x"]),
        (("a", "**", "x"), ["a/x", "a/b/x", "a/b/c/x", "a/x/x"], ["x", "b/x", "a/b", "a"]),
        (("**", "a", "**"), ["a/x", "b/a/x", "a/a", "a/b/c"], ["a", "b/a", "b"]),
        (("**", "**", "x"), ["x", "a/x"], ["a"]),
        (("*", "x"), ["a/x"], ["x", "a/b/x", ".a/x"]),
    ],
)
def test_double_stars_stand_for_any_number_of_folders(
    segments: tuple[str, ...], matching: list[str], others: list[str]
) -> None:
    pattern = Pattern("/", segments)
    assert [name for name in (*matching, *others) if pattern.matches(name, everything=False)] == matching
    for name in matching:
        folders = name.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            assert pattern.may_hold("/".join(folders[:depth]), everything=False)


def test_stores_behind_fsspec_have_folders_and_globs_too() -> None:
    store = fsspec.filesystem("memory")
    for name in ("b.txt", "a.txt", "sub/c.txt", "_log"):
        store.pipe_file(f"/listing/{name}", name.encode())
    assert texts("memory://listing/") == ["a.txt", "b.txt", "sub/c.txt"]
    assert texts("memory://listing/*.txt") == ["a.txt", "b.txt"]
    assert texts("memory://listing/**/[ac].txt", "memory://listing/_log") == ["a.txt", "sub/c.txt", "_log"]
    data_set = open_data_set(InputRef("memory://listing/", InputFormat.FILES))
    rows = data_set.read(0, data_set.items, ["path", "bytes"])
    data_set.close()
    assert rows.columns["path"] == ["_log", "a.txt", "b.txt", "sub/c.txt"]
    assert rows.columns["bytes"][3] == b"sub/c.txt"
    with pytest.raises(InvalidSpecError) as refusal:
        texts("memory://listing/*.csv")
    assert refusal.value.reason == "NotFound"


# ---- one data set ----


def write_parquet(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


def test_rows_are_numbered_through_and_failures_say_where(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    (tmp_path / "2.jsonl").write_text("")
    (tmp_path / "3.jsonl").write_text('{"x": 3}\nnot json\n{"x": 5}\n')
    encoder = open_encoder(InputRef(f"{tmp_path}/*.jsonl", J, columns=(ColumnBinding("x", "X"),)), X)
    assert encoder.items == 5
    shard = encoder.encode(1, 5)
    assert np.frombuffer(shard.inputs[0].data, np.float32).tolist() == [2, 3, 5]
    assert [(f.row, f.reason) for f in shard.failures] == [(2, "InvalidJSON")]
    assert shard.failures[0].message.startswith("row 3: ")
    assert f"(row 1 of {tmp_path}/3.jsonl)" in shard.failures[0].message
    assert encoder.keys(1, 4).to_pylist() == [1, 2, 3]
    encoder.close()


def test_arrays_of_several_files_are_joined_without_lists(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.full((4, 2), index, np.uint8))
    data_set = open_data_set(InputRef(f"{tmp_path}/", A))
    rows = data_set.read(2, 10, ["data"]).columns["data"]
    data_set.close()
    assert isinstance(rows, np.ndarray)
    assert rows[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 2, 2]


def needing(path: Path, file_format: InputFormat, key: str = "") -> InputRef:
    return InputRef(f"{path}/", file_format, key=key, columns=(ColumnBinding("x", "X"),))


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        pytest.param({"x": [1.0]}, {"y": [1.0]}, "2.parquet has no column 'x', but .*1.parquet has", id="not there"),
        pytest.param({"y": [1.0]}, {"x": [1.0]}, "1.parquet has no column 'x', but .*2.parquet has", id="only later"),
        pytest.param({"x": [1.0]}, {"x": ["a"]}, "'x' is string in .*2.parquet, but float64 in", id="another type"),
        pytest.param({"x": [1.0]}, {"x": [[1.0]]}, r"'x' is float64\[\?\] in .*2.parquet", id="another shape"),
        pytest.param({"x": [1.0]}, {"x": [True]}, "'x' is bool in .*2.parquet", id="truth values are no numbers"),
    ],
)
def test_a_needed_column_that_differs_is_refused_by_file_and_name(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], told: str
) -> None:
    write_parquet(tmp_path / "1.parquet", **first)
    write_parquet(tmp_path / "2.parquet", **second)
    with pytest.raises(InvalidSpecError, match=told) as refusal:
        open_data_set(needing(tmp_path, P))
    assert (refusal.value.reason, refusal.value.field) == ("SchemaDiffers", "spec.input.uri")


def test_columns_that_nobody_needs_may_differ_but_not_be_asked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "1.parquet", x=[1.0], y=[1], z=["a"])
    write_parquet(tmp_path / "2.parquet", x=[2.0], y=["b"], w=[1])
    data_set = open_data_set(needing(tmp_path, P))
    assert {c.name: c.dtype for c in data_set.columns} == {"x": "float64", "y": "other", "z": "other", "w": "other"}
    assert "2.parquet has no column 'z'" in next(c.note for c in data_set.columns if c.name == "z")
    data_set.close()


@pytest.mark.parametrize(
    ("first", "second", "dtype"),
    [("int32", "int64", "int64"), ("float64", "float32", "float64"), ("uint8", "int16", "int16")],
)
def test_numbers_of_different_width_are_widened(tmp_path: Path, first: str, second: str, dtype: str) -> None:
    write_parquet(tmp_path / "1.parquet", x=np.array([1, 2], first))
    write_parquet(tmp_path / "2.parquet", x=np.array([3, 4], second))
    data_set = open_data_set(needing(tmp_path, P))
    assert data_set.columns[0].dtype == dtype
    assert list(data_set.read(1, 4, ["x"]).columns["x"]) == [2, 3, 4]
    data_set.close()


def test_json_files_may_differ_as_lines_of_one_file_may(tmp_path: Path) -> None:
    lines = {
        "1": [{"x": 1, "id": 1, "only": 1}],
        "2": [{"x": 2.5, "id": "b"}, {"x": None, "id": "c"}],
        "3": [{"x": None, "id": 4}, {"id": 5}],
    }
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    encoder = open_encoder(needing(tmp_path, J, key="id"), X)
    shard = encoder.encode(0, 5)
    assert np.frombuffer(shard.inputs[0].data, np.float32).tolist() == [1, 2.5]
    assert {f.row: f.reason for f in shard.failures} == {2: "NullValue", 3: "NullValue", 4: "MissingColumn"}
    assert encoder.keys(0, 5).to_pylist() == ["1", "b", "c", "4", "5"]
    encoder.close()


def test_a_json_file_without_the_needed_column_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "2.jsonl").write_text('{"y": 1}\n')
    with pytest.raises(InvalidSpecError, match=r"2\.jsonl has no column 'x'"):
        open_data_set(needing(tmp_path, J))


def test_an_empty_file_among_others_needs_no_columns_but_none_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("")
    (tmp_path / "2.csv").write_text("x\n1\n")
    (tmp_path / "3.csv").write_text("x\n")
    encoder = open_encoder(needing(tmp_path, C), X)
    assert encoder.items == 1
    encoder.close()
    (tmp_path / "2.csv").unlink()
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(needing(tmp_path, C), X)
    assert refusal.value.reason == "EmptyDataSet"


def test_csv_files_may_have_their_columns_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("x,id\n1,a\n")
    (tmp_path / "2.csv").write_text("id,x\nb,2\n")
    encoder = open_encoder(needing(tmp_path, C, key="id"), X)
    assert np.frombuffer(encoder.encode(0, 2).inputs[0].data, np.float32).tolist() == [1, 2]
    assert encoder.keys(0, 2).to_pylist() == ["a", "b"]
    encoder.close()


def test_many_files_are_not_all_kept_open(tmp_path: Path) -> None:
    count = 200
    for index in range(count):
        np.save(tmp_path / f"{index:03}.npy", np.array([index]))
    before = open_descriptors()
    data_set = open_data_set(InputRef(f"{tmp_path}/*.npy", A))
    assert data_set.read(0, count, ["data"]).columns["data"].tolist() == list(range(count))
    assert open_descriptors() < before + 10
    data_set.close()


def test_many_tables_are_not_all_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_KEPT_OPEN", 2)
    for index in range(9):
        write_parquet(tmp_path / f"{index}.parquet", x=[index] * 10)
    data_set = open_data_set(InputRef(f"{tmp_path}/", P))
    with ThreadPoolExecutor(4) as pool:
        starts = [7 * i % 80 for i in range(200)]
        for start, rows in zip(starts, pool.map(lambda s: data_set.read(s, s + 10, ["x"]), starts), strict=True):
            assert rows.columns["x"].tolist() == [row // 10 for row in range(start, start + 10)]
    data_set.read(0, 10, ["x"])  # alone, so that none of the others is being read
    assert sum(part._file is not None for part in data_set._parts) <= 3  # type: ignore[attr-defined]
    data_set.close()


# ---- change ----


def fingerprint(ref: InputRef) -> str:
    data_set = open_data_set(ref)
    data_set.close()
    return data_set.fingerprint


def test_the_fingerprint_covers_every_file_its_name_and_the_order(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / f"{name}.csv").write_text("x\n1\n")
        os.utime(tmp_path / f"{name}.csv", ns=(10**18, 10**18))
    ref = InputRef(f"{tmp_path}/", C)
    one, two = f"{tmp_path}/1.csv", f"{tmp_path}/2.csv"
    prints = [
        fingerprint(ref),
        fingerprint(InputRef("", C, uris=(two, one))),
        fingerprint(InputRef(one, C)),
        fingerprint(InputRef(one, C, csv=CsvOptions(";"))),
        fingerprint(InputRef(one, C, csv=CsvOptions(",", ("x",)))),
    ]
    assert fingerprint(InputRef("", C, uris=(one, two))) == prints[0] == fingerprint(ref)
    os.utime(tmp_path / "2.csv", ns=(10**18, 10**18 + 1))
    prints.append(fingerprint(ref))
    (tmp_path / "2.csv").rename(tmp_path / "3.csv")
    prints.append(fingerprint(ref))
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("kept_open", [0, 64])
def test_a_file_that_changes_names_itself_and_one_out_of_reach_may_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_open: int
) -> None:
    monkeypatch.setattr(datasets, "_KEPT_OPEN", kept_open)
    for name in ("1", "2"):
        (tmp_path / f"{name}.txt").write_text("one\ntwo\n")
    data_set = open_data_set(InputRef(f"{tmp_path}/", T))
    if not kept_open:
        (tmp_path / "1.txt").rename(tmp_path / "away")
        with pytest.raises(StoreError) as away:
            data_set.read(0, 1, ["text"])
        assert not isinstance(away.value, InputChangedError)
        (tmp_path / "away").rename(tmp_path / "1.txt")
    assert data_set.read(0, 4, ["text"]).columns["text"] == ["one", "two"] * 2
    (tmp_path / "2.txt").write_text("one\n")
    assert data_set.read(0, 2, ["text"]).columns["text"] == ["one", "two"]
    with pytest.raises(
        InputChangedError, match=r"2\.txt changed while a job reads it: its size went from 8 to 4 bytes"
    ):
        data_set.read(0, 4, ["text"])
    data_set.close()
