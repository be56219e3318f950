"""A few agents on this machine, each a process of its own, started again when they die."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pocketgrid.gateway.server import Gateway

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
RESTARTS = 3
"""An agent that dies more often than this has a fault that starting it again will not mend."""


@dataclass(frozen=True, slots=True)
class LocalAgents:
    """How many agents, and how they run.

    Attributes:
        threads: computing threads of each.
        folder: their state; the model cache below it is shared and outlives the run.
    """

    count: int
    threads: int
    folder: Path
    log_level: str = "warning"


class AgentPool:
    """Agents of one local run. Use as an async context manager."""

    def __init__(self, wanted: LocalAgents, gateway: Gateway) -> None:
        self._wanted = wanted
        self._gateway = gateway
        self._keepers: list[asyncio.Task[None]] = []
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self.failed: list[str] = []

    @property
    def all_failed(self) -> bool:
        """Whether no agent is left, nor will be."""
        return len(self.failed) == self._wanted.count

    async def __aenter__(self) -> Self:
        """Start them."""
        for number in range(1, self._wanted.count + 1):
            name = f"local-{number}"
            self._keepers.append(asyncio.create_task(self._keep(name), name=f"agent-{name}"))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop them; no work of theirs is lost, for the job is done or will be resumed."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for process in self._processes.values():
            await _stop(process)

    async def _keep(self, name: str) -> None:
        for attempt in range(RESTARTS + 1):
            process = self._processes[name] = await self._start(name)
            status = await process.wait()
            log.warning("agent ended name=%s status=%d start=%d", name, status, attempt + 1)
        self.failed.append(name)

    async def _start(self, name: str) -> asyncio.subprocess.Process:
        identity = self._gateway.identity
        arguments = [
            "--gateway", self._gateway.address,
            "--ca-file", str(identity.ca_file),
            "--join-secret-file", str(identity.join_secret_file),
            "--name", name,
            "--state-dir", str(self._wanted.folder / name),
            "--cache-dir", str(self._wanted.folder / "models"),
            "--threads", str(self._wanted.threads),
            "--log-level", self._wanted.log_level,
        ]  # fmt: skip
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pocketgrid_agent", *arguments,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            # A terminal's Ctrl-C goes to the whole group; the agents are told by us instead, in good order.
            start_new_session=True,
        )  # fmt: skip


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
