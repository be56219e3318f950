"""A file of what happened, one JSON object a line, in the order in which it happened.

For finding out afterwards why a shard went where it went, and for checkers that replay a run. The operator and each
agent write a file of their own when told to; it is off by default. Stands beside `clock` because both sides use it.

Every line has `n` (counts the lines of one process from 1), `t` (seconds of the machine's monotonic clock, which all
processes of one machine share), `at` (seconds since the Unix epoch, for people) and `kind`. Each is handed to the
kernel with one `write` before whatever it tells of goes on, so a process that is killed has told all it did; a power
cut may take the last lines, for nothing is fsynced. A history never stops the work: lines a full disk does not take
are counted, and a line of kind `gap` says how many once there is room.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketgrid.errors import StoreError

log = logging.getLogger(__name__)


class HistoryFile:
    """Appends to the file at `path`, which is made if need be, with its folder.

    Args:
        path: whatever it holds already stays: a restarted process goes on in the same file.
        who: role and name of this process, for the first line.

    Raises:
        StoreError: it cannot be opened.
    """

    def __init__(self, path: Path, who: Mapping[str, str]) -> None:
        self._path = path
        self._lines = 0
        self._lost = 0
        self._complained = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._torn = _ends_torn(self._descriptor)
        except OSError as error:
            raise StoreError(f"cannot write the history {path}: {error.strerror}; name another file") from error
        self.record("process", {**who, "pid": os.getpid()})

    def record(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one line. `fields` holds what JSON can hold; it never raises for want of disk."""
        if self._lost:
            lost, self._lost = self._lost, 0
            if not self._write("gap", {"lost": lost}):
                self._lost = lost + 1
                return
        if not self._write(kind, fields):
            self._lost = 1

    def _write(self, kind: str, fields: Mapping[str, Any]) -> bool:
        self._lines += 1
        entry = {"n": self._lines, "t": time.monotonic(), "at": round(time.time(), 3), "kind": kind, **fields}
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        if self._torn:
            line = b"\n" + line
        try:
            cause = "" if os.write(self._descriptor, line) == len(line) else "a line was cut short"
        except OSError as error:
            cause = error.strerror or str(error)
        if cause and not self._complained:
            log.warning("history not written path=%s cause=%s", self._path, cause)
        self._complained = bool(cause)
        # A line may have gone out in part; the next begins on a fresh one.
        self._torn = bool(cause)
        return not cause

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a history, oldest first; those that were cut short are left out."""
    with path.open("rb") as source:
        for line in source:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "kind" in entry:
                yield entry


def _ends_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
