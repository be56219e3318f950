"""A grid of real processes in which faults can be made: operators, agents, and a proxy before each agent.

Responsible for what a fault is, in processes, sockets and files; `schedule` says which come when, `checker` what may
not come of them. In schedules time-outs are shorter than the product's own, so that a run takes seconds (`QUICK`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hack import joining
from pocketgrid.settings import EngineSettings, GatewaySettings
from pocketgrid_agent.credentials import FILE, KEY_FILE
from pocketgrid_agent.engine_facts import known_facts
from tests.faults.checker import Expected
from tests.faults.nursery import Birth, Nursery, Process
from tests.faults.proxy import CLEAR, Conditions, FaultProxy
from tests.faults.schedule import Fault


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a grid is, and how fast its lines are.

    Attributes:
        silence_s: a link on which nothing is heard for so long is dropped.
        grace_s: a device whose link broke keeps its leases for so long.
        lease_minimum_s: shortest deadline of a lease.
        line: the way up from each device when nothing is wrong.
        ahead_bytes: results a device may have that are not settled; with more it begins nothing.
        memory_bytes: budget of a device, from which its credits follow: 64 shards for 32 MiB.
    """

    silence_s: float
    grace_s: float
    lease_minimum_s: float
    line: Conditions
    ahead_bytes: int
    memory_bytes: int


QUICK = Timing(3.0, 0.4, 6.0, Conditions(bytes_per_s=150e3), ahead_bytes=128 << 10, memory_bytes=32 << 20)
"""For schedules of a few seconds. Lines are slow so that a job that computes little takes seconds, and there is
something to interrupt on a machine with two cores; and as computing is quick, devices are made not to do all of it at
once."""

AS_SHIPPED = Timing(
    GatewaySettings().silence_seconds,
    EngineSettings().reconnect_grace_seconds,
    EngineSettings().lease_minimum_seconds,
    CLEAR,
    ahead_bytes=256 << 20,
    memory_bytes=1 << 30,
)

FULL_DISK_BYTES = 128 << 10
"""Files of a process whose disk is full may not grow beyond this, a dozen results. Its history is begun anew and stays
below; where it does not, nothing can be said of the run."""

CLOCK_NOTICED_S = 2.2
"""libfaketime looks about once a second how late it is to be."""

RESTART_S = 0.2
"""Between looks at whether a process must be started again."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is computed: a model, rows and a manifest, the same for many runs."""

    folder: Path
    values: np.ndarray
    per_shard: int

    @property
    def expected_values(self) -> np.ndarray:
        """What the model makes of each row."""
        return self.values * np.float32(2) + np.float32(1)

    def manifest(self, output: Path) -> dict[str, object]:
        """The job, writing to `output`."""
        model = self.folder / "model.onnx"
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        return {
            "apiVersion": "pocketgrid.dev/v1alpha1",
            "kind": "InferenceJob",
            "metadata": {"name": "faults", "namespace": "default"},
            "spec": {
                "model": {"uri": model.as_uri(), "sha256": digest},
                "input": {
                    "uri": (self.folder / "values.npy").as_uri(),
                    "format": "NPY",
                    "columns": [{"column": "data", "input": "x"}],
                },
                "output": {"uri": output.as_uri()},
                "sharding": {"itemsPerShard": self.per_shard, "leaseSeconds": 1},
            },
        }


def make_job(
    folder: Path, *, shards: int, per_shard: int = 20, width: int = 128, inner: int = 128, loops: int = 4
) -> Job:
    """A job whose every row has a result of its own, ``y = 2x + 1``, after idle work that takes time.

    Args:
        width: numbers in a row; all values are whole and exact in float32.
        inner, loops: so many products with an identity of this size, 2 x inner^2 operations each for every row.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    names = [f"h{n}" for n in range(loops + 1)]
    nodes = [helper.make_node("MatMul", ["x", "widen"], [names[0]])]
    nodes += [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    nodes += [
        helper.make_node("MatMul", [names[-1], "narrow"], ["n"]),
        helper.make_node("Mul", ["n", "two"], ["d"]),
        helper.make_node("Add", ["d", "one"], ["y"]),
    ]
    constants = {"widen": np.eye(width, inner, dtype=np.float32), "narrow": np.eye(inner, width, dtype=np.float32)}
    constants |= {"w": np.eye(inner, dtype=np.float32), "two": np.float32(2), "one": np.float32(1)}
    graph = helper.make_graph(
        nodes,
        "faults",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    values = np.arange(shards * per_shard * width, dtype=np.float32).reshape(-1, width)
    np.save(folder / "values.npy", values)
    # What an agent finds out about its engine at its first start costs a process of its own; here all have been before.
    (folder / "agent").mkdir()
    known_facts(folder / "agent")
    return Job(folder, values, per_shard)


@dataclass
class Device:
    """One agent: its proxy, its folder, its process."""

    name: str
    folder: Path
    proxy: FaultProxy
    process: Process | None = None
    births: int = 0
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    file_bytes: int = 0


@dataclass
class Operator:
    """One operator process on a port of its own."""

    name: str
    port: int
    process: Process


class World:
    """Use as an async context manager; `strike` makes a fault and mends it, `heal` mends what is left.

    Args:
        folder: of this run.
        devices: how many agents.
        timing: how patient it is.
    """

    def __init__(
        self, folder: Path, job: Job, nursery: Nursery, rng: random.Random, devices: int, timing: Timing = QUICK
    ) -> None:
        self._timing = timing
        self._folder = folder
        self._job = job
        self._nursery = nursery
        self._rng = rng
        self._shared = job.folder / "operator"
        self._report = folder / "report.json"
        self._births = itertools.count(1)
        self._operator: Operator | None = None
        self._operator_busy = asyncio.Lock()
        self._others: list[Operator] = []
        self.devices = [
            Device(f"device-{n}", folder / f"device-{n}", FaultProxy(0, random.Random(rng.random())))
            for n in range(devices)
        ]

    @property
    def output(self) -> Path:
        """Folder of the results."""
        return self._folder / "output"

    @property
    def expected(self) -> Expected:
        """What the run should come to."""
        return Expected(self.output, self._job.expected_values, self._job.per_shard)

    @property
    def histories(self) -> list[Path]:
        """All files of what happened."""
        return sorted(self._folder.glob("history-*.jsonl"))

    @property
    def cut_histories(self) -> list[str]:
        """Those that a disk made full by us has cut short."""
        return [path.name for path in self.histories if path.stat().st_size == FULL_DISK_BYTES]

    @property
    def finished(self) -> bool:
        """Whether an operator has said that the job ended."""
        return self._report.exists()

    def outcome(self) -> dict[str, object]:
        """What that operator said."""
        said: dict[str, object] = json.loads(self._report.read_text())
        return said

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        """Start everything; at the end of the block, end everything."""
        self._folder.mkdir(parents=True)
        (self._folder / "job.json").write_text(json.dumps(self._job.manifest(self.output)))
        try:
            self._operator = await self._start_operator()
            for device in self.devices:
                device.folder.mkdir()
                device.proxy.target = self._operator.port
                device.proxy.up = self._timing.line
                await device.proxy.listen()
                await self._start_agent(device)
            yield self
        finally:
            processes = [d.process for d in self.devices] + [o.process for o in self._operators()]
            for process in processes:
                if process is not None:
                    await process.kill()
            for device in self.devices:
                await device.proxy.close()

    async def strike(self, fault: Fault) -> None:
        """Make one fault, wait while it lasts, mend it."""
        await getattr(self, f"_{fault.kind}")(fault)

    async def heal(self) -> None:
        """No more faults: everything runs and can be reached."""
        for device in self.devices:
            async with device.busy:
                device.proxy.clear()
                device.proxy.up = self._timing.line
                await device.proxy.listen()
                if device.process is None or not device.process.alive:
                    await self._start_agent(device)
        async with self._operator_busy:
            if not self._current.process.alive and not self.finished:
                await self._replace_operator()

    async def begun(self, deadline_s: float) -> None:
        """Wait until a shard is committed, or the deadline."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while True:
                    if any(b'"kind":"committed"' in file.read_bytes() for file in self.histories):
                        return
                    await asyncio.sleep(RESTART_S / 4)

    async def ended(self) -> None:
        """Wait until an operator says that the job has ended."""
        while True:
            if self.finished:
                return
            await asyncio.sleep(RESTART_S / 4)

    async def completed(self, deadline_s: float) -> bool:
        """Wait until the job has ended, starting again what dies; False if it takes too long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while not self.finished:
            if loop.time() > end:
                return False
            # An operator that was fenced off by one that is gone ends by itself, as in a Pod that is started again.
            await self.heal()
            await asyncio.sleep(RESTART_S)
        return True

    # ---- faults of agents ----

    async def _agent_killed(self, fault: Fault) -> None:
        async with self._dead(fault):
            pass

    async def _agent_stopped(self, fault: Fault) -> None:
        process = self.devices[fault.device].process
        if process is not None:
            with _stopped(process):
                await asyncio.sleep(fault.lasts_s)

    async def _device_twice(self, fault: Fault) -> None:
        """A second process of the same name: with its own state as a copied phone has it, or with the same."""
        device = self.devices[fault.device]
        folder = device.folder if fault.number < 0.3 else device.folder / "twin"
        twin = await self._bear_agent(device, folder)
        await asyncio.sleep(fault.lasts_s)
        await twin.kill()

    async def _agent_disk_full(self, fault: Fault) -> None:
        device = self.devices[fault.device]
        async with self._dead(replace(fault, lasts_s=0.0)):
            device.file_bytes = FULL_DISK_BYTES
        await asyncio.sleep(fault.lasts_s)
        async with self._dead(replace(fault, lasts_s=0.0)):
            device.file_bytes = 0

    async def _journal_removed(self, fault: Fault) -> None:
        async with self._dead(fault) as device:
            for file in (device.folder / "state").glob("journal*"):
                file.unlink(missing_ok=True)

    async def _journal_damaged(self, fault: Fault) -> None:
        async with self._dead(fault) as device:
            for file in sorted((device.folder / "state").glob("journal.sqlite3*")):
                self._damage(file, fault.number)

    async def _cache_damaged(self, fault: Fault) -> None:
        async with self._dead(fault) as device:
            for file in (device.folder / "cache").rglob("*"):
                if file.is_file():
                    self._damage(file, fault.number)

    async def _clock_jumps(self, fault: Fault) -> None:
        device = self.devices[fault.device]
        _set_clock(device, fault.number)
        await asyncio.sleep(CLOCK_NOTICED_S)
        # Certificates are looked at when a connection is made, so there has to be a new one.
        device.proxy.cut(reset=True)
        await asyncio.sleep(fault.lasts_s)
        _set_clock(device, 0.0)

    # ---- faults of links ----

    async def _link_cut(self, fault: Fault) -> None:
        self.devices[fault.device].proxy.cut(reset=fault.number < 0.5)

    async def _link_half_open(self, fault: Fault) -> None:
        self.devices[fault.device].proxy.half_open()

    async def _link_stalled(self, fault: Fault) -> None:
        await self._weather(fault, Conditions(stalled=True))

    async def _link_swallows(self, fault: Fault) -> None:
        await self._weather(fault, Conditions(swallowing=True))
        # A stream with a hole in it is of no use to anybody; a network that lost packets would not let it go on.
        self.devices[fault.device].proxy.cut(reset=True)

    async def _link_throttled(self, fault: Fault) -> None:
        await self._weather(fault, Conditions(bytes_per_s=fault.number))

    async def _link_delayed(self, fault: Fault) -> None:
        await self._weather(fault, Conditions(delay_s=fault.number, jitter_s=fault.number))

    async def _link_refused(self, fault: Fault) -> None:
        proxy = self.devices[fault.device].proxy
        proxy.accept_delay_s = fault.lasts_s
        proxy.refuse()
        proxy.cut(reset=False)
        await asyncio.sleep(fault.lasts_s)
        await proxy.listen()

    async def _weather(self, fault: Fault, conditions: Conditions) -> None:
        proxy = self.devices[fault.device].proxy
        if fault.way in ("up", "both"):
            proxy.up = conditions
        if fault.way in ("down", "both"):
            proxy.down = conditions
        await asyncio.sleep(fault.lasts_s)
        proxy.up, proxy.down = self._timing.line, CLEAR

    # ---- faults of operators ----

    async def _operator_killed(self, fault: Fault) -> None:
        async with self._operator_busy:
            await self._current.process.kill()
            await asyncio.sleep(fault.lasts_s)
            await self._replace_operator(same_port=fault.number < 0.7)

    async def _operator_stopped(self, fault: Fault) -> None:
        with _stopped(self._current.process):
            await asyncio.sleep(fault.lasts_s)

    async def _operator_replaced(self, fault: Fault) -> None:
        """A second operator on the same output, while the first still runs, or stands still and wakes up later."""
        async with self._operator_busy:
            first = self._current
            with _stopped(first.process) if fault.number < 0.5 else contextlib.nullcontext():
                self._others.append(first)
                self._operator = await self._start_operator()
                for device in self.devices:
                    # Some devices stay with the first one for as long as it lets them.
                    device.proxy.target = self._operator.port
                    if self._rng.random() < 0.5:
                        device.proxy.cut(reset=True)
                await asyncio.sleep(fault.lasts_s)
            for device in self.devices:
                device.proxy.cut(reset=False)
        # The first must find out by itself, so that it acknowledges nothing more; it is not killed here.

    async def _operator_disk_full(self, fault: Fault) -> None:
        async with self._operator_busy:
            await self._current.process.kill()
            await self._replace_operator(file_bytes=FULL_DISK_BYTES)
            await asyncio.sleep(fault.lasts_s)
            await self._current.process.kill()
            await self._replace_operator()

    async def _log_torn(self, fault: Fault) -> None:
        """Killed in the middle of an append: the last line of the log and of the staging are cut or garbage."""
        async with self._operator_busy:
            await self._current.process.kill()
            for kind in ("log", "staging"):
                files = sorted((self.output / "_pocketgrid" / kind).glob("*"))
                if files:
                    with files[-1].open("ab") as tail:
                        tail.write(self._rng.randbytes(self._rng.randint(1, 300)).replace(b"\n", b""))
            await asyncio.sleep(fault.lasts_s)
            await self._replace_operator()

    # ---- processes ----

    @property
    def _current(self) -> Operator:
        assert self._operator is not None
        return self._operator

    def _operators(self) -> list[Operator]:
        return [*self._others, self._operator] if self._operator is not None else []

    async def _replace_operator(self, *, same_port: bool = True, file_bytes: int = 0) -> None:
        port = self._current.port if same_port else 0
        if port and any(o.port == port and o.process.alive for o in self._others):
            port = 0
        self._operator = await self._start_operator(port, file_bytes)
        for device in self.devices:
            device.proxy.target = self._operator.port

    async def _start_operator(self, port: int = 0, file_bytes: int = 0) -> Operator:
        number = next(self._births)
        name = f"operator-{number}"
        port = port or _free_port()
        arguments = [
            str(self._folder / "job.json"), "--name", name, "--port", str(port), "--state-dir", str(self._shared),
            "--history", str(self._folder / f"history-{name}.jsonl"), "--report", str(self._report),
            "--silence", str(self._timing.silence_s), "--lease-minimum", str(self._timing.lease_minimum_s),
            "--grace", str(self._timing.grace_s),
        ]  # fmt: skip
        log = str(self._folder / f"{name}.log")
        return Operator(name, port, await self._nursery.bear(Birth("operator", arguments, log, file_bytes=file_bytes)))

    async def _start_agent(self, device: Device) -> None:
        device.process = await self._bear_agent(device, device.folder)

    async def _bear_agent(self, device: Device, folder: Path) -> Process:
        name = f"{device.name}-{next(self._births):03d}"
        arguments = [
            "--gateway", f"127.0.0.1:{device.proxy.port}", "--name", device.name, "--threads", "1",
            "--state-dir", str(folder / "state"), "--cache-dir", str(folder / "cache"),
            "--history", str(self._folder / f"history-{name}.jsonl"), "--log-level", "info",
            "--journal-budget", str(self._timing.ahead_bytes), "--memory-budget", str(self._timing.memory_bytes),
        ]  # fmt: skip
        if not (folder / "state").exists():
            shutil.copytree(self._job.folder / "agent", folder / "state")
        # The worlds of a campaign share one gateway folder, and so the devices that are known there.
        joined = self._shared / "joined" / device.name
        if not (joined / FILE).exists():
            await joining.enrol(self._shared / "gateway", joined, device.name, "127.0.0.1:1", owner="chaos")
        if not (folder / "state" / FILE).exists():
            # A twin is a copy, key and all; another key under the same name would be shut out.
            for file in (KEY_FILE, FILE):
                shutil.copy(joined / file, folder / "state" / file)
        clock = device.folder / "clock"
        if not clock.exists():
            _set_clock(device, 0.0)
        environment = {"FAKETIME_TIMESTAMP_FILE": str(clock), "HOME": str(folder)}
        log = str(self._folder / f"{name}.log")
        return await self._nursery.bear(Birth("agent", arguments, log, environment, device.file_bytes))

    @contextlib.asynccontextmanager
    async def _dead(self, fault: Fault) -> AsyncIterator[Device]:
        """Kill the victim, let the block do something to what it left behind, and start it again."""
        device = self.devices[fault.device]
        async with device.busy:
            if device.process is not None:
                await device.process.kill()
            yield device
            await asyncio.sleep(fault.lasts_s)
            await self._start_agent(device)

    def _damage(self, file: Path, where: float) -> None:
        size = file.stat().st_size
        if size:
            with file.open("r+b") as victim:
                victim.seek(int(where * max(size - 64, 0)))
                victim.write(self._rng.randbytes(min(64, size)))


@contextlib.contextmanager
def _stopped(process: Process) -> Iterator[None]:
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


def _set_clock(device: Device, offset_s: float) -> None:
    # libfaketime reads it at every question; whole or not at all.
    fresh = device.folder / "clock.new"
    fresh.write_text(f"{offset_s:+.0f}\n")
    fresh.replace(device.folder / "clock")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
