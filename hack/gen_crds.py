"""Write crds/*.yaml from the pydantic types in pocketgrid.api: the only source of the custom resources.

A structural schema is a small part of JSON Schema: no references, no unions, nothing left open
(kubernetes.io, "Specifying a structural schema"). This generator inlines references, turns ``X | None``
into an optional X and a default of an object into ``{}``, and refuses whatever it does not know,
including what would be legal but careless: a field without description, a number without format and
bounds, a string, list or map without a limit.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pocketgrid.api.v1alpha1.edge_node import EdgeNode
from pocketgrid.api.v1alpha1.hardware_class import HardwareClass
from pocketgrid.api.v1alpha1.inference_job import InferenceJob
from pocketgrid.api.v1alpha1.meta import CEL_KEY, EXACT, GROUP, VERSION, Kind, Resource
from pocketgrid.api.v1alpha1.tolerance_profile import ToleranceProfile

ROOT = Path(__file__).resolve().parent.parent
KINDS: tuple[type[Kind], ...] = (InferenceJob, HardwareClass, EdgeNode, ToleranceProfile)
CATEGORY = "pocketgrid"

HEADER = "# Generated from operator/pocketgrid/api by `make generate`. Do not edit.\n"

COPIED = {
    "type", "description", "format", "pattern", "enum",
    "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    CEL_KEY, "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type",
}  # fmt: skip
"""Keywords that mean the same in pydantic's output and in a structural schema."""

LAST = ("items", "additionalProperties", "properties", "required", CEL_KEY)
"""Keywords that come after the others, so that a reader meets a field's description and limits first."""

HANDLED = {"$ref", "$defs", "anyOf", "const", "title", "default", "properties", "required", "items",
           "additionalProperties", "propertyNames"}  # fmt: skip
"""Keywords that are translated or dropped on purpose."""

BOUNDS = {
    "integer": ("format", "minimum", "maximum"),
    "array": ("items", "maxItems"),
    "boolean": (),
}
"""What a schema of each type must have; strings and objects have choices, see `_check_bounds`."""

API_VERSION_TEXT = "Version of this representation of the object, with its API group."
KIND_TEXT = "Kind of the object, in CamelCase."

Schema = dict[str, Any]


class UnsupportedSchemaError(Exception):
    """A type says something that a structural schema cannot, or leaves something open."""


def structural(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    """Translate pydantic's JSON schema into a structural one.

    Args:
        schema: what pydantic made of one type.
        definitions: what its references point at.
        path: where in the object it stands, for messages.

    Raises:
        UnsupportedSchemaError: it cannot be said, or leaves something open.
    """
    merged = _resolve(schema, definitions, path)
    if unknown := set(merged) - COPIED - HANDLED:
        raise UnsupportedSchemaError(f"{path}: cannot translate {', '.join(sorted(unknown))}")
    out: Schema = {key: value for key, value in merged.items() if key in COPIED}
    if "description" in out:
        out["description"] = _one_line(out["description"])
    if "const" in merged:
        out["enum"] = [merged["const"]]
    match merged.get("type"):
        case "object":
            _translate_object(out, merged, definitions, path)
        case "array":
            if "items" in merged:
                out["items"] = structural(merged["items"], definitions, f"{path}[]")
            out.setdefault("x-kubernetes-list-type", "atomic")
    _translate_default(out, merged)
    _check_bounds(out, path)
    return _in_reading_order(out)


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Schema:
    """Replace references and ``X | None`` by what they stand for; what is said beside them wins or adds."""
    outer = dict(schema)
    if reference := outer.pop("$ref", None):
        inner = definitions[reference.removeprefix("#/$defs/")]
    elif choices := outer.pop("anyOf", None):
        real = [choice for choice in choices if choice != {"type": "null"}]
        if len(real) != 1:
            raise UnsupportedSchemaError(f"{path}: a structural schema has no unions")
        inner = real[0]
    else:
        return outer
    merged = _resolve(inner, definitions, path)
    rules = [*merged.get(CEL_KEY, []), *outer.get(CEL_KEY, [])]
    merged |= outer
    return merged | ({CEL_KEY: rules} if rules else {})


def _translate_object(out: Schema, merged: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> None:
    properties = merged.get("properties")
    values = merged.get("additionalProperties")
    if properties is not None:
        # Pruning does what `additionalProperties: false` would say, which a structural schema must not.
        if values is not False:
            raise UnsupportedSchemaError(f"{path}: extra fields must be forbidden")
        out["properties"] = {}
        for name, schema in properties.items():
            child = structural(schema, definitions, f"{path}.{name}")
            if not child.get("description"):
                raise UnsupportedSchemaError(f"{path}.{name}: has no description")
            out["properties"][name] = child
        if merged.get("required"):
            out["required"] = list(merged["required"])
    elif isinstance(values, dict):
        # Names of map entries cannot be constrained by a structural schema; pydantic still does.
        out["additionalProperties"] = structural(values, definitions, f"{path}.*")
    else:
        raise UnsupportedSchemaError(f"{path}: an object must have properties or a type of values")


def _translate_default(out: Schema, merged: Mapping[str, Any]) -> None:
    """Keep a default that says something; an object with defaults inside gets ``{}`` so that they apply."""
    default = merged.get("default")
    if out.get("type") == "object":
        if "default" in merged and default is not None:
            children = out.get("properties", {}).values()
            if any("default" in child for child in children):
                out["default"] = {}
    elif default is not None and default not in ([], ""):
        out["default"] = default
        # `kubectl explain` does not show defaults by itself.
        out["description"] = f"{out.get('description', '')} Default: {yaml.safe_dump(default).split()[0]}.".strip()


def _in_reading_order(schema: Schema) -> Schema:
    first = {key: schema[key] for key in ("type", "description") if key in schema}
    last = {key: schema[key] for key in LAST if key in schema}
    return first | {key: value for key, value in schema.items() if key not in last} | last


def _check_bounds(schema: Schema, path: str) -> None:
    kind = schema.get("type")
    match kind:
        case "string":
            complete = "enum" in schema or "maxLength" in schema
        case "object":
            complete = "properties" in schema or "maxProperties" in schema
        case "integer" | "array" | "boolean":
            complete = all(key in schema for key in BOUNDS[kind])
        case _:
            raise UnsupportedSchemaError(f"{path}: type {kind!r} is not used in this API")
    if any(abs(schema.get(bound, 0)) > EXACT for bound in ("minimum", "maximum")):
        raise UnsupportedSchemaError(f"{path}: an API server cannot hold a bound beyond {EXACT}")
    if not complete:
        raise UnsupportedSchemaError(f"{path}: a {kind} must be bounded")


def root_schema(kind: type[Kind]) -> Schema:
    """The structural schema of a whole object."""
    raw = kind.model_json_schema(by_alias=True, mode="validation")
    definitions = raw.get("$defs", {})
    properties: Schema = {
        "apiVersion": {"type": "string", "description": API_VERSION_TEXT},
        "kind": {"type": "string", "description": KIND_TEXT},
        # The API server knows metadata better than any CRD could say.
        "metadata": {"type": "object"},
    }
    for name, schema in raw["properties"].items():
        if name not in properties:
            properties[name] = structural(schema, definitions, name)
    out: Schema = {"type": "object", "description": _one_line(raw["description"]), "properties": properties}
    out["required"] = [name for name in raw["required"] if name not in ("apiVersion", "kind", "metadata")]
    if CEL_KEY in raw:
        out[CEL_KEY] = raw[CEL_KEY]
    return out


def definition(kind: type[Kind]) -> Schema:
    """The CustomResourceDefinition of a kind."""
    resource = kind.resource
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": resource.crd_name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.singular,
                "shortNames": [resource.short_name],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(resource),
                    "schema": {"openAPIV3Schema": root_schema(kind)},
                }
            ],
        },
    }


def _columns(resource: Resource) -> list[Schema]:
    return [
        {
            "name": column.name,
            "type": column.type,
            "jsonPath": column.json_path,
            "description": column.description,
        }
        | ({"priority": 1} if column.wide else {})
        for column in resource.columns
    ]


def _one_line(text: str) -> str:
    """Join the lines of each paragraph."""
    return "\n\n".join(re.sub(r"\s*\n\s*", " ", paragraph.strip()) for paragraph in text.split("\n\n"))


class _Dumper(yaml.SafeDumper):
    """Block style with indented lists, and prose folded to the width of a page."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    prose = " " in text and (len(text) > 70 or "'" in text or ": " in text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=">" if prose else None)


_Dumper.add_representer(str, _represent_text)


def render(kind: type[Kind]) -> str:
    """The committed file of a kind."""
    return HEADER + yaml.dump(
        definition(kind), Dumper=_Dumper, sort_keys=False, width=100, default_flow_style=False, allow_unicode=True
    )


def main(out: Path = ROOT / "crds") -> int:
    """Write one file for each kind into `out` and remove files of kinds that are gone."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = {f"{GROUP}_{kind.resource.plural}.yaml": render(kind) for kind in KINDS}
    for stale in {path.name for path in out.glob(f"{GROUP}_*.yaml")} - wanted.keys():
        (out / stale).unlink()
    for name, text in wanted.items():
        (out / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
