"""Files as items: their columns and keys, and files that fail alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pocketgrid.errors import InputChangedError, InvalidSpecError, StoreError
from pocketgrid.model.job import InputFormat, InputRef
from pocketgrid.storage.datasets import DataSet, files, open_data_set
from pocketgrid.storage.datasets.base import BINARY

EVERY = ["path", "size", "bytes"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for name, content in {"b.png": b"bb", "a.png": b"a", "sub/c.png": b"", "__init__.py": b"#", ".rc": b"x"}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def opened(request: pytest.FixtureRequest, *uris: str) -> DataSet:
    ref = InputRef("", InputFormat.FILES, uris=uris)
    data_set = open_data_set(ref)
    request.addfinalizer(data_set.close)
    return data_set


def test_every_file_of_a_folder_is_an_item(tree: Path, request: pytest.FixtureRequest) -> None:
    data_set = opened(request, f"{tree}/")
    assert [(c.name, c.dtype) for c in data_set.columns] == [("path", "string"), ("size", "int64"), ("bytes", BINARY)]
    rows = data_set.read(0, data_set.items, EVERY)
    assert rows.columns["path"] == [".rc", "__init__.py", "a.png", "b.png", "sub/c.png"]
    assert rows.columns["size"].tolist() == [1, 1, 1, 2, 0]
    assert rows.columns["bytes"] == [b"x", b"#", b"a", b"bb", b""]
    assert not rows.failures


def test_paths_are_seen_from_the_folder_or_from_where_the_wildcards_begin(
    tree: Path, request: pytest.FixtureRequest
) -> None:
    data_set = opened(request, f"{tree}/**/*.png", f"file://{tree}/.rc")
    rows = data_set.read(0, data_set.items, EVERY)
    assert rows.columns["path"] == ["a.png", "b.png", "sub/c.png", ".rc"]
    assert rows.columns["bytes"] == [b"a", b"bb", b"", b"x"]


def test_the_path_is_the_key_unless_another_is_named() -> None:
    assert InputRef("/x/", InputFormat.FILES).key == "path"
    assert InputRef("/x/", InputFormat.FILES, key="size").key == "size"
    assert InputRef("/x/", InputFormat.TEXT).key == ""


def fail_to_open(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """What opening a file of that name says; for root, permissions would say nothing."""
    real = Path.open

    def open_or_fail(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == name:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, "open", open_or_fail)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ELOOP])
def test_an_unreadable_file_fails_alone_with_its_reason(
    tree: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    data_set = opened(request, f"{tree}/")
    fail_to_open(monkeypatch, "a.png", number)
    rows = data_set.read(1, 4, EVERY)
    assert [(f.row, f.reason) for f in rows.failures] == [(1, "UnreadableFile")]
    assert rows.failures[0].message == f"row 2: the file cannot be read: {os.strerror(number)} (a.png)"
    assert rows.columns["bytes"][0::2] == [b"#", b"bb"]
    assert rows.columns["path"][1] == "a.png"


def test_a_link_to_nothing_fails_alone(tree: Path, request: pytest.FixtureRequest) -> None:
    (tree / "a.png").unlink()
    (tree / "a.png").symlink_to(tree / "nowhere")
    rows = opened(request, f"{tree}/").read(0, 5, EVERY)
    assert [(f.row, f.reason) for f in rows.failures] == [(2, "UnreadableFile")]
    assert "No such file" in rows.failures[0].message


def test_a_file_beyond_the_limit_fails_alone_and_is_not_read(
    tree: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LIMIT_BYTES", 1)
    fail_to_open(monkeypatch, "b.png", errno.EIO)
    rows = opened(request, f"{tree}/").read(0, 5, EVERY)
    assert [(f.row, f.reason) for f in rows.failures] == [(3, "FileTooLarge")]
    assert "2 bytes; 1 are the most (b.png)" in rows.failures[0].message


@pytest.mark.parametrize("columns", [["path"], ["size"], []])
def test_files_are_only_read_for_their_bytes(
    tree: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, columns: list[str]
) -> None:
    data_set = opened(request, f"{tree}/")
    fail_to_open(monkeypatch, "a.png", errno.EIO)
    assert not data_set.read(0, 5, columns).failures


def test_a_file_that_changed_or_went_breaks_the_data_set_by_name(tree: Path, request: pytest.FixtureRequest) -> None:
    data_set = opened(request, f"{tree}/")
    (tree / "a.png").write_bytes(b"longer")
    with pytest.raises(InputChangedError, match=r"a\.png changed .* its size went from 1 to 6 bytes"):
        data_set.read(0, 5, EVERY)
    (tree / "b.png").unlink()
    with pytest.raises(InputChangedError, match=r"b\.png changed .* it was removed"):
        data_set.read(3, 5, EVERY)


def test_a_folder_that_is_not_there_just_now_is_out_of_reach_and_not_changed(
    tree: Path, request: pytest.FixtureRequest
) -> None:
    data_set = opened(request, f"{tree}/")
    tree.rename(tree.with_name("away"))
    for mounted in (False, True):
        if mounted:
            tree.mkdir()  # the empty folder on which something is mounted otherwise
        with pytest.raises(StoreError) as away:
            data_set.read(0, 5, EVERY)
        assert not isinstance(away.value, InputChangedError)
    tree.rmdir()
    tree.with_name("away").rename(tree)
    assert not data_set.read(0, 5, EVERY).failures


def test_large_files_are_read_a_few_at_a_time(
    tree: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_set = opened(request, f"{tree}/")
    monkeypatch.setattr(files, "BITE_BYTES", 2)
    assert list(data_set.bites(0, 5)) == [(0, 2), (2, 3), (3, 5)]
    monkeypatch.setattr(files, "LIMIT_BYTES", 1)
    assert list(data_set.bites(0, 5)) == [(0, 2), (2, 5)]
    assert list(data_set.bites(3, 3)) == [(3, 3)]


def test_the_fingerprint_covers_names_sizes_and_times(tree: Path, request: pytest.FixtureRequest) -> None:
    def fingerprint() -> str:
        return opened(request, f"{tree}/").fingerprint

    prints = [fingerprint()]
    assert fingerprint() == prints[0]
    os.utime(tree / "a.png", ns=(10**18, 10**18))
    prints.append(fingerprint())
    (tree / "a.png").rename(tree / "aa.png")
    prints.append(fingerprint())
    (tree / "new").touch()
    prints.append(fingerprint())
    assert len(set(prints)) == 4


def test_names_that_are_no_text_do_not_stop_the_others(tree: Path, request: pytest.FixtureRequest) -> None:
    (tree / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    rows = opened(request, f"{tree}/").read(0, 6, EVERY)
    assert not rows.failures
    assert os.fsencode(rows.columns["path"][-1]) == b"\xff.png"


def test_more_files_than_fit_are_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketgrid.storage.datasets.MOST_ITEM_FILES", 3)
    with pytest.raises(InvalidSpecError) as refusal:
        open_data_set(InputRef(f"{tree}/", InputFormat.FILES))
    assert refusal.value.reason == "TooManyFiles"
