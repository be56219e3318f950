"""What the engine shows of itself: immutable views for status, command line and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pocketgrid.model.device import DeviceIdentity, Restraint, Vitals
from pocketgrid.model.ids import DeviceName, JobUid, ModelDigest
from pocketgrid.model.job import JobSpec
from pocketgrid.model.trust import TrustTier


class Stage(StrEnum):
    """Where a job stands. Not for users: conditions are what they see."""

    ADMITTING = "Admitting"
    """Model and data are being looked at."""
    REFUSED = "Refused"
    """It can never run as it is written."""
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    FINISHING = "Finishing"
    """All shards are committed; the last parts and the manifest are being written."""
    COMPLETE = "Complete"
    FAILED = "Failed"
    REMOVED = "Removed"

    @property
    def terminal(self) -> bool:
        """Whether nothing more will happen, unless the user edits a refused job."""
        return self in (Stage.REFUSED, Stage.COMPLETE, Stage.FAILED, Stage.REMOVED)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why something is as it is: a CamelCase reason and a sentence."""

    reason: str
    message: str
    field: str = ""


@dataclass(frozen=True, slots=True)
class VerificationView:
    """How far a job's results can be believed.

    Attributes:
        rows_verified: rows that are final.
        rows_checked: rows that somebody else computed again.
        disagreement_rate: share of these that came out otherwise, 0 to 1.
        redundancy: items computed for each item needed, at least 1.
        wrong_rows_upper_bound: with 95 % confidence; None while nothing can be said.
        taken_back: by device that this job found out, how many shards were taken back from it.
    """

    rows_verified: int
    rows_checked: int
    disagreement_rate: float
    redundancy: float
    wrong_rows_upper_bound: float | None = None
    taken_back: Mapping[DeviceName, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CostView:
    """What a job costs, in micro-units.

    Attributes:
        spent_micro: paid for rows that are final.
        escrow_micro: set aside for rows that are committed and not yet final.
        limit_micro: what it may cost; None: no limit.
    """

    spent_micro: int
    escrow_micro: int
    limit_micro: int | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """One job at one moment.

    Attributes:
        obstacle: why no device works on it although it could run (NoReadyNodes, NoMatchingNodes, ...), or None.
        trouble: what keeps the engine from making progress on its own side, such as a full disk, or None.
        explanation: for REFUSED and FAILED, why.
        items, items_done, items_failed: of the whole data set; done includes failed.
        items_per_shard: 0 until the grid has chosen.
        completed_text: completed shards, as in an Indexed Job; may be truncated.
        devices: how many devices hold leases, by hardware class ("" if it matches none).
        throughput: items per second over the last half minute; 0 if nothing was committed.
        started, finished: seconds since the Unix epoch, 0 if not yet.
        attempts_lost: attempts whose device vanished, ran late or failed; never held against the job.
        copies: second copies handed out for stragglers.
        verification: None of a job that is not verified.
        cost: None while nothing has a price.
    """

    spec: JobSpec
    stage: Stage
    explanation: Explanation | None = None
    obstacle: Explanation | None = None
    trouble: Explanation | None = None
    items: int = 0
    items_done: int = 0
    items_failed: int = 0
    items_per_shard: int = 0
    shards: int = 0
    shards_done: int = 0
    shards_active: int = 0
    completed_text: str = ""
    devices: Mapping[str, int] = field(default_factory=dict)
    throughput: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    attempts_lost: int = 0
    copies: int = 0
    duplicates: int = 0
    manifest_uri: str = ""
    verification: VerificationView | None = None
    cost: CostView | None = None

    @property
    def uid(self) -> JobUid:
        """Identity of the job."""
        return self.spec.uid


class Presence(StrEnum):
    """Whether a device can be reached."""

    CONNECTED = "Connected"
    UNKNOWN = "Unknown"
    """Its link broke a moment ago; its leases still stand."""
    LOST = "Lost"
    """Its leases went elsewhere; what it still brings is welcome."""


@dataclass(frozen=True, slots=True)
class HistoryView:
    """What is known of a device under one engine, numerics class and model; figures fade with time, as of `at`.

    Attributes:
        confirmed, refuted: items.
        suspicion: how much the refuted ones speak against it.
        consecutive: items confirmed since the last that was refuted.
        at: seconds since the Unix epoch.
    """

    fingerprint: str
    confirmed: float
    refuted: float
    suspicion: float
    consecutive: float
    at: float


@dataclass(frozen=True, slots=True)
class TrustView:
    """What a device's results have proved to be, over all jobs. Times are seconds since the Unix epoch.

    Attributes:
        verified_items: its items that others confirmed; older ones count less.
        disagreements: its items that came out otherwise elsewhere; older ones count less.
        since: when its present history began; 0 if unknown.
        caught: when it was last caught with wrong results; 0 if never.
        times_caught: how often it was.
        proven: it counts as an honest one of the fleet.
        histories: what the figures are made of.
        tainted_node: uid of its Node, if that says that the device is distrusted.
    """

    verified_items: int
    disagreements: int
    since: float = 0.0
    caught: float = 0.0
    times_caught: int = 0
    proven: bool = False
    histories: tuple[HistoryView, ...] = ()
    tainted_node: str = ""


@dataclass(frozen=True, slots=True)
class EarningsView:
    """What a device has earned over all jobs since the engine started, in micro-units.

    Attributes:
        earned_micro: for items that are final.
        provisional_micro: for items that are committed and not yet final.
    """

    earned_micro: int
    provisional_micro: int


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device at one moment.

    Attributes:
        classes: hardware classes its Node belongs to, sorted.
        schedulable: whether new leases may go there (attached, not cordoned, not draining, not paused by its owner).
        speeds: items per second by model over the last minute of computing: what it sustains.
        peak_speeds: the most it ever reached, by model, since the engine started.
        restraint: how far its owner holds it back.
        leased_shards: handed out and unanswered.
        last_seen: seconds since the Unix epoch.
        items_done: items committed from this device since the engine started.
        tier: whose it is.
        trust: None if none of its results was ever verified.
        earnings: None if it has earned nothing since the engine started, and nothing is held for it.
        distrusted: why nothing of it is believed; empty if that is not so.
    """

    identity: DeviceIdentity
    presence: Presence
    vitals: Vitals
    classes: tuple[str, ...]
    schedulable: bool
    speeds: Mapping[ModelDigest, float]
    leased_shards: int
    last_seen: float
    items_done: int
    jobs: tuple[JobUid, ...] = ()
    peak_speeds: Mapping[ModelDigest, float] = field(default_factory=dict)
    restraint: Restraint = field(default_factory=Restraint)
    tier: TrustTier = TrustTier.PUBLIC
    trust: TrustView | None = None
    earnings: EarningsView | None = None
    distrusted: str = ""

    @property
    def name(self) -> DeviceName:
        """Name of the device, its Node and its EdgeNode."""
        return self.identity.name
