"""From manifests to the grid's own words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.api.convert import (
    build_tolerance_profile,
    resolve_uris,
    tier_of,
    to_hardware_class,
    to_job_spec,
    to_tolerance_profile,
    ttl_seconds,
)
from pocketgrid.api.validation import validate
from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import (
    ColumnBinding,
    Compression,
    CsvOptions,
    InputFormat,
    InputRef,
    JobSpec,
    Limits,
    ModelRef,
    Operation,
    OutputFormat,
    OutputRef,
    Placement,
    PostprocessStep,
    Sharding,
    TokenizerRef,
)
from pocketgrid.model.money import Budget, BudgetAction, PriceList
from pocketgrid.model.numerics import Deviation, ToleranceProfile
from pocketgrid.model.selectors import Toleration
from pocketgrid.model.trust import Comparator, ComparatorKind, DataClass, TrustTier, Verification, VerificationMode
from tests.unit.api.manifests import DIGEST, GONE, HARDWARE_CLASS, JOB, TOLERANCE_PROFILE, changed, job, minimal_job
from tests.unit.api.test_validation import SPECS


def test_every_field_arrives_where_it_belongs() -> None:
    assert to_job_spec(JOB) == JobSpec(
        uid="7d1b2c9e-0000-4000-8000-000000000001",
        namespace="team-a",
        name="embed",
        model=ModelRef("file:///var/lib/pocketgrid/models/minilm.onnx", DIGEST, ("last_hidden_state",)),
        input=InputRef(
            uri="s3://corpora/wordnet.jsonl",
            format=InputFormat.JSONL,
            key="id",
            tokenizer=TokenizerRef("file:///var/lib/pocketgrid/models/tokenizer.json", "text", 128, DIGEST),
        ),
        output=OutputRef(
            uri="file:///var/lib/pocketgrid/results/wordnet",
            format=OutputFormat.JSONL,
            postprocess=(
                PostprocessStep(Operation.MEAN_POOL, "last_hidden_state"),
                PostprocessStep(Operation.NORMALIZE, "last_hidden_state"),
            ),
        ),
        placement=Placement(
            hardware_classes=("phones", "boards"),
            node_selector=(("pocketgrid.dev/owner", "lab"),),
            tolerations=(Toleration("slow", "Equal", "yes", "NoSchedule"),),
            max_nodes=20,
            data_class=DataClass.INTERNAL,
        ),
        sharding=Sharding(items_per_shard=256, lease_seconds=10.0),
        limits=Limits(backoff_limit_per_shard=2, max_failed_items=100, active_deadline_s=3600),
        verification=Verification(
            mode=VerificationMode.QUORUM,
            quorum=3,
            comparator=Comparator(ComparatorKind.COSINE, minimum=0.999),
            max_error_rate=0.0005,
            audit_floor=0.02,
        ),
        budget=Budget(12_500_000, BudgetAction.WARN),
        priority=7,
        suspend=False,
        created=1795410000.0,
    )


def test_defaults_are_what_the_descriptions_say() -> None:
    spec = to_job_spec(minimal_job())
    assert spec.input.columns == (ColumnBinding("pixels", "X"),)
    assert spec.input.tokenizer is None
    assert spec.input.key == ""
    assert spec.model.outputs == ()
    assert spec.output == OutputRef("file:///r/digits", OutputFormat.PARQUET)
    assert spec.placement == Placement()
    assert spec.sharding == Sharding(items_per_shard=0, lease_seconds=5.0)
    assert spec.limits == Limits(backoff_limit_per_shard=3, max_failed_items=None, active_deadline_s=0)
    assert (spec.priority, spec.suspend) == (0, False)
    assert spec.verification == Verification()
    assert (spec.verification.wanted, spec.verification.quorum) == (False, 2)
    assert (spec.verification.max_error_rate, spec.verification.audit_floor) == (0.001, 0.01)
    assert spec.placement.data_class is DataClass.PUBLIC
    assert spec.budget is None


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({}, Comparator()),
        ({"allClose": {"rtol": "0.001"}}, Comparator(ComparatorKind.ALL_CLOSE, rtol=0.001, atol=0.0)),
        ({"allClose": {"atol": "2"}}, Comparator(ComparatorKind.ALL_CLOSE, rtol=0.0, atol=2.0)),
        ({"topK": {}}, Comparator(ComparatorKind.TOP_K, k=1, margin=0.0)),
        ({"topK": {"k": 5, "margin": "0.25"}}, Comparator(ComparatorKind.TOP_K, k=5, margin=0.25)),
    ],
)
def test_comparators_are_read(written: dict[str, Any], read: Comparator) -> None:
    assert to_job_spec(job({"spec.verification.comparator": written})).verification.comparator == read


def test_a_budget_stops_the_job_unless_it_says_otherwise() -> None:
    assert to_job_spec(job({"spec.budget": {"limit": "3"}})).budget == Budget(3_000_000, BudgetAction.STOP)


def test_the_default_length_of_texts_is_256_tokens() -> None:
    spec = to_job_spec(job({"spec.input.tokenizer.maxLength": GONE}))
    assert spec.input.tokenizer is not None
    assert spec.input.tokenizer.max_length == 256


def test_zero_failed_items_is_a_limit_and_absent_is_none() -> None:
    assert to_job_spec(job({"spec.maxFailedItems": 0})).limits.max_failed_items == 0
    assert to_job_spec(job({"spec.maxFailedItems": GONE})).limits.max_failed_items is None


def test_identity_and_time_come_from_the_caller_only_where_the_object_has_none() -> None:
    assert to_job_spec(JOB, uid="other", created=1.0).uid == JOB["metadata"]["uid"]
    local = job({"metadata": {"name": "embed"}})
    spec = to_job_spec(local, uid="random", created=12.5)
    assert (spec.uid, spec.created, spec.namespace) == ("random", 12.5, "default")
    with pytest.raises(InvalidSpecError, match=r"metadata\.uid: is required"):
        to_job_spec(local)


def test_an_object_as_the_api_server_returns_it_is_accepted() -> None:
    metadata = {"labels": {"a": "b"}, "annotations": {}, "managedFields": [{"manager": "kubectl"}], "generation": 3}
    body = {**JOB, "metadata": {**JOB["metadata"], **metadata}, "status": {"from": "a newer version"}}
    assert to_job_spec(body) == to_job_spec(JOB)


def test_the_first_problem_is_told_and_the_others_counted() -> None:
    body = minimal_job({"spec.input.columns[0].input": "", "spec.sharding": {"x": 1}, "spec.priority": "a"})
    with pytest.raises(InvalidSpecError) as caught:
        to_job_spec(body)
    assert caught.value.field == "spec.priority"
    assert caught.value.reason == "InvalidField"
    assert str(caught.value) == "spec.priority: must be a whole number, not 'a' (and 2 more problems)"


def test_a_misspelt_field_is_told_before_the_one_it_leaves_missing() -> None:
    body = minimal_job()
    body["spec"]["model"]["sha265"] = body["spec"]["model"].pop("sha256")
    with pytest.raises(InvalidSpecError, match="did you mean sha256") as caught:
        to_job_spec(body)
    assert (caught.value.reason, caught.value.field) == ("UnknownField", "spec.model.sha265")


def test_a_path_is_written_as_kubernetes_writes_it() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        to_job_spec(minimal_job({"spec.input.columns[0].input": ""}))
    assert caught.value.field == "spec.input.columns[0].input"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "Job"}, "kind"),
        ({"apiVersion": "pocketgrid.dev/v2"}, "apiVersion"),
        ({"metadata": GONE}, "metadata"),
        ({"metadata.name": "Not_A_Name"}, "metadata.name"),
        ({"metadata.creationTimestamp": "yesterday"}, "metadata.creationTimestamp"),
        ({"spec": GONE}, "spec"),
        ({"spce": {}}, "spce"),
    ],
)
def test_the_object_around_the_spec_is_checked_too(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        to_job_spec(job(changes))
    assert caught.value.field == field


def test_csv_compression_and_keys_of_files_are_read() -> None:
    spec = to_job_spec(
        job({"spec.input.format": "CSV", "spec.input.compression": "Zstd", "spec.input.csv": {"delimiter": ";"}})
    )
    assert (spec.input.csv, spec.input.compression) == (CsvOptions(";"), Compression.ZSTD)
    assert to_job_spec(job({"spec.input.format": "Files", "spec.input.key": GONE})).input.key == "path"
    assert to_job_spec(job({"spec.input.format": "Files"})).input.key == "id"
    assert to_job_spec(job({"spec.input.key": GONE})).input.key == ""


@given(SPECS)
def test_what_validates_converts_and_nothing_else(spec: dict[str, Any]) -> None:
    body = {**JOB, "spec": spec}
    if not validate(spec):
        converted = to_job_spec(body)
        assert converted.model.sha256 == spec["model"]["sha256"]
    else:
        with pytest.raises(InvalidSpecError):
            to_job_spec(body)


# Places in local mode.


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("data.jsonl", "file:///base/data.jsonl"),
        ("file:data.jsonl", "file:///base/data.jsonl"),
        ("../up/my data.jsonl", "file:///up/my%20data.jsonl"),
        ("file:my%20data.jsonl", "file:///base/my%20data.jsonl"),
        ("100%20.jsonl", "file:///base/100%2520.jsonl"),
        ("/abs/data.jsonl", "file:///abs/data.jsonl"),
        ("file:/abs/data.jsonl", "file:///abs/data.jsonl"),
        ("file:///abs/data.jsonl", "file:///abs/data.jsonl"),
        ("s3://bucket/data.jsonl", "s3://bucket/data.jsonl"),
    ],
)
def test_relative_places_are_seen_from_the_manifest(written: str, read: str) -> None:
    body = job(
        {
            "spec.model.uri": written,
            "spec.input.uri": written,
            "spec.input.tokenizer.uri": written,
            "spec.output.uri": written,
        }
    )
    spec = to_job_spec(body, base=Path("/base"))
    assert spec.input.tokenizer is not None
    assert {spec.model.uri, spec.input.uri, spec.input.tokenizer.uri, spec.output.uri} == {read}
    assert body["spec"]["model"]["uri"] == written


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("data/", "file:///base/data/"),
        ("file:data/", "file:///base/data/"),
        ("/abs/", "file:///abs/"),
        ("parts/*.jsonl", "file:///base/parts/*.jsonl"),
        ("../my parts/[ab]?.jsonl", "file:///my%20parts/[ab]?.jsonl"),
        ("file:///abs/**/*.csv", "file:///abs/**/*.csv"),
        ("s3://bucket/*.csv", "s3://bucket/*.csv"),
    ],
)
def test_folders_and_globs_stay_what_they_are(written: str, read: str) -> None:
    several = {"spec.input.uri": GONE, "spec.input.uris": [written, "other.jsonl"]}
    assert to_job_spec(job({"spec.input.uri": written}), base=Path("/base")).input.places == (read,)
    assert to_job_spec(job(several), base=Path("/base")).input.places == (read, "file:///base/other.jsonl")


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a*.jsonl").touch()
    spec = to_job_spec(job({"spec.input.uri": "a*.jsonl"}), base=tmp_path)
    assert spec.input.uri == f"{tmp_path.as_uri()}/a%2A.jsonl"


def test_without_a_folder_relative_places_are_refused() -> None:
    with pytest.raises(InvalidSpecError, match=r"spec\.input\.uri"):
        to_job_spec(job({"spec.input.uri": "data.jsonl"}))


@pytest.mark.parametrize("spec", [None, [], {}, {"model": None, "input": {"tokenizer": 3}, "output": {"uri": 4}}])
def test_resolving_leaves_nonsense_for_the_checks_to_find(spec: Any) -> None:
    body = {**JOB, "spec": spec}
    assert resolve_uris(body, Path("/base")) == body


# The rest.


@pytest.mark.parametrize(("changes", "seconds"), [({}, 600), ({"spec.ttlSecondsAfterFinished": GONE}, None)])
def test_time_to_live(changes: dict[str, Any], seconds: int | None) -> None:
    assert ttl_seconds(job(changes)) == seconds


def test_a_hardware_class_selects_nodes() -> None:
    read = to_hardware_class(HARDWARE_CLASS)
    assert read.name == "phones"
    assert read.selector.matches({"pocketgrid.dev/os": "android", "pocketgrid.dev/kind": "phone"})
    assert not read.selector.matches({"pocketgrid.dev/os": "android", "pocketgrid.dev/kind": "sbc"})
    assert not read.selector.matches({"pocketgrid.dev/kind": "phone"})


def test_an_empty_selector_selects_every_node() -> None:
    assert to_hardware_class(changed(HARDWARE_CLASS, {"spec.nodeSelector": {}})).selector.matches({})


def test_a_bad_hardware_class_is_refused() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        to_hardware_class(changed(HARDWARE_CLASS, {"spec.nodeSelector": {"matchLables": {}}}))
    assert caught.value.field == "spec.nodeSelector.matchLables"
    assert "did you mean matchLabels?" in str(caught.value)


def test_a_hardware_class_has_prices_and_may_have_a_numerics_class() -> None:
    read = to_hardware_class(HARDWARE_CLASS)
    assert read.price == PriceList(400, {DIGEST: 1_000_000})
    assert (read.price.price_micro(DIGEST), read.price.price_micro("f" * 64)) == (1_000_000, 400)
    assert read.numerics == "arm64-neon"
    bare = to_hardware_class(changed(HARDWARE_CLASS, {"spec.price": GONE, "spec.numericsClass": GONE}))
    assert (bare.price, bare.numerics) == (None, "")


@pytest.mark.parametrize(
    ("spec", "tier"),
    [
        ({"tier": "Owned"}, TrustTier.OWNED),
        ({"tier": "Vetted"}, TrustTier.VETTED),
        ({"tier": "Public"}, TrustTier.PUBLIC),
        ({}, TrustTier.PUBLIC),
        ({"tier": "owned"}, TrustTier.PUBLIC),
        ({"tier": 2}, TrustTier.PUBLIC),
        ({"tier": None}, TrustTier.PUBLIC),
        (None, TrustTier.PUBLIC),
    ],
)
def test_a_device_is_anybodys_unless_its_record_clearly_says_otherwise(spec: Any, tier: TrustTier) -> None:
    assert tier_of({"spec": spec}) is tier


def test_a_tolerance_profile_is_read() -> None:
    assert to_tolerance_profile(TOLERANCE_PROFILE) == ToleranceProfile(
        DIGEST,
        {
            ("amd64/avx2/onnxruntime 1.32.0", "arm64/neon/onnxruntime 1.26.0"): Deviation(
                256, identical=False, absolute=0.0125, cosine=0.00021
            )
        },
    )
    useless = changed(TOLERANCE_PROFILE, {"spec.pairs[0].absolute": GONE, "spec.pairs[0].cosine": GONE})
    (found,) = to_tolerance_profile(useless).pairs.values()
    assert (found.absolute, found.cosine) == (math.inf, math.inf), "what was not measured tolerates nothing"


@given(st.integers(1, 10**6), st.booleans(), *[st.floats(0, 1e6) | st.just(math.inf)] * 2)
def test_a_measured_profile_survives_being_written(items: int, identical: bool, absolute: float, cosine: float) -> None:
    profile = ToleranceProfile(DIGEST, {("a", "b"): Deviation(items, identical, absolute, cosine)})
    (found,) = to_tolerance_profile(build_tolerance_profile(profile, "name", "2026-11-23T12:00:00Z")).pairs.values()
    assert (found.items, found.identical) == (items, identical)
    for before, after in ((absolute, found.absolute), (cosine, found.cosine)):
        # Tolerances are rounded up, never down: what was measured must pass.
        assert after == before or before <= after <= max(before * 1.011, 1e-28)
