"""EdgeNode: the grid's own record of one device, beside the Kubernetes Node of the same name.

The operator creates it when a device joins. `spec.owner`, `spec.tier`, `spec.hardwareClass` and `spec.revoked` are for
people to edit. Deleting it shuts the device out until it joins anew.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pocketgrid.api.v1alpha1.conditions import PAUSED, READY, TRUSTED, Condition
from pocketgrid.api.v1alpha1.meta import (
    ApiModel,
    Boolean,
    Column,
    Count32,
    Count64,
    Decimal,
    Kind,
    Resource,
    Sha256,
    Time,
    Unique,
    Word,
    condition_path,
)
from pocketgrid.api.v1alpha1.verification import Money

MAX_LISTED = 64
"""Entries of each list in the status."""

MAX_HISTORIES = 8
MAX_FINGERPRINT = 512

BootId = Annotated[str, Field(max_length=128)]


class EdgeNodeSpec(ApiModel):
    """What is known of the device from outside."""

    owner: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")]
    """Who is responsible for the device. Set from what the device was enrolled with; administrators may change
    it. Also the value of the Node's label pocketgrid.dev/owner."""

    tier: Literal["Public", "Vetted", "Owned"] = "Public"
    """Whose the device is, which decides how confidential the data may be that it gets. Public: anybody's. Vetted:
    somebody vouches for it. Owned: our own. Set by administrators; a device cannot say so itself. Lowering it takes
    work back at once that the device may no longer have."""

    node_name: Annotated[str, Field(max_length=253)] | None = None
    """Name of the existing Node the device runs on, if it has a kubelet. Absent: it has none, and the gateway
    keeps a Node of the same name for it."""

    hardware_class: Annotated[str, Field(max_length=63)] | None = None
    """The only HardwareClass the device belongs to. Set from the token it joined with. Absent: all those whose selector
    matches its Node's labels, some of which are what the device says of itself."""

    key_sha256: Annotated[Sha256 | None, Field(alias="keySHA256")] = None
    """SHA-256 of the device's public key (SubjectPublicKeyInfo), hexadecimal: who may come in under this name. Set when
    the device joins. Absent: nobody has joined under it."""

    revoked: Boolean = False
    """Shuts the device out: its session ends within seconds, and its certificate is refused although still valid."""


class Facts(ApiModel):
    """What the device says of itself; fixed for one run of its agent."""

    kind: Word | None = None
    """phone, sbc, laptop, desktop or server."""

    arch: Word | None = None
    """Processor architecture as Kubernetes writes it: amd64, arm64, arm."""

    os: Word | None = None
    """Operating system as Kubernetes writes it, or android."""

    cores: Count32 | None = None
    """Processor cores the agent may use."""

    memory_bytes: Count64 | None = None
    """Physical memory in bytes."""

    simd: Annotated[tuple[Word, ...], Field(max_length=MAX_LISTED)] = ()
    """Instruction set extensions that change numerics or speed."""

    providers: Annotated[tuple[Word, ...], Field(max_length=MAX_LISTED)] = ()
    """Execution providers of onnxruntime on the device."""

    engine: Word | None = None
    """Inference engine and its version."""

    agent_version: Word | None = None
    """Version of the agent."""

    model_name: Word | None = None
    """Model of the device, if it can tell."""


class VitalSigns(ApiModel):
    """How the device feels. What is absent it cannot tell, which is not zero."""

    load1: Decimal | None = None
    """Load average over one minute."""

    memory_available_bytes: Count64 | None = None
    """Memory that could be used without swapping, in bytes."""

    battery_percent: Annotated[Count32, Field(le=100)] | None = None
    """Charge of the battery, 0 to 100."""

    charging: Boolean | None = None
    """Whether the device is on external power."""

    temperature_celsius: Annotated[str, Field(max_length=32, pattern=r"^-?[0-9]+(\.[0-9]+)?$")] | None = None
    """Temperature of the device's hottest known sensor, in degrees Celsius."""

    network: Word | None = None
    """ethernet, wifi, cellular, loopback or unknown."""


class Speed(ApiModel):
    """How fast the device runs one model."""

    model_sha256: Sha256
    """SHA-256 of the model file."""

    items_per_second: Decimal
    """Items per second the device sustains: measured when it loaded the model, since then over its last minute or so
    of computing."""

    peak_items_per_second: Decimal | None = None
    """The most it reached since the operator started. A device that sustains much less gets hot."""


class TrustHistory(ApiModel):
    """What the device has proved under one inference engine, numerics class and model.

    With another it is a stranger again. Older items count less: half as much after ten days.
    """

    fingerprint: Annotated[str, Field(min_length=1, max_length=MAX_FINGERPRINT)]
    """Engine, numerics class and the beginning of the model's SHA-256."""

    confirmed: Decimal
    """Items that others computed again and got the same."""

    refuted: Decimal
    """Items that others computed again and got something else."""

    suspicion: Decimal
    """How much the refuted ones speak against the device: the sum of -ln(probability that it was right after all)."""

    consecutive: Decimal
    """Items confirmed since the last refuted one."""

    time: Time
    """The moment at which these figures are true."""


class Trust(ApiModel):
    """What the device's results have proved to be, over all jobs.

    A restarted operator reads it back. The device itself cannot write it.
    """

    verified_items: Count64
    """Items of the device that others computed again and confirmed; older ones count less, see `histories`."""

    disagreements: Count64
    """Items of the device that others computed again and that came out otherwise; older ones count less."""

    since: Time | None = None
    """When its present history began: when it was first checked, or last caught."""

    proven: Boolean | None = None
    """Whether ten of its items in a row were once confirmed, since when it counts as an honest device of its tier and
    owner; being caught ends that."""

    times_caught: Count32 | None = None
    """How often it was caught with wrong results. Absent: never."""

    caught_time: Time | None = None
    """When it was last caught with wrong results. Absent: never."""

    distrusted: Annotated[str, Field(max_length=1024)] | None = None
    """Why nothing of the device is believed now, and it gets no work. Absent: that is not so. Ends when the taint
    pocketgrid.dev/distrusted is removed from its Node."""

    tainted_node_uid: Annotated[Word | None, Field(alias="taintedNodeUID")] = None
    """Uid of the Node that was seen with the taint. If that Node no longer has it when an operator starts, somebody has
    pardoned the device."""

    histories: Annotated[tuple[TrustHistory, ...], Field(max_length=MAX_HISTORIES), Unique("fingerprint")] = ()
    """What the figures are made of, at most eight."""


class Earnings(ApiModel):
    """What the device has earned for its owner, in the grid's currency, over all jobs.

    For looking: what an operator that was killed had not yet published is missing. Pay follows the commit logs, as
    `pocketgrid ledger` adds them up.
    """

    earned: Money
    """For items that are final."""

    provisional: Money
    """For items that are committed and not yet final; void if the device is caught."""


class EdgeNodeStatus(ApiModel):
    """What is the case."""

    observed_generation: Count64 | None = None
    """The `metadata.generation` this status was made from. Older than the object's: not up to date."""

    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), Unique("type")] = ()
    """Ready: whether the device is attached. Unknown while its link is broken but its leases still stand. Paused:
    whether the policy of its owner keeps it from working, with the rule as reason, such as BatteryLow, NotCharging,
    BatteryHot, NetworkMetered or OutsideHours. False with such a reason: it works, but gently. Trusted: whether its
    results are believed. Unknown until others have confirmed some; False if it was caught, and then it gets no work."""

    presence: Word | None = None
    """Connected, Unknown (the link broke a moment ago) or Lost (its leases went elsewhere)."""

    facts: Facts | None = None
    """What the device says of itself."""

    vitals: VitalSigns | None = None
    """How the device feels."""

    classes: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=MAX_LISTED), Unique()] = ()
    """HardwareClasses its Node belongs to, at most 64 of them."""

    speeds: Annotated[tuple[Speed, ...], Field(max_length=MAX_LISTED), Unique("modelSha256")] = ()
    """Measured speed by model, fastest first, at most 64 of them."""

    leased_shards: Count64 | None = None
    """Shards handed to the device and not yet answered."""

    items_done: Count64 | None = None
    """Items committed from this device. What an operator that was killed had not yet published is missing; the commit
    logs of the jobs have exact figures."""

    trust: Trust | None = None
    """What the device's results have proved to be. Absent: none was ever verified."""

    earnings: Earnings | None = None
    """What the device has earned. Absent: nothing yet."""

    last_seen_time: Time | None = None
    """When the device was last heard from."""

    boot_id: Annotated[BootId | None, Field(alias="bootID")] = None
    """Random for each start of the agent, so that a restart can be told from a reconnect."""

    deregistered_boot_id: Annotated[BootId | None, Field(alias="deregisteredBootID")] = None
    """The bootID that was taken off the grid by deleting the device's Node. That run of the agent gets no more
    work; a restarted one, with another bootID, may join again. Absent: none was."""


class EdgeNode(Kind):
    """One device of the grid: who answers for it, what it can do, how it feels and how fast it is."""

    resource: ClassVar[Resource] = Resource(
        kind="EdgeNode",
        plural="edgenodes",
        singular="edgenode",
        short_name="en",
        namespaced=False,
        columns=(
            Column("Ready", condition_path(READY), "Whether the device is attached."),
            Column("Paused", condition_path(PAUSED), "Whether its owner's policy keeps it from working."),
            Column("Why", condition_path(PAUSED, "reason"), "What its owner's policy says."),
            Column("Trusted", condition_path(TRUSTED), "Whether its results are believed."),
            Column("Kind", ".status.facts.kind", "What sort of machine it is."),
            Column("Owner", ".spec.owner", "Who is responsible for it."),
            Column("Classes", ".status.classes[*]", "HardwareClasses it belongs to."),
            Column("Leased", ".status.leasedShards", "Shards it is working on.", "integer"),
            Column("Done", ".status.itemsDone", "Items committed from it.", "integer"),
            Column("Age", ".metadata.creationTimestamp", "Time since it was created.", "date"),
            Column("Reason", condition_path(READY, "reason"), "Why it is ready or not.", wide=True),
            Column("Tier", ".spec.tier", "Whose it is.", wide=True),
            Column("Verified", ".status.trust.verifiedItems", "Items that others confirmed.", "integer", wide=True),
            Column("Earned", ".status.earnings.earned", "Pay for items that are final.", wide=True),
            Column("Arch", ".status.facts.arch", "Processor architecture.", wide=True),
            Column("Cores", ".status.facts.cores", "Processor cores.", "integer", wide=True),
            Column("Battery", ".status.vitals.batteryPercent", "Charge in percent.", "integer", wide=True),
            Column("Engine", ".status.facts.engine", "Inference engine.", wide=True),
        ),
    )

    api_version: Literal["pocketgrid.dev/v1alpha1"]
    kind: Literal["EdgeNode"]

    spec: EdgeNodeSpec
    """What is known of the device from outside."""

    status: EdgeNodeStatus | None = None
    """What is the case. Written by the operator."""
