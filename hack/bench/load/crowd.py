"""An operator and thousands of idle devices around it, in processes of their own, and what they say of themselves."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from hack.bench.errors import BenchError
from hack.bench.load.devices import AT_ONCE
from hack.controlplane.child import Child
from hack.controlplane.errors import last_lines

READY_DEADLINE_S = 60.0
STOP_DEADLINE_S = 15.0
POLL_S = 0.05


class Crowd:
    """Use as a context manager; leaving it ends all processes.

    Args:
        folder: for state and logs.
        devices: how many, shared out over `processes`.
    """

    def __init__(self, folder: Path, devices: int, processes: int) -> None:
        self.devices = devices
        self.folder = folder
        self.jobs = folder / "jobs"
        self.jobs.mkdir(parents=True)
        self.port = _free_port()
        self._starts = 0
        self.operator = self._new_operator()
        self._loads: list[Child] = []
        self._shares = [devices // processes + (i < devices % processes) for i in range(processes)]

    def __enter__(self) -> Self:
        self.start_operator()
        return self

    def __exit__(self, *_exc: object) -> None:
        for child in (*self._loads, self.operator):
            child.stop()

    # ---- processes ----

    def start_operator(self) -> dict[str, Any]:
        """Start an operator on the same port and state as the one before it; returns where to connect."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        self.operator = self._new_operator()
        self.operator.start()
        return wait_for_json(ready, self.operator, READY_DEADLINE_S)

    def where(self) -> dict[str, Any]:
        """Where to connect."""
        return wait_for_json(self.folder / "ready.json", self.operator, READY_DEADLINE_S)

    def start_devices(self, *, at_once: int = AT_ONCE) -> None:
        """Let the devices dial, `at_once` of each process."""
        where = self.where()
        for number, count in enumerate(self._shares):
            child = self.child(
                f"load-{number}",
                [
                    "hack.bench.load", "--gateway", where["address"], "--gateway-folder", where["gateway_folder"],
                    "--prefix", f"idle-{number}",
                    "--count", str(count), "--seed", str(number), "--at-once", str(at_once),
                    "--state", str(self._load_state(number)),
                ],
            )  # fmt: skip
            self._loads.append(child)
            child.start()

    def kill_operator(self) -> float:
        """SIGKILL it; returns the monotonic time just before."""
        pid = self.operator.pid
        if pid is None:
            raise BenchError(f"the operator ended by itself; the end of its log:\n{last_lines(self.operator.log)}")
        now = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self.operator.stop()
        return now

    def child(self, name: str, module: list[str]) -> Child:
        """A Python process with its log in the folder, not yet started."""
        return Child(
            name,
            [sys.executable, "-m", *module],
            log=self.folder / f"{name}.log",
            folder=Path.cwd(),
            stop_deadline_s=STOP_DEADLINE_S,
        )

    # ---- what they say ----

    def operator_state(self) -> dict[str, Any]:
        """What the operator says of itself."""
        return wait_for_json(self.folder / "state.json", self.operator, READY_DEADLINE_S)

    def devices_state(self) -> dict[str, float]:
        """What all devices say of themselves, added up."""
        totals: dict[str, float] = {}
        for number, child in enumerate(self._loads):
            state = wait_for_json(self._load_state(number), child, READY_DEADLINE_S)
            for key, value in state.items():
                totals[key] = totals.get(key, 0.0) + value
        return totals

    def until(self, condition: Callable[[dict[str, float]], bool], what: str, deadline_s: float) -> float:
        """Wait until the devices say so; returns the monotonic time.

        Raises:
            BenchError: they do not within the deadline.
        """
        end = time.monotonic() + deadline_s
        while True:
            state = self.devices_state()
            if condition(state):
                return time.monotonic()
            if time.monotonic() > end:
                raise BenchError(f"not within {deadline_s:.0f} s: {what}; the devices say {state}")
            time.sleep(POLL_S)

    def _load_state(self, number: int) -> Path:
        return self.folder / f"load-{number}.json"

    def _new_operator(self) -> Child:
        self._starts += 1
        return self.child(
            f"operator-{self._starts}",
            [
                "hack.bench.host_process", "--port", str(self.port), "--state-dir", str(self.folder / "state"),
                "--jobs", str(self.jobs), "--ready", str(self.folder / "ready.json"),
                "--state", str(self.folder / "state.json"),
            ],
        )  # fmt: skip


def wait_for_json(path: Path, child: Child, deadline_s: float) -> dict[str, Any]:
    """The content of a file that appears whole.

    Raises:
        BenchError: it does not appear within the deadline, or the process that writes it has ended.
    """
    end = time.monotonic() + deadline_s
    while not path.exists():
        if child.pid is None or time.monotonic() > end:
            raise BenchError(f"{child.name} did not write {path.name}; the end of its log:\n{last_lines(child.log)}")
        time.sleep(POLL_S)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _free_port() -> int:
    # Below the range from which outgoing connections get theirs: while the operator is down, none may take it.
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(lowest - 1, 1024, -1):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise BenchError("no free port")
