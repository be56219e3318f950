"""What large data sets cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("large_parquet_process.py")
ROWS = 10_000_000


def test_ten_million_rows_are_read_through_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    subprocess.run([sys.executable, SCRIPT, "write", path, str(ROWS)], check=True, timeout=60)
    reading = subprocess.run([sys.executable, SCRIPT, "read", path], check=True, timeout=60, capture_output=True)
    found = json.loads(reading.stdout)
    assert found["rows"] == ROWS
    assert found["peak_mb"] < 300
    # Less than the least that a job of the digits network reads on one core, with room for other processes.
    assert found["rows_per_second"] > 300_000
