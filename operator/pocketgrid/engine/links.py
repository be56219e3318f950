"""What the engine asks of a device's link, and what arrives over it.

The gateway implements the first and makes the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pocketgrid.model.device import DeviceIdentity
from pocketgrid.model.ids import JobUid, LeaseId, ModelDigest
from pocketgrid.model.job import ItemFailure, WorkOrder
from pocketgrid.model.tensors import TensorData


@dataclass(frozen=True, slots=True)
class LeasedShard:
    """One shard on its way to a device.

    Attributes:
        items: rows in `inputs`.
    """

    index: int
    token: bytes
    items: int
    inputs: tuple[TensorData, ...]


@dataclass(frozen=True, slots=True)
class HeldAttempt:
    """An attempt a device says it still has from an earlier session."""

    job: JobUid
    shard: int
    token: bytes
    finished: bool


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """What a device says became of one attempt.

    Attributes:
        failures: rows (of those sent) without a result.
        failed: set if the whole attempt failed; then there are no outputs.
    """

    shard: int
    token: bytes
    compute_us: int
    outputs: tuple[TensorData, ...]
    failures: tuple[ItemFailure, ...] = ()
    failed: AttemptFailure | None = None


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """Why an attempt failed as a whole."""

    blame_items: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A device's answer to a work order.

    Attributes:
        items_per_second: all slots together; 0 if unknown.
    """

    job: JobUid
    model: ModelDigest
    ready: bool
    items_per_second: float
    micro_batch: int
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of results a device brought; it may forget them all."""

    committed: tuple[bytes, ...] = ()
    superseded: tuple[bytes, ...] = ()
    refused: tuple[tuple[bytes, str, str], ...] = ()


class DeviceLink(Protocol):
    """One attached device. Sending never blocks; a device that stops reading has its link closed instead."""

    @property
    def identity(self) -> DeviceIdentity:
        """Who is at the other end."""
        ...

    def send_order(self, order: WorkOrder) -> None:
        """Let the device prepare for a job."""
        ...

    def send_lease(self, job: JobUid, lease: LeaseId, ttl_s: float, shards: Sequence[LeasedShard]) -> None:
        """Hand over shards, in the order in which they are to be begun."""
        ...

    def send_revoke(self, job: JobUid, tokens: Sequence[bytes]) -> None:
        """Ask for what has not been begun; the answer arrives as `returned`."""
        ...

    def send_cancel(self, job: JobUid, tokens: Sequence[bytes]) -> None:
        """Stop these attempts; all of the job if `tokens` is empty."""
        ...

    def send_settled(self, job: JobUid, settlement: Settlement) -> None:
        """Results the device may forget."""
        ...

    def close(self, reason: str, message: str, *, retry: bool) -> None:
        """End the session; the device is told why."""
        ...
