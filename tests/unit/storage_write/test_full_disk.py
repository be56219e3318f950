"""A full disk for real: nothing half-acknowledged, nothing lost, and work goes on once there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROCESS = Path(__file__).with_name("full_disk_process.py")
PLACES = Path(__file__).with_name("full_places_process.py")


def run(folder: Path, limit: int) -> str:
    return ended(PROCESS, str(folder), str(limit))


def ended(process: Path, *arguments: str) -> str:
    """What a process that ended well has said."""
    command = [sys.executable, str(process), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mounted(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "pocketgrid-test", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "small", "1m")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "tiny", "64k")


@pytest.mark.parametrize("limit", [9_000, 70_000])
def test_a_file_that_may_not_grow(tmp_path: Path, limit: int) -> None:
    """9,000 bytes stop the log first, 70,000 the staged data."""
    assert "then fine" in run(tmp_path, limit)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system can be mounted by root only")
def test_a_file_system_without_space(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(800 << 10))
    assert "then fine" in run(small_disk, 0)


LINES = ["log full, then fine", "staging full, then fine", "part full, then fine", "manifest full, then fine"]


def test_files_that_may_not_grow_at_each_place(tmp_path: Path) -> None:
    """Commit log, staged results, a part, the manifest, each for itself; needs no rights."""
    said = ended(PLACES, str(tmp_path)).splitlines()
    assert [line.partition(";")[0] for line in said] == LINES
    assert all(line.endswith("not opened meanwhile") for line in said)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system can be mounted by root only")
def test_no_space_at_each_place(small_disk: Path, tiny_disk: Path) -> None:
    said = ended(PLACES, str(small_disk), str(tiny_disk)).splitlines()
    assert [line.partition(";")[0] for line in said] == LINES
