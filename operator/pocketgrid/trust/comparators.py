"""Whether two results for the same items are the same, row by row.

One result is the canonical one (`a`), the other is compared with it. What is not a floating-point number (labels, ids,
masks) must be equal whatever the comparator. A NaN is equal to a NaN, and infinities only to themselves, so that no
tolerance ever hides a result that has blown up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from pocketgrid.model.tensors import TensorData
from pocketgrid.model.trust import Comparator, ComparatorKind
from pocketgrid.trust.judge import OutputExpectation

Values = NDArray[Any]
Agreement = NDArray[np.bool_]


def agreement(
    comparator: Comparator,
    outputs_a: Sequence[TensorData],
    rows_a: Sequence[int],
    outputs_b: Sequence[TensorData],
    rows_b: Sequence[int],
) -> Agreement:
    """Which rows agree.

    Args:
        comparator: what "the same" means.
        outputs_a: canonical results, one tensor per output.
        rows_a: rows of these to compare.
        outputs_b: the other results, in the same order of outputs.
        rows_b: the rows that `rows_a` are compared with, one for one.

    Returns:
        shape (rows,); all False if the results differ in their outputs, dtypes or shapes of items.

    Raises:
        ValueError: a tensor contradicts itself, or rows are of different number or out of range.
    """
    if len(rows_a) != len(rows_b):
        raise ValueError(f"{len(rows_a)} rows cannot be compared with {len(rows_b)}")
    same = np.full(len(rows_a), len(outputs_a) == len(outputs_b))
    for a, b in zip(outputs_a, outputs_b, strict=False):
        same &= _compare(comparator, a, rows_a, b, rows_b)
    return same


def unfit(comparator: Comparator, expectations: Sequence[OutputExpectation]) -> str | None:
    """Why `comparator` makes no sense for such outputs, or None. Said at admission, before anything is computed."""
    match comparator.kind:
        case ComparatorKind.EXACT | ComparatorKind.ALL_CLOSE:
            return None
        case ComparatorKind.COSINE | ComparatorKind.TOP_K:
            pass
        case _:
            assert_never(comparator.kind)
    floating = [e for e in expectations if _is_floating(e.dtype)]
    if not floating:
        dtypes = ", ".join(f"{e.name} is {e.dtype}" for e in expectations)
        return f"{comparator.kind} compares floating-point outputs, but {dtypes}; use Exact"
    for expectation in floating:
        shape = expectation.item_shape
        if shape is None:
            continue
        if not shape:
            return (
                f"{comparator.kind} compares vectors, but items of {expectation.name} are single values; use AllClose"
            )
        if comparator.kind is ComparatorKind.COSINE:
            continue
        if expectation.ragged and len(shape) == 1:
            return f"TopK compares scores of classes, but items of {expectation.name} differ in length; use AllClose"
        if shape[-1] is not None and shape[-1] < comparator.k:
            return f"TopK with k {comparator.k}, but {expectation.name} has {shape[-1]} classes"
    return None


def _compare(
    comparator: Comparator, a: TensorData, rows_a: Sequence[int], b: TensorData, rows_b: Sequence[int]
) -> Agreement:
    for tensor, rows in ((a, rows_a), (b, rows_b)):
        if (problem := tensor.problem()) is not None:
            raise ValueError(problem)
        if any(not 0 <= row < tensor.items for row in rows):
            raise ValueError(f"a row is outside [0, {tensor.items})")
    ragged = a.row_lengths is not None
    if a.dtype != b.dtype or ragged != (b.row_lengths is not None) or a.shape[1:] != b.shape[1:]:
        return np.zeros(len(rows_a), dtype=np.bool_)
    if a.row_lengths is None or b.row_lengths is None:
        return _compare_items(comparator, _values(a)[list(rows_a)], _values(b)[list(rows_b)])
    items_a, items_b = _items(a, a.row_lengths), _items(b, b.row_lengths)
    return np.array(
        [
            items_a[i].shape == items_b[j].shape
            and bool(_compare_items(comparator, items_a[i][None], items_b[j][None])[0])
            for i, j in zip(rows_a, rows_b, strict=True)
        ],
        dtype=np.bool_,
    )


def _compare_items(comparator: Comparator, a: Values, b: Values) -> Agreement:
    """a, b: shape (rows, ...), alike. Returns shape (rows,)."""
    count = len(a)
    if a.size == 0:
        return np.ones(count, dtype=np.bool_)
    if comparator.kind is ComparatorKind.EXACT or a.dtype.kind != "f":
        return _all(_equal_bits(a, b))
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    match comparator.kind:
        case ComparatorKind.ALL_CLOSE:
            return _all(_close(comparator, wide_a, wide_b))
        case ComparatorKind.COSINE:
            return _cosine(comparator.minimum, wide_a.reshape(count, -1), wide_b.reshape(count, -1))
        case ComparatorKind.TOP_K:
            return _all(_top_k(comparator, _at_least_one_axis(wide_a), _at_least_one_axis(wide_b)))
        case _:
            assert_never(comparator.kind)


def _equal_bits(a: Values, b: Values) -> Agreement:
    bits = np.dtype(f"<u{a.dtype.itemsize}")
    same: Agreement = a.view(bits) == b.view(bits)
    return same | (np.isnan(a) & np.isnan(b)) if a.dtype.kind == "f" else same


def _close(comparator: Comparator, a: Values, b: Values) -> Agreement:
    finite = np.isfinite(a) & np.isfinite(b)
    known_a, known_b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    with np.errstate(over="ignore"):
        within = np.abs(known_a - known_b) <= comparator.atol + comparator.rtol * np.abs(known_a)
    close: Agreement = np.where(finite, within, _same_value(a, b))
    return close


def _cosine(minimum: float, a: Values, b: Values) -> Agreement:
    finite = np.isfinite(a) & np.isfinite(b)
    # Lengths are of no account, so that scaling by the largest value spares an overflow of squares.
    a_known, b_known = _scaled(np.where(finite, a, 0.0)), _scaled(np.where(finite, b, 0.0))
    dot = np.sum(a_known * b_known, axis=1)
    norm_a, norm_b = np.linalg.norm(a_known, axis=1), np.linalg.norm(b_known, axis=1)
    both_zero = (norm_a == 0.0) & (norm_b == 0.0)
    # Rounding of the sums must not part a vector from itself when the minimum is 1.
    slack = 4.0 * np.finfo(np.float64).eps * a.shape[1]
    aligned = (dot >= (minimum - slack) * norm_a * norm_b) & (norm_a > 0.0) & (norm_b > 0.0)
    agreed: Agreement = (both_zero | aligned) & np.all(finite | _same_value(a, b), axis=1)
    return agreed


def _top_k(comparator: Comparator, a: Values, b: Values) -> Agreement:
    """Position for position, the class b puts there has canonically almost the value of the one a puts there."""
    a, b = np.where(np.isnan(a), -np.inf, a), np.where(np.isnan(b), -np.inf, b)
    k = min(comparator.k, a.shape[-1])
    # Stable, so that of equal values the class with the lower number comes first on both sides.
    order_a = np.argsort(-a, axis=-1, kind="stable")[..., :k]
    order_b = np.argsort(-b, axis=-1, kind="stable")[..., :k]
    value_a = np.take_along_axis(a, order_a, axis=-1)
    value_b = np.take_along_axis(a, order_b, axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        agreed: Agreement = (value_a == value_b) | (np.abs(value_a - value_b) <= comparator.margin)
    return agreed


def _same_value(a: Values, b: Values) -> Agreement:
    same: Agreement = (a == b) | (np.isnan(a) & np.isnan(b))
    return same


def _scaled(values: Values) -> Values:
    largest = np.max(np.abs(values), axis=1, keepdims=True)
    scaled: Values = values / np.where(largest > 0.0, largest, 1.0)
    return scaled


def _all(same: Agreement) -> Agreement:
    agreed: Agreement = np.all(same.reshape(len(same), -1), axis=1)
    return agreed


def _at_least_one_axis(values: Values) -> Values:
    return values if values.ndim > 1 else values[:, None]


def _values(tensor: TensorData) -> Values:
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    return np.frombuffer(tensor.data, dtype=dtype).reshape(tensor.shape)


def _items(tensor: TensorData, lengths: Sequence[int]) -> list[Values]:
    ends = np.cumsum([0, *lengths])
    values = _values(tensor)
    return [values[ends[at] : ends[at + 1]] for at in range(len(lengths))]


def _is_floating(dtype: str) -> bool:
    return dtype.startswith("float")
