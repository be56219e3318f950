"""Clocks that jump, on either side: what time it is decides nothing that durations can decide."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from hack import joining
from hack.controlplane import ControlPlane
from pocketgrid.clock import SystemClock
from pocketgrid.controller import nodes
from pocketgrid.controller.client import JOBS, LEASES, NODES
from pocketgrid.controller.leader import LEASE_NAME, Election, LeaseTiming
from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.server import Gateway
from pocketgrid.settings import EngineSettings, GatewaySettings
from pocketgrid.storage.results import verify
from tests.integration.controller_world import World, a_world, eventually, ready_condition

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass
class JumpingClock(SystemClock):
    """The wall clock as an administrator, or a time service, sets it; the monotonic one as it is."""

    offset: float = 0.0

    def wall(self) -> float:
        return time.time() + self.offset


@pytest.fixture
async def world(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(control_plane, tmp_path) as made:
        yield made


@pytest.mark.cluster
async def test_jumps_of_the_operators_clock_expire_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "NODE_LEASE_RENEWAL_S", 0.5)
    clock = JumpingClock()
    timing = LeaseTiming.lasting(2)
    where = f"--namespace={world.namespace}"

    async def node_lease() -> datetime:
        lease = await world.cluster.get(LEASES, world.name("phone"), "kube-node-lease")
        return datetime.fromisoformat(lease["spec"]["renewTime"])

    async with world.operator(clock=clock, timing=timing, identity="me") as operator:
        phone = operator.device(items_per_second=200.0)
        phone.attach()
        for name, limits in (
            ("kept", {"ttlSecondsAfterFinished": int(3 * HOUR)}),
            ("long", {"activeDeadlineSeconds": 600}),
        ):
            body = world.job(name, items=60 if name == "kept" else 4000, **limits)
            await world.kubectl("create", "--validate=false", "--filename=-", stdin=body)
            await world.job_with(name, **({"Complete": "True"} if name == "kept" else {"Progressing": "True/Working"}))
        # Another operator, with a clock of its own, waits for the lead.
        other = asyncio.create_task(Election(world.cluster, world.namespace, "other", SystemClock(), timing).acquire())
        try:
            before = await node_lease()
            for jump in (HOUR, -HOUR, -2 * HOUR, 0.0):
                clock.offset = jump
                for _ in range(2):
                    # A node controller counts what is later than before, and nothing else.
                    renewed, _ = await eventually(node_lease, lambda now, then=before: now > then, 5)
                    before = renewed
                done = sum(v.items_done for v in operator.engine.job_views().values())
                await eventually(
                    lambda: asyncio.sleep(0, sum(v.items_done for v in operator.engine.job_views().values())),
                    lambda now, then=done: now > then,
                )
                assert not other.done()
        finally:
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
        (view,) = [v for v in operator.engine.job_views().values() if v.spec.name == "long"]
        assert view.attempts_lost == 0
        assert phone.closed is None
        assert ready_condition(await world.get(NODES, phone.name))["status"] == "True"
        lease = await world.cluster.get(LEASES, LEASE_NAME, world.namespace)
        assert lease["spec"]["holderIdentity"] == "me"
        assert await world.get(JOBS, "kept"), "an hour is not three"
        await world.kubectl(
            "patch", "ij", "long", where, "--type=merge", '--patch={"spec":{"activeDeadlineSeconds":900}}'
        )
        phone.items_per_second = 50_000.0
        done = await world.job_with("long", Complete="True")
        assert done["status"]["items"]["done"] == 4000
        assert verify(f"file://{world.folder}/out-long") == []


@pytest.mark.parametrize(
    ("offset", "problem"),
    [
        pytest.param(2 * DAY, "certificate is not yet valid", id="device behind the gateway"),
        pytest.param(-2 * 365 * DAY, "certificate has expired", id="device ahead of the gateway"),
    ],
)
async def test_a_device_whose_clock_is_wrong_is_told_to_look_at_it(tmp_path: Path, offset: float, problem: str) -> None:
    clock = JumpingClock(offset)
    async with (
        Engine(EngineSettings(), clock, tmp_path / "models", nodes_from_facts=True) as engine,
        Gateway(engine, GatewaySettings(), clock, tmp_path / "gateway") as gateway,
        an_agent(gateway, tmp_path) as process,
    ):
        said = await until_said(process, "clock")
    assert problem in said
    assert "set the one that is wrong" in said
    assert time.strftime("%Y-%m-%d", time.gmtime())[:4] in said


async def test_a_certificate_made_while_the_clock_was_ahead_is_made_again(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with (
        Engine(EngineSettings(), clock, tmp_path / "models", nodes_from_facts=True) as engine,
        Gateway(engine, GatewaySettings(), clock, tmp_path / "gateway") as gateway,
    ):
        clock.offset = 60 * DAY
        async with an_agent(gateway, tmp_path) as process:
            assert "certificate is not yet valid" in await until_said(process, "clock")
            clock.offset = 0.0
            await until_said(process, "attached gateway")


@asynccontextmanager
async def an_agent(gateway: Gateway, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    await joining.enrol(folder / "gateway", folder / "state", "phone", gateway.address)
    arguments = [
        "--state-dir", str(folder / "state"), "--cache-dir", str(folder / "cache"),
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pocketgrid_agent", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until_said(process: asyncio.subprocess.Process, words: str, within: float = 40.0) -> str:
    """What the agent has said up to and with these words."""
    said = ""
    assert process.stdout is not None
    async with asyncio.timeout(within):
        while words not in said:
            line = await process.stdout.readline()
            assert line, f"the agent ended without {words!r}:\n{said}"
            said += line.decode()
    return said
