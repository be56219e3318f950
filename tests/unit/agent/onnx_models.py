"""Small ONNX models for tests, built from scratch."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def _model(nodes: list, inputs: list, outputs: list, weights: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*port) for port in outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def mlp(batch: int | str = "n", hidden: int = 64) -> bytes:
    """x float32 [n, 64] -> y float32 [n, 10]."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((64, hidden), np.float32),
        "w2": rng.standard_normal((hidden, 10), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    return _model(nodes, [("x", TensorProto.FLOAT, [batch, 64])], [("y", TensorProto.FLOAT, [batch, 10])], weights)


VOCABULARY = 50
WIDTH = 6


def embedding_table() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((VOCABULARY, WIDTH), np.float32)


def tokens(batch: int | str = "b", sequence: int | str = "s") -> bytes:
    """ids, mask, types int64 [b, s] -> hidden float32 [b, s, WIDTH].

    hidden = (table[ids] + types) * (1 + mask); ids outside the vocabulary are refused by the engine.
    """
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"], axis=0),
        helper.make_node("Cast", ["types"], ["types_f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["mask"], ["mask_f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["types_f", "last"], ["types_3"]),
        helper.make_node("Unsqueeze", ["mask_f", "last"], ["mask_3"]),
        helper.make_node("Add", ["embedded", "types_3"], ["added"]),
        helper.make_node("Add", ["mask_3", "one"], ["factor"]),
        helper.make_node("Mul", ["added", "factor"], ["hidden"]),
    ]
    ports = [(name, TensorProto.INT64, [batch, sequence]) for name in ("ids", "mask", "types")]
    weights = {
        "table": embedding_table(),
        "last": np.array([2], np.int64),
        "one": np.array(1, np.float32),
    }
    return _model(nodes, ports, [("hidden", TensorProto.FLOAT, [batch, sequence, WIDTH])], weights)


def grinder(loops: int, width: int = 256) -> bytes:
    """x float32 [n, width] -> y float32 [n, width]; slow on purpose: `loops` products of width x width."""
    weight = (np.eye(width) * 0.5).astype(np.float32)
    nodes = []
    last = "x"
    for index in range(loops):
        out = "y" if index == loops - 1 else f"h{index}"
        nodes.append(helper.make_node("MatMul", [last, "w"], [out]))
        last = out
    return _model(
        nodes,
        [("x", TensorProto.FLOAT, ["n", width])],
        [("y", TensorProto.FLOAT, ["n", width])],
        {"w": weight},
    )
