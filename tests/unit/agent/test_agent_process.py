"""Real agents, as processes, against a real gRPC server: the link, the journal and the ends of a life."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.agent import onnx_models
from tests.unit.agent.gateway_peer import (
    AgentProcess,
    Certificates,
    CuttableProxy,
    GatewayPeer,
    Stream,
    array,
    make_certificates,
    tensor,
    until,
)


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return make_certificates()


@pytest.fixture
async def peer(certificates: Certificates) -> AsyncIterator[GatewayPeer]:
    async with GatewayPeer(certificates).serving() as serving:
        yield serving


@pytest.fixture
async def agent(peer: GatewayPeer, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    made = AgentProcess(peer, tmp_path / "home")
    try:
        yield made
    finally:
        await made.kill()
        print(made.text())


async def attached(peer: GatewayPeer, count: int = 1) -> Stream:
    await until(lambda: len(peer.streams) >= count, f"{count} streams")
    return peer.streams[count - 1]


async def ready(
    stream: Stream, peer: GatewayPeer, model: bytes, *, job: str = "job", **order: object
) -> pb.ModelReport:
    """Order a job on `model` and wait for the report; by default the model is one of x -> y."""
    digest = peer.add_model(model)
    order.setdefault("bindings", [pb.TensorBinding(input="x", source=0, dtype="float32")])
    order.setdefault("outputs", [pb.OutputPlan(output="y")])
    await stream.send(
        work_order=pb.WorkOrder(job=job, model_sha256=digest, model_bytes=len(model), **order)  # type: ignore[arg-type]
    )
    return await report(stream, job)


async def report(stream: Stream, job: str = "job") -> pb.ModelReport:
    await until(lambda: any(r.job == job for r in stream.of("model_report")), f"report on {job}")
    return next(r for r in stream.of("model_report") if r.job == job)


def token(shard: int, attempt: int = 0) -> bytes:
    return b"%12d%12d" % (attempt, shard)


def shard_of(shard: int, *inputs: pb.Tensor, items: int, attempt: int = 0) -> pb.Shard:
    return pb.Shard(index=shard, token=token(shard, attempt), items=items, inputs=inputs)


def dense_shard(shard: int, items: int = 8, width: int = 64, attempt: int = 0) -> pb.Shard:
    values = np.random.default_rng(shard).standard_normal((items, width)).astype(np.float32)
    return shard_of(shard, tensor(values), items=items, attempt=attempt)


async def lease(stream: Stream, *shards: pb.Shard, job: str = "job", number: int = 1) -> None:
    await stream.send(lease=pb.Lease(lease_id=number, job=job, ttl_ms=60_000, shards=shards))


async def results(stream: Stream, count: int) -> dict[int, pb.ShardResult]:
    await until(lambda: len(stream.results()) >= count, f"{count} results")
    return {result.shard: result for result in stream.results()}


async def settled(stream: Stream) -> None:
    """Wait until the agent says that nothing is unsettled."""
    seen = len(stream.of("heartbeat"))
    await until(
        lambda: any(h.unacknowledged_results == 0 for h in stream.of("heartbeat")[seen + 1 :]), "settled results"
    )


SLOW = onnx_models.grinder(loops=600)


def slow_shard(shard: int, items: int = 3000) -> pb.Shard:
    """About a second or two of work; its input and its result are larger than a message may be."""
    return dense_shard(shard, items, width=256)


async def test_the_whole_way_of_a_shard(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    stream = await attached(peer)
    hello = stream.hello
    assert hello.protocol_version == 1
    assert hello.device_name == "test-device"
    assert len(hello.boot_id) == 16
    assert hello.slots == 1
    assert hello.credits.shards >= 64
    assert hello.facts.engine.startswith("onnxruntime ")
    assert "CPUExecutionProvider" in hello.facts.providers
    assert hello.facts.opset >= 17
    assert hello.facts.agent_version
    assert not hello.held

    model = onnx_models.mlp()
    ready_report = await ready(stream, peer, model)
    assert ready_report.state == pb.ModelReport.STATE_READY
    assert ready_report.items_per_second > 1000
    assert ready_report.micro_batch >= 1
    assert ready_report.fetch_ms >= 1

    await lease(stream, *(dense_shard(n) for n in range(20)))
    found = await results(stream, 20)
    assert sorted(found) == list(range(20))
    weights = onnx_models.mlp()  # the same seed: the same weights
    assert weights == model
    for number, result in found.items():
        assert result.token == token(number)
        assert result.compute_us > 0
        (output,) = result.outputs
        assert (output.dtype, list(output.shape)) == ("float32", [8, 10])
        assert np.isfinite(array(output)).all()
    await settled(stream)


async def test_token_rows_are_pooled_and_bad_items_fail_alone(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    stream = await attached(peer)
    await ready(
        stream,
        peer,
        onnx_models.tokens(),
        bindings=[
            pb.TensorBinding(input="ids", source=0, dtype="int64"),
            pb.TensorBinding(input="mask", source=-1, dtype="int64"),
            pb.TensorBinding(input="types", source=-2, dtype="int64"),
        ],
        outputs=[
            pb.OutputPlan(output="hidden", operations=[pb.OPERATION_MEAN_POOL]),
            pb.OutputPlan(output="hidden", ragged=True),
        ],
    )
    rows = [[1, 2, 3], [onnx_models.VOCABULARY + 1], [4], [5, 6]]
    ids = np.array([i for row in rows for i in row], np.int32)
    await lease(stream, shard_of(0, tensor(ids, [len(row) for row in rows]), items=4))
    result = (await results(stream, 1))[0]
    assert [(f.row, f.reason) for f in result.failures] == [(1, "EngineRefusedItem")]
    pooled, hidden = result.outputs
    assert list(hidden.row_lengths) == [3, 0, 1, 2]
    table = onnx_models.embedding_table()
    for number, row in enumerate(rows):
        expected = 2 * table[row].mean(0) if number != 1 else np.zeros(onnx_models.WIDTH)
        np.testing.assert_allclose(array(pooled)[number], expected, rtol=1e-5)


async def test_a_shard_of_nothing_but_bad_items_fails_for_its_items(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, onnx_models.mlp())
    await lease(stream, dense_shard(0, items=2, width=65))
    result = (await results(stream, 1))[0]
    assert result.failure.cause == pb.ShardFailure.CAUSE_ITEMS
    assert not result.outputs


async def test_a_shard_that_contradicts_itself_fails_for_the_node(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, onnx_models.mlp())
    await lease(stream, shard_of(0, pb.Tensor(dtype="float32", shape=[8, 64], data=b"short"), items=8))
    result = (await results(stream, 1))[0]
    assert (result.failure.cause, result.failure.reason) == (pb.ShardFailure.CAUSE_NODE, "MalformedShard")


async def test_fetching_goes_on_after_a_cut(peer: GatewayPeer, agent: AgentProcess) -> None:
    model = onnx_models.mlp(hidden=4096)  # 1.2 MB, five chunks
    peer.cut_fetch_after = 2
    await agent.start()
    stream = await attached(peer)
    assert (await ready(stream, peer, model)).state == pb.ModelReport.STATE_READY
    assert [offset for _, offset in peer.fetches] == [0, 2 * (256 << 10)]


async def test_two_jobs_of_one_model_fetch_it_once_and_a_restart_not_at_all(
    peer: GatewayPeer, agent: AgentProcess
) -> None:
    await agent.start()
    stream = await attached(peer)
    model = onnx_models.mlp()
    await asyncio.gather(ready(stream, peer, model, job="a"), ready(stream, peer, model, job="b"))
    assert len(peer.fetches) == 1
    await agent.kill()
    await agent.start()
    again = await attached(peer, 2)
    assert list(again.hello.cached_models) == [peer.add_model(model)]
    assert (await ready(again, peer, model)).fetch_ms == 0
    assert len(peer.fetches) == 1


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("absent", "ModelNotFound"),
        ("wrong bytes", "DigestMismatch"),
        ("no model", "LoadFailed"),
        ("unknown output", "UnknownOutput"),
        ("unknown input", "UnknownInput"),
        ("unknown operation", "UnsupportedWorkOrder"),
    ],
)
async def test_what_cannot_be_made_ready_is_reported_with_its_reason(
    peer: GatewayPeer, agent: AgentProcess, what: str, reason: str
) -> None:
    await agent.start()
    stream = await attached(peer)
    good = onnx_models.mlp()
    digest = peer.add_model(b"not a model" * 100 if what == "no model" else good)
    size = len(peer.models[digest])
    if what == "absent":
        del peer.models[digest]
    if what == "wrong bytes":
        peer.models[digest] = good[:-1] + b"!"
    await stream.send(
        work_order=pb.WorkOrder(
            job="job",
            model_sha256=digest,
            model_bytes=size,
            bindings=[pb.TensorBinding(input="z" if what == "unknown input" else "x", source=0, dtype="float32")],
            outputs=[
                pb.OutputPlan(
                    output="z" if what == "unknown output" else "y",
                    operations=[99] if what == "unknown operation" else [],
                )
            ],
        )
    )
    failed = await report(stream)
    assert (failed.state, failed.reason) == (pb.ModelReport.STATE_FAILED, reason)
    assert failed.message
    # The agent lives on and serves other jobs.
    other = await ready(stream, peer, onnx_models.mlp(hidden=32), job="other")
    assert other.state == pb.ModelReport.STATE_READY


async def test_a_finished_result_survives_sigkill_and_is_not_computed_again(
    peer: GatewayPeer, agent: AgentProcess
) -> None:
    peer.settle = False
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, SLOW)
    await lease(stream, slow_shard(3))
    before = (await results(stream, 1))[3]
    await agent.kill()

    await agent.start()
    again = await attached(peer, 2)
    assert [(h.job, h.shard, h.token, h.finished) for h in again.hello.held] == [("job", 3, token(3), True)]
    assert again.hello.boot_id != stream.hello.boot_id
    assert (await results(again, 1))[3] == before, "delivered as it was"

    await ready(again, peer, SLOW)
    await lease(again, pb.Shard(index=3, token=token(3, attempt=1), items=3000))
    await until(lambda: token(3, 1) in {r.token for r in again.results()}, "a result for the new token")
    reissued = next(r for r in again.results() if r.token == token(3, 1))
    assert (reissued.compute_us, reissued.outputs) == (before.compute_us, before.outputs)

    await again.send(settled=pb.Settled(job="job", committed=[token(3), token(3, 1)]))
    await settled(again)
    await agent.kill()
    await agent.start()
    assert not (await attached(peer, 3)).hello.held


async def test_a_shard_that_was_being_computed_when_killed_is_not_claimed(
    peer: GatewayPeer, agent: AgentProcess
) -> None:
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, SLOW)
    await lease(stream, slow_shard(0), slow_shard(1))
    await until(lambda: any(h.running_shards for h in stream.of("heartbeat")), "a running shard")
    await agent.kill()
    await agent.start()
    assert not (await attached(peer, 2)).hello.held


@contextlib.asynccontextmanager
async def behind_proxy(peer: GatewayPeer, agent: AgentProcess) -> AsyncIterator[CuttableProxy]:
    async with CuttableProxy(peer.port).serving() as proxy:
        agent.port = proxy.port
        await agent.start()
        try:
            yield proxy
        finally:
            await agent.kill()


async def test_a_half_open_link_is_noticed_within_ten_seconds(peer: GatewayPeer, agent: AgentProcess) -> None:
    peer.silence_ms = 60_000  # a gateway that does not care
    async with behind_proxy(peer, agent) as proxy:
        await attached(peer)
        proxy.silent = True
        await until(lambda: "detached cause=" in agent.text(), "the agent to notice", deadline_s=10)
        proxy.silent = False
        await attached(peer, 2)


async def test_work_goes_on_while_the_link_is_silent_and_is_delivered_afterwards(
    peer: GatewayPeer, agent: AgentProcess
) -> None:
    peer.silence_ms = 1_000
    async with behind_proxy(peer, agent) as proxy:
        stream = await attached(peer)
        await ready(stream, peer, SLOW)
        await lease(stream, slow_shard(0), slow_shard(1, items=10))
        await until(lambda: any(h.running_shards for h in stream.of("heartbeat")), "a running shard")
        proxy.silent = True
        await until(lambda: "detached cause=nothing heard" in agent.text(), "the agent to notice", deadline_s=5)
        proxy.silent = False
        again = await attached(peer, 2)
        assert again.hello.boot_id == stream.hello.boot_id
        assert {h.shard for h in again.hello.held} == {0, 1}
        # Ordered again, it answers at once, for the model is loaded.
        assert (await ready(again, peer, SLOW)).load_ms == 0
        assert sorted(await results(again, 2)) == [0, 1]


async def test_sigterm_drains(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, SLOW)
    await lease(stream, slow_shard(0), slow_shard(1), slow_shard(2))
    await until(lambda: any(h.running_shards == 1 for h in stream.of("heartbeat")), "a running shard")
    agent.terminate()
    assert await agent.ended() == 0
    assert [d.reason for d in stream.of("draining")] == ["Terminated"]
    (returned,) = stream.of("returned")
    assert (returned.reason, sorted(returned.tokens)) == ("Draining", [token(1), token(2)])
    assert [r.shard for r in stream.results()] == [0]
    assert stream.ended
    assert "unforeseen" not in agent.text()


async def test_a_drain_that_takes_too_long_ends_anyway(peer: GatewayPeer, agent: AgentProcess) -> None:
    peer.settle = False
    agent.extra = ("--drain-seconds", "0.5")
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, onnx_models.mlp())
    await lease(stream, dense_shard(0))
    await results(stream, 1)
    agent.terminate(signal.SIGINT)
    assert await agent.ended(5) == 0
    assert "stay in the journal" in agent.text()


async def test_a_second_signal_ends_at_once(peer: GatewayPeer, agent: AgentProcess) -> None:
    peer.settle = False
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, onnx_models.mlp())
    await lease(stream, dense_shard(0))
    await results(stream, 1)
    agent.terminate()
    await until(lambda: bool(stream.of("draining")), "draining")
    agent.terminate()
    assert await agent.ended(2) == 128 + signal.SIGTERM


async def test_sigterm_while_the_gateway_is_away_ends_at_once(certificates: Certificates, agent: AgentProcess) -> None:
    agent.port = 1  # nobody listens there
    await agent.start()
    await until(lambda: "not attached" in agent.text(), "a failed try")
    agent.terminate()
    assert await agent.ended(3) == 0


async def test_a_gateway_that_drains_gets_its_results_and_a_new_stream(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, SLOW)
    # Long enough to be still under way when the drain arrives, on whatever machine.
    await lease(stream, slow_shard(0, items=6000), slow_shard(1))
    await until(lambda: any(h.running_shards == 1 for h in stream.of("heartbeat")), "a running shard")
    await stream.send(drain=pb.Drain(reason="OperatorStopping"))
    again = await attached(peer, 2)
    assert [r.shard for r in stream.results()] == [0]
    assert [list(r.tokens) for r in stream.of("returned")] == [[token(1)]]
    assert not again.hello.held


async def test_revoking_and_cancelling(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, SLOW)
    await lease(stream, slow_shard(0, items=6000), slow_shard(1), slow_shard(2), slow_shard(3, items=10))
    await until(lambda: any(h.running_shards == 1 for h in stream.of("heartbeat")), "a running shard")
    await stream.send(revoke=pb.Revoke(job="job", tokens=[token(0), token(2)]))
    await until(lambda: bool(stream.of("returned")), "an answer to Revoke")
    assert [(list(r.tokens), r.reason) for r in stream.of("returned")] == [([token(2)], "Revoked")]
    await stream.send(cancel=pb.Cancel(job="job", tokens=[token(0), token(1)]))
    assert list(await results(stream, 1)) == [3]


async def test_a_refusal_for_good_ends_with_status_3(peer: GatewayPeer, agent: AgentProcess) -> None:
    peer.refusal = pb.Refusal(reason="Deregistered", message="ask your administrator", retry=False)
    await agent.start()
    assert await agent.ended() == 3
    assert "Deregistered: ask your administrator" in agent.text()


@pytest.mark.parametrize("status", ["Revoked: shut out", "no reason"])
async def test_a_refusal_by_status_ends_with_status_3(peer: GatewayPeer, agent: AgentProcess, status: str) -> None:
    peer.refuse_by_status = status
    await agent.start()
    assert await agent.ended() == 3
    assert {"Revoked: shut out": "agent: Revoked: shut out", "no reason": "Unauthenticated: no reason"}[status] in (
        agent.text()
    )


async def test_a_refusal_for_now_is_tried_again(peer: GatewayPeer, agent: AgentProcess) -> None:
    peer.refusal = pb.Refusal(reason="TooManyDevices", message="later", retry=True, retry_after_ms=50)
    await agent.start()
    await until(lambda: "TooManyDevices" in agent.text(), "a refusal")
    peer.refusal = None
    await attached(peer)


async def test_two_agents_cannot_share_a_state_folder(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    await attached(peer)
    second = AgentProcess(peer, agent.home)
    try:
        await second.start()
        assert await second.ended() == 4
        assert "another agent uses the state folder" in agent.text()
    finally:
        await second.kill()


async def test_policy_keeps_the_device_attached_and_without_work(peer: GatewayPeer, agent: AgentProcess) -> None:
    agent.extra = ("--min-memory", "1000Ti")
    await agent.start()
    stream = await attached(peer)
    await until(lambda: bool(stream.of("restraint")), "restraint")
    restraint = stream.of("restraint")[0]
    assert (restraint.level, restraint.reason) == (pb.Restraint.LEVEL_PAUSED, "MemoryLow")
    assert "MiB available" in restraint.message
    await lease(stream, dense_shard(0))
    await until(lambda: bool(stream.of("returned")), "returned work")
    assert stream.of("returned")[0].reason == "MemoryLow"
    await until(lambda: len(stream.of("heartbeat")) > 3, "heartbeats")


async def test_two_slots_compute_at_the_same_time(peer: GatewayPeer, agent: AgentProcess) -> None:
    agent.extra = ("--slots", "2", "--threads", "2")
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, SLOW)
    await lease(stream, slow_shard(0), slow_shard(1))
    await until(lambda: any(h.running_shards == 2 for h in stream.of("heartbeat")), "two running shards")
    assert sorted(await results(stream, 2)) == [0, 1]


async def test_a_corrupted_journal_is_named_and_does_not_stop_the_agent(peer: GatewayPeer, agent: AgentProcess) -> None:
    state = agent.home / ".local/state/pocketgrid-agent"
    state.mkdir(parents=True)
    (state / "journal.sqlite3").write_bytes(b"rotten" * 1000)
    await agent.start()
    await attached(peer)
    assert "journal.sqlite3.corrupt-1" in agent.text()


async def test_nothing_phones_home_and_nothing_is_left_elsewhere(peer: GatewayPeer, agent: AgentProcess) -> None:
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, onnx_models.mlp())
    await lease(stream, dense_shard(0))
    await results(stream, 1)
    agent.terminate()
    assert await agent.ended() == 0
    home = agent.home
    files = {path.relative_to(home) for path in home.rglob("*") if path.is_file()}
    ours = (Path(".local/state/pocketgrid-agent"), Path(".cache/pocketgrid-agent"))
    strange = {f for f in files if not any(f.is_relative_to(o) for o in ours)} - {Path("ca.pem"), Path("log")}
    assert not strange, "onnxruntime leaves a device id when its telemetry is on"
