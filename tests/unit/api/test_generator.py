"""The CRD generator refuses what a structural schema cannot say, and what would be careless."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from hack.gen_crds import KINDS, UnsupportedSchemaError, definition, structural
from pocketgrid.api.v1alpha1.meta import API_VERSION, ApiModel, Count32, Rule, Unique

Short = Annotated[str, Field(max_length=8)]


def schema(model: type[BaseModel]) -> dict[str, Any]:
    raw = model.model_json_schema(by_alias=True)
    return structural(raw, raw.get("$defs", {}), "x")


class Inner(ApiModel):
    """Inner text."""

    some_count: Count32 = 4
    """Some count."""


def test_references_are_inlined_and_optional_fields_are_not_required() -> None:
    class Outer(ApiModel):
        """Outer text."""

        inner: Inner | None = None
        """Said beside the reference."""
        needed: Short
        """Needed."""

    out = schema(Outer)
    assert out["required"] == ["needed"]
    assert out["properties"]["inner"] == {
        "type": "object",
        "description": "Said beside the reference.",
        "properties": {
            "someCount": {
                "type": "integer",
                "description": "Some count. Default: 4.",
                "format": "int32",
                "minimum": 0,
                "maximum": 2**31 - 1,
                "default": 4,
            }
        },
    }


def test_a_default_object_lets_the_defaults_inside_apply() -> None:
    class Outer(ApiModel):
        """Outer text."""

        inner: Inner = Inner()
        """Inner."""
        words: Annotated[tuple[Short, ...], Field(max_length=2), Unique()] = ()
        """Words."""

    properties = schema(Outer)["properties"]
    assert properties["inner"]["default"] == {}
    assert "default" not in properties["words"]
    assert properties["words"]["x-kubernetes-list-type"] == "set"


def test_rules_of_a_type_and_of_a_field_are_both_kept() -> None:
    class Ruled(ApiModel):
        """Ruled."""

        rules = (Rule("A", "a", "must be a", bool),)
        name: Short
        """Name."""

    class Outer(ApiModel):
        """Outer text."""

        ruled: Annotated[Ruled, Rule("B", "b", "must be b", bool)]
        """Ruled."""

    rules = schema(Outer)["properties"]["ruled"]["x-kubernetes-validations"]
    assert rules == [{"rule": "a", "message": "must be a"}, {"rule": "b", "message": "must be b"}]


class Union(ApiModel):
    """Text."""

    field: Short | Count32
    """Text."""


class NoLimit(ApiModel):
    """Text."""

    field: str
    """Text."""


class NoMaximum(ApiModel):
    """Text."""

    field: int
    """Text."""


class NoListLimit(ApiModel):
    """Text."""

    field: tuple[Short, ...]
    """Text."""


class NoMapLimit(ApiModel):
    """Text."""

    field: dict[str, Short]
    """Text."""


class Fraction(ApiModel):
    """Text."""

    field: float
    """Text."""


class Anything(ApiModel):
    """Text."""

    field: Any
    """Text."""


class Undescribed(ApiModel):
    """Text."""

    field: Short


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    field: Annotated[Short, Field(description="Text.")]


class TooLarge(ApiModel):
    """Text."""

    field: Annotated[int, Field(ge=0, le=2**63 - 1)]
    """Text."""


class Multiple(ApiModel):
    """Text."""

    field: Annotated[Count32, Field(multiple_of=2)]
    """Text."""


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Union, "x.field: a structural schema has no unions"),
        (NoLimit, "x.field: a string must be bounded"),
        (NoMaximum, "x.field: a integer must be bounded"),
        (NoListLimit, "x.field: a array must be bounded"),
        (NoMapLimit, "x.field: a object must be bounded"),
        (Fraction, "x.field: type 'number' is not used"),
        (Anything, "x.field: type None is not used"),
        (Undescribed, "x.field: has no description"),
        (Open, "x: extra fields must be forbidden"),
        (TooLarge, "x.field: an API server cannot hold a bound beyond"),
        (Multiple, "x.field: cannot translate multipleOf"),
    ],
)
def test_what_cannot_or_should_not_be_said_is_refused(model: type[BaseModel], complaint: str) -> None:
    with pytest.raises(UnsupportedSchemaError, match=complaint):
        schema(model)


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for entry in value.values():
            yield from nodes(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from nodes(entry)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.resource.kind)
def test_the_schemas_are_closed_and_use_only_what_old_servers_know(kind: Any) -> None:
    crd = definition(kind)
    for node in nodes(crd):
        assert node.get("additionalProperties") not in (True, False)
        assert not {"x-kubernetes-preserve-unknown-fields", "$ref", "anyOf", "nullable", "selectableFields"} & set(node)
        # Younger than CEL itself; strict servers between would refuse them.
        assert set(node.get("x-kubernetes-validations", [{}])[0]) <= {"rule", "message"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.resource.kind)
def test_kind_and_version_agree_with_the_type(kind: Any) -> None:
    fields = kind.model_fields
    assert fields["api_version"].annotation.__args__ == (API_VERSION,)
    assert fields["kind"].annotation.__args__ == (kind.resource.kind,)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.resource.kind)
def test_printer_columns_point_at_fields_that_exist(kind: Any) -> None:
    root = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for column in kind.resource.columns:
        at = root
        if column.json_path.startswith(".metadata"):
            continue
        path = column.json_path.replace(f"[?(@.type=={column.json_path.partition('==')[2].partition(')')[0]})]", "[*]")
        for step in path.strip(".").split("."):
            at = at["properties"][step.removesuffix("[*]")]
            at = at["items"] if step.endswith("[*]") else at
        assert at["type"] == ("string" if column.type == "date" else column.type)
