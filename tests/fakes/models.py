"""Tiny models and data sets, made on the spot."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_affine_model(path: Path, width: int = 4, batch: int | str = "n", shape: tuple[int, ...] | None = None) -> str:
    """``y = 2x + 1`` over float32 [batch, width] or [batch, *shape]; returns the file's SHA-256."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *(shape or (width,))])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, *(shape or (width,))])
    two = numpy_helper.from_array(np.float32(2.0), "two")
    one = numpy_helper.from_array(np.float32(1.0), "one")
    nodes = [helper.make_node("Mul", ["x", "two"], ["d"]), helper.make_node("Add", ["d", "one"], ["y"])]
    graph = helper.make_graph(nodes, "affine", [x], [y], [two, one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_npy(path: Path, items: int, width: int = 4) -> np.ndarray:
    """Numbers of which no two rows are alike."""
    values = np.arange(items * width, dtype=np.float32).reshape(items, width)
    np.save(path, values)
    return values
