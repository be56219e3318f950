"""What all kinds share: group and version, strictness, bounded types, rules, and how a kind presents itself.

The types of this package are the public API. They are read in two ways: pydantic checks manifests with
them (local mode, and again in the operator), and `hack/gen_crds.py` turns them into structural schemas
for the API server. Whatever bears on both is therefore said once, in a form that both can read:

- attribute docstrings become the descriptions that `kubectl explain` shows;
- a `Rule` holds a cross-field condition twice, side by side: as CEL for servers that know CEL (1.25 and
  newer) and as a Python predicate for those that ignore it and for local mode;
- `Unique` and `Immutable` are such conditions for lists and for updates.

Rules use `rule` and `message` only: `reason`, `fieldPath` and `messageExpression` are younger than CEL
itself, and strict field validation would refuse the whole CRD on the servers between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

GROUP = "pocketgrid.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

CEL_KEY = "x-kubernetes-validations"
"""Where a structural schema keeps its CEL rules."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on one value, told as CEL and in Python. As metadata of a type it applies to that type.

    Attributes:
        reason: CamelCase reason of a refusal.
        cel: true if the value, `self`, is acceptable.
        message: completes the sentence "<field path> ...".
        holds: the same condition in Python, asked about the parsed value.
    """

    reason: str
    cel: str
    message: str
    holds: Callable[[Any], bool]

    def schema(self) -> dict[str, str]:
        """One entry of `x-kubernetes-validations`."""
        return {"rule": self.cel, "message": self.message}

    def check(self, value: Any) -> Any:
        """Return `value` if the rule holds for it; for use as a validator."""
        if not self.holds(value):
            raise PydanticCustomError(self.reason, "{problem}", {"problem": self.message})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check after whatever the type itself checks."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the CEL form."""
        out = handler(schema)
        out[CEL_KEY] = [*out.get(CEL_KEY, []), self.schema()]
        return out


@dataclass(frozen=True, slots=True)
class Immutable:
    """Marks a required or defaulted field that no update may change.

    Attributes:
        remedy: what to do instead.
    """

    remedy: str

    @property
    def message(self) -> str:
        """Completes the sentence "<field path> ..."."""
        return f"is immutable; {self.remedy}"

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the transition rule. It covers parts that come or go too, because it compares the whole."""
        out = handler(schema)
        out[CEL_KEY] = [*out.get(CEL_KEY, []), {"rule": "self == oldSelf", "message": self.message}]
        return out


@dataclass(frozen=True, slots=True)
class Unique:
    """Marks a list without repetitions: of scalars, or of objects by the value of `key`.

    API servers enforce this for list types `set` and `map`, old ones too.

    Attributes:
        key: serialised name of the key field; empty for scalars.
    """

    key: str = ""

    def check(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return `values` if no two are the same."""
        seen = set()
        for value in values:
            mark = value.model_dump(by_alias=True)[self.key] if self.key else value
            if mark in seen:
                raise PydanticCustomError("Duplicate", "lists {mark} twice", {"mark": repr(mark)})
            seen.add(mark)
        return values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check after the entries were parsed."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Tell the API server."""
        out = handler(schema)
        out["x-kubernetes-list-type"] = "map" if self.key else "set"
        if self.key:
            out["x-kubernetes-list-map-keys"] = [self.key]
        return out


class Extra:
    """Adds keywords to a type's schema, such as a format."""

    __slots__ = ("keywords",)

    def __init__(self, **keywords: str) -> None:
        self.keywords = {name.replace("_", "-"): value for name, value in keywords.items()}

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the keywords."""
        return {**handler(schema), **self.keywords}


EXACT = 2**53 - 1
"""Largest integer that every reader of JSON knows exactly. API servers keep the bounds of a schema as
floating-point numbers: a maximum of 2**63 - 1 overflows there and then refuses every value."""

# `Strict`, because an API server takes neither "5" nor true for a number.
Int32 = Annotated[int, Strict(), Extra(format="int32"), Field(ge=-(2**31), le=2**31 - 1)]
PositiveInt32 = Annotated[int, Strict(), Extra(format="int32"), Field(ge=1, le=2**31 - 1)]
Count32 = Annotated[int, Strict(), Extra(format="int32"), Field(ge=0, le=2**31 - 1)]
Count64 = Annotated[int, Strict(), Extra(format="int64"), Field(ge=0, le=EXACT)]
Boolean = Annotated[bool, Strict()]
Time = Annotated[str, Extra(format="date-time"), Field(max_length=64)]
"""RFC 3339, in UTC."""
Decimal = Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?$")]
"""A non-negative quantity as text: the API has no floating-point numbers."""
Word = Annotated[str, Field(max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
"""What a model, a file or a library calls something."""
ClassName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""Short enough that a status which lists classes stays small."""
Sha256 = Annotated[str, Field(min_length=64, max_length=64, pattern=r"^[0-9a-f]{64}$")]

_ABSOLUTE_FILE = Rule(
    reason="RelativePath",
    cel="!self.startsWith('file://') || self.startsWith('file:///')",
    message="must name an absolute path after file://, such as file:///var/lib/pocketgrid/model.onnx",
    holds=lambda uri: not uri.startswith("file://") or uri.startswith("file:///"),
)
Uri = Annotated[
    str,
    Field(min_length=1, max_length=2048, pattern=r"^[a-z][a-z0-9+.:-]*://[^\x00-\x1f]+$"),
    _ABSOLUTE_FILE,
]
"""A location with its scheme. Chained schemes such as ``zip://a.csv::s3://bucket/b.zip`` are allowed."""


class ApiModel(BaseModel):
    """Base of every object of the API: unknown fields are refused, names are camelCase outside."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=False,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Conditions over several fields of this object."""

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        for rule in self.rules:
            rule.check(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the CEL form of `rules`."""
        out = handler(schema)
        if cls.rules:
            handler.resolve_ref_schema(out)[CEL_KEY] = [rule.schema() for rule in cls.rules]
        return out


class ObjectMeta(ApiModel):
    """The metadata this project reads; the rest is left to Kubernetes."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
    namespace: Annotated[str, Field(max_length=63)] = "default"
    uid: Annotated[str, Field(max_length=128)] = ""
    creation_timestamp: Time = ""
    generation: Count64 = 0


@dataclass(frozen=True, slots=True)
class Column:
    """A printer column.

    Attributes:
        wide: shown with ``-o wide`` only.
    """

    name: str
    json_path: str
    description: str
    type: Literal["string", "integer", "date"] = "string"
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Resource:
    """How a kind appears in the API and in kubectl."""

    kind: str
    plural: str
    singular: str
    short_name: str
    namespaced: bool
    columns: tuple[Column, ...]

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


def condition_path(condition: str, member: str = "status") -> str:
    """JSON path of one member of a condition."""
    return f'.status.conditions[?(@.type=="{condition}")].{member}'


class Kind(ApiModel):
    """Base of the kinds themselves."""

    resource: ClassVar[Resource]

    metadata: ObjectMeta


Body = Mapping[str, Any]
"""An object as the API server or a YAML file has it."""
