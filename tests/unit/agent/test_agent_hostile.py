"""A gateway that is broken, hostile or newer: the agent says why, keeps to its bounds and goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from pocketgrid.errors import ProtocolError
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import codec
from tests.unit.agent import onnx_models
from tests.unit.agent.gateway_peer import (
    AgentProcess,
    GatewayPeer,
    Stream,
    make_certificates,
    until,
)
from tests.unit.agent.test_agent_process import dense_shard, lease, ready, report, results, token

MLP = onnx_models.mlp()
DIGEST = "0" * 64
MOST_GROWTH_BYTES = 160 << 20


@pytest.fixture
async def peer() -> AsyncIterator[GatewayPeer]:
    async with GatewayPeer(make_certificates()).serving() as serving:
        yield serving


@pytest.fixture
async def agent(peer: GatewayPeer, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    made = AgentProcess(peer, tmp_path / "home")
    try:
        yield made
    finally:
        await made.kill()
        print(made.text()[-20_000:])


async def attached(peer: GatewayPeer, count: int = 1) -> Stream:
    await until(lambda: len(peer.streams) >= count, f"{count} streams")
    return peer.streams[count - 1]


def resident(agent: AgentProcess) -> int:
    pages = (Path("/proc") / str(agent.pid) / "statm").read_text().split()[1]
    return int(pages) * 4096


def an_order(**changes: Any) -> pb.WorkOrder:
    fields: dict[str, Any] = {
        "job": "odd",
        "model_sha256": DIGEST,
        "model_bytes": 10,
        "bindings": [pb.TensorBinding(input="x", source=0, dtype="float32")],
        "outputs": [pb.OutputPlan(output="y")],
    }
    return pb.WorkOrder(**{**fields, **changes})


ORDERS = {
    "no digest": an_order(model_sha256="../../etc/passwd"),
    "a digest in upper case": an_order(model_sha256="A" * 64),
    "an unknown operation": an_order(outputs=[pb.OutputPlan(output="y", operations=[99])]),  # type: ignore[list-item]
    "an unknown dtype": an_order(bindings=[pb.TensorBinding(input="x", dtype="complex1024")]),
    "a source before the first": an_order(bindings=[pb.TensorBinding(input="x", source=-9, dtype="int64")]),
    "a feature of the future": an_order(requires=[99]),  # type: ignore[list-item]
    "batches of four billion": an_order(fixed_batch=2**32 - 1),
    "padding that does not fit": an_order(
        pad_token_id=2**32 - 1, bindings=[pb.TensorBinding(input="x", source=0, dtype="int8")]
    ),
    "items of an exabyte": an_order(
        bindings=[pb.TensorBinding(input="x", source=0, dtype="int8", item_shape=[2**30, 2**30])]
    ),
    "items of a thousand axes": an_order(
        bindings=[pb.TensorBinding(input="x", source=0, dtype="int8", item_shape=[1] * 1000)]
    ),
    "half a megabyte of names": an_order(outputs=[pb.OutputPlan(output="y" * 1000)] * 500),
    "a job's name of a kilobyte": an_order(job="j" * 1000),
}


@pytest.mark.parametrize("case", ORDERS, ids=lambda name: name.replace(" ", "-"))
def test_orders_no_agent_can_follow_are_refused(case: str) -> None:
    with pytest.raises(ProtocolError):
        codec.order_of(ORDERS[case])


def test_leases_no_agent_can_hold_are_refused_without_being_looked_at_for_long() -> None:
    shape = [2**64 - 1] * 200_000
    for shard in (
        pb.Shard(token=b"t" * 1000),
        pb.Shard(token=b"t", inputs=[pb.Tensor(dtype="int64", shape=shape)]),
    ):
        with pytest.raises(ProtocolError):
            codec.event_of(pb.GatewayMessage(lease=pb.Lease(job="j", shards=[shard])))
    with pytest.raises(ProtocolError):
        codec.event_of(pb.GatewayMessage(lease=pb.Lease(job="j" * 1000)))


def test_a_lease_weighs_what_it_holds_and_not_what_it_says() -> None:
    shard = pb.Shard(token=b"t", inputs=[pb.Tensor(dtype="int8", shape=[1], data=bytes(5000))])
    event = codec.event_of(pb.GatewayMessage(lease=pb.Lease(job="j", shards=[shard])))
    assert event.attempts[0].input_bytes >= 5000  # type: ignore[union-attr]


async def test_an_agent_outlives_all_a_gateway_can_say(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, MLP)
    before = resident(agent)

    # Orders: each is answered, none is followed.
    for number, (name, order) in enumerate(ORDERS.items()):
        odd = pb.WorkOrder()
        odd.CopyFrom(order)
        odd.job = odd.job if len(odd.job) > 253 else f"odd-{number}"
        await stream.send(work_order=odd)
        said = await report(stream, odd.job[:253])
        assert (said.state, said.reason) == (pb.ModelReport.STATE_FAILED, "UnsupportedWorkOrder"), name
        assert len(said.message) <= 1000
    await stream.send(work_order=an_order(job="huge", model_bytes=2**64 - 1))
    assert (await report(stream, "huge")).reason == "DiskFull"
    other, nonsense = b"other bytes", b"these bytes are no model"
    lying = "1" * 64
    peer.models[lying] = other
    await stream.send(work_order=an_order(job="lying", model_sha256=lying, model_bytes=len(other)))
    assert (await report(stream, "lying")).reason == "DigestMismatch"
    digest = peer.add_model(nonsense)
    await stream.send(work_order=an_order(job="nonsense", model_sha256=digest, model_bytes=len(nonsense)))
    assert (await report(stream, "nonsense")).reason == "LoadFailed"

    # Leases: of jobs nobody ordered, malformed ones, more than was agreed to.
    await lease(stream, dense_shard(900), job="unheard-of")
    await until(lambda: any(r.reason == "UnknownJob" for r in stream.of("returned")), "it is given back")
    good = dense_shard(0).inputs[0]
    malformed = [
        pb.Tensor(dtype="no type", shape=[8, 64], data=good.data),
        pb.Tensor(dtype="float32", shape=[8, 65], data=good.data),
        pb.Tensor(dtype="float32", shape=[2**40, 0], data=b""),
        pb.Tensor(dtype="float32", shape=[], data=b"1234"),
        pb.Tensor(dtype="float32", shape=[8, 64], data=good.data, row_lengths=[1, 2]),
        pb.Tensor(dtype="float32", shape=[2**64 - 1, 2**64 - 1], data=b""),
    ]
    shards = [pb.Shard(index=n, token=token(n), items=8, inputs=[t]) for n, t in enumerate(malformed, 100)]
    shards.append(pb.Shard(index=200, token=token(200), items=2**32 - 1, inputs=[good]))
    shards.append(pb.Shard(index=201, token=token(201)))
    await lease(stream, *shards)
    # What says of itself that it is larger than all credit comes back, the others are looked at and failed.
    absurd = shards[5].token
    await until(lambda: any(absurd in r.tokens for r in stream.of("returned")), "the absurd one is given back")
    answers = await results(stream, len(shards) - 1)
    assert {answer.failure.cause for answer in answers.values()} == {pb.ShardFailure.CAUSE_NODE}
    assert {answer.failure.reason for answer in answers.values()} == {"MalformedShard"}
    credit = stream.hello.credits.shards
    await lease(stream, *(dense_shard(n, items=1) for n in range(1000, 1000 + 4 * credit)))
    await until(
        lambda: any(r.reason == "CreditsExceeded" for r in stream.of("returned")), "what is too much comes back"
    )

    # Jobs without end.
    for number in range(600):
        await stream.send(work_order=an_order(job=f"many-{number}", model_bytes=0))
    await until(lambda: any(r.reason == "TooManyJobs" for r in stream.of("model_report")), "it knows enough jobs")

    # What no version knows is ignored; what breaks the protocol ends the stream, and the agent dials again.
    async with stream.lock:
        await stream.context.write(pb.GatewayMessage.FromString(b"\xa2\x06\x03abc"))
    evil = "x\n2026-01-01 ERROR forged\x1b[2J"
    await stream.send(settled=pb.Settled(job=evil, refused=[pb.RefusedResult(token=b"t", reason=evil, message=evil)]))
    breaking = [
        pb.GatewayMessage(fragment=pb.Fragment(index=3, total=9, data=b"x")),
        pb.GatewayMessage(fragment=pb.Fragment(index=0, total=2, data=bytes(framing.FRAGMENT_BYTES))),
        pb.GatewayMessage(lease=pb.Lease(job="job", shards=[pb.Shard(token=bytes(100))])),
        pb.GatewayMessage(revoke=pb.Revoke(tokens=[bytes(3 << 20)])),
    ]
    for number, message in enumerate(breaking, 1):
        stream = peer.streams[-1]
        # An agent that hangs up while it is being written to makes the write fail, which is as good.
        async with stream.lock:
            with contextlib.suppress(grpc.aio.BaseError):
                await stream.context.write(message)
                if message.HasField("fragment") and message.fragment.index == 0:
                    await stream.context.write(pb.GatewayMessage(pulse=pb.Pulse(sequence=1)))
        stream = await attached(peer, number + 1)

    # And it still works.
    await ready(stream, peer, MLP, job="at-last")
    await lease(stream, dense_shard(7), job="at-last")
    await until(lambda: any(r.token == token(7) and r.outputs for r in stream.results()), "an honest result")
    assert resident(agent) - before < MOST_GROWTH_BYTES
    assert not [line for line in agent.text().splitlines() if line.startswith("2026-01-01")]
    assert "\x1b" not in agent.text()
    assert "Traceback" not in agent.text()


async def test_a_gateway_of_another_version_is_named_and_dialled_again_without_haste(
    peer: GatewayPeer, agent: AgentProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "PROTOCOL_VERSION", 7)
    await agent.start()
    await until(lambda: "the gateway speaks version 7, this agent 1 to 1" in agent.text(), "it says so")
    assert "update the older of the two" in agent.text()
    await asyncio.sleep(1.0)
    assert len(peer.streams) < 12, "waits grow"
    assert agent.process is not None
    assert agent.process.returncode is None


async def test_a_gateway_with_absurd_wishes_is_not_dialled_without_end(peer: GatewayPeer, agent: AgentProcess) -> None:
    peer.heartbeat_ms, peer.silence_ms = 2**32 - 1, 1
    await agent.start()
    stream = await attached(peer)
    await until(lambda: stream.of("heartbeat"), "a heartbeat")
    await asyncio.sleep(1.0)
    assert len(peer.streams) < 8
