"""Whatever a gateway sends, in whatever order: the agent's rules hold, and nothing but a refusal comes of nonsense."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.errors import ProtocolError
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import codec, tensors
from pocketgrid_agent import events as ev
from pocketgrid_agent.batching import Array, BatchSize, MalformedShardError, RunError, ShardRunner
from pocketgrid_agent.machine import MOST_JOBS, TOLERANCE, Limits, Machine
from tests.fuzz.profiles import examples
from tests.fuzz.protobufs import damaged, messages

LIMITS = Limits(slots=2, credit_shards=4, credit_bytes=1 << 16, held_bytes=1 << 16)
DIGEST = "ab" * 32
WORDS = st.sampled_from(["job", "other", DIGEST, "float32", "int64", "int8", "x", "y"])
TOKENS = [b"t%d" % n for n in range(12)]


def _lease(shards: Sequence[tuple[int, int]]) -> pb.GatewayMessage:
    def shard(index: int, items: int) -> pb.Shard:
        values = np.zeros((items, 4), np.float32)
        tensor = pb.Tensor(dtype="float32", shape=values.shape, data=values.tobytes())
        return pb.Shard(index=index % 6, token=TOKENS[index], items=items, inputs=[tensor])

    return pb.GatewayMessage(lease=pb.Lease(job="job", shards=[shard(*s) for s in shards]))


def _order(job: str) -> pb.GatewayMessage:
    bindings = [pb.TensorBinding(input="x", source=0, dtype="float32")]
    order = pb.WorkOrder(job=job, model_sha256=DIGEST, bindings=bindings, outputs=[pb.OutputPlan(output="y")])
    return pb.GatewayMessage(work_order=order)


TOKEN_LISTS = st.lists(st.sampled_from(TOKENS), max_size=4)
SENSIBLE = st.one_of(
    st.builds(_order, st.sampled_from(["job", "other", ""])),
    st.builds(_lease, st.lists(st.tuples(st.integers(0, 11), st.integers(1, 3000)), max_size=4)),
    st.builds(lambda t: pb.GatewayMessage(revoke=pb.Revoke(job="job", tokens=t)), TOKEN_LISTS),
    st.builds(lambda t: pb.GatewayMessage(cancel=pb.Cancel(job="job", tokens=t)), TOKEN_LISTS),
    st.builds(lambda t: pb.GatewayMessage(settled=pb.Settled(job="job", committed=t, superseded=t)), TOKEN_LISTS),
    st.just(pb.GatewayMessage(drain=pb.Drain(reason="x"))),
)
ANYTHING = st.one_of(messages(pb.GatewayMessage.DESCRIPTOR, WORDS), SENSIBLE).map(lambda m: m.SerializeToString())
HAPPENINGS = st.one_of(
    ANYTHING,
    ANYTHING,
    damaged(ANYTHING),
    st.sampled_from(["welcomed", "lost", "prepared", "refused", "finished", "journaled"]),
)


@examples(300)
@given(st.lists(HAPPENINGS, max_size=25))
def test_the_rules_hold_whatever_the_gateway_says(happenings: list[bytes | str]) -> None:
    machine = Machine(LIMITS)
    machine.handle(ev.Welcomed())
    stream = framing.Reassembler(pb.GatewayMessage)
    preparing: list[ev.Order] = []
    for happening in happenings:
        event: ev.Event | None = None
        match happening:
            case "welcomed":
                event = ev.Welcomed()
            case "lost":
                event, stream = ev.LinkLost(), framing.Reassembler(pb.GatewayMessage)
            case "prepared" if preparing:
                event = ev.Prepared(preparing.pop(0), ev.Ready(100.0, 8))
            case "refused" if preparing:
                event = ev.Prepared(preparing.pop(0), ev.NotReady("LoadFailed", "no"))
            case "finished" if machine.running:
                token = next(iter(machine.running))
                event = ev.Abandoned(token) if token in machine.abandoned else ev.Finished(token, 100)
            case "journaled":
                event = ev.Journaled(tuple(machine.held))
            case bytes(piece):
                try:
                    message = stream.take(piece)
                    event = codec.event_of(message) if message is not None else None
                except ProtocolError:
                    event, stream = ev.LinkLost(), framing.Reassembler(pb.GatewayMessage)
        if event is not None:
            effects = machine.handle(event)
            preparing += [e.order for e in effects if isinstance(e, ev.Prepare)]
        _check(machine)


def _check(machine: Machine) -> None:
    outstanding = [*machine.queue.values(), *machine.running.values()]
    assert len(outstanding) <= TOLERANCE * LIMITS.credit_shards
    # One attempt alone may be larger than all credit; the others keep to it.
    sizes = sorted(a.input_bytes for a in outstanding)
    assert sum(sizes[:-1]) <= TOLERANCE * LIMITS.credit_bytes
    assert len(machine.jobs) <= MOST_JOBS
    assert all(len(token) <= codec.LONGEST_TOKEN for token in (*machine.queue, *machine.running, *machine.held))
    assert all(len(job) <= codec.LONGEST_JOB for job in machine.jobs)


def _run(names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
    some = next(iter(feeds.values()), np.zeros((0, 1)))
    return [some for _ in names]


@st.composite
def shards(draw: st.DrawFn) -> pb.Shard:
    shard: Any = draw(messages(pb.Shard.DESCRIPTOR, WORDS))
    shard.items = draw(st.sampled_from([0, 1, 2, 3, 8, 2**32 - 1]))
    for _ in range(draw(st.integers(0, 2))):
        dtype = draw(st.sampled_from([*codec.ITEM_BYTES, "nothing"]))
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 8, 2**31, 2**63, 2**64 - 1]), max_size=4))
        size = draw(st.sampled_from([0, 1, 4, 8, 24, 64, 96]))
        lengths = draw(st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1]), max_size=8))
        shard.inputs.append(pb.Tensor(dtype=dtype, shape=shape, data=bytes(size), row_lengths=lengths))
    return shard


@examples(400)
@given(messages(pb.WorkOrder.DESCRIPTOR, WORDS), shards(), st.integers(0, 3))
def test_any_shard_is_computed_or_refused(told: Any, shard: pb.Shard, source: int) -> None:
    told.model_sha256 = DIGEST
    del told.requires[:]
    try:
        order = codec.order_of(told)
    except ProtocolError:
        binding = ev.Binding("x", source - 2, "int64")
        order = ev.Order("job", DIGEST, 1, (binding,), (ev.Output("y", (), source == 3),), source, 2)
    try:
        codec.event_of(pb.GatewayMessage(lease=pb.Lease(job="job", shards=[shard])))
        output = ShardRunner(order, _run).compute(tensors.columns_of(shard), shard.items, BatchSize(4))
    except (ProtocolError, MalformedShardError, RunError, MemoryError):
        return
    assert output is not None
    attempt = ev.Attempt("job", 1, b"t", shard.items, 1, shard)
    body = tensors.result_of(attempt, output, 5).SerializeToString()
    assert len(body) < framing.MESSAGE_BYTES
