"""Arithmetic on inputs before they meet a model: (x * scale - mean) / std.

It is done here and not by the operator because pixels are bytes: a shard of them weighs a quarter of what it would
weigh as float32. Each of the three steps is rounded to float32, in this order, on every device alike; that is what the
usual numpy code of the field does, so results can be compared with it bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid_agent.events import Affine

Array = npt.NDArray[Any]


def problem(affine: Affine, item_shape: Sequence[int]) -> str | None:
    """Why `affine` cannot be done to items of `item_shape`, or None."""
    lengths = {len(affine.scale), len(affine.mean), len(affine.std)} - {1}
    if not lengths:
        return None
    if affine.axis >= len(item_shape):
        return f"there are values along axis {affine.axis} and items have shape {list(item_shape)}"
    if lengths != {item_shape[affine.axis]}:
        return f"there are {max(lengths)} values for the {item_shape[affine.axis]} entries of axis {affine.axis}"
    return None


def apply(affine: Affine, values: Array) -> Array:
    """Do it: `values` of shape (rows, ...) as float32. Only if there is no `problem`."""
    # A step that changes no bit is not worth a pass over the memory.
    result: Array = values.astype(np.float32)
    if affine.scale != (1.0,):
        result *= _along_axis(affine.scale, affine.axis, result.ndim)
    if affine.mean != (0.0,):
        result -= _along_axis(affine.mean, affine.axis, result.ndim)
    if affine.std != (1.0,):
        result /= _along_axis(affine.std, affine.axis, result.ndim)
    return result


def _along_axis(values: tuple[float, ...], axis: int, axes: int) -> Array:
    shape = [1] * axes
    if len(values) > 1:
        shape[axis + 1] = len(values)
    return np.array(values, np.float32).reshape(shape)
