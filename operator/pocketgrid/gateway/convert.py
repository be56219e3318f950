"""Protobuf to the grid's own words and back: tolerant of what it reads, strict in what it writes."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pocketgrid.engine.links import AttemptFailure, HeldAttempt, LeasedShard, ModelStatus, Settlement, ShardOutcome
from pocketgrid.errors import InvalidSpecError, ProtocolError
from pocketgrid.model.device import (
    AgentFeature,
    Credits,
    DeviceFacts,
    DeviceIdentity,
    DeviceKind,
    Network,
    Restraint,
    RestraintLevel,
    Vitals,
)
from pocketgrid.model.ids import DeviceName, JobUid, LeaseId, ModelDigest
from pocketgrid.model.job import ItemFailure, Operation, TensorBinding, WorkOrder
from pocketgrid.model.tensors import TensorData
from pocketgrid.wire.framing import FRAGMENT_BYTES, MESSAGE_BYTES
from pocketgrid.wire.v1 import agent_pb2 as pb

log = logging.getLogger(__name__)

_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAME = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")
_LABEL_PART = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9]{0,62}")
_LONGEST_NAME = 253

# What a device may make us remember or write into its Node and EdgeNode. Generous for any real device, and small
# enough that a broken or hostile one harms nobody else.
_MAX_TEXT = 1024
_MAX_WORD = 63
_MAX_LABELS = 64
_MAX_FEATURES = 64
_MAX_PROVIDERS = 16
_MAX_MODELS = 1024
_MAX_HELD = 1 << 16
_MAX_SLOTS = 256
_MAX_CREDIT_SHARDS = 1 << 16
_MAX_CREDIT_BYTES = 256 << 20
_MAX_CORES = 1 << 16
_MAX_OPSET = 1 << 16
_MAX_RESULTS = 1 << 14
_MAX_RANK = 16
_MAX_DTYPE = 16
_MAX_JOB = 253
_MAX_TOKEN = 64
_MAX_GIVEN_LABELS = 4096
_SLOWEST, _FASTEST = 1e-6, 1e9
_INT64 = 2**63 - 1

_SHARD_OVERHEAD = 256
"""Bytes of a shard on the wire beside its tensors' data and row lengths, rounded up."""

_OPERATIONS = {
    Operation.MEAN_POOL: pb.OPERATION_MEAN_POOL,
    Operation.NORMALIZE: pb.OPERATION_NORMALIZE,
    Operation.ARGMAX: pb.OPERATION_ARGMAX,
    Operation.BATCH_FIRST: pb.OPERATION_BATCH_FIRST,
}

_FEATURES = {
    pb.FEATURE_AFFINE_INPUTS: AgentFeature.AFFINE_INPUTS,
    pb.FEATURE_SEALED_CACHE: AgentFeature.SEALED_CACHE,
}
_FEATURE_NUMBERS = {feature: number for number, feature in _FEATURES.items()}


def read_hello(hello: pb.Hello) -> tuple[DeviceIdentity, tuple[HeldAttempt, ...]]:
    """Who a device says it is, and what it still has. What is merely odd is cut to size.

    Raises:
        ProtocolError: its name cannot be a Node's name, or its owner no label's value.
    """
    if not is_name(hello.device_name):
        raise ProtocolError(f"device name {hello.device_name[:80]!r} is not a DNS-1123 subdomain")
    if hello.node_name and not is_name(hello.node_name):
        raise ProtocolError(f"node name {hello.node_name[:80]!r} is not a DNS-1123 subdomain")
    if hello.owner and not _LABEL_PART.fullmatch(hello.owner):
        # Cutting it to size could make one owner of two, and owners are paid.
        raise ProtocolError(
            f"owner {hello.owner[:80]!r} cannot be a Kubernetes label: use at most 63 letters, digits, '-', '_' and "
            "'.', beginning and ending with a letter or digit"
        )
    facts = hello.facts
    identity = DeviceIdentity(
        name=DeviceName(hello.device_name),
        boot_id=_text(hello.boot_id),
        owner=hello.owner,
        facts=DeviceFacts(
            kind=_kind(facts.kind),
            arch=_word(facts.arch),
            os=_word(facts.os),
            cores=min(max(facts.cores, 1), _MAX_CORES),
            memory_bytes=min(facts.memory_bytes, _INT64),
            simd=_words(facts.simd, _MAX_FEATURES),
            providers=_words(facts.providers, _MAX_PROVIDERS),
            model_name=_text(facts.model_name),
            agent_version=_text(facts.agent_version, _MAX_WORD),
            engine=_text(facts.engine),
            opset=min(facts.opset, _MAX_OPSET),
        ),
        slots=min(max(hello.slots, 1), _MAX_SLOTS),
        credits=Credits(
            min(max(hello.credits.shards, 1), _MAX_CREDIT_SHARDS), min(max(hello.credits.bytes, 1), _MAX_CREDIT_BYTES)
        ),
        node_name=hello.node_name,
        cached_models=frozenset(ModelDigest(d) for d in hello.cached_models[:_MAX_MODELS] if _DIGEST.fullmatch(d)),
        labels=_labels(hello.labels, hello.device_name),
        features=frozenset(_FEATURES[f] for f in hello.features if f in _FEATURES),
    )
    held = tuple(
        HeldAttempt(JobUid(h.job), h.shard, h.token, h.finished)
        for h in hello.held[:_MAX_HELD]
        if len(h.job) <= _MAX_JOB and len(h.token) <= _MAX_TOKEN
    )
    return identity, held


def read_vitals(beat: pb.Heartbeat) -> Vitals:
    """How a device feels; what it does not say, or cannot mean, is None."""
    memory = beat.memory_available_bytes if beat.HasField("memory_available_bytes") else None
    return Vitals(
        load1=_within(beat.load1, 0.0, 1e6) if beat.HasField("load1") else None,
        memory_available_bytes=memory if memory is not None and memory <= _INT64 else None,
        battery_percent=_within(beat.battery_percent, 0.0, 100.0) if beat.HasField("battery_percent") else None,
        charging=beat.charging if beat.HasField("charging") else None,
        temperature_celsius=_within(beat.temperature_celsius, -273.15, 1e3)
        if beat.HasField("temperature_celsius")
        else None,
        network=_network(beat.network),
    )


def read_restraint(restraint: pb.Restraint) -> Restraint:
    """How far a device's owner holds it back. A level of a newer version is taken for the mildest."""
    match restraint.level:
        case pb.Restraint.LEVEL_UNSPECIFIED | pb.Restraint.LEVEL_NONE:
            return Restraint()
        case pb.Restraint.LEVEL_PAUSED:
            level = RestraintLevel.PAUSED
        case _:
            level = RestraintLevel.EASED
    return Restraint(level, read_reason(restraint.reason), _text(restraint.message))


def read_model_report(report: pb.ModelReport) -> ModelStatus:
    """What a device answers to a work order."""
    speed = report.items_per_second
    return ModelStatus(
        job=read_job(report.job),
        model=ModelDigest(report.model_sha256[:_MAX_TOKEN]),
        ready=report.state == pb.ModelReport.STATE_READY,
        # Its reciprocal is what is reckoned with; beyond these it is no speed of anything.
        items_per_second=min(max(speed, _SLOWEST), _FASTEST) if 0 < speed < math.inf else 0.0,
        micro_batch=report.micro_batch,
        reason=read_reason(report.reason),
        message=_text(report.message),
    )


def read_job(job: str) -> JobUid:
    """The job a message is about, whether or not there is one.

    Raises:
        ProtocolError: it is longer than any UID.
    """
    if len(job) > _MAX_JOB:
        raise ProtocolError(f"a job's UID of {len(job)} characters; none has more than {_MAX_JOB}")
    return JobUid(job)


def read_tokens(tokens: Sequence[bytes]) -> Sequence[bytes]:
    """Tokens, genuine or not.

    Raises:
        ProtocolError: one is longer than any token, so it cannot even be a damaged one.
    """
    for token in tokens:
        _check_token(token)
    return tokens


def read_reason(reason: str) -> str:
    """A CamelCase word; Unspecified for what is none."""
    return reason if _REASON.fullmatch(reason) else "Unspecified"


def read_results(results: pb.Results) -> list[ShardOutcome]:
    """What became of attempts. Whether any of it is believable is for others to say.

    Raises:
        ProtocolError: there are more of them than one message may hold, or a token is longer than any token.
    """
    read_tokens([r.token for r in results.results[: _MAX_RESULTS + 1]])
    if len(results.results) > _MAX_RESULTS:
        raise ProtocolError(f"{len(results.results)} results in one message; allowed are {_MAX_RESULTS}")
    return [
        ShardOutcome(
            shard=r.shard,
            token=r.token,
            compute_us=min(r.compute_us, _INT64),
            outputs=tuple(read_tensor(t) for t in r.outputs),
            failures=tuple(ItemFailure(f.row, read_reason(f.reason), _text(f.message)) for f in r.failures),
            failed=_failure(r.failure) if r.HasField("failure") else None,
        )
        for r in results.results
    ]


def read_tensor(tensor: pb.Tensor) -> TensorData:
    """One tensor, unchecked; `TensorData.problem` checks it."""
    # A ragged tensor of no rows looks like a dense one of none; shards without rows are never sent.
    lengths = tuple(tensor.row_lengths) or None
    # Multiplying millions of huge lengths would take hours; no shape at all is refused by the same check.
    shape = tuple(tensor.shape) if len(tensor.shape) <= _MAX_RANK and all(d <= _INT64 for d in tensor.shape) else ()
    return TensorData(tensor.dtype[:_MAX_DTYPE], shape, tensor.data, lengths)


def write_order(order: WorkOrder, cache_key: bytes = b"") -> pb.WorkOrder:
    """What a device must know of a job; with the key, if there is one, that it keeps the model's file under."""
    return pb.WorkOrder(
        job=order.job,
        model_sha256=order.model,
        model_bytes=order.model_bytes,
        bindings=[_write_binding(b) for b in order.bindings],
        outputs=[
            pb.OutputPlan(output=o.output, operations=[_OPERATIONS[op] for op in o.operations], ragged=o.ragged)
            for o in order.outputs
        ],
        fixed_batch=order.fixed_batch,
        pad_token_id=order.pad_token_id,
        requires=sorted(_FEATURE_NUMBERS[f] for f in order.requires),
        cache_key=cache_key,
    )


def _write_binding(binding: TensorBinding) -> pb.TensorBinding:
    affine = binding.affine
    return pb.TensorBinding(
        input=binding.input,
        source=binding.source,
        dtype=binding.dtype,
        affine=None
        if affine is None
        else pb.Affine(axis=affine.axis, scale=affine.scale, mean=affine.mean, std=affine.std),
        item_shape=binding.item_shape or (),
    )


def write_leases(job: JobUid, lease: LeaseId, ttl_s: float, shards: Sequence[LeasedShard]) -> list[pb.Lease]:
    """Shards on their way to a device, in messages that travel whole as far as their sizes allow.

    Raises:
        InvalidSpecError: a shard is larger than any message may be.
    """
    return [
        pb.Lease(
            # A lease given to a device that came back has no number of this epoch; it is never sent again.
            lease_id=max(lease, 0),
            job=job,
            ttl_ms=min(int(ttl_s * 1000), 2**32 - 1),
            shards=[
                pb.Shard(index=s.index, token=s.token, items=s.items, inputs=[_write_tensor(t) for t in s.inputs])
                for s in group
            ],
        )
        for group in _grouped(shards)
    ]


def weigh(lease: pb.Lease) -> int:
    """About how many bytes a lease is on the wire; cheaper than asking it."""
    return sum(_SHARD_OVERHEAD + sum(len(t.data) + 5 * len(t.row_lengths) for t in s.inputs) for s in lease.shards)


def _grouped(shards: Sequence[LeasedShard]) -> Iterator[list[LeasedShard]]:
    # What shards weigh is estimated from the first rows of a data set when they are cut; here it is known.
    group: list[LeasedShard] = []
    size = 0
    for shard in shards:
        weight = _SHARD_OVERHEAD + sum(len(t.data) + 5 * len(t.row_lengths or ()) for t in shard.inputs)
        if weight > MESSAGE_BYTES - _SHARD_OVERHEAD:
            raise InvalidSpecError(
                "ShardTooLarge",
                f"shard {shard.index} has {weight:,} bytes of inputs and at most {MESSAGE_BYTES:,} can be sent; "
                "use smaller shards",
                field="spec.sharding.itemsPerShard",
            )
        if group and size + weight > FRAGMENT_BYTES:
            yield group
            group, size = [], 0
        group.append(shard)
        size += weight
    if group:
        yield group


def write_settled(job: JobUid, settlement: Settlement) -> pb.Settled:
    """Results a device may forget."""
    return pb.Settled(
        job=job,
        committed=settlement.committed,
        superseded=settlement.superseded,
        refused=[pb.RefusedResult(token=t, reason=r, message=m) for t, r, m in settlement.refused],
    )


def _write_tensor(tensor: TensorData) -> pb.Tensor:
    return pb.Tensor(dtype=tensor.dtype, shape=tensor.shape, data=tensor.data, row_lengths=tensor.row_lengths or ())


def _failure(failure: pb.ShardFailure) -> AttemptFailure:
    # What a device does not explain is its own trouble: a shard must never be blamed by default.
    blame = failure.cause == pb.ShardFailure.CAUSE_ITEMS
    return AttemptFailure(blame, read_reason(failure.reason), _text(failure.message))


def is_name(text: str) -> bool:
    """Whether a Node can be called so: a DNS-1123 subdomain."""
    return len(text) <= _LONGEST_NAME and _NAME.fullmatch(text) is not None


def _word(text: str) -> str:
    # These become values of labels.
    return text if _LABEL_PART.fullmatch(text) else "unknown"


def _words(texts: Iterable[str], limit: int) -> tuple[str, ...]:
    return tuple(_text(text, _MAX_WORD) for text, _ in zip(texts, range(limit), strict=False))


def _text(text: str, limit: int = _MAX_TEXT) -> str:
    # These are shown on terminals, in logs and in Kubernetes objects: a device must not write lines of its own there,
    # nor move the cursor.
    text = text[:limit]
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _check_token(token: bytes) -> None:
    if len(token) > _MAX_TOKEN:
        raise ProtocolError(f"a token of {len(token)} bytes; none has more than {_MAX_TOKEN}")


def _labels(labels: Mapping[str, str], device: str) -> dict[str, str]:
    # One label that Kubernetes refuses would cost the device its whole Node.
    few = labels if len(labels) <= _MAX_GIVEN_LABELS else {}
    fit = {key: value for key, value in few.items() if _is_label(key, value)}
    kept = dict(sorted(fit.items())[:_MAX_LABELS])
    if len(kept) < len(labels):
        log.warning("labels ignored device=%s given=%d kept=%d", device, len(labels), len(kept))
    return kept


def _is_label(key: str, value: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if slash and (not is_name(prefix) or _is_reserved(prefix)):
        return False
    return _LABEL_PART.fullmatch(name) is not None and (not value or _LABEL_PART.fullmatch(value) is not None)


def _is_reserved(prefix: str) -> bool:
    # What Kubernetes and its controllers act upon is not for a device to say, as it is not for a kubelet.
    # Ours carry what the grid has decided about a device: its class, its price, whose it is.
    domain = ".".join(prefix.split(".")[-2:])
    return domain in ("kubernetes.io", "k8s.io", "pocketgrid.dev") and prefix != "topology.kubernetes.io"


def _within(value: float, lowest: float, highest: float) -> float | None:
    return value if math.isfinite(value) and lowest <= value <= highest else None


def _kind(text: str) -> DeviceKind:
    try:
        return DeviceKind(text)
    except ValueError:
        # A kind this version does not know is treated as the least of them.
        return DeviceKind.PHONE


def _network(text: str) -> Network:
    try:
        return Network(text)
    except ValueError:
        return Network.UNKNOWN
