"""The real agent against the real gateway: what both sides promise each other, also when one of them is killed."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pyarrow.dataset as ds
import pytest
from onnx import TensorProto, helper, numpy_helper

from hack import joining
from pocketgrid.gateway import server
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.view import Presence
from pocketgrid.settings import GatewaySettings
from pocketgrid.storage.results import verify
from tests.unit.agent.gateway_peer import CuttableProxy
from tests.unit.gateway.grid import Device, Grid, a_grid, a_job, check_output, until

pytestmark = pytest.mark.timeout(90)
DEADLINE_S = 45.0


@dataclass
class Agent:
    """A real agent process with a home of its own."""

    home: Path
    name: str
    process: asyncio.subprocess.Process | None = None

    async def start(self, grid: Grid, address: str = "") -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        await joining.enrol(grid.gateway_folder, self.home / "state", self.name, grid.gateway.address)
        arguments = [
            "--gateway", address or grid.gateway.address,
            "--name", self.name,
            "--state-dir", str(self.home / "state"),
            "--cache-dir", str(self.home / "cache"),
            "--threads", "1",
            "--log-level", "debug",
        ]  # fmt: skip
        with (self.home / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pocketgrid_agent", *arguments,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "error"},
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    def said(self) -> str:
        return (self.home / "log").read_text()


@asynccontextmanager
async def agents(folder: Path, *names: str) -> AsyncIterator[list[Agent]]:
    made = [Agent(folder / name, name) for name in names]
    try:
        yield made
    finally:
        for agent in made:
            if agent.process is not None:
                await agent.kill()


def slow_job(folder: Path, items: int, per_shard: int, name: str = "slow", loops: int = 16):
    """A job of which an agent computes some 20 shards a second: long enough to be interrupted."""
    width = 512
    weight = np.eye(width, dtype=np.float32)
    names = ["x", *(f"h{n}" for n in range(loops)), "d", "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names[: loops + 1])]
    nodes += [helper.make_node("Mul", [names[loops], "two"], ["d"]), helper.make_node("Add", ["d", "one"], ["y"])]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", width]) for n in ("x", "y")]
    constants = {"w": weight, "two": np.float32(2), "one": np.float32(1)}
    weights = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "slow", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / f"model-{width}.onnx")
    return a_job(folder, items=items, per_shard=per_shard, name=name, width=width), width


def done(grid: Grid, spec) -> int:
    view = grid.engine.job_view(spec.uid)
    return view.shards_done if view is not None else 0


async def test_a_job_runs_from_manifest_to_output(tmp_path) -> None:
    spec = a_job(tmp_path, items=3000, per_shard=50)
    async with a_grid(tmp_path, silence_seconds=8.0) as grid, agents(tmp_path, "one") as (one,):
        grid.engine.submit(spec)
        await one.start(grid)
        await grid.finished(spec)
        one.signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            assert await one.process.wait() == 0
    check_output(spec, 3000)
    assert "WARNING" not in one.said()


async def test_a_killed_agent_redoes_nothing_it_had_finished(tmp_path) -> None:
    spec, width = slow_job(tmp_path, items=3000, per_shard=25)
    async with a_grid(tmp_path, silence_seconds=8.0) as grid, agents(tmp_path, "one") as (one,):
        grid.engine.submit(spec)
        await one.start(grid)
        await until(lambda: done(grid, spec) >= 5, "some shards are done", DEADLINE_S)
        # Results are lost with the link as well: those the journal has must come back from there.
        await one.kill()
        before = done(grid, spec)
        assert before < 120, "the job was over before the agent was killed; make it longer"
        await one.start(grid)
        await until(lambda: grid.engine.device_views()[DeviceName("one")].presence is Presence.CONNECTED, "back")
        await grid.finished(spec)
    check_output(spec, 3000, width)
    ends = one.said().count("event Finished(")
    # Of what it computed just before it died, no more than one group may not have reached the journal.
    assert 120 <= ends <= 120 + 8


async def test_a_stopped_agent_loses_its_leases_within_seconds(tmp_path) -> None:
    spec, width = slow_job(tmp_path, items=3000, per_shard=25)
    async with (
        a_grid(tmp_path, silence_seconds=1.5, heartbeat_seconds=0.4) as grid,
        agents(tmp_path, "stopped", "other") as (stopped, other),
    ):
        grid.engine.submit(spec)
        await stopped.start(grid)
        await until(lambda: done(grid, spec) >= 2, "it works", DEADLINE_S)
        stopped.signal(signal.SIGSTOP)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await until(
            lambda: grid.engine.device_views()[DeviceName("stopped")].presence is Presence.LOST, "it is given up"
        )
        assert loop.time() - begun < 1.5 + 0.4 + 0.2 + 1.5
        assert grid.engine.device_views()[DeviceName("stopped")].leased_shards == 0
        await other.start(grid)
        await until(lambda: grid.engine.device_views().get(DeviceName("other")), "the other is here", DEADLINE_S)
        stopped.signal(signal.SIGCONT)
        await until(
            lambda: grid.engine.device_views()[DeviceName("stopped")].presence is Presence.CONNECTED, "it is back"
        )
        await grid.finished(spec)
    check_output(spec, 3000, width)


async def test_both_ends_find_a_half_open_link_within_ten_seconds(tmp_path) -> None:
    settings = GatewaySettings()
    async with (
        a_grid(
            tmp_path, silence_seconds=settings.silence_seconds, heartbeat_seconds=settings.heartbeat_seconds
        ) as grid,
        CuttableProxy(grid.gateway.port).serving() as proxy,
        agents(tmp_path, "one") as (one,),
    ):
        await one.start(grid, f"127.0.0.1:{proxy.port}")
        await until(lambda: grid.gateway.sessions == 1, "attached", DEADLINE_S)
        await until(lambda: "attached gateway" in one.said(), "welcomed")
        proxy.silent = True
        await until(lambda: grid.gateway.sessions == 0 and "detached cause" in one.said(), "both have noticed", 10.0)


async def test_pings_find_a_half_open_link_that_nobody_listens_to(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(server, "KEEPALIVE_TIME_MS", 500)
    monkeypatch.setattr(server, "PING_TIMEOUT_MS", 1000)
    async with (
        a_grid(tmp_path, silence_seconds=600.0, heartbeat_seconds=2.0) as grid,
        CuttableProxy(grid.gateway.port).serving() as proxy,
        Device(grid, address=f"127.0.0.1:{proxy.port}") as device,
    ):
        await device.attach()
        proxy.silent = True
        await until(lambda: grid.gateway.sessions == 0, "the gateway has noticed", 5.0)


async def test_results_outlive_the_operator(tmp_path) -> None:
    spec, _ = slow_job(tmp_path, items=3000, per_shard=25)
    identity_from = tmp_path / "grid"
    operator = Path(__file__).parent / "operator_process.py"
    port = await _free_port()

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, str(operator), str(identity_from), str(port), spec.model.uri, spec.model.sha256,
            spec.input.uri, spec.output.uri,
            stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONWARNINGS": "error"},
        )  # fmt: skip

    async def reaches(process: asyncio.subprocess.Process, wanted: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while int(line := (await process.stdout.readline()).strip() or b"-1") < wanted:
                assert line != b"-1", "the operator ended"

    first = await start()
    async with agents(tmp_path, "one") as (one,):
        try:
            await reaches(first, 0)
            arguments = [
                "--gateway", f"127.0.0.1:{port}", "--name", "one", "--threads", "1",
                "--state-dir", str(tmp_path / "one/state"), "--cache-dir", str(tmp_path / "one/cache"),
                "--log-level", "debug",
            ]  # fmt: skip
            one.home.mkdir()
            await joining.enrol(identity_from / "gateway", one.home / "state", "one", f"127.0.0.1:{port}")
            with (one.home / "log").open("ab") as log:
                one.process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "pocketgrid_agent", *arguments, stdout=log, stderr=subprocess.STDOUT
                )
            await reaches(first, 5)
            first.kill()
            await first.wait()
            # While nobody listens the agent goes on with what it was leased.
            begun = one.said().count("event Finished(")
            await until(lambda: one.said().count("event Finished(") > begun, "it works while detached", DEADLINE_S)
            second = await start()
            try:
                await reaches(second, 120)
            finally:
                if second.returncode is None:
                    second.kill()
                await second.wait()
        finally:
            if first.returncode is None:
                first.kill()
                await first.wait()
    assert verify(spec.output.uri) == []
    table = ds.dataset(spec.output.uri.removeprefix("file://"), format="parquet").to_table()
    assert table["row"].to_pylist() == list(range(3000))
    # A lease that was on its way when the operator died may be given again, so a few more than 120, never many.
    assert 120 <= one.said().count("event Finished(") <= 120 + 10


async def _free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port
