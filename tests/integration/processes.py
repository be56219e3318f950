"""Operators and agents as processes of their own, to be stopped, killed and looked at from outside."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hack.controlplane.child import bound_to_parent
from hack.controlplane.servers import free_port
from pocketgrid.controller.enrolment_stores import SecretAuthority, SecretTokens
from pocketgrid.gateway.authority import load_keyring
from pocketgrid.gateway.tokens import make_token
from tests.fakes.models import write_affine_model
from tests.faults.proxy import Conditions, FaultProxy
from tests.integration.api_link import proxy_to
from tests.integration.controller_world import ROOT, World, eventually

LEASE_S = 3
"""Of the operators here, so that tests need not wait for the usual one."""

WIDTH = 512


class Process:
    """One process with a log of all its lives."""

    def __init__(self, name: str, folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._arguments = arguments
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *bound_to_parent([sys.executable, "-m", *self._arguments]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", **self._environment},
            )

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        assert self._process.returncode is None, f"{self.name} has ended by itself:\n{self.said()[-3000:]}"
        self._process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended(10)

    async def ended(self, within: float) -> int:
        assert self._process is not None
        async with asyncio.timeout(within):
            return await self._process.wait()

    async def stop(self) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        # A stopped process does not hear the other signals.
        for number in (signal.SIGCONT, signal.SIGTERM):
            self._process.send_signal(number)
        try:
            await self.ended(15)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    async def says(self, text: str, within: float = 60.0, times: int = 1) -> float:
        """Wait until the log has `text` so many times; how long that took."""

        async def count() -> int:
            assert self.exit_code is None, f"{self.name} has ended with {self.exit_code}:\n{self.said()[-3000:]}"
            return self.said().count(text)

        return (await eventually(count, lambda n: n >= times, within))[1]


class Processes:
    """Operators that share one state folder, and agents that reach whichever of them `door` leads to."""

    def __init__(self, world: World, door: FaultProxy) -> None:
        self.world = world
        self.door = door
        self.all: list[Process] = []
        self._state = world.folder / "state"
        self._enrolment_port = free_port()
        self._invitation: list[str] = []

    async def prepare(self) -> None:
        """Make the authority, as whichever operator comes first would, and a token for all agents."""
        keyring = await load_keyring(SecretAuthority(self.world.cluster, self.world.namespace), time.time())
        made = make_token(owner=self.world.mark, now=time.time(), ttl_s=3600, uses=100)
        await SecretTokens(self.world.cluster, self.world.namespace).create(made.token)
        file = self.world.folder / "token"
        file.write_text(made.text, encoding="utf-8")
        address, pin = f"127.0.0.1:{self._enrolment_port}", keyring.authorities[0].sha256
        self._invitation = ["--join", address, "--token-file", str(file), "--ca-sha256", pin]

    def operator(self, name: str, port: int, kubeconfig: Path | None = None, **environment: str) -> Process:
        arguments = [
            "pocketgrid", "operator",
            "--kubeconfig", str(kubeconfig or self.world.control_plane.kubeconfig),
            "--namespace", self.world.namespace,
            "--gateway-address", f"127.0.0.1:{port}",
            "--enrolment-port", "0" if self.all else str(self._enrolment_port),
            "--state-dir", str(self._state),
            "--lease-seconds", str(LEASE_S),
            "--history", str(self.history(name)),
        ]  # fmt: skip
        return self._add(Process(name, self.world.folder, arguments, environment))

    def history(self, name: str) -> Path:
        return self.world.folder / f"{name}-history.jsonl"

    def agent(self, name: str, *options: str) -> Process:
        home = self.world.folder / name
        arguments = [
            "pocketgrid_agent",
            "--gateway", f"127.0.0.1:{self.door.port}",
            *self._invitation,
            "--name", self.world.name(name), "--kind", "phone",
            "--threads", "1",
            "--state-dir", str(home), "--cache-dir", str(home / "models"),
            *options,
        ]  # fmt: skip
        return self._add(Process(name, self.world.folder, arguments, {}))

    def _add(self, process: Process) -> Process:
        self.all.append(process)
        return process

    def bulky_job(self, name: str = "bulky", *, items: int, per_shard: int = 20, **spec: Any) -> dict[str, Any]:
        """A job of shards of 40 KiB there and 40 KiB back, which pass the door no faster than it lets them."""
        body = self.world.job(name, items=1, per_shard=per_shard, **spec)
        values = np.random.default_rng(0).normal(size=(items, WIDTH)).astype(np.float32)
        np.save(self.world.folder / f"{name}.npy", values)
        model = self.world.folder / "bulky.onnx"
        body["spec"]["model"] = {"uri": f"file://{model}", "sha256": write_affine_model(model, WIDTH)}
        return body

    def throttle(self, bytes_per_s: float) -> None:
        """What each agent may send and be sent; 0 for no limit."""
        self.door.up = self.door.down = Conditions(bytes_per_s=bytes_per_s)


@asynccontextmanager
async def processes(world: World) -> AsyncIterator[Processes]:
    """All of a test's processes, ended with it."""
    async with proxy_to(free_port()).serving() as door:
        made = Processes(world, door)
        await made.prepare()
        try:
            yield made
        finally:
            # Agents first, so that nobody waits for their last words in vain.
            for process in reversed(made.all):
                await process.stop()
