"""The first question asked of any result: could it be an answer to what was asked at all?

Structure only: number of rows, dtypes, shapes. Whether the values are right is for the comparators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pocketgrid.model.job import ACCEPTED, ItemFailure, Operation, OutputPlan, Verdict
from pocketgrid.model.tensors import Dim, ModelSignature, TensorData, TensorSpec


@dataclass(frozen=True, slots=True)
class OutputExpectation:
    """What one result column must look like.

    Attributes:
        dtype: after post-processing.
        item_shape: of one item, after post-processing; None where any length will do, or for the whole of it if the
            model does not say.
        ragged: items differ in their first axis.
    """

    name: str
    dtype: str
    item_shape: tuple[int | None, ...] | None
    ragged: bool = False

    def problem(self, tensor: TensorData, rows: int) -> str | None:
        """Why `tensor` cannot be this column for `rows` items, or None."""
        if (broken := tensor.problem()) is not None:
            return f"output {self.name}: {broken}"
        if tensor.dtype != self.dtype:
            return f"output {self.name}: dtype {tensor.dtype} instead of {self.dtype}"
        if (tensor.row_lengths is not None) != self.ragged:
            return f"output {self.name}: {'ragged' if tensor.row_lengths is not None else 'dense'} by mistake"
        if tensor.items != rows:
            return f"output {self.name}: {tensor.items} rows instead of {rows}"
        if self.item_shape is None:
            return None
        own = tensor.shape[1:]
        wanted = self.item_shape[1:] if self.ragged else self.item_shape
        if len(own) != len(wanted) or any(w is not None and w != o for o, w in zip(own, wanted, strict=False)):
            return f"output {self.name}: items of shape {list(own)} instead of {list(wanted)}"
        return None


def expect_outputs(signature: ModelSignature, plans: Sequence[OutputPlan]) -> tuple[OutputExpectation, ...]:
    """What the columns of a job look like, from its model and its post-processing.

    Raises:
        ValueError: a plan names an output the model lacks; admission does not let such a job through.
    """
    specs = {spec.name: spec for spec in signature.outputs}
    expectations = []
    for plan in plans:
        spec = specs.get(plan.output)
        if spec is None:
            raise ValueError(f"the model has no output {plan.output!r}")
        expectations.append(_expect(spec, plan))
    return tuple(expectations)


def judge_structure(
    expectations: Sequence[OutputExpectation],
    outputs: Sequence[TensorData],
    failures: Sequence[ItemFailure],
    rows: int,
) -> Verdict:
    """Whether `outputs` and `failures` answer a shard of which `rows` items were sent."""
    if len(outputs) != len(expectations):
        return _no("WrongOutputs", f"{len(outputs)} outputs instead of {len(expectations)}")
    for expectation, tensor in zip(expectations, outputs, strict=True):
        if (problem := expectation.problem(tensor, rows)) is not None:
            return _no("WrongOutputs", problem)
    seen: set[int] = set()
    for failure in failures:
        if not 0 <= failure.row < rows or failure.row in seen:
            return _no("WrongFailures", f"failure of row {failure.row} of {rows}")
        seen.add(failure.row)
    return ACCEPTED


def _no(reason: str, message: str) -> Verdict:
    return Verdict(accepted=False, reason=reason, message=message)


def _expect(spec: TensorSpec, plan: OutputPlan) -> OutputExpectation:
    dtype = spec.dtype
    shape = _known(spec.item_shape)
    for operation in plan.operations:
        match operation:
            case Operation.MEAN_POOL:
                shape = shape and shape[1:]
            case Operation.NORMALIZE:
                pass
            case Operation.ARGMAX:
                shape, dtype = shape and shape[:-1], "int64"
            case Operation.BATCH_FIRST:
                shape = _known(spec.swapped_item_shape)
    return OutputExpectation(plan.output, dtype, shape, plan.ragged)


def _known(shape: tuple[Dim, ...] | None) -> tuple[int | None, ...] | None:
    return None if shape is None else tuple(d if isinstance(d, int) else None for d in shape)
