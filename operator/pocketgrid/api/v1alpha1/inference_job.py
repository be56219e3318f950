"""InferenceJob: run a data set through a model once, on whatever devices there are.

Names and meanings follow batch/v1 Job where one exists. Durations are whole seconds with the unit in
the name, as there. What an item, a shard and a lease are is said in docs/architecture.md.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pocketgrid.api.v1alpha1.conditions import JobCondition
from pocketgrid.api.v1alpha1.decode import Decode
from pocketgrid.api.v1alpha1.inference_job_status import InferenceJobStatus
from pocketgrid.api.v1alpha1.meta import (
    ApiModel,
    Boolean,
    ClassName,
    Column,
    Count32,
    Count64,
    Extra,
    Immutable,
    Int32,
    Kind,
    Name,
    PositiveInt32,
    Resource,
    Rule,
    Sha256,
    Unique,
    Uri,
    condition_path,
)
from pocketgrid.api.v1alpha1.verification import Budget, Verification
from pocketgrid.model.job import Compression, InputFormat, Operation, OutputFormat

NEW_JOB = "create a new InferenceJob instead"


class Model(ApiModel):
    """The model to run: one ONNX file."""

    uri: Uri
    """Where the file is, such as file:///var/lib/pocketgrid/models/minilm.onnx. Any scheme the operator's
    fsspec can open works; file:// means a path as the operator sees it, percent-encoded."""

    sha256: Sha256
    """SHA-256 of the file, as 64 lower-case hexadecimal digits. A file with another digest is refused, by the
    operator and again by every device."""

    outputs: Annotated[tuple[Name, ...], Field(max_length=64), Unique()] = ()
    """Names of the model outputs to write, in this order. Absent or empty: all of them."""


class ColumnBinding(ApiModel):
    """A column of the data set that feeds a model input."""

    column: Name
    """Name of the column."""

    input: Name
    """Name of the model input it feeds. Its dtype and shape must fit."""

    decode: Decode | None = None
    """How bytes in the column become numbers. Absent: the column's numbers are taken as they are."""


class Tokenizer(ApiModel):
    """Turns a text column into token ids, attention mask and type ids. Runs in the operator, not on devices."""

    uri: Uri
    """Where the Hugging Face tokenizer.json is."""

    sha256: Sha256 | None = None
    """SHA-256 the tokenizer file must have. Absent: not checked."""

    column: Name
    """Name of the text column."""

    max_length: Annotated[Int32, Field(ge=1, le=131_072)] = 256
    """Texts are cut to this many tokens, special tokens included."""


class Csv(ApiModel):
    """How CSV files are written. Cells may be quoted as in RFC 4180."""

    delimiter: Annotated[str, Field(min_length=1, max_length=1, pattern=r"^[\t -!#-~]$")] = ","
    """The character between cells, of ASCII."""

    columns: Annotated[tuple[Name, ...], Field(max_length=4096), Unique()] = ()
    """Names of the columns of files without a header row. Absent or empty: the first row of every file has them."""


_COMPRESSIBLE = (InputFormat.JSONL, InputFormat.CSV, InputFormat.TEXT)


def _one_source(data: DataSet) -> bool:
    return bool(data.columns) != (data.tokenizer is not None)


def _one_place(data: DataSet) -> bool:
    return (data.uri is not None) != bool(data.uris)


def _csv_is_csv(data: DataSet) -> bool:
    return data.csv is None or data.format is InputFormat.CSV


def _can_be_compressed(data: DataSet) -> bool:
    return data.compression is None or data.format in _COMPRESSIBLE


class DataSet(ApiModel):
    """The data set to run through the model. It is read lazily and must not change while the job runs."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="UriOrUris",
            cel="has(self.uri) != (has(self.uris) && size(self.uris) > 0)",
            message="must have exactly one of uri and uris",
            holds=_one_place,
        ),
        Rule(
            reason="CsvOptionsWithoutCsv",
            cel="!has(self.csv) || self.format == 'CSV'",
            message="may have csv only if its format is CSV",
            holds=_csv_is_csv,
        ),
        Rule(
            reason="CompressionOfBinaryFormat",
            cel="!has(self.compression) || self.format in ['JSONL', 'CSV', 'Text']",
            message="may have compression only if its format is JSONL, CSV or Text",
            holds=_can_be_compressed,
        ),
        Rule(
            reason="ColumnsOrTokenizer",
            cel="(has(self.columns) && size(self.columns) > 0) != has(self.tokenizer)",
            message="must have exactly one of columns and tokenizer",
            holds=_one_source,
        ),
    )

    uri: Uri | None = None
    """Where the data set is: a file; or a folder, if it ends in a slash, which means all files in and below it; or a
    glob with *, ?, [abc] or **. The files of a folder or glob are taken in the order of their names. Exactly one of
    uri and uris is given."""

    uris: Annotated[tuple[Uri, ...], Field(max_length=256), Unique()] = ()
    """Several files, folders or globs that together are one data set, in this order. Exactly one of uri and uris is
    given."""

    format: InputFormat
    """How the files are cut into items. JSONL: one JSON object a line. Parquet: one row. Text: one line, in a column
    called text. CSV: one row. NPY: one entry along the first axis of the array, in a column called data. NPZ: the
    same, over arrays of equal length, each a column of its own name. Files: one file, in the columns path, size and
    bytes."""

    compression: Compression | None = None
    """How files of the formats JSONL, CSV and Text are compressed. Absent: as the end of each file's name says (.gz,
    .bz2, .xz, .zst), and otherwise not. None: they are not, whatever they are called."""

    csv: Csv | None = None
    """How CSV files are written. Absent: with commas and a header row."""

    key: Name | None = None
    """Column whose value identifies a row in the output. Absent: the row number, counted from 0; for Files, the
    path."""

    columns: Annotated[tuple[ColumnBinding, ...], Field(max_length=64), Unique("input")] = ()
    """Which column feeds which model input; no input twice. Exactly one of columns and tokenizer is given."""

    tokenizer: Tokenizer | None = None
    """How a text column becomes the inputs of a language model. Exactly one of columns and tokenizer is given."""


def _labels_fit(step: PostprocessStep) -> bool:
    return not step.labels or step.operation is Operation.ARGMAX


class PostprocessStep(ApiModel):
    """One thing done to a model output, on the device, before it is sent back."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="LabelsWithoutArgmax",
            cel="!has(self.labels) || size(self.labels) == 0 || self.operation == 'Argmax'",
            message="may have labels only if its operation is Argmax",
            holds=_labels_fit,
        ),
    )

    operation: Operation
    """MeanPool: mean over the sequence axis, counting only what the attention mask covers. Normalize: divide by
    the L2 norm along the last axis. Argmax: index of the largest value along the last axis, or its label.
    BatchFirst: the output comes as [sequence, batch, ...], as recurrent models write it; swap these two axes. Only
    as the first step of an output."""

    output: Name
    """Name of the model output it applies to. Steps of the same output run in the order they are listed."""

    labels: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=32_768)] = ()
    """For Argmax, the name of each index, in order. Absent or empty: the index itself is written."""


class Output(ApiModel):
    """Where the results go."""

    uri: Uri
    """Folder that receives the result parts, the error file, the commit log and the manifest: a
    file:// URI. It is created if it does not exist."""

    format: OutputFormat = OutputFormat.PARQUET
    """How result parts are written: Parquet, or JSONL with one JSON object a line."""

    postprocess: Annotated[tuple[PostprocessStep, ...], Field(max_length=32)] = ()
    """What is done to the outputs before they are written. Absent or empty: they are written as they are."""


def _answers_a_key(toleration: Toleration) -> bool:
    return bool(toleration.key) or toleration.operator == "Exists"


def _exists_has_no_value(toleration: Toleration) -> bool:
    return toleration.operator != "Exists" or not toleration.value


class Toleration(ApiModel):
    """A node taint this job puts up with; the same as a Pod's, without tolerationSeconds."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="TolerationWithoutKey",
            cel="(has(self.key) && self.key != '') || self.operator == 'Exists'",
            message="must have operator Exists if it has no key",
            holds=_answers_a_key,
        ),
        Rule(
            reason="TolerationWithValue",
            cel="self.operator != 'Exists' || !has(self.value) || self.value == ''",
            message="must have no value if its operator is Exists",
            holds=_exists_has_no_value,
        ),
    )

    key: Annotated[str, Field(max_length=317)] | None = None
    """Key of the taint. Absent or empty, with operator Exists: every taint."""

    operator: Literal["Equal", "Exists"] = "Equal"
    """Equal: the taint's value must be `value`. Exists: any value will do."""

    value: Annotated[str, Field(max_length=63)] | None = None
    """Value of the taint. Absent: the empty value."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Absent: every effect."""


LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]


class Placement(ApiModel):
    """Which devices may work on the job. May be changed while it runs."""

    hardware_classes: Annotated[tuple[ClassName, ...], Field(max_length=64), Unique()] = ()
    """Names of HardwareClasses; a device of any of them will do. Absent or empty: every device."""

    node_selector: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=317)], LabelValue],
        Extra(x_kubernetes_map_type="atomic"),
        Field(max_length=64),
    ] = Field(default_factory=dict)
    """Labels that a device's Node must have, all of them. Absent or empty: no condition."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=64)] = ()
    """Taints of Nodes to look past. The taint that keeps Pods off devices without a kubelet needs none."""

    max_nodes: PositiveInt32 | None = None
    """At most this many devices work on the job at once. Absent: no limit."""

    data_class: Literal["Public", "Internal", "Confidential"] = "Public"
    """How far model and data may go. Public: to any device. Internal: to devices of tier Vetted or Owned. Confidential:
    to devices of tier Owned. The tier is spec.tier of the device's EdgeNode; a device without one counts as Public."""


class Sharding(ApiModel):
    """How items are grouped for hand-out, commit and retry."""

    items_per_shard: Annotated[Int32, Field(ge=1, le=10_000_000)] | None = None
    """Items in a shard; the last shard may have fewer. Absent: chosen once the speed of the first device is
    measured, so that a shard is a fraction of a second of work, and then kept for the life of the job."""

    lease_seconds: Annotated[Int32, Field(ge=1, le=3600)] = 5
    """How much work a device is handed at a time, in seconds of that device."""


def _postprocess_is_asked_for(spec: InferenceJobSpec) -> bool:
    wanted = spec.model.outputs
    return not wanted or all(step.output in wanted for step in spec.output.postprocess)


class InferenceJobSpec(ApiModel):
    """What is wanted."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="PostprocessOfUnwantedOutput",
            cel=(
                "!has(self.model.outputs) || size(self.model.outputs) == 0 || !has(self.output.postprocess)"
                " || self.output.postprocess.all(step, step.output in self.model.outputs)"
            ),
            message="may post-process only outputs that model.outputs lists, if it lists any",
            holds=_postprocess_is_asked_for,
        ),
    )

    mode: Literal["Batch"] = "Batch"
    """Batch: run the whole data set through the model once, then be Complete."""

    suspend: Boolean = False
    """Whether to hold the job: no new work is handed out, and what is committed stays. May be changed at any
    time."""

    priority: Int32 = 0
    """Jobs with a higher number get devices first; among equals the older one does. May be changed at any
    time."""

    model: Annotated[Model, Immutable(NEW_JOB)]
    """The model to run. Cannot be changed."""

    input: Annotated[DataSet, Immutable(NEW_JOB)]
    """The data set to run through it. Cannot be changed."""

    output: Annotated[Output, Immutable(NEW_JOB)]
    """Where the results go. Cannot be changed."""

    placement: Placement = Placement()
    """Which devices may work on it. Absent: all of them, apart from tainted Nodes. May be changed at any time."""

    sharding: Annotated[Sharding, Immutable(NEW_JOB)] = Sharding()
    """How items are grouped. Absent: automatically. Cannot be changed."""

    verification: Annotated[Verification, Immutable(NEW_JOB)] = Verification()
    """How results are verified. Absent: not at all, and nobody is paid. Cannot be changed."""

    budget: Budget | None = None
    """What the job may cost. Absent: no limit. May be changed while it runs."""

    backoff_limit_per_shard: Count32 = 3
    """How often the items of one shard may be to blame for a failure before they are given up as failed items.
    A device that vanishes, runs flat or is too slow never counts."""

    max_failed_items: Count64 | None = None
    """More failed items than this fail the job. 0: the first one does. Absent: no limit. Failed items are listed
    in the error file with their key and the reason."""

    active_deadline_seconds: PositiveInt32 | None = None
    """The job fails if it is not done after so many seconds, not counting the time it was suspended. Absent: no
    limit."""

    ttl_seconds_after_finished: Count32 | None = None
    """The object is deleted so many seconds after it became Complete or Failed; its output stays. 0: at once.
    Absent: never."""


class InferenceJob(Kind):
    """Runs a data set through an ONNX model once, on the devices of the grid, and writes one result per row."""

    resource: ClassVar[Resource] = Resource(
        kind="InferenceJob",
        plural="inferencejobs",
        singular="inferencejob",
        short_name="ij",
        namespaced=True,
        columns=(
            Column("Complete", condition_path(JobCondition.COMPLETE), "Whether all results are written."),
            Column("Items", ".status.items.total", "Items in the data set.", "integer"),
            Column("Done", ".status.items.done", "Items with a committed result or failure.", "integer"),
            Column("Failed", ".status.items.failed", "Items without a result.", "integer"),
            Column("Rate", ".status.throughput.itemsPerSecond", "Items per second."),
            Column("Reason", condition_path(JobCondition.PROGRESSING, "reason"), "The job's state in one word."),
            Column("Age", ".metadata.creationTimestamp", "Time since it was created.", "date"),
            Column("Shards", ".status.shards.total", "Shards of the job.", "integer", wide=True),
            Column("Active", ".status.shards.active", "Shards handed out.", "integer", wide=True),
            Column("Lost", ".status.attempts.lost", "Attempts lost with their device.", "integer", wide=True),
            Column("Classes", ".status.placement.classes[*].hardwareClass", "Classes at work.", wide=True),
            Column("Verified", ".status.verification.rowsVerified", "Rows that are final.", "integer", wide=True),
            Column("Spent", ".status.cost.spent", "Paid for verified work.", wide=True),
            Column("Output", ".spec.output.uri", "Where the results go.", wide=True),
        ),
    )

    api_version: Literal["pocketgrid.dev/v1alpha1"]
    kind: Literal["InferenceJob"]

    spec: InferenceJobSpec
    """What is wanted."""

    status: InferenceJobStatus | None = None
    """What is the case. Written by the operator."""
