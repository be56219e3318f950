"""On a real cluster, data and model of a confidential job never reach a device that nobody vouches for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hack.controlplane import ControlPlane
from hack.controlplane.servers import free_port
from pocketgrid.controller.client import EDGE_NODES, JOBS
from pocketgrid.history import read_history
from tests.integration.controller_world import World, a_world, eventually, has_condition
from tests.integration.processes import Process, Processes, processes

pytestmark = pytest.mark.cluster

READY = "ready gateway="


@pytest.fixture
async def grid(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Processes]:
    async with a_world(control_plane, tmp_path) as world, processes(world) as made:
        yield made


async def set_tier(world: World, device: str, tier: str) -> None:
    patch = json.dumps({"spec": {"tier": tier}})
    await world.kubectl("patch", "edgenode", world.name(device), "--type=merge", f"--patch={patch}")


async def attached(world: World, agent: Process) -> None:
    await eventually(
        lambda: world.get(EDGE_NODES, world.name(agent.name)), lambda e: has_condition(e, "Ready", "True"), 40
    )


def said(job: dict[str, Any]) -> str:
    return json.dumps((job.get("status") or {}).get("conditions", []))


def models_on(world: World, agent: Process) -> list[str]:
    folder = world.folder / agent.name / "models"
    return [path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


def leased_to(grid: Processes) -> set[str]:
    return {entry["device"] for entry in read_history(grid.history("operator")) if entry["kind"] in ("leased", "sent")}


async def test_an_internal_job_waits_for_a_vetted_device_and_the_others_see_nothing_of_it(grid: Processes) -> None:
    world = grid.world
    grid.door.target = free_port()
    operator = grid.operator("operator", grid.door.target)
    stranger, vetted = grid.agent("stranger"), grid.agent("vetted")
    await operator.start()
    await operator.says(READY)
    for agent in (stranger, vetted):
        await agent.start()
    body = world.job("secret")
    body["spec"]["placement"]["dataClass"] = "Internal"
    await world.kubectl("create", "--validate=false", "--filename=-", stdin=body)
    for agent in (stranger, vetted):
        await attached(world, agent)
    await eventually(
        lambda: world.get(JOBS, "secret"),
        lambda job: "2 tier Public is below data class Internal" in said(job),
        within=40,
    )
    assert models_on(world, vetted) == []

    await set_tier(world, "vetted", "Vetted")
    done = await world.job_with("secret", Complete="True", within=40)
    assert done["status"]["items"] == {"total": 60, "done": 60, "failed": 0}
    assert models_on(world, stranger) == []
    (kept,) = models_on(world, vetted)
    assert kept.endswith(".sealed")
    model = (world.folder / "model.onnx").read_bytes()
    assert model[100:132] not in next((world.folder / "vetted" / "models").glob("*.sealed")).read_bytes()
    assert leased_to(grid) == {world.name("vetted")}

    # Also for an operator that has only just begun: it knows the tiers before any device gets work.
    await operator.kill()
    body["metadata"]["name"] = "again"
    body["spec"]["output"] = {"uri": f"file://{world.folder}/out-again"}
    await operator.start()
    await operator.says(READY, times=2)
    await world.kubectl("create", "--validate=false", "--filename=-", stdin=body)
    await world.job_with("again", Complete="True", within=40)
    assert models_on(world, stranger) == []
    assert leased_to(grid) == {world.name("vetted")}
