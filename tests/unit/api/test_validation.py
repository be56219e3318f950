"""What is refused, by which name and for which field, and that CEL and Python refuse the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.api.v1alpha1.hardware_class import HardwareClass
from pocketgrid.api.v1alpha1.tolerance_profile import ToleranceProfile
from pocketgrid.api.validation import Violation, parse, validate
from tests.unit.api import apiserver
from tests.unit.api.manifests import (
    BINDING,
    DIGEST,
    GONE,
    HARDWARE_CLASS,
    JOB,
    MINIMAL_SPEC,
    REFUSALS,
    TOLERANCE_PROFILE,
    UNKNOWN_FIELDS,
    Refusal,
    changed,
    job,
)

SCHEMA = apiserver.schema_of("inferencejobs")["properties"]["spec"]


def by_name(refusal: Refusal) -> str:
    return refusal.name.replace(" ", "-")


@pytest.mark.parametrize("spec", [JOB["spec"], MINIMAL_SPEC], ids=["full", "minimal"])
def test_a_valid_spec_has_no_violations(spec: dict[str, Any]) -> None:
    assert validate(spec) == []
    assert list(apiserver.structural_problems(SCHEMA, spec)) == []
    assert list(apiserver.broken_rules(SCHEMA, apiserver.with_defaults(SCHEMA, spec))) == []


@pytest.mark.parametrize("refusal", REFUSALS, ids=by_name)
def test_a_refusal_names_field_and_reason(refusal: Refusal) -> None:
    violations = validate(job(refusal.changes)["spec"])
    assert [(v.field, v.reason) for v in violations] == [(refusal.field, refusal.reason)]
    assert violations[0].message


@pytest.mark.parametrize("refusal", REFUSALS, ids=by_name)
def test_the_schema_or_its_cel_rules_refuse_the_same(refusal: Refusal) -> None:
    spec = apiserver.with_defaults(SCHEMA, job(refusal.changes)["spec"])
    structural = list(apiserver.structural_problems(SCHEMA, spec, "spec"))
    assert bool(structural) == refusal.structural
    if not refusal.structural:
        (violation,) = validate(spec)
        assert list(apiserver.broken_rules(SCHEMA, spec, None, "spec")) == [(violation.field, violation.message)]


def test_every_rule_of_the_schema_is_broken_by_some_refusal() -> None:
    """Else the tests above would hold nothing together."""
    broken = set()
    for refusal in REFUSALS:
        if not refusal.structural:
            spec = apiserver.with_defaults(SCHEMA, job(refusal.changes)["spec"])
            broken |= {message for _, message in apiserver.broken_rules(SCHEMA, spec)}
    stated = {rule["message"] for rule in apiserver.rules_in(SCHEMA) if "oldSelf" not in rule["rule"]}
    assert broken == stated


@pytest.mark.parametrize(("path", "hint"), UNKNOWN_FIELDS)
def test_an_unknown_field_is_refused_with_a_hint(path: str, hint: str) -> None:
    (violation,) = validate(job({path: 1})["spec"])
    assert violation.field == path
    assert violation.reason == "UnknownField"
    assert hint in violation.message


def test_all_violations_are_listed() -> None:
    spec = job({"spec.mode": "Service", "spec.input.format": "ORC", "spec.sharding.leaseSeconds": 0})["spec"]
    assert [v.field for v in validate(spec)] == ["spec.mode", "spec.input.format", "spec.sharding.leaseSeconds"]


def test_null_means_absent_as_on_an_api_server() -> None:
    assert validate(job({"spec.placement.maxNodes": None, "spec.priority": None, "spec.sharding": None})["spec"]) == []
    (violation,) = validate(job({"spec.model": None})["spec"])
    assert violation == Violation("MissingField", "spec.model", "is required")


def test_a_long_value_is_not_repeated_in_full() -> None:
    (violation,) = validate(job({"spec.model.uri": "s3://" + "x" * 9000})["spec"])
    assert len(violation.message) < 150


def test_a_spec_that_is_no_object_is_refused() -> None:
    (violation,) = validate([])  # type: ignore[arg-type]
    assert violation.field == "spec"
    assert violation.message == "must be an object, not []"


# Updates.

IMMUTABLE = (
    {"spec.model.sha256": "f" * 64},
    {"spec.model.outputs": ["last_hidden_state", "pooler"]},
    {"spec.model.outputs": GONE, "spec.output.postprocess": GONE},
    {"spec.input.key": GONE},
    {"spec.input.tokenizer.maxLength": 64},
    {"spec.input.tokenizer": GONE, "spec.input.columns": [BINDING]},
    {"spec.output.format": "Parquet"},
    {"spec.output.postprocess": []},
    {"spec.sharding.itemsPerShard": GONE},
    {"spec.sharding.leaseSeconds": 5},
    {"spec.sharding": GONE},
    {"spec.verification.quorum": 5},
    {"spec.verification.auditFloor": "0.05"},
    {"spec.verification": GONE},
)
MUTABLE: tuple[dict[str, Any], ...] = (
    {},
    {"spec.suspend": True},
    {"spec.priority": -1},
    {"spec.placement": GONE},
    {"spec.placement.maxNodes": 1},
    {"spec.placement.dataClass": "Confidential"},
    {"spec.budget.limit": "99"},
    {"spec.budget": GONE},
    {"spec.backoffLimitPerShard": GONE},
    {"spec.maxFailedItems": GONE, "spec.activeDeadlineSeconds": 1, "spec.ttlSecondsAfterFinished": GONE},
)


def transitions(spec: dict[str, Any], old: dict[str, Any]) -> set[str]:
    new, before = (apiserver.with_defaults(SCHEMA, s) for s in (spec, old))
    return {path for path, _ in apiserver.broken_rules(SCHEMA, new, before, "spec")}


@pytest.mark.parametrize("changes", IMMUTABLE, ids=repr)
def test_what_is_immutable_cannot_be_changed_in_either_direction(changes: dict[str, Any]) -> None:
    old, new = job()["spec"], job(changes)["spec"]
    for spec, previous in ((new, old), (old, new)):
        violations = validate(spec, previous)
        assert {v.reason for v in violations} == {"ImmutableField"}
        assert {v.field for v in violations} == transitions(spec, previous)
        assert "create a new InferenceJob" in violations[0].message


@pytest.mark.parametrize("changes", MUTABLE, ids=repr)
def test_what_is_mutable_can_be_changed_in_either_direction(changes: dict[str, Any]) -> None:
    old, new = job()["spec"], job(changes)["spec"]
    for spec, previous in ((new, old), (old, new)):
        assert validate(spec, previous) == []
        assert transitions(spec, previous) == set()


def test_saying_a_default_changes_nothing() -> None:
    spec = changed({"spec": MINIMAL_SPEC}, {"spec.sharding": {"leaseSeconds": 5}, "spec.output.format": "Parquet"})
    assert validate(spec["spec"], MINIMAL_SPEC) == []


def test_an_invalid_previous_spec_forbids_no_change() -> None:
    assert validate(JOB["spec"], job({"spec.model.sha256": "abc"})["spec"]) == []


# The same, on specs nobody thought of.

URIS = st.sampled_from(["file:///a", "s3://b/c", "file://a", "relative", "", "zip://a.csv::s3://b/c.zip", 3])
NAMES = st.sampled_from(["a", "b", "", "x" * 257, "ü", None])


DECIMALS = st.sampled_from(
    ["0", "0.00", "0.5", "1", "1.0", "1.0000001", "99999999999999999999999999999999", "-1", ".5", 1]
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def usually(good: Any, **others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(good), st.just(good), *others.values())


SPECS = some(
    suspend=st.sampled_from([True, False, "yes", 0]),
    priority=st.sampled_from([0, -(2**31), 2**31, "1", True]),
    maxFailedItems=st.sampled_from([0, -1, 2**53 - 1, 2**53]),
    placement=some(
        hardwareClasses=st.lists(st.sampled_from(["phones", "boards", "-bad", "x" * 64]), max_size=3),
        nodeSelector=st.dictionaries(st.sampled_from(["a", "b/c"]), st.sampled_from(["", "v", "-", "x" * 64, 1])),
        tolerations=st.lists(
            some(
                key=st.sampled_from(["", "k"]),
                operator=st.sampled_from(["Equal", "Exists", "Like"]),
                value=st.sampled_from(["", "v"]),
                effect=st.sampled_from(["NoExecute", ""]),
            ),
            max_size=2,
        ),
        maxNodes=st.integers(-1, 2),
        dataClass=st.sampled_from(["Public", "Confidential", "public"]),
    ),
    verification=some(
        mode=st.sampled_from(["None", "Audit", "Quorum", "Adaptive", "Some"]),
        quorum=st.sampled_from([1, 2, 15, 16, "2"]),
        comparator=some(
            allClose=some(rtol=DECIMALS, atol=DECIMALS),
            cosine=some(minimum=DECIMALS),
            topK=some(k=st.integers(0, 1025)),
        ),
        maxErrorRate=DECIMALS,
        auditFloor=DECIMALS,
    ),
    budget=some(limit=st.sampled_from(["1", "0.0", "0.000001", "0.0000001", "1000000000"]), action=st.just("Stop")),
    sharding=some(itemsPerShard=st.sampled_from([1, 0, 10_000_000, 10_000_001]), leaseSeconds=st.integers(0, 2)),
).flatmap(
    lambda spec: st.fixed_dictionaries(
        {
            "model": usually(
                MINIMAL_SPEC["model"],
                drawn=some(
                    uri=URIS,
                    sha256=st.sampled_from([DIGEST, "abc"]),
                    outputs=st.lists(st.sampled_from(["a", "b", ""]), max_size=3),
                ),
            ),
            "input": usually(
                MINIMAL_SPEC["input"],
                drawn=st.fixed_dictionaries(
                    {"uri": URIS, "format": st.sampled_from(["JSONL", "NPY", "csv"])},
                    optional={
                        "key": NAMES.filter(bool),
                        "columns": st.lists(
                            st.fixed_dictionaries({"column": st.just("c"), "input": st.sampled_from(["a", "b", ""])}),
                            max_size=3,
                        ),
                        "tokenizer": st.fixed_dictionaries(
                            {"uri": URIS, "column": st.just("text")}, optional={"maxLength": st.integers(0, 2)}
                        ),
                    },
                ),
            ),
            "output": usually(
                MINIMAL_SPEC["output"],
                drawn=st.fixed_dictionaries(
                    {"uri": URIS},
                    optional={
                        "postprocess": st.lists(
                            st.fixed_dictionaries(
                                {
                                    "operation": st.sampled_from(["Argmax", "Normalize", "Sum"]),
                                    "output": st.sampled_from(["a", "b", "c"]),
                                },
                                optional={"labels": st.lists(st.just("cat"), max_size=2)},
                            ),
                            max_size=2,
                        )
                    },
                ),
            ),
        }
    ).map(lambda required: {**spec, **required})
)


@given(SPECS)
def test_schema_and_python_agree_on_every_spec(spec: dict[str, Any]) -> None:
    full = apiserver.with_defaults(SCHEMA, spec)
    refused_by_server = list(apiserver.structural_problems(SCHEMA, full)) or list(apiserver.broken_rules(SCHEMA, full))
    assert bool(validate(spec)) == bool(refused_by_server)


# HardwareClass.

CLASS_SCHEMA = apiserver.schema_of("hardwareclasses")


@pytest.mark.parametrize(
    ("changes", "field", "reason", "structural"),
    [
        ({"spec.nodeSelector": GONE}, "spec.nodeSelector", "MissingField", True),
        ({"spec.nodeSelector.matchExpressions[0].operator": "Gt"}, "spec.nodeSelector.matchExpressions[0].operator",
         "InvalidField", True),
        ({"spec.nodeSelector.matchExpressions[0].values": ["a", "a"]}, "spec.nodeSelector.matchExpressions[0].values",
         "Duplicate", True),
        ({"spec.nodeSelector.matchExpressions[0].values": []}, "spec.nodeSelector.matchExpressions[0]",
         "ValuesAndOperator", False),
        ({"spec.nodeSelector.matchExpressions[0].operator": "Exists"}, "spec.nodeSelector.matchExpressions[0]",
         "ValuesAndOperator", False),
        ({"metadata.name": "x" * 64}, "", "NameTooLong", False),
        ({"spec.price.perItem": "0.0000001"}, "spec.price.perItem", "InvalidField", True),
        ({"spec.price.models[0].sha256": "abc"}, "spec.price.models[0].sha256", "InvalidField", True),
        ({"spec.price.models": [{"sha256": DIGEST, "perItem": "1"}] * 2}, "spec.price.models", "Duplicate", True),
        ({"spec.numericsClass": "a b"}, "spec.numericsClass", "InvalidField", True),
    ],
)  # fmt: skip
def test_a_hardware_class_is_refused(changes: dict[str, Any], field: str, reason: str, structural: bool) -> None:
    body = changed(HARDWARE_CLASS, changes)
    _, violations = parse(HardwareClass, body, "")
    assert [(v.field, v.reason) for v in violations] == [(field, reason)]
    full = apiserver.with_defaults(CLASS_SCHEMA, body)
    assert bool(list(apiserver.structural_problems(CLASS_SCHEMA, full))) == structural
    # A server evaluates rules only where the structure holds.
    assert structural or list(apiserver.broken_rules(CLASS_SCHEMA, full))


def test_a_valid_hardware_class_has_no_violations() -> None:
    assert parse(HardwareClass, HARDWARE_CLASS, "")[1] == []
    assert list(apiserver.broken_rules(CLASS_SCHEMA, HARDWARE_CLASS)) == []


# ToleranceProfile.

PROFILE_SCHEMA = apiserver.schema_of("toleranceprofiles")


@pytest.mark.parametrize(
    ("changes", "field", "reason", "structural"),
    [
        ({"spec.pairs[0].items": 0}, "spec.pairs[0].items", "InvalidField", True),
        ({"spec.pairs[0].absolute": 0.1}, "spec.pairs[0].absolute", "InvalidField", True),
        ({"spec.pairs[0].other": "aaa"}, "spec.pairs[0]", "PairOutOfOrder", False),
        ({"spec.pairs[0].one": "b", "spec.pairs[0].other": "b"}, "spec.pairs[0]", "PairOutOfOrder", False),
    ],
)
def test_a_tolerance_profile_is_refused(changes: dict[str, Any], field: str, reason: str, structural: bool) -> None:
    body = changed(TOLERANCE_PROFILE, changes)
    _, violations = parse(ToleranceProfile, body, "")
    assert [(v.field, v.reason) for v in violations] == [(field, reason)]
    assert bool(list(apiserver.structural_problems(PROFILE_SCHEMA, body))) == structural
    assert structural or list(apiserver.broken_rules(PROFILE_SCHEMA, body))


def test_a_valid_tolerance_profile_has_no_violations() -> None:
    assert parse(ToleranceProfile, TOLERANCE_PROFILE, "")[1] == []
    assert list(apiserver.structural_problems(PROFILE_SCHEMA, TOLERANCE_PROFILE)) == []
    assert list(apiserver.broken_rules(PROFILE_SCHEMA, TOLERANCE_PROFILE)) == []
