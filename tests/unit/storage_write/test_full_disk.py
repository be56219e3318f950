"""A full disk for real: nothing half-acknowledged, nothing lost, and work goes on once there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROCESS = Path(__file__).with_name("full_disk_process.py")


def run(folder: Path, limit: int) -> str:
    command = [sys.executable, str(PROCESS), str(folder), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "pocketgrid-test", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("limit", [9_000, 70_000])
def test_a_file_that_may_not_grow(tmp_path: Path, limit: int) -> None:
    """9,000 bytes stop the log first, 70,000 the staged data."""
    assert "then fine" in run(tmp_path, limit)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system can be mounted by root only")
def test_a_file_system_without_space(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(800 << 10))
    assert "then fine" in run(small_disk, 0)
