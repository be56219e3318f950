"""Condition types and reasons: the constants of the status, and what one condition looks like.

Reasons that admission or the engine find themselves (``UnreadableModel``, ``TooManyFailedItems``, ...)
pass through as they are; those that this API makes are here. `Reconciling` and `Stalled` are the
abnormal-true conditions of kstatus (sigs.k8s.io/cli-utils/pkg/kstatus): a tool that knows nothing of
PocketGrid reads from them whether to wait, to go on or to give up.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from pocketgrid.api.v1alpha1.meta import ApiModel, Count64, Time


class JobCondition(StrEnum):
    """Condition types of an InferenceJob."""

    ACCEPTED = "Accepted"
    """The manifest, its model and its data can run. Unknown while they are looked at."""
    PLACED = "Placed"
    """There are ready nodes that may work on it."""
    PROGRESSING = "Progressing"
    """Work goes on. Its reason sums the job up in one word, also after the end."""
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"
    RECONCILING = "Reconciling"
    """kstatus: not yet as wished, and something is being done about it."""
    STALLED = "Stalled"
    """kstatus: not as wished, and somebody has to do something."""


READY = "Ready"
"""Condition of EdgeNodes, and the one condition of a HardwareClass."""

PAUSED = "Paused"
"""Condition of EdgeNodes: whether the owner's policy keeps the device from working now; its reason says which rule."""

TRUSTED = "Trusted"
"""Condition of EdgeNodes: whether the device's results are believed. Unknown until some were confirmed."""


class JobReason(StrEnum):
    """Reasons in an InferenceJob's conditions."""

    ADMITTING = "Admitting"
    ADMITTED = "Admitted"
    NODES_READY = "NodesReady"
    WORKING = "Working"
    VERIFYING = "Verifying"
    """All shards are committed, and checks are under way that could take some of them back."""
    FINISHING = "Finishing"
    SUSPENDED = "Suspended"
    NOT_SUSPENDED = "NotSuspended"
    COMPLETED = "Completed"
    REMOVED = "Removed"
    REFUSED = "Refused"
    """Used where the engine gives no reason of its own."""
    FAILED = "Failed"
    """Used where the engine gives no reason of its own."""


class RefusalReason(StrEnum):
    """Why a manifest was refused for what is written in it. Rules bring their own reasons."""

    INVALID_MANIFEST = "InvalidManifest"
    """Not YAML, or not an object of this API."""
    INVALID_FIELD = "InvalidField"
    UNKNOWN_FIELD = "UnknownField"
    MISSING_FIELD = "MissingField"
    IMMUTABLE_FIELD = "ImmutableField"


class DeviceReason(StrEnum):
    """Reasons in an EdgeNode's Ready condition."""

    ATTACHED = "Attached"
    NOT_SCHEDULABLE = "NotSchedulable"
    """Attached, but cordoned, tainted, draining or paused by its owner: no new leases go there."""
    LINK_BROKEN = "LinkBroken"
    LOST = "Lost"
    WORK_ALLOWED = "WorkAllowed"
    """In Paused: the owner lets it work. Otherwise the reason is the device's own: BatteryLow, NotCharging, ..."""
    CONFIRMED = "Confirmed"
    """In Trusted: others have computed some of its items again, and it was not caught since."""
    UNPROVEN = "Unproven"
    """In Trusted: nobody has confirmed anything of it yet."""
    DISTRUSTED = "Distrusted"
    """In Trusted: it was caught with wrong results, or its Node was tainted by hand."""


class ClassReason(StrEnum):
    """Reasons in a HardwareClass's Ready condition; the first two are a waiting job's obstacles too."""

    NO_MATCHING_NODES = "NoMatchingNodes"
    NO_READY_NODES = "NoReadyNodes"
    NODES_READY = "NodesReady"


class Condition(ApiModel):
    """One aspect of the object's current state, as in Kubernetes' own `metav1.Condition`."""

    type: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Z][A-Za-z0-9]*$")]
    """What the condition is about, in CamelCase."""

    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""

    reason: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, in one CamelCase word that programs may rely on."""

    message: Annotated[str, Field(max_length=4096)]
    """Why, in a sentence for people."""

    last_transition_time: Time
    """When `status` last changed."""

    observed_generation: Count64 | None = None
    """The `metadata.generation` this condition was made from. Older than the object's: not up to date."""
