"""From the objects users write to what the engine is told.

Everything here may be called again with the same object, in any order of news, and after a restart.

A job is identified for good by its model, input, output, sharding and verification. API servers that know CEL refuse
to change them; older ones do not, so the first readable version of these fields is kept in an annotation. If an edit
changes them, the job goes on as it began, with its mutable fields followed, and `Accepted=False,
reason=ImmutableField` says so until they are put back. (The annotation is left out for specs that annotations cannot
hold; then an edit made while no operator ran is caught by the output's own log, which belongs to another model or data
set.)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from pocketgrid.api.convert import refusal, tier_of, to_hardware_class, to_job_spec, to_tolerance_profile, ttl_seconds
from pocketgrid.api.v1alpha1.inference_job import InferenceJobSpec
from pocketgrid.api.v1alpha1.meta import Immutable
from pocketgrid.api.validation import validate
from pocketgrid.controller.client import Json
from pocketgrid.controller.records import (
    ClassRecord,
    EdgeRecord,
    JobRecord,
    ProfileRecord,
    Records,
    finished,
    version_of,
)
from pocketgrid.engine.engine import Engine
from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.device import LABEL_PREFIX
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.trust import TrustTier
from pocketgrid.model.view import Explanation

log = logging.getLogger(__name__)

FIRST_SPEC = LABEL_PREFIX + "first-spec"
"""Annotation with the immutable part of the spec a job was first taken with, as JSON."""

FIRST_SPEC_LIMIT = 100_000
"""Characters. All annotations of an object together may have 256 KiB, and kubectl keeps a copy of the spec there."""

IMMUTABLE = tuple(
    info.alias or name
    for name, info in InferenceJobSpec.model_fields.items()
    if any(isinstance(mark, Immutable) for mark in info.metadata)
)


class Intake:
    """Reads objects into the records and the engine.

    Args:
        told: called with the name of an EdgeNode that has changed or is gone.
    """

    def __init__(self, engine: Engine, records: Records, told: Callable[[DeviceName], None] = lambda _: None) -> None:
        self._engine = engine
        self._records = records
        self._told = told

    def take_job(self, body: Mapping[str, Any]) -> dict[str, str]:
        """Submit an InferenceJob, or an edit of it, or note why it cannot be.

        Returns:
            Annotations to add to the object.
        """
        record = self._job_record(body)
        record.generation = body["metadata"].get("generation", 0)
        record.over = record.over or (
            bool(finished(record.status)) and self._engine.job_view(record.job) is None and record.first is None
        )
        record.ttl = ttl_seconds(body)
        if record.over:
            return {}
        spec = body.get("spec") or {}
        annotation = (body["metadata"].get("annotations") or {}).get(FIRST_SPEC)
        if record.first is None and annotation:
            record.first = _first_of(annotation)
        try:
            if record.first is not None:
                effective = {**{k: v for k, v in spec.items() if k not in IMMUTABLE}, **record.first}
                changed = validate(spec, effective)
                self._engine.submit(to_job_spec({**body, "spec": effective}))
                record.refusal = None
                if changed:
                    raise refusal(changed)
            else:
                self._engine.submit(to_job_spec(body))
                record.first = {key: spec[key] for key in IMMUTABLE if key in spec}
                record.refusal = None
        except InvalidSpecError as exc:
            record.refusal = Explanation(exc.reason, str(exc), exc.field)
            log.info("refused job=%s/%s reason=%s cause=%s", record.namespace, record.name, exc.reason, exc)
            return {}
        text = json.dumps(record.first, separators=(",", ":"), sort_keys=True)
        return {} if annotation or len(text) > FIRST_SPEC_LIMIT else {FIRST_SPEC: text}

    def saw_job(self, body: Mapping[str, Any]) -> None:
        """News of an InferenceJob's status."""
        record = self._records.jobs.get(JobUid(body["metadata"]["uid"]))
        if record is not None:
            record.see(body)

    async def drop_job(self, uid: str) -> None:
        """Stop all work of a job; what is committed stays."""
        self._records.jobs.pop(JobUid(uid), None)
        await self._engine.remove(JobUid(uid))

    def take_class(self, body: Mapping[str, Any]) -> None:
        """A HardwareClass appeared or changed."""
        metadata = body["metadata"]
        record = self._records.classes.get(metadata["name"])
        if record is not None and version_of(body) < record.version:
            return
        if record is None or record.uid != metadata["uid"]:
            record = self._records.classes[metadata["name"]] = ClassRecord(metadata["name"], metadata["uid"])
        if not record.see(body):
            return
        record.generation = metadata.get("generation", 0)
        try:
            record.hardware_class, record.refusal = to_hardware_class(body), None
        except InvalidSpecError as exc:
            record.hardware_class, record.refusal = None, Explanation(exc.reason, str(exc), exc.field)
        self._tell_classes()

    def drop_class(self, name: str, uid: str) -> None:
        """A HardwareClass was deleted."""
        record = self._records.classes.get(name)
        if record is not None and record.uid == uid:
            del self._records.classes[name]
            self._tell_classes()

    def _tell_classes(self) -> None:
        known = self._records.classes
        self._engine.set_classes({n: r.hardware_class for n, r in known.items() if r.hardware_class is not None})

    def take_profile(self, body: Mapping[str, Any]) -> None:
        """A ToleranceProfile appeared or changed. One that cannot be read lets nothing be compared."""
        metadata = body["metadata"]
        record = self._records.profiles.get(metadata["name"])
        if record is not None and version_of(body) < record.version:
            return
        if record is None or record.uid != metadata["uid"]:
            record = self._records.profiles[metadata["name"]] = ProfileRecord(metadata["name"], metadata["uid"])
        if not record.see(body):
            return
        try:
            record.profile = to_tolerance_profile(body)
        except InvalidSpecError as exc:
            record.profile = None
            log.warning("tolerance profile unreadable name=%s cause=%s", record.name, exc)
        self._tell_profiles()

    def drop_profile(self, name: str, uid: str) -> None:
        """A ToleranceProfile was deleted."""
        record = self._records.profiles.get(name)
        if record is not None and record.uid == uid:
            del self._records.profiles[name]
            self._tell_profiles()

    def _tell_profiles(self) -> None:
        known = self._records.profiles.values()
        self._engine.set_profiles([record.profile for record in known if record.profile is not None])

    def take_edge_node(self, body: Mapping[str, Any]) -> None:
        """An EdgeNode appeared or changed."""
        metadata, spec = body["metadata"], body.get("spec") or {}
        record = self._records.edge_nodes.get(metadata["name"])
        if record is not None and version_of(body) < record.version:
            return
        if record is None or record.uid != metadata["uid"]:
            record = self._records.edge_nodes[metadata["name"]] = EdgeRecord(metadata["name"], metadata["uid"])
        if record.see(body):
            record.generation = metadata.get("generation", 0)
            record.owner = str(spec.get("owner") or "")
            record.node_name = str(spec.get("nodeName") or "")
            record.hardware_class = str(spec.get("hardwareClass") or "")
            record.key_sha256 = str(spec.get("keySHA256") or "")
            record.tier = tier_of(body)
            record.revoked = bool(spec.get("revoked"))
            self._records.shut_out.discard(record.name)
            self._engine.set_tier(DeviceName(record.name), record.tier)
            self._told(DeviceName(record.name))

    def drop_edge_node(self, name: str, uid: str) -> None:
        """An EdgeNode was deleted."""
        record = self._records.edge_nodes.get(name)
        if record is not None and record.uid == uid:
            del self._records.edge_nodes[name]
            self._records.shut_out.add(name)
            self._engine.set_tier(DeviceName(name), TrustTier.PUBLIC)
            self._told(DeviceName(name))

    def _job_record(self, body: Mapping[str, Any]) -> JobRecord:
        metadata = body["metadata"]
        uid = JobUid(metadata["uid"])
        record = self._records.jobs.get(uid)
        if record is None:
            record = self._records.jobs[uid] = JobRecord(metadata["name"], uid, namespace=metadata["namespace"])
        record.see(body)
        return record


def _first_of(annotation: str) -> Json | None:
    try:
        first = json.loads(annotation)
    except ValueError:
        return None
    return first if isinstance(first, dict) else None
