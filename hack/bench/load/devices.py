"""Devices that attach, report, answer and come back as the agent does, and never work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from pocketgrid.clock import Rng
from pocketgrid.errors import RefusedError
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent.backoff import Backoff
from pocketgrid_agent.events import Token
from pocketgrid_agent.link import Link
from pocketgrid_agent.stream import Target

AT_ONCE = 64
"""Devices that dial for the first time at the same moment. Once a device is attached, the next one dials; real devices
are not switched on by the thousand within a second."""


@dataclass(frozen=True, slots=True)
class FleetState:
    """How a fleet is at one moment.

    Attributes:
        attached: devices that were welcomed and have not lost that stream.
        answered: those of them that had a heartbeat answered on it: proof that both directions work.
        welcomes: streams that were welcomed, so far.
        lost: streams that were lost after that, so far.
        refused: devices sent away for good.
    """

    attached: int
    answered: int
    welcomes: int
    lost: int
    refused: int


@dataclass(eq=False)
class IdleDevice:
    """One device; plays the owner of its link.

    Attributes:
        attached: welcomed, and that stream is still there.
        dials: how often it has dialled.
        welcomes, lost_streams: streams begun and lost.
    """

    name: str
    attached: bool = False
    dials: int = 0
    welcomes: int = 0
    lost_streams: int = 0
    refused: bool = False
    link: Link | None = field(default=None, repr=False)
    first_answer: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    async def run(self, target: Target, rng: Rng) -> None:
        """Dial until cancelled, or until the gateway says never to come again."""
        self.link = Link(target, self, Backoff(rng))
        try:
            await self.link.run()
        except RefusedError:
            self.refused = True
            self.first_answer.set()

    @property
    def answered(self) -> bool:
        """Whether the gateway has answered a heartbeat on the present stream."""
        return self.attached and self.link is not None and self.link.answered > 0

    # ---- what the link asks and says ----

    async def hello(self) -> pb.Hello:
        """What a phone of the middle class would say."""
        if self.dials:
            # It dials again after its own wait, and meanwhile others may try.
            self.first_answer.set()
        self.dials += 1
        return pb.Hello(
            protocol_version=framing.PROTOCOL_VERSION,
            device_name=self.name,
            boot_id=f"boot-{self.name}",
            owner="load",
            facts=pb.DeviceFacts(
                kind="phone",
                arch="arm64",
                os="android",
                cores=8,
                memory_bytes=8 << 30,
                simd=["asimddp", "fp16", "neon"],
                providers=["CPUExecutionProvider"],
                model_name="idle device of a benchmark",
                agent_version="0.1.0",
                engine="onnxruntime 1.32.0",
                opset=26,
            ),
            slots=1,
            credits=pb.Credits(shards=64, bytes=32 << 20),
        )

    async def heartbeat(self, sequence: int) -> pb.Heartbeat:
        """Well, and not working."""
        return pb.Heartbeat(
            sequence=sequence,
            load1=0.5,
            memory_available_bytes=4 << 30,
            battery_percent=80.0,
            charging=True,
            temperature_celsius=30.0,
            network="wifi",
        )

    async def results(self, job: str, tokens: Sequence[Token]) -> AsyncIterator[pb.Results]:
        """Never any."""
        for _ in ():
            yield pb.Results(job=job)

    def welcomed(self, welcome: pb.Welcome) -> None:
        """The stream is open."""
        self.attached = True
        self.welcomes += 1
        self.first_answer.set()

    def received(self, message: pb.GatewayMessage) -> None:
        """Work orders are declined, as by a device that cannot load the model."""
        if message.HasField("work_order") and self.link is not None:
            order = message.work_order
            report = pb.ModelReport(
                job=order.job,
                model_sha256=order.model_sha256,
                state=pb.ModelReport.STATE_FAILED,
                reason="OutOfMemory",
                message="a device of a benchmark loads no models",
            )
            self.link.send(pb.DeviceMessage(model_report=report))

    def lost(self, reason: str) -> None:
        """The stream is gone."""
        self.attached = False
        self.lost_streams += 1


class Fleet:
    """Idle devices on one event loop.

    Args:
        names: of the devices.
        targets: whom each of them dials, and as what.
        rng: for the jitter of their dials.
        at_once: how many dial for the first time before the first of them is attached.
    """

    def __init__(self, names: Sequence[str], targets: Sequence[Target], rng: Rng, *, at_once: int = AT_ONCE) -> None:
        self._targets = targets
        self._at_once = at_once
        self._rng = rng
        self.devices = [IdleDevice(name) for name in names]

    async def run(self) -> None:
        """Let them dial for the first time and keep them going until cancelled."""
        gate = asyncio.Semaphore(self._at_once)
        async with asyncio.TaskGroup() as tasks:
            for device, target in zip(self.devices, self._targets, strict=True):
                await gate.acquire()
                tasks.create_task(device.run(target, self._rng), name=device.name)
                tasks.create_task(_release_when_answered(device, gate))

    def state(self) -> FleetState:
        """How they are now."""
        devices = self.devices
        return FleetState(
            attached=sum(d.attached for d in devices),
            answered=sum(d.answered for d in devices),
            welcomes=sum(d.welcomes for d in devices),
            lost=sum(d.lost_streams for d in devices),
            refused=sum(d.refused for d in devices),
        )


async def _release_when_answered(device: IdleDevice, gate: asyncio.Semaphore) -> None:
    await device.first_answer.wait()
    gate.release()
