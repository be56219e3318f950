"""Whether a job can ever run: looks at its model, its data and its output before any device is asked.

Responsible for joining what the storage room says of each into one `AdmittedJob`, for the output side of the model
(which outputs, which steps), and for refusing with a field and a reason. Not for whether a device is there: that
changes by the minute and is no reason to refuse.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import AdmittedJob, JobSpec, Operation, OutputPlan, OutputRef, PostprocessStep, WorkOrder
from pocketgrid.model.tensors import Dim, ModelSignature, TensorSpec
from pocketgrid.storage.durable import PASSING, store_error
from pocketgrid.storage.encoding import Encoder, open_encoder
from pocketgrid.storage.locations import display, local_path
from pocketgrid.storage.modelstore import ModelStore, StoredModel
from pocketgrid.storage.reasons import Refusal
from pocketgrid.trust.comparators import unfit
from pocketgrid.trust.judge import expect_outputs

_OUTPUTS = "spec.model.outputs"
_OUTPUT_URI = "spec.output.uri"


@dataclass(frozen=True, slots=True)
class Admission:
    """A job that can run, with what is needed to run it.

    Attributes:
        encoder: open; whoever drives the job closes it.
    """

    job: AdmittedJob
    model: StoredModel
    encoder: Encoder


def check_comparator(spec: JobSpec, signature: ModelSignature, plans: Sequence[OutputPlan]) -> None:
    """Refuse a comparator that could never tell right results from wrong ones."""
    if spec.verification.wanted:
        problem = unfit(spec.verification.comparator, expect_outputs(signature, plans))
        if problem is not None:
            raise InvalidSpecError(Refusal.UNFIT_COMPARATOR, problem, field="spec.verification.comparator")


def admit(spec: JobSpec, models: ModelStore) -> Admission:
    """Look at everything `spec` names. Blocking: hashes the model and may read through the data set once.

    The cheap checks come first, so that a typing error is answered at once.

    Raises:
        InvalidSpecError: with one of `Refusal` as reason and the field to blame.
        StoreError: our own model store cannot be written; trying again may help.
    """
    check_output(spec.output)
    model = models.ensure(spec.model)
    swapped = {s.output for s in spec.output.postprocess if s.operation is Operation.BATCH_FIRST}
    selected = select_outputs(spec.model.outputs, model, swapped)
    plans = plan_outputs(selected, spec.output.postprocess, _sequence_axis(spec, model.signature))
    check_comparator(spec, model.signature, plans)
    encoder = open_encoder(spec.input, model.signature, spool_folder=models.scratch)
    order = WorkOrder(
        job=spec.uid,
        model=model.sha256,
        model_bytes=model.size_bytes,
        bindings=encoder.bindings,
        outputs=plans,
        fixed_batch=model.signature.fixed_batch,
        pad_token_id=encoder.pad_token_id,
    )
    job = AdmittedJob(
        spec=spec,
        signature=model.signature,
        order=order,
        items=encoder.items,
        bytes_per_item=encoder.bytes_per_item,
        fingerprint=encoder.fingerprint,
    )
    return Admission(job, model, encoder)


def check_output(output: OutputRef) -> None:
    """Make sure that a folder can be made at the output's URI, by making one beside it and removing it again.

    Raises:
        InvalidSpecError: UnsupportedOutput or OutputUnwritable, blaming ``spec.output.uri``.
        StoreError: it cannot be written just now, such as for a full disk, which is no fault of the job.
    """
    path = local_path(output.uri, field=_OUTPUT_URI)
    if path is None:
        raise InvalidSpecError(
            Refusal.UNSUPPORTED_OUTPUT,
            f"cannot write to {display(output.uri)}: only local paths (/path or file:///path) are supported for now",
            field=_OUTPUT_URI,
        )
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".pocketgrid-", dir=existing) as trial:
            (Path(trial) / "trial").write_bytes(b"trial")
    except OSError as error:
        if error.errno in PASSING:
            raise store_error("writing in", existing, error) from error
        raise InvalidSpecError(
            Refusal.OUTPUT_UNWRITABLE,
            f"cannot write in {existing}: {error.strerror or error}; name a folder that the operator can write",
            field=_OUTPUT_URI,
        ) from error


def select_outputs(
    wanted: tuple[str, ...], model: StoredModel, swapped: Collection[str] = ()
) -> tuple[TensorSpec, ...]:
    """The outputs to compute, in the order asked for; all of them if none is named.

    Args:
        wanted: see `ModelRef.outputs`.
        model: what is known of it.
        swapped: outputs whose batch axis is said to be the second.

    Raises:
        InvalidSpecError: UnknownOutput, DuplicateOutput, UnsupportedModel or NotBatched.
    """
    signature = model.signature
    usable = {spec.name: spec for spec in signature.outputs}
    unusable = dict(model.unusable_outputs)
    if len(set(wanted)) < len(wanted):
        raise InvalidSpecError(Refusal.DUPLICATE_OUTPUT, "an output is named twice", field=_OUTPUTS)
    selected: list[TensorSpec] = []
    for name in wanted or (*usable, *unusable):
        if name in unusable:
            remedy = f"; ask for others, of {_names(usable)}" if usable else ""
            raise InvalidSpecError(
                Refusal.UNSUPPORTED_MODEL,
                f"the model's output {name!r} {unusable[name]}{remedy}",
                field=_OUTPUTS,
            )
        if name not in usable:
            raise InvalidSpecError(
                Refusal.UNKNOWN_OUTPUT,
                f"the model has no output {name!r}; it has {_names(usable)}",
                field=_OUTPUTS,
            )
        if name not in swapped:
            _check_batched(usable[name], signature)
        selected.append(usable[name])
    return tuple(selected)


def plan_outputs(
    outputs: tuple[TensorSpec, ...], steps: tuple[PostprocessStep, ...], sequence: Dim
) -> tuple[OutputPlan, ...]:
    """What a device does to each output.

    Args:
        outputs: see `select_outputs`.
        steps: in the user's order.
        sequence: the axis along which token ids are padded: its symbol, None if it has no name, 0 without tokenizer.

    Raises:
        InvalidSpecError: UnknownOutput or InvalidPostprocess, blaming a field under ``spec.output.postprocess``.
    """
    shapes = {spec.name: _Shape(spec.dtype, spec.item_shape) for spec in outputs}
    swapped = {spec.name: spec.swapped_item_shape for spec in outputs}
    ragged = {spec.name: _begins_with(sequence, spec.item_shape) for spec in outputs}
    operations: dict[str, list[Operation]] = {spec.name: [] for spec in outputs}
    for index, step in enumerate(steps):
        field = f"spec.output.postprocess[{index}]"
        if step.output not in shapes:
            raise InvalidSpecError(
                Refusal.UNKNOWN_OUTPUT,
                f"{step.output!r} is not among the outputs asked for: {_names(shapes)}",
                field=f"{field}.output",
            )
        problem = _problem(step, shapes[step.output], ragged[step.output], sequence)
        if problem:
            raise InvalidSpecError(
                Refusal.INVALID_POSTPROCESS, f"{step.operation} of {step.output!r}: {problem}", field=field
            )
        shapes[step.output] = _after(step.operation, shapes[step.output], swapped[step.output])
        if step.operation is Operation.BATCH_FIRST:
            ragged[step.output] = _begins_with(sequence, swapped[step.output])
        ragged[step.output] &= step.operation is not Operation.MEAN_POOL
        operations[step.output].append(step.operation)
    return tuple(OutputPlan(s.name, tuple(operations[s.name]), ragged[s.name]) for s in outputs)


@dataclass(frozen=True, slots=True)
class _Shape:
    """An output on its way through the steps; `item_shape` is None where the model does not really say."""

    dtype: str
    item_shape: tuple[Dim, ...] | None
    final: bool = False
    untouched: bool = True


def _problem(step: PostprocessStep, now: _Shape, ragged: bool, sequence: Dim) -> str:
    """Why `step` cannot follow, or the empty string."""
    shape = now.item_shape
    if now.final:
        return "nothing can follow Argmax"
    if step.labels and step.operation is not Operation.ARGMAX:
        return "labels belong to Argmax"
    if step.operation is Operation.BATCH_FIRST:
        return "" if now.untouched else "has to be the output's first step"
    if shape is None:
        # What cannot be seen here, the device finds out, and says so of its first item.
        if step.operation is Operation.MEAN_POOL:
            return "needs an output whose axes the model states"
        floats = now.dtype.startswith("float") or step.operation is not Operation.NORMALIZE
        return "" if floats else f"needs floats, not {now.dtype}"
    along_padding = "its last axis is the sequence, part of which is padding"
    match step.operation:
        case Operation.MEAN_POOL:
            if sequence == 0:
                return "there is no attention mask without a tokenizer"
            if len(shape) != 2:
                return f"needs [batch, sequence, features], not an output of {len(shape) + 1} axes"
            if isinstance(shape[0], int):
                return f"the axis to pool over is fixed at {shape[0]}, so it is not the sequence"
            return "" if now.dtype.startswith("float") else f"needs floats, not {now.dtype}"
        case Operation.NORMALIZE:
            if not now.dtype.startswith("float"):
                return f"needs floats, not {now.dtype}"
            if not shape:
                return "a single number per item has no direction"
            return along_padding if ragged and len(shape) == 1 else ""
        case Operation.ARGMAX:
            if not shape:
                return "a single number per item has no axis to choose from"
            if ragged and len(shape) == 1:
                return along_padding
            if step.labels and isinstance(shape[-1], int) and shape[-1] != len(step.labels):
                return f"{len(step.labels)} labels for {shape[-1]} classes"
            return ""
        case _:
            assert_never(step.operation)


def _begins_with(sequence: Dim, shape: tuple[Dim, ...] | None) -> bool:
    return isinstance(sequence, str) and bool(shape) and shape is not None and shape[0] == sequence


def _after(operation: Operation, now: _Shape, swapped: tuple[Dim, ...] | None) -> _Shape:
    shape = now.item_shape
    match operation:
        case Operation.MEAN_POOL:
            return replace(now, item_shape=shape and shape[1:], untouched=False)
        case Operation.NORMALIZE:
            return replace(now, untouched=False)
        case Operation.ARGMAX:
            return _Shape("int64", shape and shape[:-1], final=True, untouched=False)
        case Operation.BATCH_FIRST:
            return replace(now, item_shape=swapped, untouched=False)
        case _:
            assert_never(operation)


def _check_batched(output: TensorSpec, signature: ModelSignature) -> None:
    """Refuse an output whose first axis is certainly not the batch axis; a symbol we do not know may well be it."""
    others = {d for spec in signature.inputs for d in spec.item_shape if isinstance(d, str)}
    batch_names = {spec.shape[0] for spec in signature.inputs}
    first = output.shape[0] if output.shape else 0
    if isinstance(first, int):
        batched = first == signature.fixed_batch and bool(output.shape)
    else:
        batched = first in batch_names or first not in others
    if not batched:
        raise InvalidSpecError(
            Refusal.NOT_BATCHED,
            f"the first axis of the model's output {output.name!r}{list(output.shape)} is not the batch axis, so it "
            "cannot be cut into items; ask for other outputs, or post-process it with BatchFirst if it is [sequence, "
            "batch, ...]",
            field=_OUTPUTS,
        )


def _sequence_axis(spec: JobSpec, signature: ModelSignature) -> Dim:
    if spec.input.tokenizer is None:
        return 0
    return next((i.shape[1] for i in signature.inputs if i.name == "input_ids" and len(i.shape) > 1), None)


def _names(names: dict[str, TensorSpec] | dict[str, _Shape]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
