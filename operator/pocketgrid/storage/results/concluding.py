"""Making the manifest of a job whose parts are all sealed, from what its log adds up to."""

from __future__ import annotations

from collections.abc import Sequence

from pocketgrid.model.job import AdmittedJob, OutputFormat
from pocketgrid.storage.logentries import Plan, Sealed
from pocketgrid.storage.logstate import LogState
from pocketgrid.storage.results.columns import Column
from pocketgrid.storage.results.manifest import FileEntry, Manifest, PartEntry
from pocketgrid.storage.results.parts import describe_columns, errors_name, part_name
from pocketgrid.storage.results.sealing import KeyColumn, output_schema
from pocketgrid.storage.results.work import summarize_work


def build_manifest(job: AdmittedJob, state: LogState, key: KeyColumn, columns: Sequence[Column]) -> Manifest:
    """The manifest of `job`."""
    spec, plan = job.spec, state.plan
    parts = [_part_entry(spec.output.format, plan, state.sealed[n]) for n in sorted(state.sealed) if plan]
    return Manifest(
        job=spec.uid,
        name=spec.key,
        model=spec.model.sha256,
        model_uri=spec.model.uri,
        input=spec.input.text,
        input_fingerprint=job.fingerprint,
        format=spec.output.format.value,
        key=key.name,
        numbered=key.numbered,
        items=job.items,
        rows=sum(p.data.rows for p in parts),
        failed=sum(p.errors.rows for p in parts if p.errors),
        columns=tuple(describe_columns(output_schema(key, columns))),
        parts=tuple(parts),
        work=summarize_work(state.sealed_work()),
        verified=plan is not None and plan.verify,
        cost=state.pay.earned_micro,
    )


def _part_entry(format_: OutputFormat, plan: Plan, sealed: Sealed) -> PartEntry:
    first, stop = plan.rows_of(sealed.part)
    errors = None
    if sealed.failed:
        errors = FileEntry(errors_name(sealed.part), sealed.failed, sealed.errors_bytes, sealed.errors_sha256)
    data = FileEntry(part_name(sealed.part, format_), sealed.rows, sealed.bytes, sealed.sha256)
    return PartEntry(first, stop - first, data, errors)
