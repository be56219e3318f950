"""What can happen to a job, and what is to be done about it. Small, frozen, and all there is to replay."""

from __future__ import annotations

from dataclasses import dataclass

from pocketgrid.model.ids import AttemptSeq, DeviceName, LeaseId
from pocketgrid.model.job import Verdict

# ---- events ----


@dataclass(frozen=True, slots=True)
class ResultJudged:
    """A device's result arrived, its token was genuine, and trust has spoken.

    Attributes:
        seq: the attempt; it need not be a current one.
    """

    shard: int
    seq: AttemptSeq
    device: DeviceName
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A device gave up on a shard.

    Attributes:
        blame_items: the items were at fault, not the device.
    """

    shard: int
    seq: AttemptSeq
    device: DeviceName
    blame_items: bool
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class ShardEmpty:
    """None of the shard's items could be read, so there is nothing to compute."""

    shard: int
    seq: AttemptSeq


@dataclass(frozen=True, slots=True)
class AttemptsReturned:
    """A device gave back shards it had not begun, or the engine could not hand them over."""

    device: DeviceName
    seqs: tuple[AttemptSeq, ...]


@dataclass(frozen=True, slots=True)
class AttemptHeld:
    """A device came back with an attempt of an earlier session that it still works on or has finished.

    Attributes:
        finished: its result follows.
    """

    shard: int
    seq: AttemptSeq
    device: DeviceName
    deadline: float
    finished: bool = False


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """A device is lost or was evicted; nothing more is expected of it, though late results stay welcome.

    Attributes:
        keep: attempts it still holds after all.
    """

    device: DeviceName
    keep: frozenset[AttemptSeq] = frozenset()


@dataclass(frozen=True, slots=True)
class ShardCommitted:
    """A shard is durable.

    Attributes:
        rows: items of the shard, failed ones included.
    """

    shard: int
    seq: AttemptSeq
    rows: int
    failed: int


@dataclass(frozen=True, slots=True)
class CommitRefused:
    """The store would not take an accepted result after all; the shard is to be done again."""

    shard: int
    seq: AttemptSeq
    message: str


@dataclass(frozen=True, slots=True)
class ShardsReopened:
    """Committed shards whose stored result turned out to be damaged, or wrong.

    Attributes:
        failed: how many of their items had been counted as failed.
    """

    shards: tuple[int, ...]
    failed: int = 0


@dataclass(frozen=True, slots=True)
class ShardsVerified:
    """Committed shards that are final from now on; that is durable."""

    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SuspendChanged:
    """The user set or cleared `spec.suspend`."""

    suspend: bool


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Look at the deadlines."""


@dataclass(frozen=True, slots=True)
class OutputFinished:
    """The manifest is written."""

    manifest_uri: str


@dataclass(frozen=True, slots=True)
class JobBroken:
    """The job cannot go on, for a reason outside the state machine."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class JobRemoved:
    """The user deleted the job."""


JobEvent = (
    ResultJudged
    | AttemptFailed
    | ShardEmpty
    | AttemptsReturned
    | AttemptHeld
    | DeviceGone
    | ShardCommitted
    | CommitRefused
    | ShardsReopened
    | ShardsVerified
    | SuspendChanged
    | TimePassed
    | OutputFinished
    | JobBroken
    | JobRemoved
)

# ---- effects ----


@dataclass(frozen=True, slots=True)
class CommitShard:
    """Make this attempt's result durable.

    Attributes:
        give_up: no result exists; all items fail with `reason`. Empty for a real result.
    """

    shard: int
    seq: AttemptSeq
    device: DeviceName
    give_up: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class CheckAnswered:
    """A check came back with an answer that could be one: compare it.

    Attributes:
        shard: the virtual shard that stood for the check.
    """

    shard: int
    seq: AttemptSeq
    device: DeviceName


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell a device that it may forget a result.

    Attributes:
        outcome: "committed", "superseded" or "refused".
    """

    device: DeviceName
    shard: int
    seq: AttemptSeq
    outcome: str
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Tell a device to stop and forget an attempt."""

    device: DeviceName
    shard: int
    seq: AttemptSeq


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Tell every device that has anything of this job to stop and forget all of it."""


@dataclass(frozen=True, slots=True)
class FinishOutput:
    """All shards are durable: write the last parts and the manifest."""


@dataclass(frozen=True, slots=True)
class CloseOutput:
    """The job is over: release the store."""


JobEffect = CommitShard | CheckAnswered | Settle | CancelAttempt | CancelJob | FinishOutput | CloseOutput

# ---- what a hand-out yields ----


@dataclass(frozen=True, slots=True)
class HandedOut:
    """One shard of a fresh lease."""

    shard: int
    seq: AttemptSeq


@dataclass(frozen=True, slots=True)
class LeaseCut:
    """A lease as the machine recorded it; the engine sends it."""

    lease: LeaseId
    device: DeviceName
    deadline: float
    shards: tuple[HandedOut, ...]
