"""What can be known of an ONNX file without running it.

Responsible for reading names, types and axes of inputs and outputs, and for refusing what the grid could never feed
or take apart. Judges no operators: whether an engine runs them is seen when a device loads the model.

The whole file is parsed, weights included, and dropped again: about 2 ms and its own size in memory per MB.
Source: the ONNX specification, IR.md ("Graphs", "Tensor Shape", "External Tensor Data").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.model.tensors import Dim, ModelSignature, TensorSpec
from pocketgrid.storage.reasons import Refusal

if TYPE_CHECKING:
    import onnx

_FIELD = "spec.model.uri"

_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
           10: "float16", 11: "float64", 12: "uint32", 13: "uint64"}  # fmt: skip
"""TensorProto.DataType -> numpy name."""

_DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class InspectedModel:
    """A model's face.

    Attributes:
        signature: usable inputs and outputs.
        unusable_outputs: outputs that cannot be asked for, and why, as the end of a sentence.
    """

    signature: ModelSignature
    unusable_outputs: tuple[tuple[str, str], ...]


def inspect_model(path: Path) -> InspectedModel:
    """Read the model at `path`. Blocking.

    Raises:
        InvalidSpecError: blaming ``spec.model.uri``: NotAnOnnxModel, ExternalData, UnsupportedModel or NotBatched.
        StoreError: the file cannot be read.
    """
    model = _parse(path)
    graph = model.graph
    if any(tensor.data_location for tensor in _tensors(graph)):
        raise InvalidSpecError(
            Refusal.EXTERNAL_DATA,
            "the weights lie in other files; save the model as one file "
            "(onnx.save_model(onnx.load(path), new_path, save_as_external_data=False))",
            field=_FIELD,
        )
    weights = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    fed = [value for value in graph.input if value.name not in weights]
    if not fed:
        raise _unsupported("it has no inputs")
    inputs = []
    for value in fed:
        spec = _tensor_spec(value)
        if isinstance(spec, str):
            raise _unsupported(f"its input {value.name!r} {spec}")
        if not spec.shape:
            raise InvalidSpecError(
                Refusal.NOT_BATCHED, f"the model's input {value.name!r} is a scalar, without an axis of items",
                field=_FIELD,
            )  # fmt: skip
        inputs.append(spec)
    fixed_batch = _fixed_batch(inputs)
    if any(_shape_is_unknown(value) for value in graph.output):
        model = _with_inferred_shapes(model)
    outputs: list[TensorSpec] = []
    unusable: list[tuple[str, str]] = []
    for value in model.graph.output:
        spec = _tensor_spec(value)
        if isinstance(spec, str):
            unusable.append((value.name, spec))
        else:
            outputs.append(spec)
    opset = max((o.version for o in model.opset_import if o.domain in _DEFAULT_DOMAINS), default=0)
    signature = ModelSignature(tuple(inputs), tuple(outputs), opset, model.ir_version, fixed_batch)
    return InspectedModel(signature, tuple(unusable))


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except DecodeError as error:
        raise InvalidSpecError(
            Refusal.NOT_AN_ONNX_MODEL, f"{path.name} is not an ONNX model: {error}", field=_FIELD
        ) from error
    # Nearly any bytes are some protobuf message, so look for what every model has.
    if not (model.ir_version and model.opset_import and model.graph.node and model.graph.output):
        raise InvalidSpecError(
            Refusal.NOT_AN_ONNX_MODEL, f"{path.name} is not an ONNX model: it has no graph", field=_FIELD
        )
    # ONNX is proto2, which takes any bytes for text and hands out as bytes what is none.
    if not all(isinstance(name, str) for name in _names(model.graph)):
        raise InvalidSpecError(
            Refusal.NOT_AN_ONNX_MODEL, f"{path.name} is damaged: a name in its graph is not text", field=_FIELD
        )
    return model


def _names(graph: onnx.GraphProto) -> Iterator[object]:
    yield from (tensor.name for tensor in graph.initializer)
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec | str:
    """The tensor that `value` is, or why it cannot be one."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"is a {(kind or 'value of no type').removesuffix('_type')}, not a tensor"
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    if dtype is None:
        return f"holds {_type_name(tensor.elem_type)}, which does not travel"
    if not tensor.HasField("shape"):
        return "has an unknown number of axes"
    return TensorSpec(value.name, dtype, tuple(_dim(d) for d in tensor.shape.dim))


def _type_name(number: int) -> str:
    import onnx

    try:
        return onnx.TensorProto.DataType.Name(number).lower()
    except ValueError:
        return f"elements of type {number}"


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    match dim.WhichOneof("value"):
        # Some exporters write 0 or -1 for "any length"; an axis of no length would hold nothing.
        case "dim_value":
            return dim.dim_value if dim.dim_value > 0 else None
        case "dim_param":
            return dim.dim_param or None
        case _:
            return None


def _fixed_batch(inputs: list[TensorSpec]) -> int:
    lengths = {spec.shape[0] if isinstance(spec.shape[0], int) else 0 for spec in inputs}
    if len(lengths) > 1:
        shapes = ", ".join(f"{spec.name}{list(spec.shape)}" for spec in inputs)
        raise InvalidSpecError(
            Refusal.NOT_BATCHED,
            f"the first axis of every input must be the same batch axis, which is not so for {shapes}",
            field=_FIELD,
        )
    return lengths.pop()


def _shape_is_unknown(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not value.type.tensor_type.HasField("shape"))


def _with_inferred_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnx import shape_inference

    try:
        return shape_inference.infer_shapes(model)
    except Exception:  # inference is a courtesy; without it such outputs are unusable, and that is said
        return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _unsupported(why: str) -> InvalidSpecError:
    return InvalidSpecError(Refusal.UNSUPPORTED_MODEL, f"the grid cannot feed this model: {why}", field=_FIELD)
