"""Joining a cluster's grid: tokens in Secrets, devices in EdgeNodes; real operator, real agent, real API server."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hack.controlplane import ControlPlane
from pocketgrid.controller.client import EDGE_NODES
from pocketgrid.controller.enrolment_stores import (
    AUTHORITY_NAME,
    SECRETS,
    SecretAuthority,
    SecretTokens,
    read_token,
)
from pocketgrid.gateway.authority import load_keyring
from pocketgrid.gateway.tokens import make_token
from pocketgrid.model.trust import TrustTier
from pocketgrid_agent.credentials import load
from tests.integration.controller_world import a_world, eventually, ready_condition
from tests.integration.processes import Process, Processes, free_port, processes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(150)]

READY = "ready gateway="
OUT_WITHIN_S = 5.0


@pytest.fixture
async def grid(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Processes]:
    async with a_world(control_plane, tmp_path) as world, processes(world) as made:
        yield made


async def token(grid: Processes, *arguments: str) -> tuple[int, str]:
    """`pocketgrid token`: status, and what it printed."""
    where = ("--kubeconfig", str(grid.world.control_plane.kubeconfig), "--namespace", grid.world.namespace)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pocketgrid", "token", *arguments, *where,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def join(grid: Processes, command: str, name: str) -> tuple[int, str]:
    """Run what `token create` printed; status, and what the agent said."""
    program, *arguments = command.split()
    assert program == "pocketgrid-agent"
    state = ("--name", grid.world.name(name), "--state-dir", str(grid.world.folder / name))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pocketgrid_agent", *arguments, *state,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def runs(grid: Processes, name: str) -> Process:
    """The agent that has joined under that name, with no option but where its folders are."""
    home = grid.world.folder / name
    options = ["pocketgrid_agent", "run", "--state-dir", str(home), "--cache-dir", str(home / "models")]
    process = Process(f"run-{name}", grid.world.folder, options, {})
    grid.all.append(process)
    return process


async def patch(grid: Processes, name: str, spec: dict[str, object]) -> None:
    body = json.dumps({"spec": spec})
    await grid.world.kubectl("patch", "edgenode", grid.world.name(name), "--type=merge", f"--patch={body}")


async def test_a_device_joins_works_and_is_shut_out(grid: Processes) -> None:
    world = grid.world
    port = free_port()
    operator = grid.operator("operator", port)
    await operator.start()
    await operator.says(READY)
    status, said = await eventually_created(grid, "--owner", world.mark, "--class", "phones", "--tier", "Vetted")
    assert status == 0, said
    secret_name = "join-token-" + said.split("--token ")[1][:6]
    secret = await world.cluster.get(SECRETS, secret_name, world.namespace)
    assert secret["type"] == "pocketgrid.dev/join-token"
    assert said.split("--token ")[1][7:23] not in json.dumps(
        {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    )

    status, joined = await join(grid, said, "phone")
    assert (status, "joined as" in joined) == (0, True), joined
    edge = await world.get(EDGE_NODES, world.name("phone"))
    assert (edge["spec"]["owner"], edge["spec"]["hardwareClass"], edge["spec"]["tier"]) == (
        world.mark, "phones", "Vetted",
    )  # fmt: skip
    assert read_token(await world.cluster.get(SECRETS, secret_name, world.namespace)).uses_left == 0
    status, refused = await join(grid, said, "another")
    assert (status, "TokenNotAccepted" in refused) == (3, True)

    # Whoever is shut out is out within seconds, and stays out although the certificate is good.
    agent = runs(grid, "phone")
    await agent.start()
    await agent.says("attached gateway")
    before = time.monotonic()
    await patch(grid, "phone", {"revoked": True})
    assert await agent.ended(OUT_WITHIN_S) == 3
    assert time.monotonic() - before < OUT_WITHIN_S
    assert "Revoked" in agent.said()
    held = load(world.folder / "phone")
    assert held is not None
    assert held.remaining_s(time.time()) > 80_000
    await agent.start()
    assert await agent.ended(20) == 3
    await patch(grid, "phone", {"revoked": False})
    await agent.start()
    await agent.says("attached gateway", times=2)

    # Deleting its EdgeNode does the same, and nobody makes it again.
    await world.kubectl("delete", "edgenode", world.name("phone"))
    assert await agent.ended(OUT_WITHIN_S) == 3
    assert "NotEnrolled" in agent.said()
    await agent.start()
    assert await agent.ended(20) == 3
    assert world.name("phone") not in {e["metadata"]["name"] for e in (await world.cluster.list(EDGE_NODES))[0]}
    status, said = await token(grid, "create", "--owner", world.mark)
    status, joined = await join(grid, said, "phone")
    assert status == 0, joined
    await agent.start()
    await agent.says("attached gateway", times=3)
    await eventually(
        lambda: world.get(EDGE_NODES, world.name("phone")), lambda e: ready_condition(e).get("status") == "True"
    )


async def eventually_created(grid: Processes, *options: str) -> tuple[int, str]:
    """A token, as soon as the operator has said where devices join."""
    found, _ = await eventually(lambda: token(grid, "create", *options), lambda answer: answer[0] == 0)
    return found


async def test_another_operator_takes_over_with_the_same_authority_and_devices_stay_enrolled(grid: Processes) -> None:
    first = grid.operator("first", free_port())
    await first.start()
    await first.says(READY)
    grid.door.target = int(first._arguments[first._arguments.index("--gateway-address") + 1].rpartition(":")[2])
    agent = grid.agent("phone")
    await agent.start()
    await agent.says("attached gateway")
    secret = await grid.world.cluster.get(SECRETS, AUTHORITY_NAME, grid.world.namespace)
    # The second one has nothing of the first but the cluster.
    second_port = free_port()
    second = grid.operator("second", second_port)
    second._arguments[second._arguments.index("--state-dir") + 1] = str(grid.world.folder / "another-state")
    await second.start()
    await first.kill()
    await second.says(READY)
    grid.door.target = second_port
    await agent.says("attached gateway", times=2)
    assert (await grid.world.cluster.get(SECRETS, AUTHORITY_NAME, grid.world.namespace))["data"] == secret["data"]
    assert second.said().count("enrolled device") == 0


async def test_operators_that_start_together_make_one_authority(control_plane: ControlPlane, tmp_path: Path) -> None:
    async with a_world(control_plane, tmp_path) as world:
        stores = [SecretAuthority(world.cluster, world.namespace) for _ in range(6)]
        keyrings = await asyncio.gather(*(load_keyring(store, 1000.0) for store in stores))
        assert len(set(keyrings)) == 1
        later = await asyncio.gather(*(load_keyring(store, 1000.0 + 9.9 * 365 * 86400) for store in stores))
        assert len(set(later)) == 1
        assert len(later[0].authorities) == 2


async def test_uses_are_counted_once_whoever_counts(control_plane: ControlPlane, tmp_path: Path) -> None:
    async with a_world(control_plane, tmp_path) as world:
        one, two = (SecretTokens(world.cluster, world.namespace) for _ in range(2))
        made = make_token(
            owner="alice",
            now=time.time(),
            ttl_s=60,
            uses=3,
            hardware_class="phones",
            tier=TrustTier.OWNED,
            node_name="*",
        ).token
        await one.create(made)
        assert [(await two.get(made.token_id)), *(await two.list())][0].tier is TrustTier.OWNED
        marks = ["a", "b", "c", "d", "e"]
        taken = await asyncio.gather(
            *(s.redeem(made.token_id, mark, time.time()) for mark in marks for s in (one, two))
        )
        assert sum(each is not None for each in taken) == 6, "three devices, each twice"
        assert (await one.get(made.token_id)).uses_left == 0
        assert await one.redeem(made.token_id, "a", time.time() + 61) is None
        assert await two.delete(made.token_id)
        assert not await one.delete(made.token_id)
        assert await one.redeem(made.token_id, "a", time.time()) is None


async def test_tokens_are_listed_and_deleted(grid: Processes) -> None:
    status, said = await token(grid, "create", "--owner", "alice")
    assert (status, "no operator has said" in said) == (1, True)
    await SecretTokens(grid.world.cluster, grid.world.namespace).create(
        made := make_token(owner="alice", now=time.time(), ttl_s=60, uses=7).token
    )
    status, said = await token(grid, "list")
    assert status == 0
    assert said.splitlines()[0].split() == ["ID", "OWNER", "CLASS", "TIER", "NODE", "LEFT", "EXPIRES"]
    assert any(line.split()[:6] == [made.token_id, "alice", "-", "Public", "-", "7"] for line in said.splitlines())
    assert (await token(grid, "delete", made.token_id))[0] == 0
    assert (await token(grid, "delete", made.token_id))[0] == 1
    assert made.token_id not in (await token(grid, "list"))[1]
    assert (await token(grid, "create", "--owner", "alice", "--ttl", "soon"))[0] == 2
