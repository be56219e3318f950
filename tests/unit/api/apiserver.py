"""What an API server does with an object of a custom resource: default, prune, check structure, evaluate CEL.

Written from the documentation of structural schemas, for comparing both halves of this API where no
server is at hand. The integration tests ask a real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cel
import yaml

CRDS = Path(__file__).resolve().parents[3] / "crds"
SCALARS = {"string": str, "integer": int, "boolean": bool}


def schema_of(plural: str) -> dict[str, Any]:
    document = yaml.safe_load((CRDS / f"pocketgrid.dev_{plural}.yaml").read_text())
    return document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def with_defaults(schema: dict[str, Any], value: Any) -> Any:
    if isinstance(value, dict):
        out = dict(value)
        for name, child in schema.get("properties", {}).items():
            if name not in out and "default" in child:
                out[name] = child["default"]
            if name in out:
                out[name] = with_defaults(child, out[name])
        return out
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(schema["items"], entry) for entry in value]
    return value


def pruned(schema: dict[str, Any], value: Any) -> Any:
    """`value` without the fields that the schema does not know."""
    if isinstance(value, dict) and "properties" in schema:
        return {k: pruned(schema["properties"][k], v) for k, v in value.items() if k in schema["properties"]}
    if isinstance(value, dict) and "additionalProperties" in schema:
        return {k: pruned(schema["additionalProperties"], v) for k, v in value.items()}
    if isinstance(value, list):
        return [pruned(schema["items"], entry) for entry in value]
    return value


def structural_problems(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    match schema["type"]:
        case "object":
            yield from _object_problems(schema, value, path)
        case "array":
            yield from _array_problems(schema, value, path)
        case kind:
            right_type = type(value) is SCALARS[kind]
            if not right_type:
                yield f"{path}: not a {kind}"
                return
            if "enum" in schema and value not in schema["enum"]:
                yield f"{path}: not in enum"
            if kind == "string":
                if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
                    yield f"{path}: length"
                # Go's $ is the end of the text, Python's also the place before a last line break.
                if "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
                    yield f"{path}: pattern"
            if kind == "integer" and not schema["minimum"] <= value <= schema["maximum"]:
                yield f"{path}: range"


def _object_problems(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: not an object"
        return
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}: required"
    if len(value) > schema.get("maxProperties", len(value)):
        yield f"{path}: too many"
    for name, entry in value.items():
        child = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
        if child:
            yield from structural_problems(child, entry, f"{path}.{name}")


def _array_problems(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path}: not a list"
        return
    if len(value) > schema["maxItems"]:
        yield f"{path}: too many"
    problems = [p for i, entry in enumerate(value) for p in structural_problems(schema["items"], entry, f"{path}[{i}]")]
    yield from problems
    if problems:
        return
    match schema["x-kubernetes-list-type"]:
        case "set":
            marks = [repr(entry) for entry in value]
        case "map":
            marks = [repr([entry.get(k) for k in schema["x-kubernetes-list-map-keys"]]) for entry in value]
        case _:
            marks = []
    if len(set(marks)) != len(marks):
        yield f"{path}: duplicate"


def broken_rules(schema: dict[str, Any], value: Any, old: Any = None, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, message) of each CEL rule that does not hold; transition rules only where there is an old value."""
    for entry in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in entry["rule"]:
            if old is not None and not cel.evaluate(entry["rule"], {"self": value, "oldSelf": old}):
                yield path, entry["message"]
        elif not cel.evaluate(entry["rule"], {"self": value}):
            yield path, entry["message"]
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                before = old.get(name) if isinstance(old, dict) else None
                yield from broken_rules(child, value[name], before, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from broken_rules(schema["items"], entry, None, f"{path}[{index}]")


def rules_in(schema: dict[str, Any]) -> Iterator[dict[str, str]]:
    yield from schema.get("x-kubernetes-validations", ())
    for child in schema.get("properties", {}).values():
        yield from rules_in(child)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from rules_in(schema[key])
