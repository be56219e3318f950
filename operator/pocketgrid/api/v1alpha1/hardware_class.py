"""HardwareClass: a named set of Nodes, written by the platform team, as a StorageClass is."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pocketgrid.api.v1alpha1.conditions import READY, Condition
from pocketgrid.api.v1alpha1.inference_job import LabelValue
from pocketgrid.api.v1alpha1.meta import (
    ApiModel,
    Column,
    Count32,
    Count64,
    Extra,
    Kind,
    Resource,
    Rule,
    Sha256,
    Unique,
    condition_path,
)
from pocketgrid.api.v1alpha1.verification import Money

LabelKey = Annotated[str, Field(min_length=1, max_length=317)]


def _values_fit(requirement: Requirement) -> bool:
    return bool(requirement.values) == (requirement.operator in ("In", "NotIn"))


class Requirement(ApiModel):
    """A condition on one label."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="ValuesAndOperator",
            cel="(has(self.values) && size(self.values) > 0) == (self.operator in ['In', 'NotIn'])",
            message="must have values if its operator is In or NotIn, and none otherwise",
            holds=_values_fit,
        ),
    )

    key: LabelKey
    """Key of the label."""

    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """In: the label is there with one of the values. NotIn: it is absent or has another value. Exists: it is
    there. DoesNotExist: it is absent."""

    values: Annotated[tuple[LabelValue, ...], Field(max_length=256), Unique()] = ()
    """Values for In and NotIn; absent for the others."""


class NodeSelector(ApiModel):
    """All conditions must hold. An empty selector matches every Node."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Extra(x_kubernetes_map_type="atomic"), Field(max_length=64)] = (
        Field(default_factory=dict)
    )
    """Labels the Node must have. Absent or empty: no condition."""

    match_expressions: Annotated[tuple[Requirement, ...], Field(max_length=64)] = ()
    """Conditions on the Node's labels. Absent or empty: no condition."""


class ModelPrice(ApiModel):
    """What an item of one model is worth."""

    sha256: Sha256
    """SHA-256 of the model file."""

    per_item: Money
    """Pay for one verified item, in the grid's currency."""


class Price(ApiModel):
    """What the owners of devices in the class are paid for verified work. Every replica that agreed is paid alike."""

    per_item: Money = "0"
    """Pay for one verified item, in the grid's currency, such as 0.0004; down to a millionth of its unit."""

    models: Annotated[tuple[ModelPrice, ...], Field(max_length=256), Unique("sha256")] = ()
    """Models that have a price of their own."""


class HardwareClassSpec(ApiModel):
    """Which Nodes belong to the class, and what holds for all of them."""

    node_selector: NodeSelector
    """Selects Nodes by their labels. The grid labels the Nodes of devices with pocketgrid.dev/kind, .../os and
    .../owner, and with kubernetes.io/arch and kubernetes.io/os."""

    price: Price | None = None
    """What verified work is paid. Absent: nothing. A job's prices are those at the time it began."""

    numerics_class: (
        Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")] | None
    ) = None
    """Devices of one numerics class compute the same bits; results of two classes are compared only where a
    ToleranceProfile says how. Absent: derived from what each device says of its processor and inference engine, which
    is the safe choice. State one only for machines known to be alike."""

    description: Annotated[str, Field(max_length=1024)] | None = None
    """What the class is meant for, for people."""


class HardwareClassStatus(ApiModel):
    """Which Nodes there are."""

    observed_generation: Count64 | None = None
    """The `metadata.generation` this status was made from. Older than the object's: not up to date."""

    nodes: Count32 | None = None
    """Nodes the selector matches."""

    ready_nodes: Count32 | None = None
    """Of these, the ones that can be given work now."""

    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), Unique("type")] = ()
    """Ready: whether a job that asks for this class would find a device."""


class HardwareClass(Kind):
    """A class of hardware that jobs can ask for by name."""

    resource: ClassVar[Resource] = Resource(
        kind="HardwareClass",
        plural="hardwareclasses",
        singular="hardwareclass",
        short_name="hwc",
        namespaced=False,
        columns=(
            Column("Ready", condition_path(READY), "Whether a job would find a device."),
            Column("Nodes", ".status.nodes", "Nodes the selector matches.", "integer"),
            Column("ReadyNodes", ".status.readyNodes", "Nodes that can be given work now.", "integer"),
            Column("Age", ".metadata.creationTimestamp", "Time since it was created.", "date"),
            Column("Description", ".spec.description", "What the class is meant for.", wide=True),
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="NameTooLong",
            cel="size(self.metadata.name) <= 63",
            message="must have a name of at most 63 characters, because jobs refer to it by that name",
            holds=lambda kind: len(kind.metadata.name) <= 63,
        ),
    )

    api_version: Literal["pocketgrid.dev/v1alpha1"]
    kind: Literal["HardwareClass"]

    spec: HardwareClassSpec
    """Which Nodes belong to the class."""

    status: HardwareClassStatus | None = None
    """Which Nodes there are. Written by the operator."""
