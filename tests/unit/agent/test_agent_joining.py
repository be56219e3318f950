"""The real agent joins the real gateway, keeps its certificate fresh by itself, and comes back after an absence."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pocketgrid.model.ids import DeviceName
from pocketgrid_agent.credentials import KEY_FILE, load, save
from tests.unit.gateway.grid import Grid, a_grid, until
from tests.unit.gateway.test_enrolment import an_invitation, joined

PHONE = DeviceName("phone")


@asynccontextmanager
async def an_agent(folder: Path, *arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pocketgrid_agent", *arguments,
            "--state-dir", str(folder / "phone"), "--cache-dir", str(folder / "cache"), "--threads", "1",
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONWARNINGS": "error", **environment},
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def said(folder: Path) -> str:
    return (folder / "log").read_text()


def attached(grid: Grid) -> bool:
    return grid.gateway.sessions == 1


def dialling(grid: Grid) -> tuple[str, str]:
    return ("--gateway", grid.gateway.address)


async def test_it_joins_once_and_then_needs_no_options(tmp_path) -> None:
    async with a_grid(tmp_path, silence_seconds=8.0, hello_seconds=10.0) as grid:
        invitation = await an_invitation(grid)
        command = ("join", invitation.address, "--token", invitation.token, "--ca-sha256", invitation.ca_sha256)
        async with an_agent(tmp_path, *command, "--name", "phone") as joining:
            assert await joining.wait() == 0, said(tmp_path)
        assert "joined as phone" in said(tmp_path)
        state = tmp_path / "phone"
        assert {p.stat().st_mode & 0o777 for p in (state / KEY_FILE, state / "credentials.json")} == {0o600}
        async with an_agent(tmp_path):
            await until(lambda: attached(grid), "attached")
            assert grid.engine.device_views()[PHONE].identity.owner == "alice"
        async with an_agent(tmp_path, "run", "--name", "another") as wrong:
            assert await wrong.wait() == 2
        assert "has joined as phone, not as another" in said(tmp_path)


async def test_who_has_not_joined_is_told_how(tmp_path) -> None:
    async with an_agent(tmp_path) as agent:
        assert await agent.wait() == 2
    assert "pocketgrid-agent join HOST:PORT --token" in said(tmp_path)


async def test_run_joins_first_if_it_has_to_and_waits_for_a_gateway_that_is_away(tmp_path) -> None:
    async with a_grid(tmp_path, silence_seconds=8.0, hello_seconds=10.0) as grid:
        invitation = await an_invitation(grid)
        port = grid.gateway.enrolment_port
    command = ("run", "--join", invitation.address, "--ca-sha256", invitation.ca_sha256, "--name", "phone")
    async with an_agent(tmp_path, *command, POCKETGRID_JOIN_TOKEN=invitation.token):
        await until(lambda: "cannot join yet" in said(tmp_path), "the gateway is away")
        async with a_grid(tmp_path, silence_seconds=8.0, hello_seconds=10.0, enrolment_port=port) as grid:
            await until(lambda: attached(grid), "attached")


async def test_a_wrong_token_ends_with_status_3(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        invitation = await an_invitation(grid)
        command = (
            "join",
            invitation.address,
            "--token",
            "abcdef.0123456789abcdef",
            "--ca-sha256",
            invitation.ca_sha256,
        )
        async with an_agent(tmp_path, *command) as agent:
            assert await agent.wait() == 3
        assert "TokenNotAccepted" in said(tmp_path)
        command = ("join", invitation.address, "--token", invitation.token, "--ca-sha256", "0" * 64)
        async with an_agent(tmp_path, *command) as agent:
            assert await agent.wait() == 3
        assert "WrongAuthority" in said(tmp_path)


async def test_a_running_agent_renews_by_itself_and_is_not_cut_off(tmp_path) -> None:
    wide = {"silence_seconds": 8.0, "hello_seconds": 10.0}
    async with a_grid(tmp_path, certificate_seconds=3.0, **wide) as grid:
        first = await joined(grid, tmp_path / "phone")
        async with an_agent(tmp_path):
            await until(lambda: attached(grid), "attached")
            sessions = set(grid.gateway._servicer._sessions)
            await until(lambda: said(tmp_path).count("certificate renewed") >= 2, "renewed twice")
            assert set(grid.gateway._servicer._sessions) == sessions, "the stream is not touched"
        renewed = load(tmp_path / "phone")
        assert renewed is not None
        assert renewed.chain_pem != first.chain_pem
        assert renewed.key_pem == first.key_pem


async def test_after_a_week_in_a_drawer_it_comes_back_by_itself(tmp_path) -> None:
    wide = {"silence_seconds": 8.0, "hello_seconds": 10.0}
    async with a_grid(tmp_path, certificate_seconds=1.0) as grid:
        port, stale = grid.gateway.enrolment_port, await joined(grid, tmp_path / "phone")
        await until(lambda: stale.remaining_s(time.time()) < -1, "it has run out")
    async with a_grid(tmp_path, enrolment_port=port, **wide) as grid, an_agent(tmp_path, *dialling(grid)):
        await until(lambda: attached(grid), "attached")
    # Its own clock may be wrong as well, and then only the gateway knows that the certificate has run out.
    save(tmp_path / "phone", replace(stale, valid_s=86400.0, renew_after_s=80000.0))
    async with a_grid(tmp_path, enrolment_port=port, **wide) as grid, an_agent(tmp_path, *dialling(grid)):
        await until(lambda: attached(grid), "attached")
