"""Arrow columns as `Values`: what a type is called here, and the cheapest faithful conversion of an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pocketgrid.storage.datasets.base import BINARY, OTHER, STRING, ColumnInfo, Values


def describe(name: str, arrow_type: pa.DataType) -> ColumnInfo:
    """What a column of `arrow_type` is to a model."""
    shape: list[int | None] = []
    element = arrow_type
    if isinstance(element, pa.FixedShapeTensorType):
        if element.permutation not in (None, list(range(len(element.shape)))):
            return ColumnInfo(name, OTHER, note=f"{arrow_type} is permuted; store it in row-major order")
        shape, element = list(element.shape), element.value_type
    while _is_list(element):
        shape.append(element.list_size if pa.types.is_fixed_size_list(element) else None)
        element = element.value_type
    if not shape and is_text(element):
        return ColumnInfo(name, STRING)
    if not shape and _is_binary(element):
        return ColumnInfo(name, BINARY)
    if not (_is_number(element) or pa.types.is_boolean(element)):
        return ColumnInfo(name, OTHER, note=f"{arrow_type} is neither numbers nor text")
    return ColumnInfo(name, np.dtype(element.to_pandas_dtype()).name, tuple(shape))


def is_text(arrow_type: pa.DataType) -> bool:
    """Whether values are text, however they are laid out."""
    if pa.types.is_dictionary(arrow_type):
        return is_text(arrow_type.value_type)
    return bool(
        pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type) or pa.types.is_string_view(arrow_type)
    )


def values_of(array: pa.Array) -> Values:
    """`array` as numbers of shape (rows, ...) if there is no null and all rows are alike, else as a list."""
    dense = _dense(array)
    if dense is not None:
        return dense
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        # Nothing in a file says that text is valid. One row that is not must not keep the others from being read:
        # what cannot be decoded becomes halves of surrogate pairs, which whoever wants text refuses row by row.
        kind = pa.binary_view() if pa.types.is_string_view(array.type) else pa.large_binary()
        values = [v if v is None else v.decode("utf-8", "surrogateescape") for v in array.cast(kind).to_pylist()]
    return values


def _dense(array: pa.Array) -> npt.NDArray[Any] | None:
    shape = [len(array)]
    if isinstance(array.type, pa.FixedShapeTensorType):
        if array.null_count:
            return None
        shape += array.type.shape
        array = array.storage.flatten()
    while _is_list(array.type):
        if array.null_count:
            return None
        if pa.types.is_fixed_size_list(array.type):
            shape.append(array.type.list_size)
        else:
            lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
            length = int(lengths[0]) if len(lengths) else 0
            if not bool((lengths == length).all()):
                return None
            shape.append(length)
        array = array.flatten()
    if array.null_count or not (_is_number(array.type) or pa.types.is_boolean(array.type)):
        return None
    numbers: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return numbers.reshape(shape)


def _is_list(arrow_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type)
    )


def _is_binary(arrow_type: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(is_kind(arrow_type) for is_kind in kinds)


def _is_number(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type))
