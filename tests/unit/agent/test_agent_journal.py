"""The journal: what was written is there after any end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pocketgrid.errors import StoreError
from pocketgrid_agent.journal import Entry, Journal, Summary


def entry(number: int, *, body: bytes | None = None, failed: bool = False) -> Entry:
    return Entry("job", number, b"token-%d" % number, failed, b"body" if body is None else body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


def test_entries_survive_reopening_in_their_order(path: Path) -> None:
    journal = Journal(path)
    journal.write([entry(2), entry(1, body=b"\0" * 100_000, failed=True)])
    journal.close()
    again = Journal(path)
    assert again.summaries() == [
        Summary("job", 2, b"token-2", False, 4),
        Summary("job", 1, b"token-1", True, 100_000),
    ]
    assert again.read([b"token-1", b"unknown"]) == {b"token-1": b"\0" * 100_000}
    assert again.moved_aside is None
    again.close()


def test_settled_entries_are_gone(path: Path) -> None:
    journal = Journal(path)
    journal.write([entry(1), entry(2)])
    journal.write([entry(3)], forget=[b"token-1", b"unknown"])
    assert [s.shard for s in journal.summaries()] == [2, 3]
    journal.close()


def test_writing_a_token_again_replaces_it(path: Path) -> None:
    journal = Journal(path)
    journal.write([entry(1)])
    journal.write([entry(1, body=b"newer")])
    assert journal.read([b"token-1"]) == {b"token-1": b"newer"}
    journal.close()


def test_a_killed_process_loses_nothing_it_had_written(path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom pocketgrid_agent.journal import Entry, Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for n in range(50): journal.write([Entry('job', n, b'%d' % n, False, b'x' * 1000)])\n"
        "journal._db.execute('BEGIN'); journal._db.execute(\"DELETE FROM results\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], timeout=30, check=False)
    assert ended.returncode == -signal.SIGKILL
    journal = Journal(path)
    assert [s.shard for s in journal.summaries()] == list(range(50))
    journal.close()


@pytest.mark.parametrize("damage", ["garbage", "header", "middle"])
def test_a_corrupted_file_is_moved_aside_and_named(path: Path, damage: str) -> None:
    journal = Journal(path)
    journal.write([entry(n, body=os.urandom(5000)) for n in range(20)])
    journal.close()
    content = bytearray(path.read_bytes())
    match damage:
        case "garbage":
            content[:] = b"not a database at all, but long enough to be looked at" * 100
        case "header":
            content[:100] = bytes(100)
        case "middle":
            for page in range(4096, len(content), 4096):
                content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)
    again = Journal(path)
    assert again.moved_aside is not None
    assert again.moved_aside.read_bytes() == bytes(content)
    assert again.summaries() == []
    again.write([entry(1)])
    again.close()


def test_a_second_corruption_does_not_overwrite_the_first(path: Path) -> None:
    for expected in ("journal.sqlite3.corrupt-1", "journal.sqlite3.corrupt-2"):
        path.write_bytes(b"garbage" * 1000)
        journal = Journal(path)
        assert journal.moved_aside is not None
        assert journal.moved_aside.name == expected
        journal.close()


def test_a_file_of_a_newer_schema_is_moved_aside(path: Path) -> None:
    journal = Journal(path)
    journal._db.execute("PRAGMA user_version=99")
    journal.close()
    again = Journal(path)
    assert again.moved_aside is not None
    again.close()


def test_a_full_disk_is_a_store_error_and_leaves_what_was_there(path: Path) -> None:
    journal = Journal(path)
    journal.write([entry(1)])
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages + 1}")
    with pytest.raises(StoreError, match="full"):
        journal.write([entry(2, body=b"x" * 100_000)], forget=[b"token-1"])
    assert [s.shard for s in journal.summaries()] == [1]
    journal.close()


def test_a_folder_that_is_missing_is_an_error_and_not_a_corruption(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="folder"):
        Journal(tmp_path / "missing" / "journal.sqlite3")


def test_a_large_empty_journal_is_shrunk_on_opening(path: Path) -> None:
    journal = Journal(path)
    journal.write([entry(n, body=os.urandom(1 << 20)) for n in range(17)])
    journal.write([], forget=[b"token-%d" % n for n in range(17)])
    journal.close()
    assert path.stat().st_size > 16 << 20
    Journal(path).close()
    assert path.stat().st_size < 1 << 20
