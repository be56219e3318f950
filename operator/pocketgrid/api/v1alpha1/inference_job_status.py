"""The status of an InferenceJob: counts and conditions, never one entry per item or shard.

Everything is bounded, so that the status of the largest job stays below 32 KiB.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pocketgrid.api.v1alpha1.conditions import Condition
from pocketgrid.api.v1alpha1.meta import ApiModel, Count32, Count64, Decimal, Time, Unique
from pocketgrid.api.v1alpha1.verification import Money

MAX_CLASSES = 64
"""Entries of `placement.classes`."""

MAX_COMPLETED_TEXT = 8192
"""Characters of `completedShards`."""

NO_CLASS = "(none)"
"""Stands for devices that belong to no class; not a name a class can have."""


class ItemCounts(ApiModel):
    """Counts of items."""

    total: Count64
    """Items in the data set."""

    done: Count64
    """Items that are settled: a result or a failure is committed for them."""

    failed: Count64
    """Items that have no result; the error file names them. Part of `done`."""


class ShardCounts(ApiModel):
    """Counts of shards."""

    total: Count64
    """Shards of the job. 0 until the size of a shard is known."""

    done: Count64
    """Committed shards."""

    active: Count64
    """Shards handed out and not yet committed."""

    items_per_shard: Count64
    """Items in a shard. 0 until it is known."""


class Throughput(ApiModel):
    """How fast the job goes."""

    items_per_second: Decimal
    """Items committed per second over the last half minute; of a finished job, from its start to its end."""


class ClassDevices(ApiModel):
    """Devices of one class at work."""

    hardware_class: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of the HardwareClass, or (none) for devices that belong to none."""

    devices: Count32
    """Devices of that class which hold leases of this job."""


class PlacementStatus(ApiModel):
    """Where the job is being worked on."""

    classes: Annotated[tuple[ClassDevices, ...], Field(max_length=MAX_CLASSES), Unique("hardwareClass")] = ()
    """Devices at work by hardware class, the classes with most devices first; at most 64 classes are listed. A
    device that belongs to several classes may be counted in each."""


class Attempts(ApiModel):
    """What did not go straight. Counted since the operator last started; a finished job keeps its last figures."""

    lost: Count64
    """Attempts whose device vanished, ran late or failed. Never held against the job."""

    copies: Count64
    """Second copies of shards handed out so that a slow device does not hold up the end."""

    duplicates: Count64
    """Results that arrived for a shard which was already committed, and were not used."""


class VerificationStatus(ApiModel):
    """How far the results can be believed."""

    rows_verified: Count64
    """Rows that are final: no check that is still to come can take them back."""

    rows_checked: Count64
    """Rows that somebody else computed again."""

    disagreement_rate: Decimal
    """Share of the rows that were computed again and came out otherwise."""

    redundancy: Decimal
    """Items computed for each item needed; 1 is none too many."""

    wrong_rows_upper_bound95: Annotated[Count64 | None, Field(alias="wrongRowsUpperBound95")] = None
    """At most so many rows of the output are wrong, with 95 % confidence. Absent while nothing can be said."""


class CostStatus(ApiModel):
    """What the job costs, in the grid's currency."""

    spent: Money
    """Paid for rows that are final."""

    escrow: Money
    """Set aside for rows that are committed and not yet final."""

    limit: Money | None = None
    """The limit in spec.budget. Absent: there is none."""


class OutputStatus(ApiModel):
    """What was written."""

    manifest_uri: Annotated[str, Field(max_length=4096)]
    """Where the manifest is: parts, row counts, digests and schema. Present when the job is Complete."""


class InferenceJobStatus(ApiModel):
    """What is the case."""

    observed_generation: Count64 | None = None
    """The `metadata.generation` this status was made from. Older than the object's: not up to date."""

    conditions: Annotated[tuple[Condition, ...], Field(max_length=32), Unique("type")] = ()
    """Accepted, Placed, Progressing, Suspended, Complete and Failed, and kstatus' Reconciling and Stalled. The
    reason of Progressing sums the job up in one word."""

    items: ItemCounts | None = None
    """Counts of items. Absent until the data set was opened."""

    shards: ShardCounts | None = None
    """Counts of shards. Absent until the data set was opened."""

    completed_shards: Annotated[str, Field(max_length=MAX_COMPLETED_TEXT)] | None = None
    """Numbers of the committed shards as text, as in an Indexed Job: 1-5,7. Ends in ",..." if it was cut; the
    commit log has the rest. Absent while there are none."""

    throughput: Throughput | None = None
    """How fast the job goes. Absent until work began."""

    placement: PlacementStatus | None = None
    """Where the job is being worked on."""

    attempts: Attempts | None = None
    """What did not go straight."""

    verification: VerificationStatus | None = None
    """How far the results can be believed. Absent of a job that is not verified."""

    cost: CostStatus | None = None
    """What the job costs. Absent while nothing has a price."""

    output: OutputStatus | None = None
    """What was written. Absent until the job is Complete."""

    start_time: Time | None = None
    """When work was first handed out. Absent until then."""

    completion_time: Time | None = None
    """When the job became Complete. As in batch/v1, a failed job has none: see its Failed condition."""
