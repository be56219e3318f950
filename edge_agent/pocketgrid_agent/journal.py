"""Finished results on disk, until the gateway settles them.

A phone's operating system kills background processes as a matter of course, so a result that took seconds to compute
is written down before it is sent, and is sent again after a restart. SQLite in WAL mode with synchronous=NORMAL: what
was committed survives the death of the process; after a power cut the newest results may be gone, which costs only
their recomputation, because nothing counts as done before the gateway has committed it.

Flash cards and phones forget bits, and SQLite does not notice unless they are its own: each entry carries a CRC-32,
and one that does not fit any more is dropped when the journal is opened, for a wrong result is worse than none.

The bound on size is not kept here: the machine begins nothing new while too much is unsettled, and a finished result
is never dropped. Used from one thread at a time.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketgrid.errors import StoreError
from pocketgrid_agent.events import Token

SCHEMA_VERSION = 2
SHRINK_BYTES = 16 << 20
"""A file larger than this is rewritten on opening when nothing in it is needed any more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished result.

    Attributes:
        failed: the whole attempt failed; there are no outputs.
        body: serialised ShardResult.
    """

    job: str
    shard: int
    token: Token
    failed: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class Summary:
    """An entry without its body."""

    job: str
    shard: int
    token: Token
    failed: bool
    body_bytes: int


class Journal:
    """Opens, or makes, the journal at `path`.

    A file that cannot be read is moved aside and a new one begun: its results are lost and will be recomputed, which
    is better than an agent that does not start.

    Attributes:
        moved_aside: where an unreadable predecessor is now, or None.
        damaged: how many entries were dropped because they are not what was written.

    Raises:
        StoreError: the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.moved_aside: Path | None = None
        self.damaged = 0
        try:
            self._db = self._open()
        except sqlite3.OperationalError as error:
            raise StoreError(f"cannot open the journal {path}: {error}; is its folder writable?") from error
        except sqlite3.DatabaseError:
            self.moved_aside = self._move_aside()
            try:
                self._db = self._open()
            except sqlite3.Error as error:
                raise StoreError(f"cannot open the journal {path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        # The agent's loop opens it and one worker thread uses it, never both at once.
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5.0)
        # Damaged text must be readable to be found out.
        db.text_factory = lambda text: text.decode(errors="replace")
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA journal_size_limit=4194304")
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA_VERSION):
                raise sqlite3.DatabaseError(f"schema version {version}, not {SCHEMA_VERSION}")
            db.execute(
                "CREATE TABLE IF NOT EXISTS results (token BLOB PRIMARY KEY, job TEXT NOT NULL, "
                "shard INTEGER NOT NULL, failed INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL)"
            )
            # Reads every page of the table, so that damage shows now and not when a result is on its way.
            self.damaged = _drop_damaged(db)
            (entries,) = db.execute("SELECT count(*) FROM results").fetchone()
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            if entries == 0 and self._path.stat().st_size > SHRINK_BYTES:
                db.execute("VACUUM")
        except BaseException:
            db.close()
            raise
        return db

    def _move_aside(self) -> Path:
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.corrupt-{number}")).exists():
            number += 1
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            # They belong to the old file; beside a new one they would corrupt that too.
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(aside.with_name(aside.name + suffix))
        return aside

    def summaries(self) -> list[Summary]:
        """All entries, oldest first."""
        rows = self._db.execute("SELECT job, shard, token, failed, length(body) FROM results ORDER BY rowid")
        return [Summary(job, shard, bytes(token), bool(failed), size) for job, shard, token, failed, size in rows]

    def write(self, entries: Sequence[Entry], forget: Sequence[Token] = ()) -> None:
        """Add entries and remove others, all or nothing, in one transaction.

        Raises:
            StoreError: nothing was written, because the disk is full or failing.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR REPLACE INTO results (token, job, shard, failed, body, crc) VALUES (?, ?, ?, ?, ?, ?)",
                ((e.token, e.job, e.shard, e.failed, e.body, _crc(e)) for e in entries),
            )
            self._db.executemany("DELETE FROM results WHERE token = ?", ((token,) for token in forget))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise StoreError(f"cannot write the journal {self._path}: {error}") from error

    def read(self, tokens: Iterable[Token]) -> dict[Token, bytes]:
        """Bodies of those of `tokens` that are there, as they were written.

        Raises:
            StoreError: the disk is failing.
        """
        bodies = {}
        try:
            for token in tokens:
                row = self._db.execute(
                    "SELECT job, shard, token, failed, body, crc FROM results WHERE token = ?", (token,)
                ).fetchone()
                if row is not None and (entry := _whole(row)) is not None:
                    bodies[token] = entry.body
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the journal {self._path}: {error}") from error
        return bodies

    def close(self) -> None:
        """Close the file; committed entries stay."""
        self._db.close()


def _crc(entry: Entry) -> int:
    head = f"{entry.job} {entry.shard} {int(entry.failed)} ".encode()
    return zlib.crc32(entry.body, zlib.crc32(entry.token, zlib.crc32(head)))


def _whole(row: tuple[Any, ...]) -> Entry | None:
    """The entry of a row, or None if it is not what was written."""
    job, shard, token, failed, body, crc = row
    if not (isinstance(token, bytes) and isinstance(body, bytes) and isinstance(shard, int)):
        return None
    entry = Entry(str(job), shard, token, bool(failed), body)
    return entry if _crc(entry) == crc else None


def _drop_damaged(db: sqlite3.Connection) -> int:
    rows = db.execute("SELECT rowid, job, shard, token, failed, body, crc FROM results")
    damaged = [rowid for rowid, *row in rows if _whole(tuple(row)) is None]
    db.executemany("DELETE FROM results WHERE rowid = ?", ((rowid,) for rowid in damaged))
    return len(damaged)
