"""Where the operator's processor time goes, by kind of work; measured per shard or group, never per item.

Processor time and not elapsed time: a thread that waits for a disk or a device costs nothing, and on a busy machine
elapsed time tells more of the neighbours than of us.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum


class Work(StrEnum):
    """What is done to a shard in the operator."""

    READ = "read"
    """From the data set into memory."""
    ENCODE = "encode"
    """From rows to tensors: casting, tokenising, decoding, narrowing."""
    JUDGE = "judge"
    """Checking tokens and structure of results, and the bookkeeping that follows."""
    COMMIT = "commit"
    """Staging results and writing the commit log, fsync included."""
    SEAL = "seal"
    """Writing parts of the output from what was staged."""


class WorkTimes:
    """Sums of processor seconds by kind of work; may be added to from any thread."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(Work, 0.0)
        self._lock = threading.Lock()

    def add(self, work: Work, seconds: float) -> None:
        """Add what was spent."""
        with self._lock:
            self._seconds[work] += seconds

    @contextmanager
    def measure(self, work: Work) -> Iterator[None]:
        """Add what the calling thread spends inside. Not around an `await`: others' work would be counted."""
        before = time.thread_time()
        try:
            yield
        finally:
            self.add(work, time.thread_time() - before)

    def seconds(self) -> Mapping[Work, float]:
        """Processor seconds by kind of work so far."""
        with self._lock:
            return dict(self._seconds)
