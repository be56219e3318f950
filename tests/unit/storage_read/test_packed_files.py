"""Compressed files of lines: the same rows as unpacked, within bounds of disk and memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pocketgrid.errors import InputChangedError, InvalidSpecError
from pocketgrid.model.job import Compression, InputFormat, InputRef
from pocketgrid.storage.datasets import open_data_set
from pocketgrid.storage.places import spool

T, J, C = InputFormat.TEXT, InputFormat.JSONL, InputFormat.CSV


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


PACKERS: dict[str, tuple[Callable[[bytes], bytes], Compression]] = {
    ".gz": (gzip.compress, Compression.GZIP),
    ".bz2": (bz2.compress, Compression.BZIP2),
    ".xz": (lzma.compress, Compression.XZ),
    ".zst": (zstd, Compression.ZSTD),
}
LINES = [f"line {i}" for i in range(3000)]
TEXT = "\n".join(LINES).encode()


def texts(ref: InputRef, spool_folder: Path | None = None) -> list[str]:
    data_set = open_data_set(ref, spool_folder=spool_folder)
    try:
        read = list(data_set.read(0, data_set.items, ["text"]).columns["text"])
        assert data_set.read(17, 19, ["text"]).columns["text"] == read[17:19]
    finally:
        data_set.close()
    return read


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("suffix", PACKERS)
def test_the_name_says_how_a_file_is_packed(tmp_path: Path, suffix: str) -> None:
    pack, _ = PACKERS[suffix]
    path = tmp_path / f"data.txt{suffix}"
    path.write_bytes(pack(TEXT))
    assert texts(InputRef(str(path), T)) == LINES


@pytest.mark.parametrize("suffix", PACKERS)
def test_the_manifest_may_say_it_instead(tmp_path: Path, suffix: str) -> None:
    pack, compression = PACKERS[suffix]
    path = tmp_path / "data"
    path.write_bytes(pack(TEXT))
    assert texts(InputRef(str(path), T, compression=compression)) == LINES


def test_a_name_may_be_contradicted(tmp_path: Path) -> None:
    path = tmp_path / "data.gz"
    path.write_bytes(TEXT)
    assert texts(InputRef(str(path), T, compression=Compression.NONE)) == LINES


@pytest.mark.parametrize("suffix", PACKERS)
def test_files_packed_piece_by_piece_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    pack, _ = PACKERS[suffix]
    path = tmp_path / f"data.txt{suffix}"
    path.write_bytes(b"".join(pack(TEXT[i : i + 5000]) for i in range(0, len(TEXT), 5000)))
    assert texts(InputRef(str(path), T)) == LINES


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("spoil", ["cut short", "not packed", "damaged"])
def test_what_cannot_be_unpacked_is_refused(tmp_path: Path, suffix: str, spoil: str) -> None:
    pack, _ = PACKERS[suffix]
    packed = pack(random.Random(1).randbytes(20_000).hex().encode())
    content = {"cut short": packed[:-600], "not packed": TEXT, "damaged": packed[:12] + b"\xff" * 40 + packed[52:]}
    path = tmp_path / f"data.txt{suffix}"
    path.write_bytes(content[spoil])
    before = open_descriptors()
    with pytest.raises(InvalidSpecError, match="cannot be unpacked as") as refusal:
        open_data_set(InputRef(str(path), T))
    assert (refusal.value.reason, refusal.value.field) == ("WrongFormat", "spec.input.compression")
    assert open_descriptors() <= before


def test_lines_of_every_format_may_be_packed(tmp_path: Path) -> None:
    for name, content, file_format in (("a.jsonl.gz", b'{"x":1}\n{"x":2}', J), ("a.csv.gz", b"x\n1\n2\n", C)):
        (tmp_path / name).write_bytes(gzip.compress(content))
        data_set = open_data_set(InputRef(str(tmp_path / name), file_format), types={"x": "int64"})
        assert list(data_set.read(0, 2, ["x"]).columns["x"]) == [1, 2]
        data_set.close()


def test_packed_and_plain_files_may_be_one_data_set_with_one_copy(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index:02}.txt.gz").write_bytes(gzip.compress(f"{index}".encode()))
    (tmp_path / "99.txt").write_text("plain")
    before = open_descriptors()
    data_set = open_data_set(InputRef(f"{tmp_path}/", T))
    assert open_descriptors() == before + 2  # the copy, and the plain file
    assert data_set.read(0, 21, ["text"]).columns["text"] == [*map(str, range(20)), "plain"]
    data_set.close()
    assert open_descriptors() == before


def test_copies_are_kept_where_they_are_told_and_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.txt.gz"
    path.write_bytes(gzip.compress(TEXT))
    assert texts(InputRef(str(path), T), tmp_path / "scratch") == LINES
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize(("limit", "value"), [("LIMIT_BYTES", 1000), ("KEPT_FREE_BYTES", 1 << 60)])
def test_a_copy_stays_within_its_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    path = tmp_path / "data.txt.gz"
    path.write_bytes(gzip.compress(b"\n" * 5_000_000))  # a thousand times as much as it seems
    monkeypatch.setattr(spool, limit, value)
    with pytest.raises(InvalidSpecError, match="store it unpacked") as refusal:
        open_data_set(InputRef(str(path), T))
    assert (refusal.value.reason, refusal.value.field) == ("Unreadable", "spec.input.uri")
    assert str(path) in str(refusal.value)


def test_a_folder_for_copies_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    path = tmp_path / "data.txt.gz"
    path.write_bytes(gzip.compress(TEXT))
    with pytest.raises(InvalidSpecError, match="cannot keep an unpacked copy"):
        open_data_set(InputRef(str(path), T), spool_folder=path / "below a file")


def test_a_packed_file_may_change_once_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "data.txt.gz"
    path.write_bytes(gzip.compress(TEXT))
    data_set = open_data_set(InputRef(str(path), T))
    path.write_bytes(b"gone")
    assert data_set.read(0, 3, ["text"]).columns["text"] == LINES[:3]
    data_set.close()


def test_a_packed_file_that_changes_while_it_is_unpacked_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(9 << 20)))
    real = spool.Spool._check_room

    def change(self: spool.Spool, *args: object) -> None:
        os.utime(path, ns=(10**18, 10**18))
        real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(spool.Spool, "_check_room", change)
    with pytest.raises(InputChangedError, match="changed while"):
        open_data_set(InputRef(str(path), T))
