"""A real engine behind a real gateway, and a device written by hand that dials it over TLS."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
import pyarrow.dataset as ds

from hack import joining
from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.convert import is_name
from pocketgrid.gateway.filestores import FileRegister
from pocketgrid.gateway.identity import GatewayIdentity
from pocketgrid.gateway.register import DeviceRecord
from pocketgrid.gateway.server import Gateway
from pocketgrid.model.ids import DeviceName, JobUid, ModelDigest
from pocketgrid.model.job import (
    ColumnBinding,
    InputFormat,
    InputRef,
    JobSpec,
    ModelRef,
    OutputFormat,
    OutputRef,
    Sharding,
)
from pocketgrid.model.view import Stage
from pocketgrid.settings import EngineSettings, GatewaySettings
from pocketgrid.storage.results import verify
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid.wire.v1 import agent_pb2_grpc as rpc
from pocketgrid_agent.credentials import Credentials
from tests.fakes.models import write_affine_model, write_npy

DEADLINE_S = 20.0
ENGINE = EngineSettings(tick_seconds=0.02, reconnect_grace_seconds=0.2, readmission_seconds=0.1)
GATEWAY = GatewaySettings(heartbeat_seconds=0.1, silence_seconds=0.6, hello_seconds=0.5)


async def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition, or fail naming it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        await asyncio.sleep(0.005)


KEY = joining.make_device_key(Path(tempfile.mkdtemp(prefix="pocketgrid-key-")))
"""One key for all devices made by hand: making them takes time, and what tells devices apart is their certificate."""


@dataclass
class Grid:
    engine: Engine
    gateway: Gateway
    folder: Path

    @property
    def identity(self) -> GatewayIdentity:
        return self.gateway.identity

    @property
    def gateway_folder(self) -> Path:
        return self.folder / "gateway"

    async def credentials(self, name: str, *, owner: str = "tester", **of_record: Any) -> Credentials:
        """Enrol a device."""
        record = DeviceRecord(DeviceName(name), KEY.sha256, owner, **of_record)
        await FileRegister(self.gateway_folder).enrol(record)
        (made,) = await joining.certify(self.gateway_folder, KEY, [name], self.gateway.address)
        return made

    def stage(self, spec: JobSpec) -> Stage | None:
        view = self.engine.job_view(spec.uid)
        return view.stage if view is not None else None

    async def finished(self, spec: JobSpec) -> None:
        await until(lambda: self.stage(spec) is Stage.COMPLETE, f"{spec.name} complete")


@asynccontextmanager
async def a_grid(folder: Path, *, engine: EngineSettings = ENGINE, **gateway: Any) -> AsyncIterator[Grid]:
    clock = SystemClock()
    async with (
        Engine(engine, clock, folder / "models", nodes_from_facts=True) as running,
        Gateway(running, replace(GATEWAY, **gateway), clock, folder / "gateway") as listening,
    ):
        yield Grid(running, listening, folder)


def a_job(folder: Path, items: int = 200, per_shard: int = 10, name: str = "job", width: int = 4) -> JobSpec:
    model, data = folder / f"model-{width}.onnx", folder / f"{name}.npy"
    sha256 = write_affine_model(model, width) if not model.exists() else hashlib.sha256(model.read_bytes()).hexdigest()
    if not data.exists():
        write_npy(data, items, width)
    return JobSpec(
        uid=JobUid(f"uid-{name}"),
        namespace="default",
        name=name,
        model=ModelRef(f"file://{model}", ModelDigest(sha256)),
        input=InputRef(f"file://{data}", InputFormat.NPY, columns=(ColumnBinding("data", "x"),)),
        output=OutputRef(f"file://{folder}/out-{name}", OutputFormat.PARQUET),
        sharding=Sharding(items_per_shard=per_shard, lease_seconds=1.0),
    )


def check_output(spec: JobSpec, items: int, width: int = 4) -> None:
    assert verify(spec.output.uri) == []
    table = ds.dataset(spec.output.uri.removeprefix("file://"), format="parquet").to_table()
    assert table["row"].to_pylist() == list(range(items))
    found = np.array(table["y"].to_pylist(), dtype=np.float32)
    np.testing.assert_array_equal(found, np.arange(items * width, dtype=np.float32).reshape(items, width) * 2 + 1)


def a_hello(name: str = "device-1", **changes: Any) -> pb.Hello:
    fields: dict[str, Any] = {
        "protocol_version": framing.PROTOCOL_VERSION,
        "device_name": name,
        "boot_id": "boot-1",
        "facts": pb.DeviceFacts(kind="sbc", arch="arm64", os="linux", cores=4, memory_bytes=4 << 30, engine="by hand"),
        "slots": 1,
        "credits": pb.Credits(shards=64, bytes=32 << 20),
    }
    return pb.Hello(**{**fields, **changes})


def computed(shard: pb.Shard) -> pb.ShardResult:
    (x,) = shard.inputs
    y = np.frombuffer(x.data, x.dtype).reshape(tuple(x.shape)) * np.float32(2) + np.float32(1)
    return pb.ShardResult(
        shard=shard.index,
        token=shard.token,
        compute_us=1000 * shard.items,
        outputs=[pb.Tensor(dtype="float32", shape=y.shape, data=y.tobytes())],
    )


@dataclass
class Device:
    """A device's end of one stream. Writes are made one at a time, by whoever holds the test's thread of thought."""

    grid: Grid
    hello: pb.Hello = field(default_factory=a_hello)
    credentials: Credentials | None = None
    address: str = ""

    def __post_init__(self) -> None:
        self.received: list[pb.GatewayMessage] = []
        self.fragments = 0
        self.largest = 0
        self.session_id = ""
        self._reassembler = framing.Reassembler(pb.GatewayMessage)
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        if self.credentials is None:
            name = self.hello.device_name if is_name(self.hello.device_name) else "device-1"
            self.credentials = await self.grid.credentials(name, owner=self.hello.owner or "tester")
        held = self.credentials
        credentials = grpc.ssl_channel_credentials(held.bundle_pem, held.key_pem, held.chain_pem)
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.secure_channel(self.address or self.grid.gateway.address, credentials, options=options)
        self.stub: Any = rpc.DeviceGatewayStub(self.channel)
        self.call = self.stub.Attach()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.call.cancel()
        await self.channel.close(None)

    async def attach(self) -> pb.Welcome:
        await self.say(hello=self.hello)
        welcome = (await self.hear()).welcome
        self.session_id = welcome.session_id
        return welcome

    async def say(self, **body: Any) -> None:
        async with self._lock:
            for piece in framing.split(pb.DeviceMessage(**body)):
                await self.call.write(piece)

    async def hear(self) -> pb.GatewayMessage | None:
        """The next message, or None at the end of the stream."""
        async with asyncio.timeout(DEADLINE_S):
            while (piece := await self.call.read()) is not grpc.aio.EOF:
                self.fragments += piece.HasField("fragment")
                self.largest = max(self.largest, piece.ByteSize())
                message = self._reassembler.feed(piece)
                if message is not None:
                    self.received.append(message)
                    if message.HasField("refusal"):
                        await self.call.done_writing()
                    return message
        return None

    async def hear_of(self, body: str) -> Any:
        """The next message of that sort, skipping others."""
        while (message := await self.hear()) is not None:
            if message.HasField(body):
                return getattr(message, body)
        raise AssertionError(f"the stream ended without {body}; received {self.kinds()}")

    def kinds(self) -> list[str]:
        return [str(m.WhichOneof("body")) for m in self.received]

    async def report_ready(self, order: pb.WorkOrder) -> None:
        report = pb.ModelReport(
            job=order.job, model_sha256=order.model_sha256, state=pb.ModelReport.STATE_READY, items_per_second=10_000
        )
        await self.say(model_report=report)

    async def ready_for_work(self) -> pb.WorkOrder:
        order: pb.WorkOrder = await self.hear_of("work_order")
        await self.report_ready(order)
        return order

    async def work_until_cancelled(self) -> None:
        """Do what is asked until the job is withdrawn."""
        while (message := await self.hear()) is not None:
            match message.WhichOneof("body"):
                case "cancel" if not message.cancel.tokens:
                    return
                case "work_order":
                    await self.report_ready(message.work_order)
                case "lease":
                    results = [computed(s) for s in message.lease.shards]
                    await self.say(results=pb.Results(job=message.lease.job, results=results))
                case "revoke":
                    await self.say(returned=pb.Returned(job=message.revoke.job))
        raise AssertionError(f"the stream ended; received {self.kinds()}")

    async def beat(self, every_s: float = 0.05) -> None:
        sequence = 0
        while True:
            sequence += 1
            await self.say(heartbeat=pb.Heartbeat(sequence=sequence))
            await asyncio.sleep(every_s)

    async def fetch(self, digest: str, offset: int = 0, *, session: str | None = None) -> bytes:
        named = (framing.SESSION_KEY, self.session_id if session is None else session)
        call = self.stub.FetchModel(pb.FetchModelRequest(sha256=digest, offset=offset), metadata=(named,))
        data = b""
        async for chunk in call:
            assert chunk.offset == offset + len(data)
            data += chunk.data
        return data


@asynccontextmanager
async def background(*work: Any) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Tasks for the length of a test; what they raised is of interest to those who look."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
