"""Check manifests in Python, with the same rules that newer API servers enforce themselves.

Kubernetes 1.20 ignores CEL, and local mode has no API server at all; so everything that a CRD refuses is
refused here too, and what the API server prunes silently (an unknown field) is refused by name. The rules
are those of the types in `v1alpha1`, where each stands beside its CEL form; here problems are collected
and put into words. Whether model and data are what the manifest says is for admission, not for this.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pocketgrid.api.v1alpha1.conditions import RefusalReason
from pocketgrid.api.v1alpha1.inference_job import InferenceJobSpec
from pocketgrid.api.v1alpha1.meta import Immutable

Model = TypeVar("Model", bound=BaseModel)

MAX_SHOWN = 60
"""Characters of an offending value worth repeating in a message."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a manifest.

    Attributes:
        reason: CamelCase, fit for a condition.
        field: path as Kubernetes writes it, such as ``spec.input.columns[0].input``; empty for the whole object.
        message: what is wrong, to be read after the field.
    """

    reason: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


def validate(spec: Mapping[str, Any], previous: Mapping[str, Any] | None = None) -> list[Violation]:
    """All that is wrong with an InferenceJob's spec.

    Args:
        spec: the spec as the API server or a file has it.
        previous: the spec as it was accepted before, for an update. A previous spec that is itself invalid
            forbids no change: nothing was ever built on it.

    Returns:
        Violations in the order of the fields; empty if the spec is acceptable.
    """
    parsed, violations = parse(InferenceJobSpec, spec, "spec")
    if parsed is None or previous is None:
        return violations
    before, _ = parse(InferenceJobSpec, previous, "spec")
    return [] if before is None else list(changed_immutables(parsed, before))


def changed_immutables(spec: InferenceJobSpec, previous: InferenceJobSpec) -> Iterator[Violation]:
    """The fields an update changes although it must not."""
    for name, info in InferenceJobSpec.model_fields.items():
        for mark in info.metadata:
            if isinstance(mark, Immutable) and getattr(spec, name) != getattr(previous, name):
                yield Violation(RefusalReason.IMMUTABLE_FIELD, f"spec.{info.alias}", mark.message)


def parse(model: type[Model], value: Any, path: str) -> tuple[Model | None, list[Violation]]:
    """Read `value` as `model`; either the model or a list of violations that is not empty.

    Args:
        model: what is expected.
        value: what the API server or a file has at `path`.
        path: where `value` stands in its object; empty for the object itself.
    """
    try:
        return model.model_validate(without_nulls(value)), []
    except ValidationError as error:
        return None, [_violation(model, detail, path) for detail in error.errors(include_url=False)]


def without_nulls(value: Any) -> Any:
    """Drop fields that are null, as API servers do before they apply defaults."""
    if isinstance(value, Mapping):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(entry) for entry in value]
    return value


def _violation(model: type[BaseModel], detail: ErrorDetails, path: str) -> Violation:
    field = field_path(path, detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            return Violation(RefusalReason.UNKNOWN_FIELD, field, _unknown(model, detail["loc"]))
        case "missing":
            return Violation(RefusalReason.MISSING_FIELD, field, "is required")
        case reason if reason[0].isupper():
            # A rule of ours: its type is the reason, its text already completes the sentence.
            return Violation(reason, field, detail["msg"])
        case _:
            return Violation(RefusalReason.INVALID_FIELD, field, _in_our_words(detail))


def field_path(start: str, loc: Sequence[str | int]) -> str:
    """Write a path as Kubernetes does: names joined by dots, positions in brackets."""
    path = start
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]":  # pydantic's mark for "the key, not the value"
            path += f".{step}" if path else step
    return path


def _unknown(model: type[BaseModel], loc: Sequence[str | int]) -> str:
    """Say that the last step of `loc` is unknown, and what may have been meant."""
    known = _fields_at(model, loc[:-1])
    near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.6)
    return "unknown field" + (f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}")


def _fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Names of the fields of the object at `loc`."""
    at = model
    for step in loc:
        if isinstance(step, str):
            info = next(field for field in at.model_fields.values() if field.alias == step)
            at = next(_models_in(info.annotation), at)
    return [field.alias or name for name, field in at.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The model inside ``X``, ``X | None`` or ``tuple[X, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _in_our_words(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "model_type" | "model_attributes_type" | "dict_type":
            problem = "must be an object"
        case "tuple_type":
            problem = "must be a list"
        case "string_type":
            problem = "must be a string"
        case "int_type":
            problem = "must be a whole number"
        case "bool_type":
            problem = "must be true or false"
        case "enum" | "literal_error":
            problem = f"must be {context['expected']}"
        case "string_pattern_mismatch":
            problem = f"must match {context['pattern']}"
        case "string_too_short":
            problem = f"must have at least {context['min_length']} characters"
        case "string_too_long":
            problem = f"must have at most {context['max_length']} characters"
        case "too_long":
            problem = f"must have at most {context['max_length']} entries"
        case "greater_than_equal":
            problem = f"must be at least {context['ge']}"
        case "less_than_equal":
            problem = f"must be at most {context['le']}"
        case _:
            problem = detail["msg"][0].lower() + detail["msg"][1:]
    shown = repr(detail["input"])
    if len(shown) > MAX_SHOWN:
        shown = shown[: MAX_SHOWN - 3] + "..."
    return f"{problem}, not {shown}"
