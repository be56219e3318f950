"""Whose output folder this is: refuse, before anybody is fenced off, what belongs to another or to a changed job."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import AdmittedJob
from pocketgrid.storage.durable import store_error
from pocketgrid.storage.logreading import read_header
from pocketgrid.storage.results.manifest import NAME as MANIFEST_NAME

PRIVATE = "_pocketgrid"
"""Folder for log and staging; readers of data sets skip names that begin with an underscore."""


def fingerprint(job: AdmittedJob) -> dict[str, str]:
    """What must not change under a job that has begun to write."""
    spec = job.spec
    plan = [[o.output, [p.value for p in o.operations], o.ragged] for o in job.order.outputs]
    labels = [[s.operation.value, s.output, list(s.labels)] for s in spec.output.postprocess]
    text = json.dumps([plan, labels, spec.output.format.value, spec.input.key])
    return {
        "model": spec.model.sha256,
        "input": f"{job.fingerprint}/{job.items}",
        "output": hashlib.sha256(text.encode()).hexdigest(),
    }


def check_ownership(job: AdmittedJob, folder: Path) -> None:
    """Refuse an output folder that is not this job's, or is this job's in another form.

    Raises:
        InvalidSpecError: reason OutputHoldsAnotherJob, ModelChanged, InputChanged or OutputChanged.
        StoreError: reading failed.
    """
    header = read_header(folder / PRIVATE / "log")
    if header is None:
        try:
            names = sorted(path.name for path in folder.iterdir())
        except OSError as error:
            raise store_error("listing", folder, error) from error
        taken = next((name for name in names if name == MANIFEST_NAME or name.startswith("part-")), None)
        if taken:
            message = f"{folder} already holds {taken}, which is not of this job; name an empty folder"
            raise InvalidSpecError("OutputHoldsAnotherJob", message, field="spec.output.uri")
        return
    if header.job != job.spec.uid:
        message = f"{folder} holds the output of job {header.job}; name another folder or remove it"
        raise InvalidSpecError("OutputHoldsAnotherJob", message, field="spec.output.uri")
    own = fingerprint(job)
    for name, reason, field in (
        ("model", "ModelChanged", "spec.model.sha256"),
        ("input", "InputChanged", "spec.input.uri"),
        ("output", "OutputChanged", "spec.output"),
    ):
        if header.fingerprint.get(name) != own[name]:
            message = f"it changed after the job had begun to write {folder}; start a new job in a new folder"
            raise InvalidSpecError(reason, message, field=field)
