"""Bits that a flash card forgets in an agent's journal cost a result, and never change one."""

import random
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketgrid_agent.journal import Entry, Journal

ENTRIES = [Entry("job", shard, b"%024d" % shard, False, random.Random(shard).randbytes(9000)) for shard in range(12)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite3"
    journal = Journal(path)
    journal.write(ENTRIES)
    journal.close()
    # Everything in one file, as after a checkpoint.
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return path.read_bytes()


def reopened(folder: Path, content: bytes) -> tuple[Journal, dict[bytes, bytes]]:
    for file in folder.glob("*"):
        file.unlink()
    (folder / "journal.sqlite3").write_bytes(content)
    journal = Journal(folder / "journal.sqlite3")
    return journal, journal.read([summary.token for summary in journal.summaries()])


def test_what_is_whole_is_kept(tmp_path, written) -> None:
    journal, bodies = reopened(tmp_path, written)
    assert bodies == {entry.token: entry.body for entry in ENTRIES}
    assert journal.damaged == 0
    journal.close()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), length=st.integers(1, 64), seed=st.integers(0, 1 << 30))
def test_no_damage_changes_a_result(tmp_path, written, where: float, length: int, seed: int) -> None:
    content = bytearray(written)
    start = int(where * len(content))
    content[start : start + length] = random.Random(seed).randbytes(min(length, len(content) - start))
    journal, bodies = reopened(tmp_path, bytes(content))
    originals = {entry.token: entry.body for entry in ENTRIES}
    assert all(originals.get(token) == body for token, body in bodies.items())
    assert journal.moved_aside is not None or journal.damaged + len(bodies) >= len(ENTRIES) - 1
    # It goes on as a journal.
    journal.write([Entry("job", 99, b"%024d" % 99, False, b"new")])
    assert journal.read([b"%024d" % 99]) == {b"%024d" % 99: b"new"}
    journal.close()


def test_a_damaged_body_is_dropped_and_counted(tmp_path, written) -> None:
    body = ENTRIES[5].body
    # Somewhere in the middle of a page.
    start = next(at for step in range(0, 8000, 100) if (at := written.find(body[step : step + 100])) >= 0)
    content = written[:start] + bytes(64) + written[start + 64 :]
    journal, bodies = reopened(tmp_path, content)
    assert journal.damaged == 1
    assert set(bodies) == {entry.token for entry in ENTRIES} - {ENTRIES[5].token}
    journal.close()
