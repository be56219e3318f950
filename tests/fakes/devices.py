"""A device as far as the engine can tell, without a network: it fetches nothing and computes y = 2x + 1.

It plays what real ones do: it takes its time, answers, keeps results until they are settled, vanishes, comes back under
the same identity and brings what it still has.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pocketgrid.engine.engine import Engine
from pocketgrid.engine.links import AttemptFailure, HeldAttempt, LeasedShard, ModelStatus, Settlement, ShardOutcome
from pocketgrid.model.device import Credits, DeviceFacts, DeviceIdentity, DeviceKind
from pocketgrid.model.ids import DeviceName, JobUid, LeaseId
from pocketgrid.model.job import WorkOrder
from pocketgrid.model.tensors import TensorData


def identity(
    name: str, *, owner: str = "alice", kind: DeviceKind = DeviceKind.SBC, boot: str = "boot-1", slots: int = 1
):
    facts = DeviceFacts(kind, "arm64", "linux", 4, 4 << 30, engine="onnxruntime 1.32.0")
    return DeviceIdentity(DeviceName(name), boot, owner, facts, slots, Credits(64, 32 << 20))


@dataclass(eq=False)
class FakeDevice:
    engine: Engine
    name: str
    items_per_second: float = 10_000.0
    owner: str = "alice"
    kind: DeviceKind = DeviceKind.SBC
    wrong: bool = False
    fail_with: AttemptFailure | None = None
    refuse_model: bool = False

    def __post_init__(self) -> None:
        self.identity = identity(self.name, owner=self.owner, kind=self.kind)
        self.orders: dict[JobUid, WorkOrder] = {}
        self.queue: list[tuple[JobUid, LeasedShard]] = []
        self.results: dict[bytes, tuple[JobUid, ShardOutcome]] = {}
        self.settled: dict[bytes, str] = {}
        self.computed: list[tuple[JobUid, int]] = []
        self.leases = 0
        self.closed: tuple[str, bool] | None = None
        self.attached = False
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task] = []

    # ---- life ----

    def attach(self) -> None:
        held = [HeldAttempt(job, o.shard, token, True) for token, (job, o) in self.results.items()]
        held += [HeldAttempt(job, s.index, s.token, False) for job, s in self.queue]
        self.closed = None
        self.attached = True
        self.orders.clear()
        self.engine.devices.attach(self, held)
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._deliver_all())]

    async def vanish(self, *, forget: bool = False) -> None:
        """Lose the link, as by SIGKILL if `forget`, otherwise as by a cut cable."""
        self.attached = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if forget:
            self.queue.clear()
        self.engine.devices.detach(self, "Cut")

    async def stop(self) -> None:
        if self.attached:
            await self.vanish()

    async def _work(self) -> None:
        while True:
            while self.queue:
                job, shard = self.queue[0]
                await asyncio.sleep(shard.items / self.items_per_second)
                if not self.queue or self.queue[0][1] is not shard:
                    continue
                self.queue.pop(0)
                outcome = self._compute(shard)
                self.computed.append((job, shard.index))
                self.results[shard.token] = (job, outcome)
                await self.engine.devices.results(self, job, [outcome])
            self._wake.clear()
            await self._wake.wait()

    async def _deliver_all(self) -> None:
        for job, outcome in list(self.results.values()):
            await self.engine.devices.results(self, job, [outcome])

    def _compute(self, shard: LeasedShard) -> ShardOutcome:
        spent = int(1e6 * shard.items / self.items_per_second)
        if self.fail_with is not None:
            return ShardOutcome(shard.index, shard.token, spent, (), (), self.fail_with)
        (x,) = shard.inputs
        values = np.frombuffer(x.data, x.dtype).reshape(x.shape) * np.float32(2) + np.float32(1)
        if self.wrong:
            values = values[:, :-1]
        y = TensorData("float32", values.shape, values.tobytes())
        return ShardOutcome(shard.index, shard.token, spent, (y,))

    # ---- DeviceLink ----

    def send_order(self, order: WorkOrder) -> None:
        self.orders[order.job] = order
        status = ModelStatus(
            order.job, order.model, not self.refuse_model, self.items_per_second, 8, "LoadFailed", "no"
        )
        asyncio.get_running_loop().call_soon(self._report, status)

    def _report(self, status: ModelStatus) -> None:
        if self.attached:
            self.engine.devices.model_status(self, status)

    def send_lease(self, job: JobUid, lease: LeaseId, ttl_s: float, shards: Sequence[LeasedShard]) -> None:
        assert job in self.orders, "a lease before its work order"
        assert ttl_s > 0
        self.leases += 1
        self.queue += [(job, s) for s in shards]
        assert len(self.queue) <= self.identity.credits.shards
        self._wake.set()

    def send_revoke(self, job: JobUid, tokens: Sequence[bytes]) -> None:
        waiting = {s.token for _, s in self.queue[1:]} & set(tokens)
        self.queue = [(j, s) for j, s in self.queue if s.token not in waiting]
        asyncio.get_running_loop().call_soon(self.engine.devices.returned, self, job, tuple(waiting))

    def send_cancel(self, job: JobUid, tokens: Sequence[bytes]) -> None:
        self.queue = [(j, s) for j, s in self.queue if j != job or (tokens and s.token not in tokens)]
        if not tokens:
            self.orders.pop(job, None)

    def send_settled(self, job: JobUid, settlement: Settlement) -> None:
        for outcome, tokens in (
            ("committed", settlement.committed),
            ("superseded", settlement.superseded),
            ("refused", [t for t, _, _ in settlement.refused]),
        ):
            for token in tokens:
                self.results.pop(token, None)
                self.settled[token] = outcome

    def close(self, reason: str, message: str, *, retry: bool) -> None:
        self.closed = (reason, retry)
        if self.attached:
            self.attached = False
            for task in self._tasks:
                task.cancel()
            asyncio.get_running_loop().call_soon(self.engine.devices.detach, self, reason)


@dataclass
class Crowd:
    """Several devices, stopped together."""

    devices: list[FakeDevice] = field(default_factory=list)

    async def stop(self) -> None:
        for device in self.devices:
            await device.stop()
