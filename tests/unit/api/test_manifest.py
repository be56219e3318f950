"""Manifest files for local mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pocketgrid.api.convert import to_hardware_class, to_job_spec
from pocketgrid.api.manifest import load_manifest
from pocketgrid.errors import InvalidSpecError
from tests.unit.api.manifests import HARDWARE_CLASS, JOB

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_all_documents_are_read_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump_all([HARDWARE_CLASS, None, JOB]))
    assert load_manifest(path) == [HARDWARE_CLASS, JOB]


def test_times_stay_text(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "apiVersion: pocketgrid.dev/v1alpha1\nkind: InferenceJob\n"
        "metadata: {creationTimestamp: 2026-11-23T05:00:00Z}\n",
    )
    (body,) = load_manifest(path)
    assert body["metadata"]["creationTimestamp"] == "2026-11-23T05:00:00Z"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"job\.yaml: holds no object"),
        ("---\n---\n", r"job\.yaml: holds no object"),
        ("a: b\n c: d\n", r"job\.yaml:2:3: mapping values are not allowed"),
        ("a: 1\nb: 2\na: 3\n", r"job\.yaml:3:1: key 'a' comes twice"),
        ("a:\n  1: x\n", r"job\.yaml:2:3: key 1 is not text"),
        ("? [a]\n: x\n", r"job\.yaml:1:3: key \['a'\] is not text"),
        ("a: *nothing\n", r"job\.yaml:1:4: found undefined alias"),
        ("a: !!python/object:os.system x\n", r"job\.yaml:1:4: could not determine a constructor"),
        ("\n- a\n", r"job\.yaml:2: expected an object with apiVersion"),
        ("kind: Pod\napiVersion: v1\n", r"job\.yaml:1: kind 'Pod' cannot be run from a file; expected InferenceJob or"),
        ("kind: EdgeNode\napiVersion: pocketgrid.dev/v1alpha1\n", r"kind 'EdgeNode' cannot be run"),
        ("kind: InferenceJob\napiVersion: pocketgrid.dev/v1\n", r"apiVersion 'pocketgrid\.dev/v1' is not known"),
        ("kind: InferenceJob\n", r"apiVersion None is not known; expected pocketgrid\.dev/v1alpha1"),
        ("a: \x00\n", r"job\.yaml: .*special characters"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InvalidSpecError, match=complaint) as caught:
        load_manifest(write(tmp_path, text))
    assert caught.value.reason == "InvalidManifest"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpecError, match=r"absent\.yaml: cannot be read"):
        load_manifest(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(InvalidSpecError, match=r"latin\.yaml: cannot be read"):
        load_manifest(tmp_path / "latin.yaml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_can_be_read(path: Path) -> None:
    for body in load_manifest(path):
        if body["kind"] == "InferenceJob":
            to_job_spec(body, uid="local", created=0.0)
        else:
            to_hardware_class(body)


def test_there_are_examples() -> None:
    assert len(list(EXAMPLES.glob("*.yaml"))) >= 3
