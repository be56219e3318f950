"""What goes into a result store and what comes back: the words it shares with the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from pocketgrid.model.ids import AttemptSeq, DeviceName, Epoch, ShardIndex
from pocketgrid.model.job import ItemFailure
from pocketgrid.model.ranges import IndexSet
from pocketgrid.model.tensors import TensorData
from pocketgrid.storage.logentries import Worker


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Sizes that trade memory, files and waiting against each other.

    Attributes:
        segment_bytes: a log or staging segment is closed once it has so many bytes.
        part_rows: a part has about so many rows,
        part_bytes: unless their estimated size would exceed this,
        part_texts: or, for JSONL, so many numbers (a few million a second can be formatted).
    """

    segment_bytes: int = 64 << 20
    part_rows: int = 65_536
    part_bytes: int = 128 << 20
    part_texts: int = 8 << 20


DEFAULT_LIMITS = StoreLimits()


@dataclass(frozen=True, slots=True)
class ShardCommit:
    """The accepted result of one shard.

    Attributes:
        outputs: one tensor per result column over the rows that have a result, in row order; may be empty if
            every row failed.
        failures: the other rows, by number within the shard.
        compute_us: microseconds the device computed.
        engine: inference engine that computed it.
        classes: hardware classes of the device, sorted.
        price: micro-units that the device earns for each row with a result, once they are verified.
        numerics: numerics class of the device.
    """

    shard: ShardIndex
    seq: AttemptSeq
    device: DeviceName
    owner: str
    outputs: tuple[TensorData, ...]
    failures: tuple[ItemFailure, ...]
    compute_us: int = 0
    engine: str = ""
    classes: tuple[str, ...] = ()
    price: int = 0
    numerics: str = ""

    @property
    def worker(self) -> Worker:
        """Who computed it."""
        return Worker(self.device, self.owner, ",".join(self.classes), self.engine, self.price, self.numerics)


@dataclass(frozen=True, slots=True)
class Check:
    """What came of letting one device compute again what others had computed, or what is known.

    Attributes:
        worker: who answered; `Worker.price` is what it earns for each row that agreed.
        agreed: rows of the answer that agreed with what is believed now.
        disagreed: rows that did not; nothing is paid for them.
        shards: from which shards the rows were; empty for known answers.
    """

    worker: Worker
    agreed: int
    disagreed: int = 0
    shards: tuple[ShardIndex, ...] = ()


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a judgement. All of it is durable.

    Attributes:
        verified: shards that are final since this call; the others were final before or are not committed.
        reopened: shards that must be done again since this call.
    """

    verified: tuple[ShardIndex, ...] = ()
    reopened: tuple[ShardIndex, ...] = ()


@dataclass(frozen=True, slots=True)
class StagedResult:
    """A committed result that waits for the rest of its part, as it was committed.

    Attributes:
        outputs: one tensor per result column over the rows that have a result, in row order; empty if every row
            failed. Ragged columns have row lengths, even if the device sent them dense.
        failures: the other rows, by number within the shard, in order.
        worker: who computed it.
    """

    outputs: tuple[TensorData, ...]
    failures: tuple[ItemFailure, ...]
    worker: Worker


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a batch, shard by shard. All of `new` and `already` is durable.

    Attributes:
        new: committed by this call.
        already: committed before, or earlier in the batch; the first result stands.
        refused: not committed because the result does not fit, with the reason.
    """

    new: tuple[ShardIndex, ...]
    already: tuple[ShardIndex, ...]
    refused: tuple[tuple[ShardIndex, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Recovered:
    """What opening found.

    Attributes:
        token_key: secret of the attempt tokens; the same for the whole life of the job.
        per_shard: 0 if the job was not planned yet.
        committed: shards that are done.
        verify: whether the plan asks for verification.
        verified: shards that are final; none unless the plan verifies.
        rows_done: rows of these, failed ones included.
        notes: damage that was met and what it means, as sentences.
    """

    epoch: Epoch
    token_key: bytes = field(repr=False)
    per_shard: int
    committed: IndexSet
    rows_done: int
    rows_failed: int
    finished: bool
    notes: tuple[str, ...]
    verify: bool = False
    verified: IndexSet = field(default_factory=IndexSet)
