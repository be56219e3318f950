"""Between the wire's messages and the agent's own data. Nothing else in the agent knows the shape of messages.

Tensors are `tensors`' business: this module is loaded by idle agents, which do without numpy.

Tolerant in, strict out: what a newer gateway adds is ignored, and nothing leaves here that the contract forbids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pocketgrid.errors import ProtocolError
from pocketgrid.wire.framing import MESSAGE_BYTES
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import events as ev
from pocketgrid_agent.policy import Level, Verdict
from pocketgrid_agent.sealing import KEY_BYTES

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

_INTEGER_BITS = {f"{kind}{bits}": bits - (kind == "int") for kind in ("uint", "int") for bits in (8, 16, 32, 64)}

# What a gateway may make this device remember or allocate. Generous for any real job, and small enough that a broken or
# hostile gateway costs a phone a few MB.
LONGEST_JOB = 253
LONGEST_TOKEN = 64
MOST_ORDER_BYTES = 256 << 10
MOST_FIXED_BATCH = 1 << 16
MOST_AXES = 16

FEATURES = (pb.FEATURE_AFFINE_INPUTS, pb.FEATURE_SEALED_CACHE)
"""What this agent can do beyond the first release of the protocol; see `Hello.features`."""


def event_of(message: pb.GatewayMessage) -> ev.Event | None:
    """What a message of the gateway means to the machine; None for what concerns the link only, or is unknown.

    Raises:
        ProtocolError: a work order or lease that no version of this protocol allows.
    """
    match message.WhichOneof("body"):
        case "work_order":
            return ev.Ordered(order_of(message.work_order))
        case "lease":
            lease = message.lease
            if len(lease.job) > LONGEST_JOB:
                raise ProtocolError(f"a lease of a job whose UID has {len(lease.job)} characters")
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
    if len(order.job) > LONGEST_JOB or order.ByteSize() > MOST_ORDER_BYTES:
        raise ProtocolError(
            f"a work order of {order.ByteSize()} bytes for a job whose UID has {len(order.job)} characters; "
            f"at most {MOST_ORDER_BYTES} and {LONGEST_JOB} are taken"
        )
    if order.fixed_batch > MOST_FIXED_BATCH:
        raise ProtocolError(
            f"job {order.job}: batches of {order.fixed_batch} items; at most {MOST_FIXED_BATCH} are run"
        )
    if lacking := [f for f in order.requires if f not in FEATURES]:
        raise ProtocolError(f"job {order.job}: this agent is too old for feature {lacking[0]}; update it")
    if len(order.model_sha256) != 64 or not set(order.model_sha256) <= set("0123456789abcdef"):
        raise ProtocolError(f"job {order.job}: {order.model_sha256!r} is no SHA-256 in lower-case hexadecimal")
    outputs = []
    if len(order.cache_key) not in (0, KEY_BYTES):
        raise ProtocolError(f"job {order.job}: a cache key of {len(order.cache_key)} bytes; it must have {KEY_BYTES}")
    for plan in order.outputs:
        unknown = [o for o in plan.operations if o not in _OPERATIONS]
        if unknown:
            raise ProtocolError(f"job {order.job}: operation {unknown[0]} of output {plan.output!r} is unknown")
        operations = tuple(_OPERATIONS[o] for o in plan.operations)
        outputs.append(ev.Output(plan.output, operations, plan.ragged))
    for binding in order.bindings:
        if binding.dtype not in ITEM_BYTES or binding.source < ev.ZEROS_SOURCE:
            raise ProtocolError(f"job {order.job}: input {binding.input!r} cannot be filled as told")
        if binding.source >= 0 and order.pad_token_id.bit_length() > _INTEGER_BITS.get(binding.dtype, 64):
            raise ProtocolError(f"job {order.job}: padding token {order.pad_token_id} is no {binding.dtype}")
        if not _is_shape(binding.item_shape, binding.dtype):
            raise ProtocolError(f"job {order.job}: input {binding.input!r} is to have items no message can carry")
    return ev.Order(
        job=order.job,
        model=order.model_sha256,
        model_bytes=order.model_bytes,
        bindings=tuple(_binding(order.job, b) for b in order.bindings),
        outputs=tuple(outputs),
        fixed_batch=order.fixed_batch,
        pad_token_id=order.pad_token_id,
        cache_key=order.cache_key,
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
    if len(shard.token) > LONGEST_TOKEN:
        raise ProtocolError(f"a token of {len(shard.token)} bytes; none has more than {LONGEST_TOKEN}")
    # Whichever is more of what is stated and what is there: a lie is found when the shard is decoded, and must not
    # take more memory than this device is willing to give until then.
    size = sum(max(_stated_bytes(t), len(t.data) + 4 * len(t.row_lengths)) for t in shard.inputs)
    return ev.Attempt(job, shard.index, shard.token, shard.items, size, shard)


def _stated_bytes(tensor: pb.Tensor) -> int:
    # Multiplying thousands of huge numbers would take hours.
    if len(tensor.shape) > MOST_AXES:
        raise ProtocolError(f"a tensor of {len(tensor.shape)} axes; at most {MOST_AXES} travel")
    return math.prod(tensor.shape) * ITEM_BYTES.get(tensor.dtype, 1)


def _is_shape(shape: Sequence[int], dtype: str) -> bool:
    return len(shape) <= MOST_AXES and math.prod(shape) * ITEM_BYTES[dtype] <= MESSAGE_BYTES


def node_failure(attempt: ev.Attempt, reason: str, message: str, compute_us: int) -> pb.ShardResult:
    """The message for an attempt this device could not carry out; never held against the shard."""
    failure = pb.ShardFailure(cause=pb.ShardFailure.CAUSE_NODE, reason=reason, message=message)
    return pb.ShardResult(shard=attempt.shard, token=attempt.token, compute_us=compute_us, failure=failure)


def items_failure(attempt: ev.Attempt, reason: str, message: str, compute_us: int) -> pb.ShardResult:
    """The message for an attempt that would fail on any device in the same way."""
    failure = pb.ShardFailure(cause=pb.ShardFailure.CAUSE_ITEMS, reason=reason, message=message)
    return pb.ShardResult(shard=attempt.shard, token=attempt.token, compute_us=compute_us, failure=failure)


def reissued(body: bytes, token: ev.Token) -> bytes:
    """A serialised result as answer to another attempt of the same shard."""
    result = pb.ShardResult.FromString(body)
    result.token = token
    return result.SerializeToString()


_LEVELS = {
    Level.WORK: pb.Restraint.LEVEL_NONE,
    Level.EASE: pb.Restraint.LEVEL_EASED,
    Level.PAUSE: pb.Restraint.LEVEL_PAUSED,
}


def restraint_message(verdict: Verdict) -> pb.DeviceMessage:
    """How far this device is held back by its owner."""
    restraint = pb.Restraint(level=_LEVELS[verdict.level], reason=verdict.reason, message=verdict.message)
    return pb.DeviceMessage(restraint=restraint)


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
