"""The real servicer and the real engine, without a network: streams are queues. One honest device, one that is not."""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.inbox import AssemblyRoom
from pocketgrid.gateway.register import DeviceRecord
from pocketgrid.gateway.servicer import Servicer
from pocketgrid.gateway.session import DeviceSession
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import JobSpec
from pocketgrid.model.view import Stage
from pocketgrid.settings import EngineSettings, GatewaySettings
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.gateway.grid import a_hello, a_job, check_output, computed, until

ITEMS, PER_SHARD = 60, 5
ENGINE = EngineSettings(tick_seconds=0.01, reconnect_grace_seconds=0.01, lease_minimum_seconds=0.5)
GATEWAY = GatewaySettings(heartbeat_seconds=5.0, silence_seconds=20.0, hello_seconds=5.0)


class Wire:
    """One stream, as the servicer sees it."""

    def __init__(self, device: str, heard: Callable[[pb.GatewayMessage], None]) -> None:
        self._device = device
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self._heard = heard
        self._incoming = framing.Reassembler(pb.GatewayMessage)

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._said.put_nowait(piece)

    def hang_up(self) -> None:
        self._said.put_nowait(grpc.aio.EOF)

    async def read(self) -> Any:
        piece = await self._said.get()
        if piece is grpc.aio.EOF:
            self._said.put_nowait(piece)
        return piece

    async def write(self, piece: bytes | pb.GatewayMessage) -> None:
        message = pb.GatewayMessage.FromString(piece) if isinstance(piece, bytes) else piece
        whole = self._incoming.feed(message)
        if whole is not None:
            self._heard(whole)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise grpc.aio.AbortError(f"{code}: {details}")

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return ()

    def auth_context(self) -> dict[str, list[bytes]]:
        name = f"spiffe://{GATEWAY.trust_domain}/device/{self._device}"
        return {"peer_spiffe_id": [name.encode()], "x509_common_name": [b"key"]}

    def peer(self) -> str:
        return "memory"


class Everybody:
    """A register that knows all devices."""

    def __init__(self) -> None:
        self.on_change: Callable[[DeviceName], None] = lambda _: None

    def find(self, device: DeviceName) -> DeviceRecord:
        return DeviceRecord(device, "key", "tester")

    async def enrol(self, record: DeviceRecord) -> None:
        raise AssertionError("nobody enrols here")


class Errors(logging.Handler):
    """What was logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


class Honest:
    """Does what it is told."""

    def __init__(self) -> None:
        self.wire = Wire("honest", self.hear)
        self.orders: dict[str, pb.WorkOrder] = {}
        self.refusals: list[pb.Refusal] = []

    def say(self, **body: Any) -> None:
        self.wire.say(*framing.serialise(pb.DeviceMessage(**body)))

    def hear(self, message: pb.GatewayMessage) -> None:
        match message.WhichOneof("body"):
            case "work_order":
                order = message.work_order
                ready = pb.ModelReport.STATE_READY
                report = pb.ModelReport(
                    job=order.job, model_sha256=order.model_sha256, state=ready, items_per_second=1000
                )
                self.say(model_report=report)
            case "lease":
                self.say(results=pb.Results(job=message.lease.job, results=[computed(s) for s in message.lease.shards]))
            case "revoke":
                self.say(returned=pb.Returned(job=message.revoke.job))
            case "refusal":
                self.refusals.append(message.refusal)


@dataclass
class Hostile:
    """Remembers what it was told."""

    orders: list[pb.WorkOrder] = field(default_factory=list)
    shards: list[tuple[str, pb.Shard]] = field(default_factory=list)
    refused: bool = False

    def __post_init__(self) -> None:
        self.wire = Wire("hostile", self.hear)

    def hear(self, message: pb.GatewayMessage) -> None:
        match message.WhichOneof("body"):
            case "work_order":
                self.orders.append(message.work_order)
            case "lease":
                self.shards += [(message.lease.job, s) for s in message.lease.shards]
            case "refusal":
                self.refused = True


@dataclass
class World:
    engine: Engine
    servicer: Servicer
    spec: JobSpec
    errors: Errors
    worst_queue: int = 0

    @contextlib.asynccontextmanager
    async def attached(self, wire: Wire) -> AsyncIterator[asyncio.Task[None]]:
        """A stream for the length of a block; it must end when its device hangs up."""
        task = asyncio.ensure_future(self.servicer.Attach(None, wire))  # type: ignore[arg-type]
        try:
            yield task
        finally:
            wire.hang_up()
            async with asyncio.timeout(10.0):
                with contextlib.suppress(grpc.aio.AbortError):
                    await task

    async def breathe(self, turns: int = 6) -> None:
        """Let what was said be heard."""
        for _ in range(turns):
            await asyncio.sleep(0)
            for session in self.servicer._sessions.values():
                self._check_bounds(session)

    async def job_complete(self) -> None:
        await until(lambda: self.engine.job_view(self.spec.uid).stage is Stage.COMPLETE, "the job is complete", 15.0)

    def _check_bounds(self, session: DeviceSession) -> None:
        assert session.queued <= session._limit
        assert session._queued_bytes <= session._limit_bytes
        self.worst_queue = max(self.worst_queue, session._queued_bytes)

    def check(self) -> None:
        """What must be so once everybody has left."""
        machine = self.engine._grid.jobs[self.spec.uid].machine
        assert machine is not None
        machine.validate()
        assert self.servicer.sessions == 0
        assert isinstance(self.servicer._room, AssemblyRoom)
        assert self.servicer._room.free_bytes == GATEWAY.assembly_bytes
        assert self.engine.devices._orphan_bytes == 0
        left = [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith(("send-", "read-", "end-"))]
        assert not left, left


@contextlib.asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    """An engine with one small job, and nobody to work for it yet."""
    errors = Errors()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.found.append(str(context)))
    logging.getLogger().addHandler(errors)
    try:
        with tempfile.TemporaryDirectory() as folder:
            clock = SystemClock()
            spec = a_job(Path(folder), items=ITEMS, per_shard=PER_SHARD)
            async with Engine(ENGINE, clock, Path(folder) / "models", nodes_from_facts=True) as engine:
                engine.submit(spec)
                world = World(engine, Servicer(engine, GATEWAY, clock, Everybody(), None), spec, errors)
                yield world
                world.check()
            check_output(spec, ITEMS)
        assert not errors.found, errors.found
    finally:
        logging.getLogger().removeHandler(errors)


def hello(name: str) -> bytes:
    return pb.DeviceMessage(hello=a_hello(name)).SerializeToString()
