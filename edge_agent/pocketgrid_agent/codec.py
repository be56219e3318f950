"""Between the wire's messages and the agent's own data. Nothing else in the agent knows the shape of messages.

Tensors are `tensors`' business: this module is loaded by idle agents, which do without numpy.

Tolerant in, strict out: what a newer gateway adds is ignored, and nothing leaves here that the contract forbids.
"""

from __future__ import annotations

import math

from pocketgrid.errors import ProtocolError
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import events as ev

ITEM_BYTES = {
    "bool": 1,
    **{f"{kind}{bits}": bits // 8 for kind in ("uint", "int") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": bits // 8 for bits in (16, 32, 64)},
}
"""Bytes of one value by dtype: what travels."""

_OPERATIONS = {
    pb.OPERATION_MEAN_POOL: ev.MEAN_POOL,
    pb.OPERATION_NORMALIZE: ev.NORMALIZE,
    pb.OPERATION_ARGMAX: ev.ARGMAX,
    pb.OPERATION_BATCH_FIRST: ev.BATCH_FIRST,
}

FEATURES = (pb.FEATURE_AFFINE_INPUTS,)
"""What this agent can do beyond the first release of the protocol; see `Hello.features`."""


def event_of(message: pb.GatewayMessage) -> ev.Event | None:
    """What a message of the gateway means to the machine; None for what concerns the link only, or is unknown.

    Raises:
        ProtocolError: a work order that no version of this protocol allows.
    """
    match message.WhichOneof("body"):
        case "work_order":
            return ev.Ordered(order_of(message.work_order))
        case "lease":
            lease = message.lease
            return ev.Leased(tuple(_attempt(lease.job, shard) for shard in lease.shards))
        case "revoke":
            return ev.Revoked(message.revoke.job, tuple(message.revoke.tokens))
        case "settled":
            settled = message.settled
            refused = (refusal.token for refusal in settled.refused)
            return ev.Settled((*settled.committed, *settled.superseded, *refused))
        case "cancel":
            return ev.Cancelled(message.cancel.job, tuple(message.cancel.tokens))
        case "drain":
            return ev.DrainRequested(message.drain.reason or "Drained", leave=False)
        case _:
            return None


def order_of(order: pb.WorkOrder) -> ev.Order:
    """A work order in the agent's words.

    Raises:
        ProtocolError: it requires a feature, or names an operation or dtype, that this version does not know, or it
            names no model.
    """
    if lacking := [f for f in order.requires if f not in FEATURES]:
        raise ProtocolError(f"job {order.job}: this agent is too old for feature {lacking[0]}; update it")
    if len(order.model_sha256) != 64 or not set(order.model_sha256) <= set("0123456789abcdef"):
        raise ProtocolError(f"job {order.job}: {order.model_sha256!r} is no SHA-256 in lower-case hexadecimal")
    outputs = []
    for plan in order.outputs:
        unknown = [o for o in plan.operations if o not in _OPERATIONS]
        if unknown:
            raise ProtocolError(f"job {order.job}: operation {unknown[0]} of output {plan.output!r} is unknown")
        operations = tuple(_OPERATIONS[o] for o in plan.operations)
        outputs.append(ev.Output(plan.output, operations, plan.ragged))
    for binding in order.bindings:
        if binding.dtype not in ITEM_BYTES or binding.source < ev.ZEROS_SOURCE:
            raise ProtocolError(f"job {order.job}: input {binding.input!r} cannot be filled as told")
    return ev.Order(
        job=order.job,
        model=order.model_sha256,
        model_bytes=order.model_bytes,
        bindings=tuple(_binding(order.job, b) for b in order.bindings),
        outputs=tuple(outputs),
        fixed_batch=order.fixed_batch,
        pad_token_id=order.pad_token_id,
    )


def _binding(job: str, binding: pb.TensorBinding) -> ev.Binding:
    affine = None
    if binding.HasField("affine"):
        told = binding.affine
        affine = ev.Affine(
            told.axis, tuple(told.scale) or (1.0,), tuple(told.mean) or (0.0,), tuple(told.std) or (1.0,)
        )
        if binding.source < 0 or not binding.dtype.startswith("float") or 0.0 in affine.std:
            raise ProtocolError(f"job {job}: input {binding.input!r} cannot be scaled as told")
    return ev.Binding(binding.input, binding.source, binding.dtype, affine, tuple(binding.item_shape))


def _attempt(job: str, shard: pb.Shard) -> ev.Attempt:
    # Sizes as stated: looking at the data itself would copy it, and a lie is found when the shard is decoded.
    stated = sum(math.prod(t.shape) * ITEM_BYTES.get(t.dtype, 1) for t in shard.inputs)
    return ev.Attempt(job, shard.index, shard.token, shard.items, stated, shard)


def node_failure(attempt: ev.Attempt, reason: str, message: str, compute_us: int) -> pb.ShardResult:
    """The message for an attempt this device could not carry out; never held against the shard."""
    failure = pb.ShardFailure(cause=pb.ShardFailure.CAUSE_NODE, reason=reason, message=message)
    return pb.ShardResult(shard=attempt.shard, token=attempt.token, compute_us=compute_us, failure=failure)


def reissued(body: bytes, token: ev.Token) -> bytes:
    """A serialised result as answer to another attempt of the same shard."""
    result = pb.ShardResult.FromString(body)
    result.token = token
    return result.SerializeToString()


def report_message(order: ev.Order, outcome: ev.Ready | ev.NotReady) -> pb.DeviceMessage:
    """Whether this device is ready for a job."""
    report = pb.ModelReport(job=order.job, model_sha256=order.model)
    match outcome:
        case ev.Ready():
            report.state = pb.ModelReport.STATE_READY
            report.items_per_second = outcome.items_per_second
            report.micro_batch = outcome.micro_batch
            report.fetch_ms = outcome.fetch_ms
            report.load_ms = outcome.load_ms
        case ev.NotReady():
            report.state = pb.ModelReport.STATE_FAILED
            report.reason = outcome.reason
            report.message = outcome.message
    return pb.DeviceMessage(model_report=report)
