"""The real dispatcher, relief and job machines while devices join, slow down, hang, vanish, fail and return.

After every step: the machine's laws, leases within what devices hold, `maxNodes`, nobody works for what it is barred
from. At the end, one healthy device brings every job home.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pocketgrid.engine.fleet import Order, OrderState
from pocketgrid.model import events as ev
from pocketgrid.model.device import Credits, NodeView, device_labels
from pocketgrid.model.job import Limits
from pocketgrid.model.view import Presence, Stage
from tests.property.dispatch_world import Device, World


class GridLife(RuleBasedStateMachine):
    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.world = World()
        for index in range(data.draw(st.integers(1, 3))):
            self.world.add_job(
                f"job-{index}",
                items=data.draw(st.integers(1, 60)),
                per_shard=data.draw(st.integers(1, 4)),
                lease_seconds=data.draw(st.sampled_from([1.0, 5.0, 30.0])),
                bytes_per_item=data.draw(st.sampled_from([1.0, 1000.0, 40_000.0])),
                priority=data.draw(st.integers(0, 2)),
                max_nodes=data.draw(st.sampled_from([0, 1, 2])),
                limits=Limits(backoff_limit_per_shard=1),
            )
        self.names = 0
        for _ in range(data.draw(st.integers(0, 3))):
            self.join(data.draw(st.floats(0.5, 50)), data.draw(st.integers(1, 3)), data.draw(st.booleans()))

    def some(self, data: st.DataObject, *, busy: bool = False) -> Device | None:
        devices = [d for d in self.world.devices.values() if self.world.record(d).link is d and (d.queue or not busy)]
        return data.draw(st.sampled_from(devices)) if devices else None

    @rule(speed=st.floats(0.5, 50), slots=st.integers(1, 3), loads=st.booleans())
    def join(self, speed: float, slots: int, loads: bool) -> None:
        if self.names < 6:
            self.names += 1
            credit = Credits(shards=12, bytes=100_000)
            self.world.add_device(f"device-{self.names}", speed, slots=slots, credit=credit, loads=loads)
            self.world.serve_all()

    @rule(data=st.data(), speed=st.sampled_from([0.0, 0.1, 1.0, 100.0]))
    def change_speed(self, data: st.DataObject, speed: float) -> None:
        if device := self.some(data):
            device.speed = speed

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        if device := self.some(data):
            record = self.world.record(device)
            record.link, record.presence = None, Presence.UNKNOWN

    @rule()
    def give_up_the_lost(self) -> None:
        for device in self.world.devices.values():
            record = self.world.record(device)
            if record.presence is Presence.UNKNOWN:
                record.presence = Presence.LOST
                record.orders.clear()
                for job in list(self.world.grid.active.values()):
                    self.world.feed_event(job, ev.DeviceGone(record.name))
                device.queue.clear()

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        gone = [d for d in self.world.devices.values() if self.world.record(d).link is None]
        if gone:
            self.world.attach(data.draw(st.sampled_from(gone)))
            self.world.serve_all()

    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        if device := self.some(data):
            self.world.record(device).draining = True

    @rule(data=st.data(), cordoned=st.booleans())
    def cordon(self, data: st.DataObject, cordoned: bool) -> None:
        if device := self.some(data):
            node = NodeView(device.identity.name, device_labels(device.identity), unschedulable=cordoned)
            self.world.grid.fleet.set_node(node)
            for job in self.world.grid.active.values():
                job.eligibility.pop(node.name, None)
            before = len(device.queue)
            self.world.serve_all()
            assert not cordoned or len(device.queue) <= before

    @rule(data=st.data())
    def load_models(self, data: st.DataObject) -> None:
        if device := self.some(data):
            self.world.load_models(device)

    @rule(data=st.data())
    def fail_to_load(self, data: st.DataObject) -> None:
        device = self.some(data)
        if device is not None and device.unprepared:
            uid = device.unprepared.pop()
            job = self.world.grid.jobs[uid]
            retry_at = self.world.clock.monotonic() + 60
            self.world.record(device).orders[uid] = Order(OrderState.FAILED, retry_at, "no")
            self.world.dispatcher.model_reported(job, self.world.record(device))

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        if device := self.some(data, busy=True):
            self.world.answer(device)

    @rule(data=st.data(), blame=st.booleans())
    def fail(self, data: st.DataObject, blame: bool) -> None:
        if device := self.some(data, busy=True):
            uid, handed = device.queue.pop(0)
            job, record = self.world.grid.jobs[uid], self.world.record(device)
            if not blame:
                record.set_back(uid, self.world.clock.monotonic(), "OutOfMemory")
            event = ev.AttemptFailed(handed.shard, handed.seq, record.name, blame, "Broken")
            self.world.feed_event(job, event)
            self.world.serve_all()

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if device := self.some(data):
            self.world.give_back(device)

    @rule(seconds=st.sampled_from([0.25, 2.0, 31.0, 150.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.world.tick()

    @rule(seconds=st.sampled_from([1.0, 4.0]))
    def work(self, seconds: float) -> None:
        self.world.run(seconds)

    @precondition(lambda self: hasattr(self, "world"))
    @rule(data=st.data(), suspend=st.booleans())
    def suspend(self, data: st.DataObject, suspend: bool) -> None:
        from dataclasses import replace

        jobs = list(self.world.grid.active.values())
        if jobs:
            job = data.draw(st.sampled_from(jobs))
            job.spec = replace(job.spec, suspend=suspend)
            self.world.feed_event(job, ev.SuspendChanged(suspend))
            self.world.serve_all()
            assert not suspend or not any(uid == job.uid for d in self.world.devices.values() for uid, _ in d.queue)

    @invariant()
    def laws_hold(self) -> None:
        if not hasattr(self, "world"):
            return
        for job in self.world.grid.jobs.values():
            assert job.machine is not None
            job.machine.validate()
            committed = self.world.committed[job.uid]
            assert sorted(committed) == list(job.machine.committed)
            in_flight = {a.shard for a in job.machine.attempts.values()}
            assert all(job.machine.attempt_count(shard) <= 2 for shard in in_flight), "more than one copy"

    @invariant()
    def leases_are_within_what_devices_hold(self) -> None:
        if not hasattr(self, "world"):
            return
        for device in self.world.devices.values():
            record = self.world.record(device)
            held = {
                job.uid: len(job.machine.by_device.get(record.name, ()))
                for job in self.world.grid.active.values()
                if job.machine is not None
            }
            assert sum(held.values()) <= device.identity.credits.shards
            weight = sum(count * self.world.grid.jobs[uid].bytes_per_shard for uid, count in held.items())
            assert weight <= device.identity.credits.bytes or sum(held.values()) == 1
            if record.link is device:
                assert {(uid, h.seq) for uid, h in device.queue} == {
                    (job.uid, seq)
                    for job in self.world.grid.active.values()
                    if job.machine is not None
                    for seq in job.machine.by_device.get(record.name, ())
                }, "device and machine disagree on what was handed out"

    @invariant()
    def limits_on_devices_are_kept(self) -> None:
        if not hasattr(self, "world"):
            return
        for job in self.world.grid.active.values():
            assert job.machine is not None
            most = job.spec.placement.max_nodes
            reachable = [
                n for n in job.machine.by_device if self.world.grid.fleet.devices[n].presence is Presence.CONNECTED
            ]
            away = len(job.machine.by_device) - len(reachable)
            assert not most or len(reachable) <= most + away

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        from dataclasses import replace

        world = self.world
        for device in world.devices.values():
            record = world.record(device)
            record.link, record.presence = None, Presence.UNKNOWN
        self.give_up_the_lost()
        for job in list(world.grid.active.values()):
            job.spec = replace(job.spec, suspend=False)
            world.feed_event(job, ev.SuspendChanged(suspend=False))
        world.add_device("healthy", 100.0, credit=Credits(64, 1 << 20))
        world.run(600)
        for job in world.grid.jobs.values():
            assert job.machine is not None
            assert job.stage is Stage.COMPLETE, f"{job.uid} stands still"
            assert sorted(world.committed[job.uid]) == list(range(job.machine.grid.shards))
            assert not job.machine.attempts
            assert not job.machine._deadlines
        for device in world.devices.values():
            record = world.record(device)
            traces = (record.orders, record.speeds, record.setbacks, record.progress_at)
            assert not any(traces), "traces of ended jobs"


GridLife.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestGridLife = GridLife.TestCase
