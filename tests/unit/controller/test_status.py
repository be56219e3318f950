"""The status of each kind: states, times, size, and that the CRD keeps all of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.api.convert import to_job_spec
from pocketgrid.api.v1alpha1.conditions import JobCondition
from pocketgrid.controller.device_status import absent_trust_status, earned_in, earnings_status, edge_node_status
from pocketgrid.controller.distrust import read_reputation
from pocketgrid.controller.records import EdgeRecord
from pocketgrid.controller.status import (
    hardware_class_status,
    job_status,
    refused_job_status,
)
from pocketgrid.model.device import (
    Credits,
    DeviceFacts,
    DeviceIdentity,
    DeviceKind,
    Network,
    Restraint,
    RestraintLevel,
    Vitals,
)
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.ranges import IndexSet
from pocketgrid.model.trust import TrustTier
from pocketgrid.model.view import (
    CostView,
    DeviceView,
    EarningsView,
    Explanation,
    HistoryView,
    JobView,
    Presence,
    Stage,
    TrustView,
    VerificationView,
)
from pocketgrid.trust.reputation import Reputations
from tests.unit.api import apiserver
from tests.unit.api.manifests import JOB

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
SCHEMAS = {
    plural: apiserver.schema_of(plural)["properties"]["status"]
    for plural in ("inferencejobs", "edgenodes", "hardwareclasses")
}
LIMIT = 32 * 1024

SPEC = to_job_spec(JOB)
RUNNING = JobView(
    spec=SPEC,
    stage=Stage.RUNNING,
    items=3000,
    items_done=1200,
    items_failed=3,
    items_per_shard=10,
    shards=300,
    shards_done=120,
    shards_active=6,
    completed_text="0-119",
    devices={"phones": 1, "boards": 3},
    throughput=151.26,
    started=NOW.timestamp() - 60,
    attempts_lost=2,
    copies=1,
    duplicates=4,
    verification=VerificationView(1100, 60, 1 / 60, 1.0512, 2.2),
    cost=CostView(spent_micro=440_000, escrow_micro=40_000, limit_micro=12_500_000),
)
NO_NODES = Explanation("NoReadyNodes", "no Node of class phones is ready")
FULL_DISK = Explanation("DiskFull", "no space left where the results go")
TOO_MANY = Explanation("TooManyFailedItems", "101 items failed, 100 are allowed")
BAD_DIGEST = Explanation("DigestMismatch", "the file has another digest", "spec.model.sha256")


def at(stage: Stage, **changes: Any) -> JobView:
    return replace(RUNNING, stage=stage, **changes)


COMPLETE = at(
    Stage.COMPLETE,
    items_done=3000,
    shards_done=300,
    shards_active=0,
    devices={},
    throughput=0.0,
    finished=NOW.timestamp() - 40,
    manifest_uri="file:///var/lib/pocketgrid/results/wordnet/manifest.json",
)
VIEWS = {
    "admitting": JobView(spec=SPEC, stage=Stage.ADMITTING),
    "admitting, storage unreachable": JobView(spec=SPEC, stage=Stage.ADMITTING, trouble=FULL_DISK),
    "refused": JobView(spec=SPEC, stage=Stage.REFUSED, explanation=BAD_DIGEST),
    "working": RUNNING,
    "verifying": replace(RUNNING, items_done=3000, shards_done=300),
    "no ready node": replace(RUNNING, obstacle=NO_NODES, devices={}),
    "disk full": replace(RUNNING, trouble=FULL_DISK),
    "disk full and no ready node": replace(RUNNING, trouble=FULL_DISK, obstacle=NO_NODES),
    "suspended": at(Stage.SUSPENDED),
    "finishing": at(Stage.FINISHING),
    "finishing, disk full": at(Stage.FINISHING, trouble=FULL_DISK),
    "complete": COMPLETE,
    "failed": at(Stage.FAILED, explanation=TOO_MANY, finished=NOW.timestamp()),
    "removed": at(Stage.REMOVED),
}


def conditions(status: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    out = {entry["type"]: entry for entry in status["conditions"]}
    assert len(out) == len(status["conditions"])
    return out


def truths(status: Mapping[str, Any]) -> dict[str, str]:
    return {name: entry["status"] for name, entry in conditions(status).items()}


def scalars(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [scalar for entry in value.values() for scalar in scalars(entry)]
    if isinstance(value, list):
        return [scalar for entry in value for scalar in scalars(entry)]
    return [value]


def assert_kept(plural: str, status: dict[str, Any]) -> None:
    """The API server would store every field, and complain about none."""
    as_stored = json.loads(json.dumps(status))
    assert apiserver.pruned(SCHEMAS[plural], as_stored) == as_stored
    # Some servers take an empty text for null (see `readings.present`).
    assert "" not in scalars(status)
    assert list(apiserver.structural_problems(SCHEMAS[plural], as_stored)) == []


def kstatus(object_generation: int, status: Mapping[str, Any]) -> Literal["Current", "InProgress", "Failed"]:
    """What kstatus computes for a custom resource, from its documentation (generation, then conditions)."""
    if status.get("observedGeneration") != object_generation:
        return "InProgress"
    for entry in status.get("conditions", []):
        if entry["type"] == "Reconciling" and entry["status"] == "True":
            return "InProgress"
        if entry["type"] == "Stalled" and entry["status"] == "True":
            return "Failed"
    for entry in status.get("conditions", []):
        if entry["type"] == "Ready" and entry["status"] != "True":
            return "InProgress"
    return "Current"


@pytest.mark.parametrize(
    ("name", "accepted", "placed", "progressing", "reason", "computed"),
    [
        ("admitting", "Unknown", "Unknown", "True", "Admitting", "InProgress"),
        ("admitting, storage unreachable", "Unknown", "Unknown", "False", "DiskFull", "Failed"),
        ("refused", "False", "False", "False", "DigestMismatch", "Failed"),
        ("working", "True", "True", "True", "Working", "InProgress"),
        ("no ready node", "True", "False", "False", "NoReadyNodes", "InProgress"),
        ("disk full", "True", "True", "False", "DiskFull", "Failed"),
        ("disk full and no ready node", "True", "False", "False", "DiskFull", "Failed"),
        ("suspended", "True", "False", "False", "Suspended", "Current"),
        ("verifying", "True", "True", "True", "Verifying", "InProgress"),
        ("finishing", "True", "False", "True", "Finishing", "InProgress"),
        ("finishing, disk full", "True", "False", "False", "DiskFull", "Failed"),
        ("complete", "True", "False", "False", "Completed", "Current"),
        ("failed", "True", "False", "False", "TooManyFailedItems", "Failed"),
        ("removed", "True", "False", "False", "Removed", "Current"),
    ],
)
def test_each_state_of_a_job(
    name: str, accepted: str, placed: str, progressing: str, reason: str, computed: str
) -> None:
    status = job_status(VIEWS[name], None, 4, NOW)
    said = truths(status)
    assert set(said) == {condition.value for condition in JobCondition}
    assert (said["Accepted"], said["Placed"], said["Progressing"]) == (accepted, placed, progressing)
    assert conditions(status)["Progressing"]["reason"] == reason
    assert said["Suspended"] == ("True" if name == "suspended" else "False")
    assert said["Complete"] == ("True" if name == "complete" else "False")
    assert said["Failed"] == ("True" if name == "failed" else "False")
    assert kstatus(4, status) == computed
    assert kstatus(5, status) == "InProgress"
    assert_kept("inferencejobs", status)


@pytest.mark.parametrize("name", VIEWS)
def test_generation_and_reason_are_always_there(name: str) -> None:
    status = job_status(VIEWS[name], None, 9, NOW)
    assert status["observedGeneration"] == 9
    for entry in status["conditions"]:
        assert entry["observedGeneration"] == 9
        assert entry["reason"]


def test_reconciling_and_stalled_are_never_true_together() -> None:
    for view in VIEWS.values():
        for refusal in (None, BAD_DIGEST):
            said = truths(job_status(view, None, 1, NOW, refusal=refusal))
            assert (said["Reconciling"], said["Stalled"]) != ("True", "True")


def test_a_refusal_names_the_field() -> None:
    entry = conditions(job_status(VIEWS["refused"], None, 1, NOW))["Accepted"]
    assert entry["message"] == "spec.model.sha256: the file has another digest"


def test_the_obstacle_explains_placed_while_trouble_explains_the_rest() -> None:
    said = conditions(job_status(VIEWS["disk full and no ready node"], None, 1, NOW))
    assert said["Placed"]["reason"] == "NoReadyNodes"
    assert said["Stalled"]["reason"] == "DiskFull"


def test_the_numbers_of_a_running_job() -> None:
    status = job_status(RUNNING, None, 1, NOW)
    assert {key: value for key, value in status.items() if key not in ("conditions", "verification", "cost")} == {
        "observedGeneration": 1,
        "items": {"total": 3000, "done": 1200, "failed": 3},
        "shards": {"total": 300, "done": 120, "active": 6, "itemsPerShard": 10},
        "completedShards": "0-119",
        "throughput": {"itemsPerSecond": "151"},
        "placement": {
            "classes": [{"hardwareClass": "boards", "devices": 3}, {"hardwareClass": "phones", "devices": 1}]
        },
        "attempts": {"lost": 2, "copies": 1, "duplicates": 4},
        "startTime": "2026-11-23T11:59:00Z",
    }


def test_a_complete_job_tells_its_mean_rate_its_end_and_its_manifest() -> None:
    status = job_status(COMPLETE, None, 1, NOW)
    assert status["throughput"] == {"itemsPerSecond": "150"}
    assert status["completionTime"] == "2026-11-23T11:59:20Z"
    assert status["output"] == {"manifestUri": COMPLETE.manifest_uri}
    assert status["placement"] == {"classes": []}


def test_a_failed_job_has_no_completion_time_as_in_batch_v1() -> None:
    assert "completionTime" not in job_status(VIEWS["failed"], None, 1, NOW)


def test_an_empty_data_set_has_counts_of_zero() -> None:
    view = JobView(spec=SPEC, stage=Stage.COMPLETE, started=1.0, finished=2.0)
    assert job_status(view, None, 1, NOW)["items"] == {"total": 0, "done": 0, "failed": 0}


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0, "0.00"), (0.256, "0.26"), (12.34, "12.3"), (999.6, "1000"), (1.2e6, "1200000"),
     (float("inf"), "1000000000000000"), (float("nan"), "0.00"), (-1.0, "0.00")],
)  # fmt: skip
def test_rates_are_text_without_exponent(rate: float, text: str) -> None:
    status = job_status(replace(RUNNING, throughput=rate), None, 1, NOW)
    assert status["throughput"]["itemsPerSecond"] == text
    assert_kept("inferencejobs", status)


# Over time.


def test_a_transition_time_changes_only_with_the_status() -> None:
    first = job_status(VIEWS["admitting"], None, 1, NOW)
    second = job_status(RUNNING, first, 2, LATER)
    before, after = conditions(first), conditions(second)
    for name in after:
        changed = before[name]["status"] != after[name]["status"]
        assert (after[name]["lastTransitionTime"] == "2026-11-23T12:05:00Z") == changed
        assert after[name]["observedGeneration"] == 2
    assert after["Accepted"]["lastTransitionTime"] == "2026-11-23T12:05:00Z"
    assert after["Reconciling"]["lastTransitionTime"] == "2026-11-23T12:00:00Z"


def test_building_the_status_again_changes_nothing() -> None:
    for view in VIEWS.values():
        first = job_status(view, None, 1, NOW)
        assert job_status(view, first, 1, LATER) == first


def test_a_status_loses_what_is_no_longer_so() -> None:
    first = job_status(VIEWS["no ready node"], None, 1, NOW)
    second = job_status(RUNNING, first, 1, LATER)
    assert conditions(second)["Placed"]["reason"] == "NodesReady"
    assert "NoReadyNodes" not in json.dumps(second)


def test_a_finished_job_keeps_its_last_numbers_over_a_restart() -> None:
    before = job_status(COMPLETE, None, 1, NOW)
    forgetful = replace(COMPLETE, attempts_lost=0, copies=0, duplicates=0, started=0.0, completed_text="")
    after = job_status(forgetful, before, 2, LATER)
    assert after["observedGeneration"] == 2
    for name in ("items", "shards", "completedShards", "throughput", "attempts", "output", "startTime"):
        assert after[name] == before[name]


def test_a_job_that_just_completed_does_not_keep_numbers_from_before() -> None:
    after = job_status(COMPLETE, job_status(RUNNING, None, 1, NOW), 1, LATER)
    assert after["items"]["done"] == 3000


@pytest.mark.parametrize("name", ["working", "complete", "failed"])
def test_looking_again_after_a_restart_takes_nothing_back(name: str) -> None:
    before = job_status(VIEWS[name], None, 1, NOW)
    again = job_status(VIEWS["admitting"], before, 1, LATER)
    assert again["items"] == before["items"]
    assert truths(again)["Complete"] == truths(before)["Complete"]
    assert truths(again)["Failed"] == truths(before)["Failed"]


def test_a_removed_job_stays_what_it_was() -> None:
    after = job_status(VIEWS["removed"], job_status(COMPLETE, None, 1, NOW), 1, LATER)
    assert truths(after)["Complete"] == "True"


# Refused edits and unreadable objects.


def test_a_refused_edit_leaves_the_running_job_running() -> None:
    edit = Explanation("ImmutableField", "is immutable; create a new InferenceJob instead", "spec.model")
    status = job_status(RUNNING, None, 3, NOW, refusal=edit)
    said = conditions(status)
    assert said["Accepted"]["status"] == "False"
    assert said["Accepted"]["reason"] == "ImmutableField"
    assert said["Progressing"]["status"] == "True"
    assert kstatus(3, status) == "Failed"
    assert status["items"]["done"] == 1200
    assert_kept("inferencejobs", status)


def test_an_object_that_cannot_be_read_gets_a_status_too() -> None:
    status = refused_job_status(Explanation("UnknownField", "unknown field", "spec.slo"), None, 1, NOW)
    said = conditions(status)
    assert set(said) == {condition.value for condition in JobCondition}
    assert said["Accepted"]["status"] == "False"
    assert said["Accepted"]["message"] == "spec.slo: unknown field"
    assert kstatus(1, status) == "Failed"
    assert_kept("inferencejobs", status)


def test_devices_of_no_class_are_counted_under_a_name_no_class_has() -> None:
    status = job_status(replace(RUNNING, devices={"": 2, "phones": 1}), None, 1, NOW)
    assert status["placement"]["classes"][0] == {"hardwareClass": "(none)", "devices": 2}


# Size.


def worst_job(completed: str) -> JobView:
    long = Explanation("R" * 128, 'ü"\\' * 4096)
    return replace(
        RUNNING,
        items=2**53 - 1,
        items_done=2**53 - 1,
        shards=1_000_000,
        shards_done=500_000,
        completed_text=completed,
        devices={f"{i:03}-" + "x" * 59: 2**31 - 1 for i in range(1000)},
        trouble=long,
        obstacle=long,
        manifest_uri="file:///" + "m" * 2040,
        verification=VerificationView(2**60, 2**60, 1.0, 1e18, 1e18),
        cost=CostView(10**18, 10**18, 10**18),
    )


def test_what_is_verified_and_what_it_costs_is_said_in_whole_rows_and_exact_money() -> None:
    status = job_status(RUNNING, None, 1, NOW)
    assert status["verification"] == {
        "rowsVerified": 1100,
        "rowsChecked": 60,
        "disagreementRate": "0.016667",
        "redundancy": "1.0512",
        "wrongRowsUpperBound95": 3,
    }
    assert status["cost"] == {"spent": "0.44", "escrow": "0.04", "limit": "12.50"}
    unverified = job_status(replace(RUNNING, verification=None, cost=CostView(0, 0)), None, 1, NOW)
    assert "verification" not in unverified
    assert unverified["cost"] == {"spent": "0.00", "escrow": "0.00"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0])
def test_figures_of_verification_that_are_none_do_not_block_the_status(number: float) -> None:
    view = replace(RUNNING, verification=VerificationView(1, 1, number, number, number))
    assert_kept("inferencejobs", job_status(view, None, 1, NOW))


def test_the_status_of_a_million_shards_stays_below_32_kib() -> None:
    every_second = IndexSet((i, i + 1) for i in range(0, 1_000_000, 2))
    status = job_status(worst_job(every_second.to_text(limit=8192)), None, 2**53 - 1, NOW)
    assert len(json.dumps(status, ensure_ascii=False).encode()) < LIMIT
    assert_kept("inferencejobs", status)


def test_completed_shards_that_come_too_long_are_cut_after_a_whole_number() -> None:
    text = IndexSet((i, i + 1) for i in range(0, 100_000, 2)).to_text()
    status = job_status(replace(RUNNING, completed_text=text), None, 1, NOW)
    cut = status["completedShards"]
    assert 8180 < len(cut) <= 8192
    assert cut.endswith(",...")
    assert text.startswith(cut.removesuffix("..."))
    assert_kept("inferencejobs", status)


@given(
    st.builds(
        replace,
        st.sampled_from(list(VIEWS.values())),
        items=st.integers(0, 2**53 - 1),
        items_failed=st.integers(0, 2**53 - 1),
        throughput=st.floats(allow_nan=True),
        started=st.floats(0, 4e9),
        finished=st.floats(0, 4e9),
        completed_text=st.text("0123456789,-", max_size=9000),
        trouble=st.none() | st.builds(Explanation, st.just("Trouble"), st.text(max_size=2000), st.just("spec.x")),
        devices=st.dictionaries(st.sampled_from(["", "a", "b"]), st.integers(0, 2**31 - 1)),
    )
)
def test_no_status_is_pruned_or_refused(view: JobView) -> None:
    assert_kept("inferencejobs", job_status(view, None, 1, NOW))


# EdgeNode.

HISTORY = HistoryView("onnxruntime 1.32.0/arm64/0123456789abcdef", 1100.25, 2.0, 9.21, 17.0, NOW.timestamp())
DEVICE = DeviceView(
    identity=DeviceIdentity(
        name="pixel-7",
        boot_id="b00t",
        owner="lab",
        facts=DeviceFacts(
            kind=DeviceKind.PHONE,
            arch="arm64",
            os="android",
            cores=8,
            memory_bytes=8 << 30,
            simd=("asimd", "dotprod"),
            providers=("CPUExecutionProvider",),
            model_name="Pixel 7",
            agent_version="0.1.0",
            engine="onnxruntime 1.32.0",
        ),
        slots=1,
        credits=Credits(shards=8, bytes=1 << 20),
    ),
    presence=Presence.CONNECTED,
    vitals=Vitals(
        load1=1.25,
        memory_available_bytes=1 << 30,
        battery_percent=81.6,
        charging=True,
        temperature_celsius=-3.25,
        network=Network.WIFI,
    ),
    classes=("phones",),
    schedulable=True,
    speeds={"a" * 64: 20.0, "b" * 64: 150.0},
    peak_speeds={"a" * 64: 40.0},
    leased_shards=3,
    last_seen=NOW.timestamp(),
    items_done=1200,
    trust=TrustView(
        1100,
        2,
        since=NOW.timestamp() - 3600,
        caught=NOW.timestamp() - 7200,
        times_caught=1,
        proven=True,
        histories=(HISTORY,),
    ),
    earnings=EarningsView(earned_micro=440_000, provisional_micro=40_001),
)


def test_the_status_of_a_device() -> None:
    status = edge_node_status(DEVICE, None, NOW, generation=2)
    assert status == {
        "observedGeneration": 2,
        "presence": "Connected",
        "facts": {
            "kind": "phone",
            "arch": "arm64",
            "os": "android",
            "cores": 8,
            "memoryBytes": 8 << 30,
            "simd": ["asimd", "dotprod"],
            "providers": ["CPUExecutionProvider"],
            "engine": "onnxruntime 1.32.0",
            "agentVersion": "0.1.0",
            "modelName": "Pixel 7",
        },
        "vitals": {
            "load1": "1.25",
            "memoryAvailableBytes": 1 << 30,
            "batteryPercent": 82,
            "charging": True,
            "temperatureCelsius": "-3.2",
            "network": "wifi",
        },
        "classes": ["phones"],
        "speeds": [
            {"modelSha256": "b" * 64, "itemsPerSecond": "150"},
            {"modelSha256": "a" * 64, "itemsPerSecond": "20.0", "peakItemsPerSecond": "40.0"},
        ],
        "leasedShards": 3,
        "itemsDone": 1200,
        "trust": {
            "verifiedItems": 1100,
            "disagreements": 2,
            "since": "2026-11-23T11:00:00Z",
            "proven": True,
            "timesCaught": 1,
            "caughtTime": "2026-11-23T10:00:00Z",
            "histories": [
                {
                    "fingerprint": "onnxruntime 1.32.0/arm64/0123456789abcdef",
                    "confirmed": "1100.250",
                    "refuted": "2.000",
                    "suspicion": "9.210",
                    "consecutive": "17.000",
                    "time": "2026-11-23T12:00:00Z",
                }
            ],
        },
        "earnings": {"earned": "0.44", "provisional": "0.040001"},
        "lastSeenTime": "2026-11-23T12:00:00Z",
        "bootID": "b00t",
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Attached",
                "message": "attached and open to work",
                "lastTransitionTime": "2026-11-23T12:00:00Z",
                "observedGeneration": 2,
            },
            {
                "type": "Paused",
                "status": "False",
                "reason": "WorkAllowed",
                "message": "its owner lets it work",
                "lastTransitionTime": "2026-11-23T12:00:00Z",
                "observedGeneration": 2,
            },
            {
                "type": "Trusted",
                "status": "True",
                "reason": "Confirmed",
                "message": "others got the same as it did",
                "lastTransitionTime": "2026-11-23T12:00:00Z",
                "observedGeneration": 2,
            },
        ],
    }
    assert_kept("edgenodes", status)


@pytest.mark.parametrize(
    ("restraint", "presence", "expected"),
    [
        (Restraint(), Presence.CONNECTED, ("False", "WorkAllowed", "its owner lets it work")),
        (
            Restraint(RestraintLevel.PAUSED, "BatteryLow", "battery at 9 %"),
            Presence.CONNECTED,
            ("True", "BatteryLow", "battery at 9 %"),
        ),
        (
            Restraint(RestraintLevel.EASED, "BatteryWarm", "battery at 41 °C"),
            Presence.CONNECTED,
            ("False", "BatteryWarm", "works gently: battery at 41 °C"),
        ),
        (Restraint(RestraintLevel.PAUSED, "BatteryLow", "x"), Presence.LOST, ("Unknown", "Lost", "not heard from")),
    ],
)
def test_a_device_says_why_its_owner_holds_it_back(
    restraint: Restraint, presence: Presence, expected: tuple[str, str, str]
) -> None:
    view = replace(DEVICE, restraint=restraint, presence=presence, schedulable=not restraint.paused)
    status = edge_node_status(view, None, NOW)
    ready, paused, _ = status["conditions"]
    assert paused["type"] == "Paused"
    assert (paused["status"], paused["reason"], paused["message"]) == expected
    if restraint.paused and presence is Presence.CONNECTED:
        assert (ready["reason"], ready["message"]) == ("NotSchedulable", "attached, but paused by its owner")
    assert_kept("edgenodes", status)


def test_what_a_device_cannot_tell_is_absent_and_not_zero() -> None:
    status = edge_node_status(replace(DEVICE, vitals=Vitals()), None, NOW)
    assert status["vitals"] == {"network": "unknown"}


@pytest.mark.parametrize(
    ("presence", "schedulable", "truth", "reason"),
    [
        (Presence.CONNECTED, True, "True", "Attached"),
        (Presence.CONNECTED, False, "True", "NotSchedulable"),
        (Presence.UNKNOWN, False, "Unknown", "LinkBroken"),
        (Presence.LOST, False, "False", "Lost"),
    ],
)
def test_a_device_is_ready_while_it_is_attached(presence: Presence, schedulable: bool, truth: str, reason: str) -> None:
    status = edge_node_status(replace(DEVICE, presence=presence, schedulable=schedulable), None, NOW)
    assert conditions(status)["Ready"]["status"] == truth
    assert conditions(status)["Ready"]["reason"] == reason
    assert_kept("edgenodes", status)


def test_the_deregistered_run_is_kept_until_another_is_named() -> None:
    first = edge_node_status(DEVICE, None, NOW, generation=5, deregistered_boot_id="old")
    second = edge_node_status(DEVICE, first, LATER)
    assert second["deregisteredBootID"] == "old"
    assert second["observedGeneration"] == 5
    assert "deregisteredBootID" not in edge_node_status(DEVICE, second, LATER, deregistered_boot_id="")


def test_a_device_of_many_models_and_classes_is_cut() -> None:
    identity = replace(
        DEVICE.identity,
        boot_id="b" * 500,
        facts=replace(DEVICE.identity.facts, simd=("x" * 999,) * 99, model_name="m" * 999, engine="e" * 999),
    )
    view = replace(
        DEVICE,
        identity=identity,
        classes=tuple(f"class-{i:03}" for i in range(100)),
        speeds={f"{i:064x}": float(i) for i in range(100)},
    )
    status = edge_node_status(view, None, NOW)
    assert status["speeds"][0]["itemsPerSecond"] == "99.0"
    assert len(status["classes"]) == 64
    assert_kept("edgenodes", status)


READINGS = st.none() | st.floats()


@given(
    st.builds(Vitals, load1=READINGS, battery_percent=READINGS, temperature_celsius=READINGS),
    st.integers(-(2**63), 2**63 - 1),
    st.text(max_size=300),
    st.floats(),
)
def test_whatever_a_device_states_its_status_can_be_written(
    vitals: Vitals, number: int, text: str, speed: float
) -> None:
    facts = replace(
        DEVICE.identity.facts, cores=number, memory_bytes=number, arch=text, simd=(text,), providers=(text,)
    )
    identity = replace(DEVICE.identity, facts=facts, boot_id=text)
    vitals = replace(vitals, memory_available_bytes=number)
    view = replace(DEVICE, identity=identity, vitals=vitals, speeds={"a" * 64: speed}, last_seen=0.0)
    assert_kept("edgenodes", edge_node_status(view, None, NOW))


# HardwareClass.


@pytest.mark.parametrize(
    ("nodes", "ready", "truth", "reason"),
    [
        (0, 0, "False", "NoMatchingNodes"),
        (3, 0, "False", "NoReadyNodes"),
        (3, 1, "True", "NodesReady"),
    ],
)
def test_the_status_of_a_class(nodes: int, ready: int, truth: str, reason: str) -> None:
    status = hardware_class_status(nodes, ready, None, 2, NOW)
    assert (status["nodes"], status["readyNodes"], status["observedGeneration"]) == (nodes, ready, 2)
    assert conditions(status)["Ready"]["status"] == truth
    assert conditions(status)["Ready"]["reason"] == reason
    assert_kept("hardwareclasses", status)


def test_a_class_that_cannot_be_used_says_why() -> None:
    status = hardware_class_status(0, 0, None, 2, NOW, refusal=Explanation("NameTooLong", "must be shorter"))
    assert conditions(status)["Ready"]["reason"] == "NameTooLong"
    assert_kept("hardwareclasses", status)


CAUGHT = replace(
    DEVICE,
    distrusted="wrong on an item of shard 7, as others found",
    schedulable=False,
    trust=TrustView(0, 0, since=NOW.timestamp(), caught=NOW.timestamp(), times_caught=1, tainted_node="uid-of-node"),
)


def test_a_device_that_was_caught_says_so_and_what_to_do() -> None:
    status = edge_node_status(CAUGHT, None, NOW)
    trusted = next(c for c in status["conditions"] if c["type"] == "Trusted")
    assert (trusted["status"], trusted["reason"]) == ("False", "Distrusted")
    assert "shard 7" in trusted["message"]
    assert "remove the taint pocketgrid.dev/distrusted from its Node" in trusted["message"]
    ready = next(c for c in status["conditions"] if c["type"] == "Ready")
    assert ready["message"] == "attached, but its results are not believed"
    assert status["trust"]["distrusted"] == CAUGHT.distrusted
    assert status["trust"]["taintedNodeUID"] == "uid-of-node"
    assert_kept("edgenodes", status)


def test_nobody_is_called_trusted_before_anything_was_confirmed() -> None:
    status = edge_node_status(replace(DEVICE, trust=None), None, NOW)
    trusted = next(c for c in status["conditions"] if c["type"] == "Trusted")
    assert (trusted["status"], trusted["reason"]) == ("Unknown", "Unproven")
    assert "trust" not in status


def test_what_was_known_of_a_device_is_read_back_as_it_was_written() -> None:
    status = edge_node_status(DEVICE, None, NOW)
    edge = EdgeRecord("phone-1", "uid", owner="ada", tier=TrustTier.VETTED)
    kept = read_reputation(status["trust"], edge)
    known = Reputations()
    known.from_dict(DeviceName("phone-1"), kept)
    reputation = known.of(DeviceName("phone-1"))
    assert reputation is not None
    assert (reputation.owner, reputation.tier, reputation.caught) == ("ada", TrustTier.VETTED, 1)
    assert reputation.proven
    assert (reputation.since, reputation.caught_at) == (DEVICE.trust.since, DEVICE.trust.caught)
    (history,) = reputation.histories.values()
    assert (history.confirmed, history.refuted, history.suspicion) == (1100.25, 2.0, 9.21)
    assert (history.consecutive, history.at) == (17.0, NOW.timestamp())


def test_a_fingerprint_that_is_too_long_for_the_schema_is_left_out() -> None:
    hostile = replace(HISTORY, fingerprint="x" * 10_000)
    many = tuple(replace(HISTORY, fingerprint=f"engine {n}") for n in range(20))
    view = replace(DEVICE, trust=replace(DEVICE.trust, histories=(hostile, *many)))
    status = edge_node_status(view, None, NOW)
    assert [entry["fingerprint"] for entry in status["trust"]["histories"]] == [f"engine {n}" for n in range(8)]
    assert_kept("edgenodes", status)


def test_an_absent_device_is_pardoned_and_distrusted_in_its_status_as_well() -> None:
    before = edge_node_status(replace(CAUGHT, presence=Presence.LOST), None, NOW)
    after = absent_trust_status(before, "", LATER)
    trusted = next(c for c in after["conditions"] if c["type"] == "Trusted")
    assert (trusted["status"], trusted["lastTransitionTime"]) == ("Unknown", "2026-11-23T12:05:00Z")
    assert "distrusted" not in after["trust"]
    assert "taintedNodeUID" not in after["trust"]
    assert after["trust"]["timesCaught"] == 1
    again = absent_trust_status(after, "its Node was tainted by an administrator", LATER)
    assert next(c for c in again["conditions"] if c["type"] == "Trusted")["status"] == "False"
    for status in (after, again):
        assert len(status["conditions"]) == 3
        assert_kept("edgenodes", status)


@pytest.mark.parametrize("reason", ["NoVerifier", "BudgetExhausted"])
def test_a_job_that_needs_somebody_is_stalled(reason: str) -> None:
    status = job_status(replace(RUNNING, obstacle=Explanation(reason, "because")), None, 1, NOW)
    said = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    assert said["Stalled"] == ("True", reason)
    assert said["Reconciling"] == ("False", reason)
    assert said["Progressing"] == ("False", reason)
    assert_kept("inferencejobs", status)


def test_a_job_of_which_only_checks_are_left_is_reconciling() -> None:
    status = job_status(VIEWS["verifying"], None, 1, NOW)
    said = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    assert said["Progressing"] == said["Reconciling"] == ("True", "Verifying")
    assert said["Stalled"][0] == said["Complete"][0] == "False"


def test_earnings_go_on_from_what_the_status_said() -> None:
    assert earnings_status(EarningsView(7, 3), 440_000) == {"earned": "0.440007", "provisional": "0.000003"}
    assert earnings_status(None, 440_000) == {"earned": "0.44", "provisional": "0.00"}
    assert earned_in({"earnings": {"earned": "0.44", "provisional": "0"}}) == 440_000
    assert earned_in({}) == earned_in({"earnings": {"earned": "a lot"}}) == 0
