"""Operators as real processes, with real agents, on a real API server: killed, stopped, woken, two at a time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from hack.controlplane import ControlPlane
from hack.controlplane.servers import free_port
from pocketgrid.controller.client import EDGE_NODES, JOBS, LEASES, NODES
from pocketgrid.controller.leader import LEASE_NAME
from pocketgrid.history import read_history
from pocketgrid.storage.results import verify
from tests.integration.controller_world import World, a_world, eventually
from tests.integration.processes import LEASE_S, Processes, processes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

READY = "ready gateway="
LEADING = "leading identity="
ROWS = 8_000
TAKE_OVER_S = LEASE_S + 5.0


@pytest.fixture
async def grid(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Processes]:
    async with a_world(control_plane, tmp_path) as world, processes(world) as made:
        yield made


async def create(world: World, body: dict[str, Any]) -> None:
    await world.kubectl("create", "--validate=false", "--filename=-", stdin=body)


async def shards_done(world: World, name: str) -> int:
    body = await world.get(JOBS, name)
    return int((body.get("status") or {}).get("shards", {}).get("done", 0))


def check_output(world: World, name: str, items: int) -> None:
    """All rows, each once, each right."""
    assert verify(f"file://{world.folder}/out-{name}") == []
    table = ds.dataset(world.folder / f"out-{name}", format="parquet").to_table()
    rows = table.to_pydict()
    assert table.num_rows == items
    (key,) = [column for column in table.column_names if column not in ("x", "y")][:1]
    assert len(set(rows[key])) == items


def committed(grid: Processes, *names: str) -> Counter[tuple[str, int]]:
    """How often each shard was acknowledged, over all operators."""
    counted: Counter[tuple[str, int]] = Counter()
    for name in names:
        if not grid.history(name).exists():
            continue
        for entry in read_history(grid.history(name)):
            if entry["kind"] == "committed":
                counted.update((entry["job"], shard) for shard in _shards(entry))
    return counted


def _shards(entry: dict[str, Any]) -> list[int]:
    found = entry.get("shards", [entry.get("shard")])
    return [shard[0] if isinstance(shard, list) else shard for shard in found]


async def test_of_two_operators_a_sleeping_one_is_replaced_and_does_no_harm_when_it_wakes(
    grid: Processes, control_plane: ControlPlane
) -> None:
    world, door = grid.world, grid.door
    first_port, second_port = free_port(), free_port()
    first, second = grid.operator("first", first_port), grid.operator("second", second_port)
    door.target = first_port
    await first.start()
    await first.says(READY)
    await second.start()
    agents = [grid.agent("phone"), grid.agent("board")]
    for agent in agents:
        await agent.start()
    # About ten shards a second, on any machine.
    grid.throttle(200e3)
    await create(world, grid.bulky_job(items=ROWS))
    await second.says("waiting, another operator leads")
    await eventually(lambda: shards_done(world, "bulky"), lambda n: n >= 10, 40)

    # An outage of the API server changes no leader, however long it is.
    pid = control_plane.pids.get("kube-apiserver")
    before = (await world.cluster.get(LEASES, LEASE_NAME, world.namespace))["spec"]
    if pid is not None:
        at_outage = await shards_done(world, "bulky")
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(LEASE_S + 1)
        await asyncio.to_thread(control_plane.restart_apiserver)
        await eventually(lambda: shards_done(world, "bulky"), lambda n: n > at_outage, 10)
        after = (await world.cluster.get(LEASES, LEASE_NAME, world.namespace))["spec"]
        assert after["holderIdentity"] == before["holderIdentity"]
        assert after["leaseTransitions"] == before["leaseTransitions"]
        assert LEADING not in second.said()

    # What its library says of an API server that comes back is another matter.
    fell_asleep = len(first.said())
    first.signal(signal.SIGSTOP)
    door.target = second_port
    took = await second.says(READY, TAKE_OVER_S + 5)
    assert took <= TAKE_OVER_S, f"taken over only after {took:.1f} s"
    at_take_over = await shards_done(world, "bulky")
    await eventually(lambda: shards_done(world, "bulky"), lambda n: n >= at_take_over + 5, 30)
    seen = await shards_done(world, "bulky")
    first.signal(signal.SIGCONT)
    assert await first.ended(15) == 1
    assert "another operator has taken" in first.said()
    assert "Traceback" not in first.said()[fell_asleep:]
    # What the first one still had in hand has not set anything back.
    assert await shards_done(world, "bulky") >= seen
    grid.throttle(0)
    await world.job_with("bulky", Complete="True", within=60)
    check_output(world, "bulky", ROWS)
    twice = {shard: n for shard, n in committed(grid, "first", "second").items() if n > 1}
    assert not twice, f"acknowledged twice: {twice}"
    lease = await world.cluster.get(LEASES, LEASE_NAME, world.namespace)
    assert lease["spec"]["leaseTransitions"] == before["leaseTransitions"] + 1


@pytest.mark.parametrize("seed", [int(os.environ.get("POCKETGRID_TEST_SEED", "1"))])
async def test_an_operator_killed_again_and_again_finishes_what_it_began(grid: Processes, seed: int) -> None:
    world, rng = grid.world, random.Random(seed)
    rounds = int(os.environ.get("POCKETGRID_TEST_KILLS", "3"))
    grid.door.target = free_port()
    operator = grid.operator("operator", grid.door.target)
    agents = [grid.agent("phone"), grid.agent("board")]
    await operator.start()
    await operator.says(READY)
    for number in range(rounds):
        # Finalizer, annotations, status, Node, EdgeNode, Lease: all of them are being written now.
        if number < len(agents):
            await agents[number].start()
        await create(world, world.job(f"job{number}"))
        if number:
            await world.kubectl("delete", "ij", f"job{number - 1}", f"--namespace={world.namespace}", "--wait=false")
        await asyncio.sleep(rng.uniform(0.0, 0.8))
        await operator.kill()
        await operator.start()
        await operator.says(READY, times=number + 2)
    last = f"job{rounds - 1}"
    body = await world.job_with(last, Complete="True", within=40)
    assert body["status"]["items"] == {"total": 60, "done": 60, "failed": 0}
    check_output(world, last, 60)
    for number in range(rounds - 1):
        with pytest.raises(AssertionError, match="not found"):
            await eventually(lambda n=number: world.get(JOBS, f"job{n}"), lambda _: False, within=0.1)
    for endpoint in (NODES, EDGE_NODES):
        names = {b["metadata"]["name"] for b in (await world.cluster.list(endpoint))[0]}
        assert {name for name in names if name.endswith(world.mark)} == {world.name("phone"), world.name("board")}
    assert await world.cluster.get(LEASES, world.name("phone"), "kube-node-lease")
    assert "Traceback" not in operator.said()
