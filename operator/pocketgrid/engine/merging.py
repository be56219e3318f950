"""From a device's answer to what is written: its rows are those that were sent, the output's rows are all of them."""

from __future__ import annotations

from collections.abc import Sequence

from pocketgrid.model.job import ItemFailure
from pocketgrid.model.tensors import DTYPES, TensorData


def merge_failures(unread: Sequence[ItemFailure], failed: Sequence[ItemFailure], rows: int) -> tuple[ItemFailure, ...]:
    """All failures of a shard by row of the shard, ascending.

    Args:
        unread: rows (of the shard) that could not be read and so were not sent.
        failed: rows (of those sent) for which the device has no result.
        rows: of the shard.
    """
    if not failed:
        return tuple(unread)
    missing = {f.row for f in unread}
    sent = [row for row in range(rows) if row not in missing]
    moved = [ItemFailure(sent[f.row], f.reason, f.message) for f in failed]
    return tuple(sorted((*unread, *moved), key=lambda f: f.row))


def drop_rows(tensor: TensorData, rows: Sequence[int]) -> TensorData:
    """`tensor` without the items at `rows`."""
    if not rows:
        return tensor
    gone = set(rows)
    inner = DTYPES[tensor.dtype]
    for length in tensor.shape[1:]:
        inner *= length
    lengths = tensor.row_lengths if tensor.row_lengths is not None else (1,) * tensor.items
    kept = []
    start = 0
    for row, length in enumerate(lengths):
        stop = start + length
        if row not in gone:
            kept.append(tensor.data[start * inner : stop * inner])
        start = stop
    left = tuple(length for row, length in enumerate(lengths) if row not in gone)
    return TensorData(
        dtype=tensor.dtype,
        shape=(sum(left), *tensor.shape[1:]),
        data=b"".join(kept),
        row_lengths=left if tensor.row_lengths is not None else None,
    )
