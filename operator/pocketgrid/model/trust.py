"""What a job's user says about believing results, and what is known of those who bring them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from pocketgrid.model.ids import DeviceName

DEFAULT_MAX_ERROR_RATE = 0.001
DEFAULT_AUDIT_FLOOR = 0.01


class VerificationMode(StrEnum):
    """How results are verified."""

    NONE = "None"
    """Not at all: for devices of one's own. Nobody is paid for such results."""
    AUDIT = "Audit"
    """A random part of each device's items is computed again by somebody else."""
    QUORUM = "Quorum"
    """Each shard is computed by several, until enough agree."""
    ADAPTIVE = "Adaptive"
    """As much as the device's history calls for, never less than the audit floor."""


class ComparatorKind(StrEnum):
    """When two results for one item are the same."""

    EXACT = "Exact"
    """Every bit of every output."""
    ALL_CLOSE = "AllClose"
    """Each value b is within ``atol + rtol * |a|`` of the canonical a."""
    COSINE = "Cosine"
    """The angle between the item's vectors has a cosine of at least `minimum`."""
    TOP_K = "TopK"
    """The same k highest classes in order; two whose canonical values lie within `margin` may swap."""


@dataclass(frozen=True, slots=True)
class Comparator:
    """How results are compared; fields that do not belong to `kind` are of no account.

    Attributes:
        minimum: cosine, above 0 and at most 1.
        k: classes, at least 1.
        margin: in units of the output.
    """

    kind: ComparatorKind = ComparatorKind.EXACT
    rtol: float = 0.0
    atol: float = 0.0
    minimum: float = 1.0
    k: int = 1
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class Verification:
    """How results of a job are verified.

    Attributes:
        quorum: for Quorum, how many devices of different owners compute each shard; more than half must agree.
        max_error_rate: share of wrong rows that the user can live with, above 0 and at most 1.
        audit_floor: least share of items that is computed again by somebody else, whatever the device's history.
    """

    mode: VerificationMode = VerificationMode.NONE
    quorum: int = 2
    comparator: Comparator = Comparator()
    max_error_rate: float = DEFAULT_MAX_ERROR_RATE
    audit_floor: float = DEFAULT_AUDIT_FLOOR

    @property
    def wanted(self) -> bool:
        """Whether anything is verified."""
        return self.mode is not VerificationMode.NONE


class DataClass(IntEnum):
    """How far data may go. Larger numbers are more confidential."""

    PUBLIC = 0
    """To any device."""
    INTERNAL = 1
    """To devices that somebody vouches for."""
    CONFIDENTIAL = 2
    """To one's own devices."""


class TrustTier(IntEnum):
    """Whose a device is, as the platform team says; a device cannot say so itself."""

    PUBLIC = 0
    """Anybody's."""
    VETTED = 1
    """Somebody vouches for it."""
    OWNED = 2
    """Our own."""

    def admits(self, data: DataClass) -> bool:
        """Whether data of this class may go to a device of this tier."""
        return self >= data


@dataclass(frozen=True, slots=True)
class Witness:
    """Who computed something, as far as it bears on believing it.

    Attributes:
        owner: replicas go to different owners; empty: nobody answers for the device, and all such devices count as
            one owner's.
        network: address prefix it dials from, so that devices of one place do not vouch for each other; empty: unknown.
        numerics: numerics class: results of two devices are the same bit for bit only within one.
        tier: whose device it is.
        engine: what runs its models, with the version; what it proved with another says nothing of this one.
    """

    device: DeviceName
    owner: str = ""
    network: str = ""
    numerics: str = ""
    tier: TrustTier = TrustTier.PUBLIC
    engine: str = ""
