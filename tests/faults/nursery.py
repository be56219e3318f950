"""Processes that start in a few milliseconds: forked from one that has imported everything already.

A schedule of faults starts and kills a dozen operators and agents. Starting Python and importing gRPC, onnxruntime and
PyArrow takes each of them a second of processor time; forking from a nursery takes none. What is forked is a process
like any other: it has its own memory, event loop and threads, and dies of SIGKILL alone.

The nursery is single-threaded Python that never opens a channel, a session or an event loop, so that there is nothing
in it that a fork could break. It reads one request per line from its standard input and answers with a pid; requests
hold everything about the child (`Birth`). Children are children of the nursery, which sets them to die with it; the
client watches them by pidfd, so that a signal can never reach a stranger that was given the same number.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

PR_SET_PDEATHSIG = 1
START_DEADLINE_S = 60.0

HEAVY = (
    "grpc.aio",
    "numpy",
    "onnx",
    "onnxruntime",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pocketgrid.engine.admission",
    "pocketgrid.storage.modelstore",
    "pocketgrid.storage.results",
    "pocketgrid_agent.compute",
    "pocketgrid_agent.loop",
    "pocketgrid_agent.models",
    "pocketgrid_agent.runtime",
    "tests.faults.operator_process",
)
"""What operators and agents import sooner or later."""


@dataclass(frozen=True, slots=True)
class Birth:
    """One process to be.

    Attributes:
        program: ``agent`` or ``operator``.
        arguments: of its command line.
        log: where its output is appended.
        environment: set on top of the nursery's.
        file_bytes: no file may grow beyond so many bytes, as on a full disk; 0 for no limit.
    """

    program: str
    arguments: Sequence[str]
    log: str
    environment: Mapping[str, str] = field(default_factory=dict)
    file_bytes: int = 0


class Process:
    """A forked process, by pidfd."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._descriptor, self._end)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return not self._ended.is_set()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    async def wait(self) -> None:
        """Return when it has ended."""
        await self._ended.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        await self.wait()

    def _end(self) -> None:
        if self.alive:
            self._ended.set()
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)


class Nursery:
    """The client's side. Use as an async context manager.

    Args:
        log: of the nursery itself.
        preload: a library for `LD_PRELOAD`, or none.
    """

    def __init__(self, log: Path, preload: Path | None = None) -> None:
        self._log = log
        self._preload = preload
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()
        self._born: list[Process] = []

    async def __aenter__(self) -> Self:
        """Start it; the first birth waits until it has imported everything."""
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "error"}
        if self._preload is not None:
            # The monotonic clock stays: no machine's jumps.
            clock = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_CACHE_DURATION": "1"}
            environment |= {**clock, "LD_PRELOAD": str(self._preload)}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.faults.nursery", env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all that is left of the children, then the nursery."""
        for process in self._born:
            await process.kill()
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def bear(self, birth: Birth) -> Process:
        """Fork a process."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._asking, asyncio.timeout(START_DEADLINE_S):
            self._process.stdin.write(json.dumps(asdict(birth)).encode() + b"\n")
            await self._process.stdin.drain()
            answer = await self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the nursery is dead: {self._log.read_text()[-2000:]}")
        process = Process(int(answer))
        self._born = [p for p in self._born if p.alive]
        self._born.append(process)
        return process


def main() -> None:
    """The nursery's side: fork whatever is asked for."""
    # Whoever is killed with the runner in the middle of a schedule leaves nothing behind.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _import_everything()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    children: set[int] = set()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _live(json.loads(line))
        children.add(pid)
        answers.write(f"{pid}\n")
        # Those that have ended since; a pidfd turns readable for zombies too, so nobody waits for this.
        for child in tuple(children):
            if os.waitpid(child, os.WNOHANG)[0]:
                children.discard(child)


def _live(birth: dict[str, object]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(str(birth["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, number)
    status = 1
    try:
        environment = birth["environment"]
        assert isinstance(environment, dict)
        os.environ.update(environment)
        limit = birth["file_bytes"]
        assert isinstance(limit, int)
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        arguments = birth["arguments"]
        assert isinstance(arguments, list)
        if birth["program"] == "agent":
            from pocketgrid_agent.__main__ import main as agent

            status = agent(arguments)
        else:
            from tests.faults.operator_process import main as operator

            status = operator(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)


def _import_everything() -> None:
    for name in HEAVY:
        importlib.import_module(name)


if __name__ == "__main__":
    main()
