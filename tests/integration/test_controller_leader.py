"""Several operators on a real API server: one leads."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hack.controlplane import ControlPlane
from pocketgrid.clock import SystemClock
from pocketgrid.controller.client import LEASES, Cluster, UnavailableError
from pocketgrid.controller.leader import LEASE_NAME, Election, LeadershipLostError, LeaseTiming
from tests.integration.controller_world import ROOT, World, a_world, eventually

pytestmark = pytest.mark.cluster

TAKE_OVER_S = 10.0

CANDIDATE = """
import asyncio, logging, sys
from pathlib import Path
from pocketgrid.clock import SystemClock
from pocketgrid.controller.run import run_controller
from pocketgrid.engine.engine import Engine
from pocketgrid.settings import EngineSettings

async def main(kubeconfig, namespace, identity, models):
    stop, ready = asyncio.Event(), asyncio.Event()
    async with Engine(EngineSettings(), SystemClock(), Path(models), nodes_from_facts=False) as engine:
        async def tell():
            await ready.wait()
            print("leading", flush=True)
        telling = asyncio.create_task(tell())
        await run_controller(engine, kubeconfig=Path(kubeconfig), namespace=namespace, identity=identity,
                             stop=stop, ready=ready)
        print("stopped", flush=True)
        telling.cancel()

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def world(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(control_plane, tmp_path) as made:
        yield made


async def candidate(world: World, identity: str) -> asyncio.subprocess.Process:
    arguments = (str(world.control_plane.kubeconfig), world.namespace, identity, str(world.folder / identity))
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CANDIDATE, *arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT, env=dict(os.environ)
    )


WAITING = "waiting, another operator leads"


async def says(process: asyncio.subprocess.Process, beginning: str, within: float) -> None:
    """Wait for a line that begins so; lines before it are passed over."""
    assert process.stdout is not None
    async with asyncio.timeout(within):
        while True:
            line = (await process.stdout.readline()).decode()
            assert line, f"the candidate ended without saying {beginning!r}"
            if line.strip() == beginning or (beginning is WAITING and line.startswith(beginning)):
                return


async def end(*processes: asyncio.subprocess.Process) -> None:
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def holder(world: World) -> str:
    return (await world.cluster.get(LEASES, LEASE_NAME, world.namespace))["spec"]["holderIdentity"]


async def depose(world: World) -> None:
    patch = '--patch={"spec":{"holderIdentity":"new"}}'
    await world.kubectl("patch", "lease", LEASE_NAME, f"--namespace={world.namespace}", "--type=merge", patch)


async def test_a_killed_leader_is_replaced_within_ten_seconds(world: World) -> None:
    first = await candidate(world, "first")
    second = None
    try:
        await says(first, "leading", 20)
        second = await candidate(world, "second")
        await says(second, WAITING, 30)
        waiting = asyncio.create_task(says(second, "leading", 60))
        # Longer than a Lease lasts: the leader keeps it.
        done, _ = await asyncio.wait({waiting}, timeout=LeaseTiming().lease_seconds + 1)
        assert not done
        assert await holder(world) == "first"
        first.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        await waiting
        assert time.monotonic() - killed <= TAKE_OVER_S
        assert await holder(world) == "second"
    finally:
        await end(first, *([second] if second else []))


async def test_a_clean_stop_hands_over_at_once(world: World) -> None:
    first = await candidate(world, "first")
    second = None
    try:
        await says(first, "leading", 20)
        second = await candidate(world, "second")
        await says(second, WAITING, 30)
        waiting = asyncio.create_task(says(second, "leading", 60))
        await eventually(lambda: holder(world), lambda name: name == "first")
        first.send_signal(signal.SIGTERM)
        await says(first, "stopped", 10)
        stopped = time.monotonic()
        await waiting
        assert time.monotonic() - stopped < LeaseTiming().lease_seconds / 2
    finally:
        await end(first, *([second] if second else []))


async def test_the_lead_is_kept_until_the_engine_works_no_more(world: World) -> None:
    idle = asyncio.Event()
    async with world.operator(idle=idle, identity="me") as operator:
        operator.stop.set()
        lease = LeaseTiming().lease_seconds
        done, _ = await asyncio.wait({operator.task}, timeout=lease + 1)
        assert not done
        assert await holder(world) == "me"
        idle.set()
        await asyncio.wait_for(operator.task, 5)
        assert not (await world.cluster.get(LEASES, LEASE_NAME, world.namespace))["spec"].get("holderIdentity")


async def test_a_renewal_whose_answer_was_lost_does_not_stop_the_release(world: World) -> None:
    election = Election(world.cluster, world.namespace, "me", SystemClock())
    await election.acquire()
    lease = await world.cluster.get(LEASES, LEASE_NAME, world.namespace)
    await world.cluster.replace(
        LEASES, {**lease, "spec": {**lease["spec"], "renewTime": "2026-01-01T00:00:00.000000Z"}}, world.namespace
    )
    await election.release()
    assert not (await world.cluster.get(LEASES, LEASE_NAME, world.namespace))["spec"].get("holderIdentity")


async def test_of_many_candidates_one_leads(world: World) -> None:
    elections = [Election(world.cluster, world.namespace, f"c{i}", SystemClock()) for i in range(8)]
    tasks = {asyncio.create_task(e.acquire()): e for e in elections}
    done, pending = await asyncio.wait(tasks, timeout=3, return_when=asyncio.ALL_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    assert len(done) == 1
    assert [e.certain for e in elections].count(True) == 1


async def test_a_deposed_leader_raises(world: World) -> None:
    old = Election(world.cluster, world.namespace, "old", SystemClock(), LeaseTiming(renew_seconds=0.2))
    await old.acquire()
    holding = asyncio.create_task(old.hold())
    await depose(world)
    with pytest.raises(LeadershipLostError, match="taken"):
        await asyncio.wait_for(holding, 5)
    assert not old.certain


async def test_a_controller_that_lost_the_lead_ends_with_that_error(world: World) -> None:
    async with world.operator(timing=LeaseTiming(renew_seconds=0.2)) as operator:
        operator.failure_expected = True
        await depose(world)
        with pytest.raises(LeadershipLostError):
            await asyncio.wait_for(operator.task, 10)
    assert await holder(world) == "new"


async def test_a_label_put_on_the_lease_or_its_deletion_deposes_nobody(world: World) -> None:
    election = Election(world.cluster, world.namespace, "me", SystemClock(), LeaseTiming(renew_seconds=0.1))
    await election.acquire()
    holding = asyncio.create_task(election.hold())

    async def renewed() -> str:
        return (await world.cluster.get(LEASES, LEASE_NAME, world.namespace))["spec"]["renewTime"]

    where = f"--namespace={world.namespace}"
    await world.kubectl("label", "lease", LEASE_NAME, where, "seen=yes")
    before = await renewed()
    await eventually(renewed, lambda now: now > before, 5)
    await world.kubectl("delete", "lease", LEASE_NAME, where)
    await eventually(lambda: holder(world), lambda name: name == "me", 5)
    assert not holding.done()
    holding.cancel()


async def test_the_holders_clock_does_not_matter(world: World) -> None:
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE_NAME},
        "spec": {"holderIdentity": "ancient", "leaseDurationSeconds": 2, "renewTime": "2001-01-01T00:00:00.000000Z"},
    }
    await world.cluster.create(LEASES, lease, world.namespace)
    began = time.monotonic()
    await Election(world.cluster, world.namespace, "me", SystemClock()).acquire()
    assert time.monotonic() - began >= 2.0


async def test_an_unreachable_api_server_is_told_as_such(tmp_path: Path, world: World) -> None:
    text = world.control_plane.kubeconfig.read_text(encoding="utf-8")
    lines = ["    server: https://127.0.0.1:1" if "server:" in part else part for part in text.splitlines()]
    (tmp_path / "kubeconfig").write_text("\n".join(lines), encoding="utf-8")
    async with Cluster.connect(tmp_path / "kubeconfig") as cluster:
        with pytest.raises(UnavailableError, match="is the API server up"):
            await cluster.get(LEASES, LEASE_NAME, world.namespace)
    with pytest.raises(UnavailableError, match="name a kubeconfig"):
        async with Cluster.connect(tmp_path / "missing"):
            pass
