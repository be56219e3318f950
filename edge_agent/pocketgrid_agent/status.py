"""What a running agent is doing, told to whoever asks on this machine: `pocketgrid-agent status`.

The agent answers on a Unix socket in its state folder, which only its owner can open. Nothing is written anywhere while
nobody asks: flash memory wears out.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SOCKET = "status.sock"
ANSWER_SECONDS = 5.0
MOST_BYTES = 1 << 20


class NotRunningError(Exception):
    """No agent answers for a state folder; the message says what to do."""


@contextlib.asynccontextmanager
async def answering(folder: Path, report: Callable[[], Mapping[str, Any]]) -> AsyncIterator[None]:
    """Answer everybody who connects with `report()`, as one JSON document."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(json.dumps(report()).encode())
                await writer.drain()
                writer.close()
                await writer.wait_closed()

    path = folder / SOCKET
    try:
        # Only one agent has the folder's lock, so a socket that is there is one of a killed predecessor.
        path.unlink(missing_ok=True)
        with _short(path) as name:
            server = await asyncio.start_unix_server(answer, name)
    except OSError as error:
        # Some file systems have no sockets. The agent works as well without.
        log.info("status cannot be asked cause=%s", error)
        yield
        return
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def ask(folder: Path) -> dict[str, Any]:
    """What the agent of a state folder says of itself.

    Raises:
        NotRunningError: there is none, or it does not answer.
    """
    if not _is_locked(folder):
        raise NotRunningError(f"no agent runs with the state folder {folder}; start one, or name its --state-dir")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            with _short(folder / SOCKET) as name:
                connection.connect(name)
            said = b""
            while len(said) < MOST_BYTES and (piece := connection.recv(65536)):
                said += piece
        answer: dict[str, Any] = json.loads(said)
    except (OSError, ValueError) as error:
        raise NotRunningError(f"an agent runs with {folder} and does not answer: {error}; look into its log") from error
    return answer


def describe(status: Mapping[str, Any]) -> str:
    """A report for people."""
    lines = [
        f"device     {status['device']}",
        f"gateway    {status['gateway']}, {'attached' if status['attached'] else 'not attached'}",
    ]
    match status["level"]:
        case "WORK":
            lines.append("policy     may work")
        case "EASE":
            lines.append(f"policy     works gently: {status['message']} ({status['reason']})")
        case _:
            lines.append(f"policy     PAUSED: {status['message']} ({status['reason']})")
    if status["draining"]:
        lines.append(f"leaving    {status['draining']}")
    lines.append(
        f"work       {status['running']} running, {status['queued']} queued, {status['unsettled']} results not settled"
    )
    lines.extend(f"job        {job['job']}: {job['state']}" for job in status["jobs"])
    known = {name: value for name, value in status["vitals"].items() if value not in (None, "")}
    lines.append("readings   " + (", ".join(f"{name}={_shown(value)}" for name, value in known.items()) or "none"))
    unknown = sorted(set(status["vitals"]) - set(known))
    if unknown:
        lines.append("unknown    " + ", ".join(unknown))
    return "\n".join(lines)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Another name of `path`: those of sockets may have 107 bytes only, and state folders lie deep."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_locked(folder: Path) -> bool:
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
