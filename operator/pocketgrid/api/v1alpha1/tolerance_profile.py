"""ToleranceProfile: how far apart honest results of different numerics classes lie, measured on real devices.

Written by `pocketgrid calibrate`. Editing one by hand means guessing, which is what it is there to avoid.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pocketgrid.api.v1alpha1.meta import (
    ApiModel,
    Boolean,
    Column,
    Count64,
    Decimal,
    Kind,
    Resource,
    Rule,
    Sha256,
    Time,
)

NumericsClass = Annotated[str, Field(min_length=1, max_length=256)]


class ClassPair(ApiModel):
    """What was measured between two numerics classes."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="PairOutOfOrder",
            cel="self.one < self.other",
            message="must name two classes in alphabetical order",
            holds=lambda pair: pair.one < pair.other,
        ),
    )

    one: NumericsClass
    """The class whose name comes first."""

    other: NumericsClass
    """The other class."""

    items: Annotated[Count64, Field(ge=1)]
    """Items that devices of both computed."""

    identical: Boolean = False
    """Whether every bit of every item was the same."""

    absolute: Decimal | None = None
    """Twice the 99.9th percentile, over items, of the largest difference of two values. A job's allClose.atol must be
    at least this, and the margin of topK twice this. Absent: wrong results would pass, so neither compares the pair."""

    cosine: Decimal | None = None
    """Twice the 99.9th percentile of 1 - cosine. A job's cosine.minimum must leave at least this. Absent: wrong results
    would pass, so cosine never compares the pair."""


class ToleranceProfileSpec(ApiModel):
    """What was measured of one model."""

    model_sha256: Sha256
    """SHA-256 of the model file."""

    pairs: Annotated[tuple[ClassPair, ...], Field(max_length=1024)]
    """Each pair of numerics classes that was measured."""

    measured_time: Time | None = None
    """When it was measured."""


class ToleranceProfile(Kind):
    """Lets results of different kinds of processors be compared for one model, as far as measuring allows it."""

    resource: ClassVar[Resource] = Resource(
        kind="ToleranceProfile",
        plural="toleranceprofiles",
        singular="toleranceprofile",
        short_name="tp",
        namespaced=False,
        columns=(
            Column("Model", ".spec.modelSha256", "SHA-256 of the model file."),
            Column("Measured", ".spec.measuredTime", "When it was measured.", "date"),
            Column("Classes", ".spec.pairs[*].one", "Classes it compares.", wide=True),
        ),
    )

    api_version: Literal["pocketgrid.dev/v1alpha1"]
    kind: Literal["ToleranceProfile"]

    spec: ToleranceProfileSpec
    """What was measured of one model."""
