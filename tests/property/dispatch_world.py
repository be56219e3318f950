"""The real dispatcher and job machines over devices that are only numbers, under a clock that moves when told.

No event loop, no files: what the engine's tasks would do between two decisions is done at once and in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from pocketgrid.clock import ManualClock
from pocketgrid.engine.dispatcher import Dispatcher
from pocketgrid.engine.fleet import DeviceRecord, Order, OrderState
from pocketgrid.engine.grid import Grid
from pocketgrid.engine.jobrun import JobRun
from pocketgrid.engine.links import LeasedShard, Settlement
from pocketgrid.engine.tokens import AttemptTokens
from pocketgrid.jobs.machine import JobMachine
from pocketgrid.model import events as ev
from pocketgrid.model.device import Credits, DeviceFacts, DeviceIdentity, DeviceKind
from pocketgrid.model.ids import AttemptSeq, DeviceName, Epoch, JobUid, LeaseId, ModelDigest
from pocketgrid.model.job import (
    ACCEPTED,
    InputFormat,
    InputRef,
    JobSpec,
    Limits,
    ModelRef,
    OutputFormat,
    OutputRef,
    Placement,
    ShardGrid,
    Sharding,
    WorkOrder,
)
from pocketgrid.model.view import Presence, Stage
from pocketgrid.planning.speed import SpeedEstimate
from pocketgrid.settings import EngineSettings
from pocketgrid.trust.tokens import KEY_BYTES, TokenMint

MODEL = ModelDigest("0" * 64)
NO_LIMITS = Limits()
CREDIT = Credits(shards=64, bytes=1 << 20)


@dataclass(eq=False)
class Device:
    """Computes one shard after the other; `speed` 0 hangs. Plays its own link."""

    world: "World"
    identity: DeviceIdentity
    speed: float
    loads: bool = True
    queue: list[tuple[JobUid, ev.HandedOut]] = field(default_factory=list)
    unprepared: list[JobUid] = field(default_factory=list)
    revoked: list[bytes] = field(default_factory=list)
    spent: float = 0.0

    def send_order(self, order: WorkOrder) -> None:
        assert order.job not in self.unprepared, "ordered twice"
        self.unprepared.append(order.job)

    def send_lease(self, job: JobUid, lease: LeaseId, ttl_s: float, shards: Sequence[LeasedShard]) -> None:
        raise AssertionError("leases go through `World.feed`")

    def send_revoke(self, job: JobUid, tokens: Sequence[bytes]) -> None:
        self.revoked += tokens

    def send_cancel(self, job: JobUid, tokens: Sequence[bytes]) -> None:
        pass

    def send_settled(self, job: JobUid, settlement: Settlement) -> None:
        pass

    def close(self, reason: str, message: str, *, retry: bool) -> None:
        pass


class World:
    """A grid without its tasks."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.grid = Grid(EngineSettings(), self.clock, nodes_from_facts=True)
        self.dispatcher = Dispatcher(self.grid, self.feed, lambda *_: None)
        self.devices: dict[DeviceName, Device] = {}
        self.committed: dict[JobUid, list[int]] = {}
        self.handed: dict[JobUid, set[DeviceName]] = {}

    # ---- building ----

    def add_job(
        self,
        name: str,
        *,
        items: int = 100,
        per_shard: int = 1,
        lease_seconds: float = 5.0,
        bytes_per_item: float = 100.0,
        model_bytes: int = 1000,
        priority: int = 0,
        max_nodes: int = 0,
        limits: Limits = NO_LIMITS,
    ) -> JobRun:
        uid = JobUid(name)
        spec = JobSpec(
            uid=uid,
            namespace="ns",
            name=name,
            model=ModelRef("file:///m", MODEL),
            input=InputRef("file:///i", InputFormat.NPY),
            output=OutputRef("file:///o", OutputFormat.PARQUET),
            placement=Placement(max_nodes=max_nodes),
            sharding=Sharding(per_shard, lease_seconds),
            limits=limits,
            priority=priority,
        )
        job = JobRun(spec)
        order = WorkOrder(uid, MODEL, model_bytes, (), ())
        admitted = SimpleNamespace(order=order, bytes_per_item=bytes_per_item, items=items)
        job.admission = SimpleNamespace(job=admitted)  # type: ignore[assignment]
        job.store = SimpleNamespace()  # type: ignore[assignment]
        job.machine = JobMachine(ShardGrid(items, per_shard), Epoch(1), limits)
        job.tokens = AttemptTokens(
            TokenMint(bytes(KEY_BYTES), uid), shards=job.machine.grid.shards, epoch=Epoch(1), verify=False
        )
        self.grid.jobs[uid] = self.grid.active[uid] = job
        self.committed[uid] = []
        self.handed[uid] = set()
        self.take(job, job.machine.start(self.clock.monotonic(), suspended=False))
        return job

    def add_device(
        self,
        name: str,
        speed: float = 10.0,
        *,
        slots: int = 1,
        credit: Credits = CREDIT,
        loads: bool = True,
    ) -> Device:
        facts = DeviceFacts(DeviceKind.SBC, "arm64", "linux", 4, 1 << 30)
        device = Device(self, DeviceIdentity(DeviceName(name), "boot", "alice", facts, slots, credit), speed, loads)
        self.devices[device.identity.name] = device
        self.attach(device)
        return device

    def attach(self, device: Device) -> None:
        device.queue.clear()
        device.unprepared.clear()
        device.revoked.clear()
        record = self.grid.fleet.attached(device)
        record.presence = Presence.CONNECTED
        for job in self.grid.active.values():
            self.feed_event(job, ev.DeviceGone(record.name))

    def record(self, device: Device) -> DeviceRecord:
        return self.grid.fleet.devices[device.identity.name]

    # ---- what the engine does ----

    def feed(self, job: JobRun, record: DeviceRecord, cut: ev.LeaseCut) -> None:
        device = self.devices[record.name]
        assert record.link is device
        assert record.ready_for(job.uid), "a lease before the model is loaded"
        self.handed[job.uid].add(record.name)
        device.queue += [(job.uid, h) for h in cut.shards]

    def take(self, job: JobRun, effects: list[ev.JobEffect]) -> None:
        assert job.machine is not None
        for effect in effects:
            match effect:
                case ev.CommitShard():
                    assert effect.shard not in self.committed[job.uid], "committed twice"
                    self.committed[job.uid].append(effect.shard)
                    job.revoking.discard(effect.shard)
                    rows = job.machine.grid.size(effect.shard)
                    self.feed_event(job, ev.ShardCommitted(effect.shard, effect.seq, rows, 0))
                case ev.CancelAttempt():
                    self.forget(job.uid, effect.device, effect.seq)
                case ev.CancelJob():
                    for device in self.devices.values():
                        device.queue = [entry for entry in device.queue if entry[0] != job.uid]
                        device.unprepared = [uid for uid in device.unprepared if uid != job.uid]
                        self.record(device).forget_job(job.uid)
                case ev.FinishOutput():
                    self.feed_event(job, ev.OutputFinished("file:///o/_manifest.json"))
                case ev.CloseOutput():
                    self.grid.active.pop(job.uid, None)
                case _:
                    pass

    def feed_event(self, job: JobRun, event: ev.JobEvent) -> None:
        assert job.machine is not None
        self.take(job, job.machine.handle(event, self.clock.monotonic()))

    def forget(self, job: JobUid, name: DeviceName, seq: AttemptSeq) -> None:
        device = self.devices[name]
        device.queue = [(uid, h) for uid, h in device.queue if (uid, h.seq) != (job, seq)]

    def tick(self) -> None:
        self.dispatcher.refresh_speeds()
        now = self.clock.monotonic()
        for job in list(self.grid.active.values()):
            assert job.machine is not None
            effects = job.machine.handle(ev.TimePassed(), now)
            for effect in effects:
                if isinstance(effect, ev.CancelAttempt):
                    self.grid.fleet.devices[effect.device].set_back(job.uid, now, "LeaseExpired")
            self.take(job, effects)
            self.dispatcher.relieve_job(job)
        self.dispatcher.serve_needy()
        self.serve_all()

    def serve_all(self) -> None:
        for device in self.devices.values():
            self.dispatcher.serve(self.record(device))

    # ---- what devices do ----

    def load_models(self, device: Device) -> None:
        record = self.record(device)
        if not device.loads:
            return
        for uid in device.unprepared:
            if uid in record.orders:
                record.orders[uid] = Order(OrderState.READY)
                record.speeds[uid] = SpeedEstimate.measured(max(device.speed, 1.0))
        device.unprepared.clear()
        self.dispatcher.refresh_speeds()
        self.dispatcher.serve(record)

    def give_back(self, device: Device) -> None:
        """Answer what was asked back: all but the first shard, which is begun."""
        wanted, device.revoked = set(device.revoked), []
        for uid, handed in device.queue[1:]:
            job = self.grid.jobs[uid]
            assert job.tokens is not None
            if job.tokens.mint(handed.seq, handed.shard, device.identity.name) in wanted:
                device.queue.remove((uid, handed))
                job.revoking.discard(handed.shard)
                self.feed_event(job, ev.AttemptsReturned(device.identity.name, (handed.seq,)))

    def answer(self, device: Device) -> None:
        uid, handed = device.queue.pop(0)
        job = self.grid.jobs[uid]
        record = self.record(device)
        record.setbacks.pop(uid, None)
        if uid in self.grid.active:
            record.progress_at[uid] = self.clock.monotonic()
        self.feed_event(job, ev.ResultJudged(handed.shard, handed.seq, device.identity.name, ACCEPTED))
        self.dispatcher.serve(record)

    def run(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass: devices work, and the engine ticks after each `step`."""
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until and any(j.stage is Stage.RUNNING for j in self.grid.jobs.values()):
            self.clock.advance(step)
            for device in list(self.devices.values()):
                if self.record(device).link is not device:
                    continue
                self.load_models(device)
                self.give_back(device)
                device.spent = min(device.spent + step, step) if not device.queue else device.spent + step
                while device.queue and device.speed:
                    uid, handed = device.queue[0]
                    machine = self.grid.jobs[uid].machine
                    assert machine is not None
                    cost = machine.grid.size(handed.shard) / device.speed
                    if device.spent < cost:
                        break
                    device.spent -= cost
                    self.answer(device)
            self.tick()
