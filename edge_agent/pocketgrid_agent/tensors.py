"""Tensors and results between the wire and numpy. Apart from `codec`, so that an idle agent need not load numpy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import events as ev
from pocketgrid_agent.batching import BadItem, Column, MalformedShardError, ShardOutput
from pocketgrid_agent.codec import ITEM_BYTES

_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ITEM_BYTES}

# `dtype.name` takes numpy longer than all the rest of encoding a small tensor.
_NAMES = {np.dtype(name): name for name in _DTYPES}


def columns_of(shard: pb.Shard) -> list[Column]:
    """The input tensors of a shard; they share the message's memory and cannot be written.

    Raises:
        MalformedShardError: a tensor contradicts itself.
    """
    return [_column(number, tensor) for number, tensor in enumerate(shard.inputs)]


def _column(number: int, tensor: pb.Tensor) -> Column:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise MalformedShardError(f"tensor {number} has unknown dtype {tensor.dtype!r}")
    try:
        values: npt.NDArray[Any] = np.frombuffer(tensor.data, dtype).reshape(tuple(tensor.shape))
    except ValueError as error:
        raise MalformedShardError(
            f"tensor {number}: {len(tensor.data)} bytes do not fill {tensor.dtype}{list(tensor.shape)}"
        ) from error
    if values.ndim < 1:
        raise MalformedShardError(f"tensor {number} has no item axis")
    if len(values) and not values.size:
        # Any number of such rows fits into no bytes at all, and into no memory once they are computed with.
        raise MalformedShardError(f"tensor {number} has {len(values)} rows without values")
    if not tensor.row_lengths:
        return Column(values)
    lengths = np.array(tensor.row_lengths, np.int64)
    if int(lengths.sum()) != len(values):
        raise MalformedShardError(f"tensor {number}: row lengths do not add up to {len(values)}")
    return Column(values, lengths)


def result_of(attempt: ev.Attempt, output: ShardOutput, compute_us: int) -> pb.ShardResult:
    """The message for a computed shard. If not one item succeeded, the attempt failed and its items are to blame."""
    result = pb.ShardResult(shard=attempt.shard, token=attempt.token, compute_us=compute_us)
    if not output.columns and output.failures:
        worst: BadItem = output.failures[0]
        result.failure.CopyFrom(
            pb.ShardFailure(cause=pb.ShardFailure.CAUSE_ITEMS, reason=worst.reason, message=worst.message)
        )
    for column in output.columns:
        values = np.ascontiguousarray(column.values)
        result.outputs.append(
            pb.Tensor(
                dtype=_NAMES[values.dtype],
                shape=values.shape,
                data=_little_endian(values).tobytes(),
                row_lengths=() if column.lengths is None else column.lengths.tolist(),
            )
        )
    result.failures.extend(pb.ItemFailure(row=f.row, reason=f.reason, message=f.message) for f in output.failures)
    return result


def _little_endian(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values if sys.byteorder == "little" else values.astype(values.dtype.newbyteorder("<"))
