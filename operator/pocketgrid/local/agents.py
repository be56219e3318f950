"""A few agents on this machine, each a process of its own, started again when they die."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from pocketgrid.errors import StoreError
from pocketgrid.gateway.server import Gateway, Invitation

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0
"""What an agent has begun it may finish within this; the rest is in its journal."""

RESTARTS = 3
"""An agent that dies more often than this, one death soon after the other, has a fault that starting it again will not
mend."""

STEADY_SECONDS = 30.0
"""An agent that has lived for so long died of something else than the one before it."""

RESTART_PAUSE_SECONDS = 0.25

LINE_BYTES = 64 << 10

OWNER = "local"
"""Whose the agents of a local run are."""


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
        self._claims: list[IO[bytes]] = []
        self._last_words: dict[str, str] = {}
        self._invitation: Invitation | None = None
        self.failed: list[str] = []

    @property
    def all_failed(self) -> bool:
        """Whether no agent is left, nor will be."""
        return len(self.failed) == self._wanted.count

    @property
    def complaint(self) -> str:
        """What the agents that were given up said last."""
        return "; ".join(sorted({self._last_words.get(name, "") for name in self.failed} - {""})) or "no reason given"

    async def __aenter__(self) -> Self:
        """Start them.

        Raises:
            StoreError: their folder cannot be written.
        """
        try:
            names = self._claim_names()
        except OSError as exc:
            raise StoreError(f"cannot use {self._wanted.folder} for agents: {exc.strerror}") from exc
        # Good for those that are started again as well: they ask with the same key.
        self._invitation = await self._gateway.invite(OWNER, uses=self._wanted.count)
        self._keepers = [asyncio.create_task(self._keep(name), name=f"agent-{name}") for name in names]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop them; no work of theirs is lost, for the job is done or will be resumed."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for claim in self._claims:
            claim.close()

    def _claim_names(self) -> list[str]:
        # Another run may be going on in the next terminal; two agents must not share a state folder.
        self._wanted.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        names: list[str] = []
        for number in itertools.count(1):
            claim = (self._wanted.folder / f"local-{number}.claim").open("ab")
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                claim.close()
                continue
            self._claims.append(claim)
            names.append(f"local-{number}")
            if len(names) == self._wanted.count:
                break
        return names

    async def _keep(self, name: str) -> None:
        loop = asyncio.get_running_loop()
        deaths = 0
        while deaths <= RESTARTS:
            begun = loop.time()
            process = await self._start(name)
            relay = asyncio.create_task(self._relay(name, process), name=f"relay-{name}")
            try:
                status = await process.wait()
            finally:
                await _stop(process)
                # The pipe ends with the agent, unless it left a child behind that holds it.
                await asyncio.wait([relay], timeout=STOP_SECONDS)
                relay.cancel()
            deaths = 1 if loop.time() - begun >= STEADY_SECONDS else deaths + 1
            log.warning("agent ended name=%s status=%d again=%s", name, status, deaths <= RESTARTS)
            await asyncio.sleep(RESTART_PAUSE_SECONDS * deaths)
        self.failed.append(name)

    async def _start(self, name: str) -> asyncio.subprocess.Process:
        assert self._invitation is not None
        arguments = [
            "--gateway", self._gateway.address,
            "--join", self._invitation.address,
            "--ca-sha256", self._invitation.ca_sha256,
            "--name", name,
            "--state-dir", str(self._wanted.folder / name),
            "--cache-dir", str(self._wanted.folder / "models"),
            "--threads", str(self._wanted.threads),
            # Whoever starts a run wants it to run, on battery too, and at once.
            "--config", os.devnull, "--profile", "custom", "--preload",
            "--log-level", self._wanted.log_level,
        ]  # fmt: skip
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pocketgrid.local.agent", str(os.getpid()), *arguments,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "POCKETGRID_JOIN_TOKEN": self._invitation.token},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            # A terminal's Ctrl-C goes to the whole group; the agents are told by us instead, in good order.
            start_new_session=True,
        )  # fmt: skip

    async def _relay(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Pass on what an agent says, so that it neither tears a progress bar nor is lost."""
        assert process.stderr is not None
        while True:
            try:
                line = await process.stderr.readline()
            except ValueError:
                # Longer than the limit; what was read of it is gone.
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if text:
                self._last_words[name] = text
                print(f"[{name}] {text}", file=sys.stderr, flush=True)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
