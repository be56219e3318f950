"""The smallest dtype in which values travel without loss.

Pixels and counts are often stored as float32 because that is what a model takes; on the way to a device they cost four
times what they say. A device casts to the model's dtype anyway, so a shard whose values are all small whole numbers
travels as uint8 or int16 and arrives bit by bit the same. Whether it can is seen from the values of each shard: a data
set does not say, and a wrong guess would change results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid.model.tensors import TensorData

CANDIDATES = ("uint8", "int16", "int32")
PROBE = 64
"""Values looked at before the rest: most arrays that cannot be narrowed show it at once, so that looking costs
nothing."""

_WIDE = frozenset({"float32", "float64", "int32", "int64"})
_BITS: dict[int, type[np.unsignedinteger[Any]]] = {4: np.uint32, 8: np.uint64}


def narrow_tensor(tensor: TensorData) -> TensorData:
    """`tensor` in the narrowest dtype that loses nothing. Ragged ones stay: padding needs their dtype's whole range."""
    if tensor.row_lengths is not None or tensor.dtype not in _WIDE:
        return tensor
    values = np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)
    narrowed = narrow(values)
    if narrowed is values:
        return tensor
    return TensorData(narrowed.dtype.name, tensor.shape, narrowed.tobytes())


def narrow(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`values`, or the same values in a smaller dtype if every bit of them comes back from it.

    Floats count as the same only if their bits are: -0.0 and NaN do not survive a journey as integers, and so keep an
    array as wide as it is. float32, float64, int32 and int64 are tried; everything else is returned as it is.
    """
    bits = _BITS.get(values.dtype.itemsize)
    if bits is None or values.dtype.kind not in "fi" or not values.size or not values.flags.c_contiguous:
        return values
    flat = values.reshape(-1)
    for name in CANDIDATES:
        dtype = np.dtype(name)
        if dtype.itemsize >= values.dtype.itemsize:
            break
        if _survives(flat[:PROBE], dtype, bits) is not None:
            narrowed = _survives(flat, dtype, bits)
            if narrowed is not None:
                return narrowed.reshape(values.shape)
    return values


def _survives(
    flat: npt.NDArray[Any], dtype: np.dtype[Any], bits: type[np.unsignedinteger[Any]]
) -> npt.NDArray[Any] | None:
    # What does not fit wraps around or becomes anything at all; the comparison finds it out.
    with np.errstate(invalid="ignore", over="ignore"):
        narrowed = flat.astype(dtype)
    same = np.array_equal(narrowed.astype(flat.dtype).view(bits), flat.view(bits))
    return narrowed if same else None
