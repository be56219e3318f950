"""The agent on what a phone has: few packages, protobuf in pure Python, and an Android that kills."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.agent import onnx_models
from tests.unit.agent.bare_phone import Gatekeeper
from tests.unit.agent.gateway_peer import (
    AgentProcess,
    GatewayPeer,
    Stream,
    array,
    join_by_hand,
    make_certificates,
    tensor,
    until,
)


@pytest.fixture
async def peer() -> AsyncIterator[GatewayPeer]:
    async with GatewayPeer(make_certificates()).serving() as serving:
        yield serving


@pytest.fixture
async def agent(peer: GatewayPeer, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    process = AgentProcess(peer, tmp_path / "home")
    yield process
    if process.process is not None:
        await process.kill()


async def order(stream: Stream, peer: GatewayPeer, model: bytes, job: str = "job") -> str:
    digest = peer.add_model(model)
    binding = pb.TensorBinding(input="x", source=0, dtype="float32")
    output = pb.OutputPlan(output="y", operations=[pb.OPERATION_ARGMAX])
    await stream.send(
        work_order=pb.WorkOrder(
            job=job, model_sha256=digest, model_bytes=len(model), bindings=[binding], outputs=[output]
        )
    )
    return digest


def expected(model_weights: int, x: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((64, model_weights), np.float32), rng.standard_normal((model_weights, 10), np.float32)
    return np.argmax(np.maximum(x @ w1, 0) @ w2, axis=-1)


class BarePhone(AgentProcess):
    """The same agent behind a gatekeeper of imports."""

    protobuf = ""

    async def start(self) -> AgentProcess:
        self.home.mkdir(parents=True, exist_ok=True)
        join_by_hand(self.peer.certificates, self.home, "phone", self.peer.port)
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        if self.protobuf:
            environment["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = self.protobuf
        self.log = (self.home / "log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("bare_phone.py")),
            *("--name", "phone", "--threads", "1"),
            env=environment,
            stdout=self.log,
            stderr=asyncio.subprocess.STDOUT,
        )
        return self


@pytest.mark.parametrize("protobuf", ["", "python"], ids=["compiled protobuf", "pure-Python protobuf"])
async def test_what_termux_packages_is_all_it_takes(peer: GatewayPeer, tmp_path: Path, protobuf: str) -> None:
    phone = BarePhone(peer, tmp_path / "home")
    phone.protobuf = protobuf
    try:
        await phone.start()
        await until(lambda: bool(peer.streams), "attached")
        stream = peer.streams[-1]
        assert stream.hello.facts.engine.startswith("onnxruntime ")
        assert stream.hello.facts.opset > 0
        await order(stream, peer, onnx_models.mlp())
        x = np.random.default_rng(5).standard_normal((12, 64), np.float32)
        shard = pb.Shard(index=3, token=b"t", items=12, inputs=[tensor(x)])
        await until(lambda: bool(stream.of("model_report")), "model report")
        assert stream.of("model_report")[0].state == pb.ModelReport.STATE_READY
        await stream.send(lease=pb.Lease(lease_id=1, job="job", ttl_ms=60_000, shards=[shard]))
        await until(lambda: bool(stream.results()), "a result")
        (result,) = stream.results()
        assert array(result.outputs[0]).tolist() == expected(64, x).tolist()
        phone.terminate()
        assert await phone.ended() == 0
        assert f"protobuf={protobuf or 'upb'}" in phone.text()
    finally:
        if phone.process is not None:
            await phone.kill()


def test_the_gatekeeper_keeps_out_what_a_phone_does_not_have() -> None:
    for absent in ("psutil", "pydantic.fields", "yaml", "onnx"):
        with pytest.raises(ModuleNotFoundError, match="a phone has no module"):
            Gatekeeper().find_spec(absent, None)
    assert Gatekeeper().find_spec("numpy", None) is None


async def test_a_killed_agent_goes_on_fetching_where_it_stopped(peer: GatewayPeer, agent: AgentProcess) -> None:
    model = onnx_models.mlp(hidden=20_000)  # 6 MB: two dozen chunks
    peer.pause_fetch_after = 8
    await agent.start()
    await until(lambda: bool(peer.streams), "attached")
    digest = await order(peer.streams[-1], peer, model)
    cache = agent.home / ".cache/pocketgrid-agent"
    part = cache / f"{digest}.{len(model)}.part"
    await until(lambda: part.exists() and part.stat().st_size >= 1 << 20, "a part of the model on disk")
    await agent.kill()
    there = part.stat().st_size
    assert 0 < there < len(model)
    peer.pause_fetch_after = 0
    await agent.start()
    await until(lambda: len(peer.streams) == 2, "attached again")
    await order(peer.streams[-1], peer, model)
    await until(lambda: bool(peer.streams[-1].of("model_report")), "model report")
    assert peer.streams[-1].of("model_report")[0].state == pb.ModelReport.STATE_READY
    assert peer.fetches == [(digest, 0), (digest, there)]
    assert hashlib.sha256((cache / f"{digest}.onnx").read_bytes()).hexdigest() == digest


async def test_a_part_that_rotted_is_thrown_away(peer: GatewayPeer, agent: AgentProcess) -> None:
    model = onnx_models.mlp(hidden=4_000)
    digest = hashlib.sha256(model).hexdigest()
    cache = agent.home / ".cache/pocketgrid-agent"
    cache.mkdir(parents=True)
    (cache / f"{digest}.{len(model)}.part").write_bytes(b"\xff" + model[1 : 1 << 19])
    await agent.start()
    await until(lambda: bool(peer.streams), "attached")
    await order(peer.streams[-1], peer, model)
    await until(lambda: bool(peer.streams[-1].of("model_report")), "model report")
    assert peer.streams[-1].of("model_report")[0].state == pb.ModelReport.STATE_READY
    assert peer.fetches == [(digest, 1 << 19), (digest, 0)]


async def test_a_model_that_does_not_fit_is_reported_and_other_jobs_go_on(
    peer: GatewayPeer, agent: AgentProcess
) -> None:
    large, small = onnx_models.mlp(hidden=4_000), onnx_models.mlp()
    agent.extra = ("--cache-budget", str(len(large) // 2))
    await agent.start()
    await until(lambda: bool(peer.streams), "attached")
    stream = peer.streams[-1]
    await order(stream, peer, large, job="large")
    await order(stream, peer, small, job="small")
    await until(lambda: len(stream.of("model_report")) == 2, "two reports")
    reports = {r.job: r for r in stream.of("model_report")}
    assert (reports["large"].state, reports["large"].reason) == (pb.ModelReport.STATE_FAILED, "DiskFull")
    assert "--cache-budget" in reports["large"].message
    assert reports["small"].state == pb.ModelReport.STATE_READY
    x = np.ones((4, 64), np.float32)
    shard = pb.Shard(index=0, token=b"t", items=4, inputs=[tensor(x)])
    await stream.send(lease=pb.Lease(lease_id=1, job="small", ttl_ms=60_000, shards=[shard]))
    await until(lambda: bool(stream.results()), "a result")
    assert array(stream.results()[0].outputs[0]).tolist() == expected(64, x).tolist()


async def test_a_disk_that_gets_full_during_a_download_is_reported_and_other_jobs_go_on(
    peer: GatewayPeer, agent: AgentProcess
) -> None:
    large, small = onnx_models.mlp(hidden=20_000), onnx_models.mlp()
    # No file may grow beyond 1 MiB, which takes the agent by surprise as a disk does that others fill.
    agent.wrapper = ("sh", "-c", 'ulimit -f 2048; exec "$@"', "sh")
    await agent.start()
    await until(lambda: bool(peer.streams), "attached")
    stream = peer.streams[-1]
    await order(stream, peer, large, job="large")
    await until(lambda: len(stream.of("model_report")) == 1, "a report")
    report = stream.of("model_report")[0]
    assert (report.state, report.reason) == (pb.ModelReport.STATE_FAILED, "DiskFull")
    assert "cannot store model" in report.message
    await order(stream, peer, small, job="small")
    await until(lambda: len(stream.of("model_report")) == 2, "another report")
    assert stream.of("model_report")[1].state == pb.ModelReport.STATE_READY
