"""Outputs that come as [sequence, batch, ...]: which are admitted, and what is expected of their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocketgrid.engine.admission import admit
from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.job import AdmittedJob, Operation, OutputPlan, PostprocessStep
from pocketgrid.model.tensors import TensorData
from pocketgrid.storage.modelstore import ModelStore
from pocketgrid.storage.results.columns import derive_columns
from pocketgrid.trust.judge import expect_outputs, judge_structure
from tests.unit.engine.test_admission import ARGMAX, I64, MEAN, NORM, PLAIN, TOKENS, F, job

SWAP = Operation.BATCH_FIRST


def admitted(
    folder: Path, inputs: Any, output: Any, *operations: Operation, labels: tuple[str, ...] = ()
) -> AdmittedJob:
    steps = [PostprocessStep(o, "o", labels if o is ARGMAX else ()) for o in operations]
    admission = admit(job(folder, inputs, {"o": output}, *steps), ModelStore(folder / "models"))
    admission.encoder.close()
    return admission.job


def judged(job: AdmittedJob, tensor: TensorData) -> bool:
    column = derive_columns(job)[0]
    verdict = judge_structure(expect_outputs(job.signature, job.order.outputs), [tensor], [], tensor.items)
    return verdict.accepted is True and column.problem(tensor) is None


@pytest.mark.parametrize(
    ("inputs", "shape", "item_shape"),
    [
        pytest.param(PLAIN, (30, "N", 4), (30, 4), id="a dynamic batch"),
        pytest.param(PLAIN, ("T", "N", 4), (None, 4), id="an open sequence"),
        pytest.param({"a": (F, (1, 4))}, (30, 1, 4), (30, 4), id="a batch of one"),
        pytest.param({"a": (F, (1, 4))}, (1, "T"), None, id="a model that does not state what it computes"),
    ],
)
def test_it_is_admitted_and_its_items_are_known_as_far_as_the_model_says(tmp_path, inputs, shape, item_shape) -> None:
    whole = admitted(tmp_path, inputs, (F, shape), SWAP)
    assert whole.order.outputs == (OutputPlan("o", (SWAP,)),)
    (expected,) = expect_outputs(whole.signature, whole.order.outputs)
    assert (expected.dtype, expected.item_shape) == ("float32", item_shape)
    assert judged(whole, TensorData("float32", (2, 30, 4), bytes(960)))
    best = admitted(tmp_path, inputs, (F, shape), SWAP, ARGMAX, labels=("a", "b", "c", "d"))
    assert judged(best, TensorData("int64", (2, 30), bytes(480)))
    if item_shape is not None:
        assert not judged(whole, TensorData("float32", (2, 30, 5), bytes(1200)))
        assert not judged(best, TensorData("int64", (2, 30, 4), bytes(1920)))


def test_labels_are_counted_where_the_classes_are_known(tmp_path) -> None:
    with pytest.raises(InvalidSpecError, match="2 labels for 4 classes"):
        admitted(tmp_path, PLAIN, (F, ("T", "N", 4)), SWAP, ARGMAX, labels=("a", "b"))
    assert admitted(tmp_path, PLAIN, (F, ("T", "N")), SWAP, ARGMAX, labels=("a", "b")), "found out by the device"


def test_a_sequence_of_tokens_stays_ragged(tmp_path) -> None:
    assert admitted(tmp_path, TOKENS, (F, ("s", "b", 8)), SWAP).order.outputs == (
        OutputPlan("o", (SWAP,), ragged=True),
    )
    assert admitted(tmp_path, TOKENS, (F, ("s", "b", 8)), SWAP, MEAN).order.outputs == (OutputPlan("o", (SWAP, MEAN)),)


@pytest.mark.parametrize(
    ("dtype", "operations", "words"),
    [
        (F, (NORM, SWAP), "has to be the output's first step"),
        (F, (SWAP, SWAP), "has to be the output's first step"),
        (F, (ARGMAX, SWAP), "nothing can follow Argmax"),
        (I64, (SWAP, NORM), "needs floats"),
    ],
)
@pytest.mark.parametrize("shape", [("T", "N", 4), ("T", "N")])
def test_steps_that_do_not_fit_are_refused(tmp_path, dtype, operations, words, shape) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        admitted(tmp_path, PLAIN, (dtype, shape), *operations)
    assert words in str(refusal.value)


def test_nothing_is_pooled_over_axes_that_the_model_does_not_state(tmp_path) -> None:
    with pytest.raises(InvalidSpecError, match="needs an output whose axes the model states"):
        admitted(tmp_path, TOKENS, (F, ("s", "b")), SWAP, MEAN)


def test_who_forgets_it_is_told_of_it(tmp_path) -> None:
    with pytest.raises(InvalidSpecError, match="post-process it with BatchFirst") as refusal:
        admitted(tmp_path, {"a": (F, (1, 4))}, (F, (30, 1, 4)))
    assert refusal.value.reason == "NotBatched"
