"""What is done to a model's outputs before they travel: pooling, normalising, arg-max. numpy only, float32 throughout.

float32 is a decision, not an accident: devices of one numerics class must agree bit for bit where they can, and a
wider accumulator on one of them would not make its answer better, only different.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid_agent.events import ARGMAX, BATCH_FIRST, MEAN_POOL, NORMALIZE

Array = npt.NDArray[Any]

SMALLEST_NORM = np.float32(1e-12)
"""A vector shorter than this is divided by this instead, so that zeros stay zeros."""


def apply(operation: str, values: Array, lengths: Array | None) -> Array:
    """Apply one operation to the output of one micro-batch.

    Args:
        operation: MeanPool, Normalize or Argmax.
        values: (rows, ...); MeanPool wants (rows, sequence, ...).
        lengths: (rows,), true length of each row's sequence; without it every position counts.

    Returns:
        (rows, ...); float32, or int64 for Argmax.

    Raises:
        ValueError: the operation is unknown or does not fit the shape.
    """
    if operation == MEAN_POOL:
        return mean_pool(values, lengths)
    if operation == NORMALIZE:
        return normalize(values)
    if operation == ARGMAX:
        if values.ndim < 2:
            raise ValueError(f"Argmax needs an axis to search, and the output has shape {values.shape}")
        return np.asarray(np.argmax(values, axis=-1), np.int64)
    raise ValueError(f"unknown operation {operation!r}; a newer agent may know it")


def batch_first(output: Array, operations: tuple[str, ...]) -> tuple[Array, tuple[str, ...]]:
    """The output of a run with its batch axis first, and what is left to do with it.

    Apart from the other operations, because it has to come before padding items are cut off.
    """
    if operations[:1] != (BATCH_FIRST,):
        return output, operations
    return (np.swapaxes(output, 0, 1) if output.ndim > 1 else output), operations[1:]


def mean_pool(values: Array, lengths: Array | None) -> Array:
    """Mean over axis 1 of the positions below each row's length; rows of length 0 give zeros."""
    if values.ndim < 3:
        raise ValueError(f"MeanPool needs (rows, sequence, ...), and the output has shape {values.shape}")
    values = values.astype(np.float32, copy=False)
    sequence = values.shape[1]
    counts = np.full(len(values), sequence) if lengths is None else np.minimum(lengths, sequence)
    sums = np.zeros((len(values), *values.shape[2:]), np.float32)
    # Row by row: half the time of a masked sum, never looks at padding (0 * inf is NaN), and a row's result does not
    # depend on which rows it was batched with.
    for row, count in enumerate(counts.tolist()):
        np.add.reduce(values[row, :count], axis=0, dtype=np.float32, out=sums[row, ...])
    divisors = np.maximum(counts, 1).astype(np.float32)
    pooled: Array = sums / divisors.reshape(-1, *(1,) * (values.ndim - 2))
    return pooled


def normalize(values: Array) -> Array:
    """Divide by the L2 norm along the last axis."""
    values = values.astype(np.float32, copy=False)
    norms = np.sqrt(np.sum(values * values, axis=-1, keepdims=True, dtype=np.float32))
    normalized: Array = values / np.maximum(norms, SMALLEST_NORM)
    return normalized
