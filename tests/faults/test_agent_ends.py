"""An agent that is sent away for good in the middle of its work puts everything down in good order."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.agent import onnx_models
from tests.unit.agent.gateway_peer import AgentProcess, GatewayPeer, make_certificates
from tests.unit.agent.test_agent_process import attached, dense_shard, lease, ready, results


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
        print(made.text())


async def test_a_device_replaced_at_work_ends_without_a_stumble(
    peer: GatewayPeer, agent: AgentProcess, tmp_path: Path
) -> None:
    """Another process of the same name has attached: the slots go on computing for a moment nobody waits for."""
    peer.settle = False
    await agent.start()
    stream = await attached(peer)
    await ready(stream, peer, onnx_models.grinder(loops=40))
    await lease(stream, *(dense_shard(shard, items=400, width=256) for shard in range(40)))
    await results(stream, 3)
    await stream.send(refusal=pb.Refusal(reason="Replaced", message="the device attached again", retry=False))
    assert await agent.ended() == 3
    assert "Traceback" not in agent.text()
    assert "ERROR" not in agent.text()
    with sqlite3.connect(tmp_path / "home/.local/state/pocketgrid-agent/journal.sqlite3") as journal:
        (kept,) = journal.execute("SELECT count(*) FROM results").fetchone()
    journal.close()
    assert 3 <= kept < 40, "what was finished is kept, and the rest was not computed for nobody"
