"""A job as the grid carries it out: the user's manifest after admission, with nothing left to guess."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pocketgrid.model.decoding import Affine, BytesDecode, ImageDecode
from pocketgrid.model.device import AgentFeature
from pocketgrid.model.ids import JobUid, ModelDigest
from pocketgrid.model.money import Budget
from pocketgrid.model.selectors import Toleration
from pocketgrid.model.tensors import ModelSignature
from pocketgrid.model.trust import DataClass, Verification


class InputFormat(StrEnum):
    """How an input file is cut into items."""

    JSONL = "JSONL"
    PARQUET = "Parquet"
    TEXT = "Text"
    CSV = "CSV"
    NPY = "NPY"
    NPZ = "NPZ"
    FILES = "Files"


class Compression(StrEnum):
    """How the bytes of a file of lines are packed."""

    GZIP = "Gzip"
    BZIP2 = "Bzip2"
    XZ = "Xz"
    ZSTD = "Zstd"
    NONE = "None"


class OutputFormat(StrEnum):
    """How results are written."""

    PARQUET = "Parquet"
    JSONL = "JSONL"


class Operation(StrEnum):
    """What is done to a model's output before it is written."""

    MEAN_POOL = "MeanPool"
    """Mean over the sequence axis, counting only positions of the attention mask."""
    NORMALIZE = "Normalize"
    """Divide by the L2 norm along the last axis."""
    ARGMAX = "Argmax"
    """Index of the largest value along the last axis, with labels if given."""
    BATCH_FIRST = "BatchFirst"
    """Swap the first two axes of an output that comes as [sequence, batch, ...]."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where a model is and what it must hash to.

    Attributes:
        outputs: the outputs wanted, in order; empty means all.
    """

    uri: str
    sha256: ModelDigest
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ColumnBinding:
    """A column of the data set that feeds a model input.

    Attributes:
        decode: how bytes become numbers; None takes the column as it is.
    """

    column: str
    input: str
    decode: ImageDecode | BytesDecode | None = None


@dataclass(frozen=True, slots=True)
class TokenizerRef:
    """A text column that becomes token ids, attention mask and type ids.

    Attributes:
        uri: a Hugging Face tokenizer.json.
        sha256: digest it must have; empty if the user stated none.
        column: the text column.
        max_length: longer texts are truncated to so many tokens.
    """

    uri: str
    column: str
    max_length: int
    sha256: str = ""


FILE_KEY = "path"
"""Column that identifies an item of `InputFormat.FILES` unless the user names another."""


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """How CSV is written.

    Attributes:
        delimiter: one character between cells.
        columns: names of the columns of a file without a header row; empty if the first row has them.
    """

    delimiter: str = ","
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InputRef:
    """The data set and how its columns meet the model's inputs. Either `columns` or `tokenizer` is given.

    Attributes:
        uri: one file, a folder (ends in a slash) or a glob; empty if `uris` is given.
        key: column whose value identifies a row in the output; empty for the row number.
        uris: several of such places, one after the other; empty if `uri` is given.
        compression: of every file; None if each file's name tells.
    """

    uri: str
    format: InputFormat
    key: str = ""
    columns: tuple[ColumnBinding, ...] = ()
    tokenizer: TokenizerRef | None = None
    uris: tuple[str, ...] = ()
    compression: Compression | None = None
    csv: CsvOptions = CsvOptions()

    def __post_init__(self) -> None:
        if self.format is InputFormat.FILES and not self.key:
            object.__setattr__(self, "key", FILE_KEY)

    @property
    def places(self) -> tuple[str, ...]:
        """All that was named, in order."""
        return self.uris or (self.uri,)

    @property
    def text(self) -> str:
        """For people: what was named, in short."""
        first, *others = self.places
        return f"{first} and {len(others)} more" if others else first


@dataclass(frozen=True, slots=True)
class PostprocessStep:
    """One step; steps of the same output run in order.

    Attributes:
        output: model output it applies to.
        labels: for Argmax, the name of each index; empty writes the index.
    """

    operation: Operation
    output: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputRef:
    """Where results go."""

    uri: str
    format: OutputFormat
    postprocess: tuple[PostprocessStep, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Which devices may be asked.

    Attributes:
        hardware_classes: any of these; empty means every device.
        max_nodes: at most so many devices at once; 0 means no limit.
        data_class: how far model and data may go.
    """

    hardware_classes: tuple[str, ...] = ()
    node_selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    max_nodes: int = 0
    data_class: DataClass = DataClass.PUBLIC


@dataclass(frozen=True, slots=True)
class Sharding:
    """How items are grouped.

    Attributes:
        items_per_shard: 0 lets the grid choose once it has measured a device.
        lease_seconds: work handed to a device at a time, in seconds of that device.
    """

    items_per_shard: int = 0
    lease_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """When to give up. 0 means no limit, except for `backoff_limit_per_shard`.

    Attributes:
        backoff_limit_per_shard: how often the items of a shard may be to blame before they are given up.
        max_failed_items: more failed items than this fail the job; None means no limit.
        active_deadline_s: seconds the job may run, suspension excluded.
    """

    backoff_limit_per_shard: int = 3
    max_failed_items: int | None = None
    active_deadline_s: int = 0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything a user said, in the grid's own words.

    Attributes:
        budget: what it may cost; None: no limit.
        created: seconds since the Unix epoch; older jobs go first among equals.
    """

    uid: JobUid
    namespace: str
    name: str
    model: ModelRef
    input: InputRef
    output: OutputRef
    placement: Placement = Placement()
    sharding: Sharding = Sharding()
    limits: Limits = Limits()
    verification: Verification = field(default_factory=Verification)
    budget: Budget | None = None
    priority: int = 0
    suspend: bool = False
    created: float = 0.0

    @property
    def key(self) -> str:
        """``namespace/name``, for people."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class TensorBinding:
    """How a device fills one model input from what it is sent.

    Attributes:
        input: name of the model's input.
        source: index of the tensor in each shard's inputs, or -1 for the attention mask and -2 for zeros, both
            made on the device from the row lengths of tensor 0.
        dtype: what the model wants; the device casts.
        affine: arithmetic before the cast.
        item_shape: of one item of a dense tensor; None if it is ragged or made on the device.
    """

    input: str
    source: int
    dtype: str
    affine: Affine | None = None
    item_shape: tuple[int, ...] | None = None


MASK_SOURCE = -1
ZEROS_SOURCE = -2


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """How a device makes one result column.

    Attributes:
        output: the model's output.
        operations: applied in order.
        ragged: whether the item's first own axis is the padded sequence axis, and so is cut to its true length.
    """

    output: str
    operations: tuple[Operation, ...] = ()
    ragged: bool = False


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """All a device must know of a job, apart from the items themselves. Sent once per job and session."""

    job: JobUid
    model: ModelDigest
    model_bytes: int
    bindings: tuple[TensorBinding, ...]
    outputs: tuple[OutputPlan, ...]
    fixed_batch: int = 0
    pad_token_id: int = 0

    @property
    def requires(self) -> frozenset[AgentFeature]:
        """What an agent must be able to do."""
        return frozenset({AgentFeature.AFFINE_INPUTS} if any(b.affine for b in self.bindings) else ())


@dataclass(frozen=True, slots=True)
class AdmittedJob:
    """A job that can run: the spec, and what was learned by looking at its model and data.

    Attributes:
        items: number of items in the data set.
        bytes_per_item: estimate of what one item weighs on the wire.
        fingerprint: changes when the input's content may have changed.
    """

    spec: JobSpec
    signature: ModelSignature
    order: WorkOrder
    items: int
    bytes_per_item: float
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """An item that has no result.

    Attributes:
        row: item number within its shard.
        reason: CamelCase.
        message: for people.
    """

    row: int
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class ShardGrid:
    """How the items of a job are cut: shard i holds items [i * per_shard, min((i + 1) * per_shard, items))."""

    items: int
    per_shard: int

    def __post_init__(self) -> None:
        if self.items < 0 or self.per_shard < 1:
            raise ValueError(f"impossible cut of {self.items} items by {self.per_shard}")

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.items // self.per_shard)

    def bounds(self, shard: int) -> tuple[int, int]:
        """Half-open range of item numbers of `shard`."""
        if not 0 <= shard < self.shards:
            raise IndexError(f"shard {shard} of {self.shards}")
        return shard * self.per_shard, min((shard + 1) * self.per_shard, self.items)

    def size(self, shard: int) -> int:
        """How many items `shard` has."""
        start, stop = self.bounds(shard)
        return stop - start


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification says of one attempt's result.

    Attributes:
        accepted: True, False (see `reason`), or None while undecided.
        reason: CamelCase, empty when accepted.
    """

    accepted: bool | None
    reason: str = ""
    message: str = field(default="", compare=False)


ACCEPTED = Verdict(accepted=True)
