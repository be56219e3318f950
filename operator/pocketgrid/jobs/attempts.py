"""What a job's machine remembers of one execution, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

from pocketgrid.model.ids import AttemptSeq, DeviceName, LeaseId


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution of one shard by one device.

    Attributes:
        deadline: monotonic seconds; after it the shard goes elsewhere.
        handed: monotonic seconds.
    """

    seq: AttemptSeq
    shard: int
    device: DeviceName
    lease: LeaseId
    handed: float
    deadline: float
    copy: bool = False


@dataclass(slots=True)
class JobCounters:
    """What has happened to a job so far in this epoch; row counts span epochs."""

    rows_done: int = 0
    rows_failed: int = 0
    attempts_lost: int = 0
    copies: int = 0
    duplicates: int = 0
