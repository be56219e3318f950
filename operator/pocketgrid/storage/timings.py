"""Where the time of writing results goes: cumulative seconds and counts, as plain attributes.

Responsible for counting. One clock reading before and after each step of a whole group, so a shard costs nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType


@dataclass(slots=True)
class Spent:
    """Time spent in one kind of step; a context manager adds one step, whether it succeeds or not."""

    seconds: float = 0.0
    count: int = 0
    _since: float = 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._since
        self.count += 1


@dataclass(slots=True)
class WriteTimings:
    """What a result store has spent since it was opened. Written by the store's thread, readable from any.

    Attributes:
        stage: encoding results and handing them to the system; once a group.
        sync_data: making them durable; once a group.
        sync_log: writing log entries and making them durable; once a group, and for each part and the end.
        seal: reading the staged results of a part and writing its files, their fsync included; once a part.
    """

    stage: Spent = field(default_factory=Spent)
    sync_data: Spent = field(default_factory=Spent)
    sync_log: Spent = field(default_factory=Spent)
    seal: Spent = field(default_factory=Spent)
