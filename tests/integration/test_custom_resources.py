"""The custom resources on a real API server, as users meet them: through kubectl."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hack.controlplane import ControlPlane, ControlPlaneError
from pocketgrid.controller.device_status import edge_node_status
from pocketgrid.controller.status import hardware_class_status, job_status
from pocketgrid.model.view import Explanation
from tests.unit.api.manifests import (
    GONE,
    HARDWARE_CLASS,
    JOB,
    REFUSALS,
    TOLERANCE_PROFILE,
    Refusal,
    changed,
    job,
    minimal_job,
)
from tests.unit.controller.test_status import COMPLETE, DEVICE, VIEWS, worst_job

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
NAMES = ("inferencejobs", "hardwareclasses", "edgenodes", "toleranceprofiles")
PUBLISHED_DEADLINE_S = 60.0
CEL_SINCE = (1, 25)

EDGE_NODE = {
    "apiVersion": "pocketgrid.dev/v1alpha1",
    "kind": "EdgeNode",
    "metadata": {"name": "crd-test-pixel"},
    "spec": {"owner": "lab"},
}


class Kubectl:
    """kubectl on a server that has the CRDs."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane
        version = json.loads(self("version", "--output=json"))["serverVersion"]
        # Not its parts `major` and `minor`, which a server built from source may leave empty.
        major, minor, *_ = version["gitVersion"].removeprefix("v").split(".")
        self.server = (int(major), int(minor))

    def __call__(self, *arguments: str, stdin: Any = None) -> str:
        text = "" if stdin is None else json.dumps(stdin)
        return self._control_plane.run_kubectl(*arguments, stdin=text)

    @property
    def knows_cel(self) -> bool:
        return self.server >= CEL_SINCE

    def get(self, *names: str) -> dict[str, Any]:
        return json.loads(self("get", *names, "--output=json"))

    def try_out(self, body: dict[str, Any]) -> dict[str, Any]:
        """What the server would make of an object. Kubectl's own checks are off: the server's are in question."""
        return json.loads(
            self("create", "--dry-run=server", "--validate=false", "--output=json", "--filename=-", stdin=body)
        )

    def write_status(self, name: str, body: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
        """Replace the status subresource of an existing object and return what was stored."""
        kind = body["kind"].lower()
        current = self.get(kind, name)
        plural = next(p for p in NAMES if kind in (p.removesuffix("es"), p.removesuffix("s")))
        namespace = f"/namespaces/{current['metadata']['namespace']}" if plural == "inferencejobs" else ""
        path = f"/apis/pocketgrid.dev/v1alpha1{namespace}/{plural}/{name}/status"
        self("replace", f"--raw={path}", "--filename=-", stdin={**current, "status": status})
        return self.get(kind, name)["status"]


def eventually(probe: Callable[[], str], until: Callable[[str], bool]) -> str:
    """Ask until the answer is right; kubectl's knowledge of a new CRD lags behind the server's."""
    deadline = time.monotonic() + PUBLISHED_DEADLINE_S
    last: str | ControlPlaneError = ""
    while time.monotonic() < deadline:
        try:
            last = probe()
            if until(last):
                return last
        except ControlPlaneError as error:
            last = error
        time.sleep(0.2)
    raise AssertionError(f"not within {PUBLISHED_DEADLINE_S} s: {last}")


@pytest.fixture(scope="module")
def kubectl(control_plane: ControlPlane) -> Iterator[Kubectl]:
    client = Kubectl(control_plane)
    # A kubectl that checks against an old server's own schema does not know CEL rules.
    flags = () if client.knows_cel else ("--validate=false",)
    client("apply", f"--filename={ROOT / 'crds'}", *flags)
    for name in NAMES:
        client("wait", "--for=condition=Established", f"crd/{name}.pocketgrid.dev", "--timeout=30s")
    for name in NAMES:
        eventually(lambda name=name: client("get", name), lambda _: True)
    yield client
    client("delete", "edgenode", EDGE_NODE["metadata"]["name"], "--ignore-not-found")
    client("delete", "hardwareclass", HARDWARE_CLASS["metadata"]["name"], "--ignore-not-found")


def without_identity(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "metadata": {"name": "crd-test", "namespace": "default"}}


@pytest.fixture
def created_job(kubectl: Kubectl) -> Iterator[str]:
    kubectl("create", "--filename=-", stdin=without_identity(JOB))
    yield "crd-test"
    kubectl("delete", "inferencejob", "crd-test")


@pytest.mark.parametrize("name", NAMES)
def test_the_crds_are_established_and_structural(kubectl: Kubectl, name: str) -> None:
    crd = kubectl.get("crd", f"{name}.pocketgrid.dev")
    conditions = {entry["type"]: entry["status"] for entry in crd["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"


def test_short_names_and_category_work(kubectl: Kubectl, created_job: str) -> None:
    for short in ("ij", "hwc", "en", "tp"):
        kubectl("get", short)
    assert f"inferencejob.pocketgrid.dev/{created_job}" in eventually(
        lambda: kubectl("get", "pocketgrid", "--output=name"), lambda text: created_job in text
    )


def test_explain_tells_what_a_field_means(kubectl: Kubectl) -> None:
    text = eventually(lambda: kubectl("explain", "inferencejob.spec.input"), lambda text: "tokenizer" in text)
    assert "Absent: the row number" in " ".join(text.split())
    lease = eventually(lambda: kubectl("explain", "ij.spec.sharding.leaseSeconds"), lambda text: "lease" in text)
    assert "Default: 5." in " ".join(lease.split())


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_accepted(kubectl: Kubectl, path: Path) -> None:
    eventually(
        lambda: kubectl("apply", "--dry-run=server", f"--filename={path}"), lambda text: "server dry run" in text
    )


def test_defaults_are_applied(kubectl: Kubectl) -> None:
    spec = kubectl.try_out(without_identity(minimal_job()))["spec"]
    assert spec["mode"] == "Batch"
    assert spec["suspend"] is False
    assert spec["priority"] == 0
    assert spec["output"]["format"] == "Parquet"
    assert spec["sharding"] == {"leaseSeconds": 5}
    assert spec["backoffLimitPerShard"] == 3
    assert spec["placement"] == {"dataClass": "Public"}
    assert spec["verification"] == {"mode": "None", "maxErrorRate": "0.001", "auditFloor": "0.01"}
    for absent in ("budget", "maxFailedItems", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        assert absent not in spec


def test_a_full_manifest_comes_back_unchanged(kubectl: Kubectl) -> None:
    assert kubectl.try_out(without_identity(JOB))["spec"] == JOB["spec"]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name.replace(" ", "-"))
def test_the_server_refuses_what_it_can(kubectl: Kubectl, refusal: Refusal) -> None:
    body = without_identity(job(refusal.changes))
    if refusal.structural or kubectl.knows_cel:
        with pytest.raises(ControlPlaneError) as caught:
            kubectl.try_out(body)
        assert "is invalid" in str(caught.value)
        # Old servers blame a list as a whole, and some the object that lacks a field.
        listed = refusal.field.partition("[")[0]
        blamed = listed.rpartition(".")[0] if refusal.reason == "MissingField" else listed
        assert blamed in str(caught.value)
    else:
        # Such a server lets it through; the operator refuses it (tests/unit/api/test_validation.py).
        kubectl.try_out(body)


@pytest.mark.parametrize(
    "changes",
    [{"spec.nodeSelector": GONE}, {"spec.nodeSelector.matchExpressions[0].operator": "Gt"}],
    ids=["no selector", "unknown operator"],
)
def test_the_server_refuses_a_bad_class(kubectl: Kubectl, changes: dict[str, Any]) -> None:
    with pytest.raises(ControlPlaneError, match="is invalid"):
        kubectl.try_out(changed(HARDWARE_CLASS, changes))


def test_kubectl_refuses_an_unknown_field(kubectl: Kubectl) -> None:
    body = without_identity(job({"spec.slo": {"deadline": "1h"}}))
    eventually(lambda: kubectl("explain", "inferencejob.spec"), lambda text: "sharding" in text)
    with pytest.raises(ControlPlaneError, match=r'unknown field "(spec\.)?slo"'):
        kubectl("apply", "--dry-run=server", "--filename=-", stdin=body)


@pytest.mark.parametrize("name", [*VIEWS, "worst"])
def test_nothing_of_a_jobs_status_is_pruned(kubectl: Kubectl, created_job: str, name: str) -> None:
    view = worst_job("1,3," * 2000) if name == "worst" else VIEWS[name]
    status = job_status(view, None, 1, NOW, refusal=Explanation("ImmutableField", "is immutable", "spec.model"))
    assert kubectl.write_status(created_job, JOB, status) == status


def test_nothing_of_a_devices_status_is_pruned(kubectl: Kubectl) -> None:
    kubectl("apply", "--filename=-", stdin=EDGE_NODE)
    status = edge_node_status(DEVICE, None, NOW, generation=1, deregistered_boot_id="old")
    assert kubectl.write_status(EDGE_NODE["metadata"]["name"], EDGE_NODE, status) == status


def test_nothing_of_a_classs_status_is_pruned(kubectl: Kubectl) -> None:
    kubectl("apply", "--filename=-", stdin=HARDWARE_CLASS)
    status = hardware_class_status(3, 2, None, 1, NOW)
    assert kubectl.write_status(HARDWARE_CLASS["metadata"]["name"], HARDWARE_CLASS, status) == status


def test_a_measured_profile_is_kept_as_it_is(kubectl: Kubectl) -> None:
    assert kubectl.try_out(TOLERANCE_PROFILE)["spec"] == TOLERANCE_PROFILE["spec"]
    for changes in ({"spec.modelSha256": "abc"}, {"spec.pairs[0].items": 0}):
        with pytest.raises(ControlPlaneError, match="is invalid"):
            kubectl.try_out(changed(TOLERANCE_PROFILE, changes))


def test_a_status_cannot_be_written_past_its_subresource(kubectl: Kubectl, created_job: str) -> None:
    kubectl("patch", "ij", created_job, "--type=merge", "--patch", '{"status": {"observedGeneration": 99}}')
    assert "observedGeneration" not in kubectl.get("ij", created_job).get("status", {})


def test_kubectl_wait_sees_the_job_complete(kubectl: Kubectl, created_job: str) -> None:
    kubectl.write_status(created_job, JOB, job_status(COMPLETE, None, 1, NOW))
    kubectl("wait", "--for=condition=Complete", f"inferencejob/{created_job}", "--timeout=20s")


def test_the_columns_of_a_job_fit_a_terminal(kubectl: Kubectl, created_job: str) -> None:
    kubectl.write_status(created_job, JOB, job_status(COMPLETE, None, 1, NOW))
    header, row = kubectl("get", "ij", created_job).splitlines()
    assert header.split() == ["NAME", "COMPLETE", "ITEMS", "DONE", "FAILED", "RATE", "REASON", "AGE"]
    assert row.split()[:-1] == ["crd-test", "True", "3000", "3000", "3", "150", "Completed"]
    assert len(header) <= 100
    kubectl.write_status(created_job, JOB, job_status(VIEWS["working"], None, 1, NOW))
    header, row = kubectl("get", "ij", created_job, "--output=wide").splitlines()
    columns = dict(zip(header.split(), row.split(), strict=False))
    assert columns["CLASSES"] == "boards"
    assert columns["SHARDS"] == "300"


def test_the_columns_of_a_device_and_a_class(kubectl: Kubectl) -> None:
    test_nothing_of_a_devices_status_is_pruned(kubectl)
    test_nothing_of_a_classs_status_is_pruned(kubectl)
    header, row = kubectl("get", "en", EDGE_NODE["metadata"]["name"]).splitlines()
    assert dict(zip(header.split(), row.split()[:-1], strict=False)) == {
        "NAME": "crd-test-pixel",
        "READY": "True",
        "PAUSED": "False",
        "WHY": "WorkAllowed",
        "TRUSTED": "True",
        "KIND": "phone",
        "OWNER": "lab",
        "CLASSES": "phones",
        "LEASED": "3",
        "DONE": "1200",
    }
    assert header.split()[-1] == "AGE"
    header, row = kubectl("get", "hwc", HARDWARE_CLASS["metadata"]["name"]).splitlines()
    assert header.split() == ["NAME", "READY", "NODES", "READYNODES", "AGE"]
    assert row.split()[:-1] == ["phones", "True", "3", "2"]


def test_what_is_immutable_is_held_by_servers_that_know_cel(kubectl: Kubectl, created_job: str) -> None:
    patch = json.dumps({"spec": {"model": {"sha256": "f" * 64}}})
    arguments = ("patch", "ij", created_job, "--type=merge", "--patch", patch)
    if kubectl.knows_cel:
        with pytest.raises(ControlPlaneError, match="is immutable; create a new InferenceJob"):
            kubectl(*arguments)
    else:
        kubectl(*arguments)
