"""The dispatcher over simulated time: sick, slow and silent devices, seats, priorities, fairness."""

import pytest

from pocketgrid.engine.dispatcher import AT_A_TIME
from pocketgrid.engine.fleet import SETBACK_LAST_S, Order, OrderState
from pocketgrid.model import events as ev
from pocketgrid.model.device import Credits
from pocketgrid.model.view import Stage
from pocketgrid.planning.speed import SpeedEstimate
from tests.property.dispatch_world import World


def done(world: World, name: str) -> int:
    return next(len(shards) for uid, shards in world.committed.items() if uid == name)


def test_a_device_that_never_loads_the_model_does_not_keep_a_seat_for_ever() -> None:
    world = World()
    job = world.add_job("job", items=100, max_nodes=1, model_bytes=1 << 20)
    world.add_device("silent", loads=False)
    world.tick()
    world.add_device("well", 10.0)
    world.run(100)
    assert not job.machine.committed, "the seat is kept while a model may still be on its way"
    world.run(400)
    assert job.stage is Stage.COMPLETE
    assert world.handed[job.uid] == {"well"}


def test_a_large_model_is_given_the_time_a_poor_link_needs() -> None:
    world = World()
    job = world.add_job("job", items=100, max_nodes=1, model_bytes=256 << 20)
    slow = world.add_device("slow", loads=False)
    world.tick()
    world.add_device("other")
    world.run(900)
    assert not world.handed[job.uid]
    slow.loads = True
    world.run(60)
    assert job.stage is Stage.COMPLETE
    assert world.handed[job.uid] == {"slow"}


def test_a_model_that_comes_late_is_still_of_use() -> None:
    world = World()
    job = world.add_job("job", items=100)
    late = world.add_device("late", loads=False)
    world.run(500)
    late.loads = True
    world.run(60)
    assert job.stage is Stage.COMPLETE


def test_max_nodes_stays_with_the_devices_that_have_the_model() -> None:
    world = World()
    job = world.add_job("job", items=400, per_shard=10, lease_seconds=1.0, max_nodes=2)
    for index in range(6):
        world.add_device(f"d{index}", 10.0)
    world.run(600)
    assert job.stage is Stage.COMPLETE
    assert len(world.handed[job.uid]) == 2


def test_max_nodes_holds_near_the_end_too() -> None:
    world = World()
    job = world.add_job("job", items=3, lease_seconds=30.0, max_nodes=1)
    slow = world.add_device("slow", 0.5)
    world.run(2)
    for index in range(3):
        guest = world.record(world.add_device(f"fast{index}", 100.0))
        guest.orders[job.uid] = Order(OrderState.READY)
        guest.speeds[job.uid] = SpeedEstimate.measured(100.0)
    while job.stage is Stage.RUNNING:
        world.run(0.25)
        assert len(job.machine.by_device) <= 1
    assert slow.identity.name in world.handed[job.uid]


def test_a_seat_left_by_a_lost_device_is_taken() -> None:
    world = World()
    job = world.add_job("job", items=1000, max_nodes=1)
    first = world.add_device("first", 10.0)
    world.add_device("second", 10.0)
    world.run(10)
    record = world.record(first)
    from pocketgrid.model.view import Presence

    record.link, record.presence = None, Presence.LOST
    record.orders.clear()
    world.feed_event(job, ev.DeviceGone(record.name))
    world.run(300)
    assert job.stage is Stage.COMPLETE


def test_a_device_that_hangs_but_is_there_gets_less_and_less_to_hold() -> None:
    world = World()
    job = world.add_job("job", items=100_000, per_shard=10)
    hung = world.add_device("hung", 10.0)
    world.run(2)
    hung.speed = 0.0
    world.add_device("well", 10.0)
    world.run(1000, step=1.0)
    record = world.record(hung)
    assert record.setbacks[job.uid].times >= 5
    assert record.setbacks[job.uid].until - world.clock.monotonic() <= SETBACK_LAST_S
    hung.queue.clear()
    hung.speed = 10.0
    before = done(world, "job")
    world.run(300, step=1.0)
    assert done(world, "job") - before > 300 * 1.5, "once well, it works as before"
    assert job.uid not in record.setbacks


def test_a_hung_device_does_not_keep_the_last_shards() -> None:
    world = World()
    job = world.add_job("job", items=200)
    hung = world.add_device("hung", 10.0)
    world.run(1)
    hung.speed = 0.0
    world.add_device("well", 10.0)
    world.run(45)
    assert job.stage is Stage.COMPLETE


def test_one_sick_device_does_not_starve_the_healthy() -> None:
    world = World()
    job = world.add_job("job", items=500)
    sick = world.add_device("sick", 1000.0)
    world.add_device("well", 10.0)
    fail_at = 0
    while job.stage is Stage.RUNNING and world.clock.monotonic() < 200:
        world.clock.advance(0.25)
        while sick.queue:
            uid, handed = sick.queue.pop(0)
            fail_at += 1
            world.record(sick).set_back(uid, world.clock.monotonic(), "OutOfMemory")
            world.feed_event(job, ev.AttemptFailed(handed.shard, handed.seq, sick.identity.name, False, "Broken"))
            world.dispatcher.serve(world.record(sick))
        world.run(0.25)
        sick.spent = 0.0
    assert job.stage is Stage.COMPLETE
    assert fail_at < 20_000


def test_a_more_important_job_is_served_within_a_lease_of_the_lesser() -> None:
    world = World()
    world.add_job("long", items=100_000, lease_seconds=30.0)
    for index in range(3):
        world.add_device(f"d{index}", 10.0, credit=Credits(1000, 1 << 20))
    world.run(60)
    urgent = world.add_job("urgent", items=300, lease_seconds=1.0, priority=5)
    world.run(45)
    assert urgent.stage is Stage.COMPLETE
    assert done(world, "long") > 60 * 3 * 10 * 0.8


def test_equal_jobs_on_unequal_devices_both_get_on() -> None:
    world = World()
    for name in ("one", "two"):
        world.add_job(name, items=100_000, per_shard=5)
    for index, speed in enumerate((100.0, 20.0, 5.0, 1.0)):
        world.add_device(f"d{index}", speed)
    world.run(120)
    progress = [done(world, name) for name in ("one", "two")]
    assert min(progress) > 0.1 * max(progress)
    assert sum(progress) * 5 > 0.95 * 110 * 126, "nobody idles meanwhile"


@pytest.mark.parametrize("per_shard", [1, 5])
def test_devices_of_very_different_speed_finish_together(per_shard: int) -> None:
    world = World()
    job = world.add_job("job", items=2000, per_shard=per_shard)
    speeds = (50.0, 20.0, 5.0, 0.5)
    for index, speed in enumerate(speeds):
        world.add_device(f"d{index}", speed)
    world.run(200)
    assert job.stage is Stage.COMPLETE
    assert world.clock.monotonic() < 2000 / sum(speeds) * 1.15 + 2


def test_nothing_is_handed_out_while_the_job_pauses_or_its_store_is_in_trouble() -> None:
    from pocketgrid.model.view import Explanation

    world = World()
    job = world.add_job("job", items=30)
    slow = world.add_device("slow", 1.0)
    world.run(2)
    for obstacle in ("pause", "trouble"):
        job.paused_until = world.clock.monotonic() + 10 if obstacle == "pause" else 0.0
        job.trouble = Explanation("StorageFailed", "full") if obstacle == "trouble" else None
        idle = world.add_device(f"idle-{obstacle}", 100.0)
        world.record(idle).orders[job.uid] = Order(OrderState.READY)
        world.record(idle).speeds[job.uid] = SpeedEstimate.measured(100.0)
        slow.speed = 0.0
        world.run(8)
        assert not idle.queue
        assert idle.identity.name not in world.handed[job.uid]
    job.trouble, job.paused_until = None, 0.0
    world.run(60)
    assert job.stage is Stage.COMPLETE


def test_a_helper_is_not_kept_waiting_for_a_device_that_is_away() -> None:
    from pocketgrid.model.view import Presence

    world = World()
    job = world.add_job("job", items=20, lease_seconds=60.0)
    away = world.add_device("away", 1.0)
    world.run(2)
    assert not job.machine.pending
    record = world.record(away)
    record.link, record.presence = None, Presence.UNKNOWN
    helper = world.add_device("helper", 100.0)
    world.run(0.5)
    assert helper.identity.name in world.handed[job.uid], "what was begun there is raced at once"


def test_what_was_asked_back_from_one_device_can_be_asked_back_from_the_next() -> None:
    from pocketgrid.model.view import Presence

    world = World()
    job = world.add_job("job", items=60, lease_seconds=60.0)
    first = world.add_device("first", 1.0)
    world.run(2)
    held = [h.shard for _, h in first.queue]
    job.revoking.update(held)
    record = world.record(first)
    record.link, record.presence = None, Presence.LOST
    record.orders.clear()
    world.feed_event(job, ev.DeviceGone(record.name))
    world.add_device("second", 1.0)
    world.run(2)
    assert not job.revoking & {a.shard for a in job.machine.attempts_of(world.devices["second"].identity.name)}
    world.add_device("third", 1.0)
    world.run(45)
    assert job.stage is Stage.COMPLETE, "two devices share what is left"


def test_no_copies_are_made_while_the_job_pauses() -> None:
    world = World()
    job = world.add_job("job", items=1, lease_seconds=60.0)
    world.add_device("slow", 0.1)
    world.run(1)
    assert not job.machine.pending
    job.paused_until = world.clock.monotonic() + 5
    helper = world.add_device("helper", 100.0)
    record = world.record(helper)
    record.orders[job.uid] = Order(OrderState.READY)
    record.speeds[job.uid] = SpeedEstimate.measured(100.0)
    world.run(3)
    assert not world.handed[job.uid] - {"slow"}
    world.run(5)
    assert helper.identity.name in world.handed[job.uid]


def test_a_large_fleet_is_served_a_thousand_decisions_at_a_turn() -> None:
    world = World()
    jobs = [world.add_job(name, items=10_000, lease_seconds=1.0) for name in ("one", "two")]
    devices = [world.add_device(f"d{index}") for index in range(1200)]
    world.dispatcher.serve_needy()
    assert sum(len(d.unprepared) for d in devices) == AT_A_TIME
    for _ in range(3):
        world.dispatcher.serve_needy()
    assert all(len(d.unprepared) == 2 for d in devices), "each is prepared for both"
    for device in devices:
        record = world.record(device)
        for job in jobs:
            record.orders[job.uid] = Order(OrderState.READY)
            record.speeds[job.uid] = SpeedEstimate.measured(10.0)
    world.dispatcher.refresh_speeds()
    world.dispatcher.serve_all()
    world.dispatcher.serve_all()
    assert all(d.queue for d in devices)
    sizes = [len(job.working) for job in jobs]
    assert min(sizes) > 0
    for device in devices:
        held = [job.machine.by_device.get(device.identity.name, ()) for job in jobs]
        assert 0 < sum(map(len, held)) <= device.identity.credits.shards


def test_columns_follow_whatever_happens_to_devices() -> None:
    from pocketgrid.model.device import NodeView, device_labels
    from pocketgrid.model.view import Presence

    world = World()
    job = world.add_job("job", items=1000)
    for index in range(40):
        world.add_device(f"d{index}")
    roster = world.dispatcher._roster

    def served(name: str) -> bool:
        columns = roster.columns()
        return columns.row_of(name) in columns.select(columns.present).tolist()

    def admitted(name: str) -> bool:
        columns = roster.columns()
        return bool(roster.admits(job)[columns.profile[columns.row_of(name)]])

    first = world.devices["d0"]
    assert served("d0")
    assert admitted("d0")
    world.record(first).draining = True
    assert not served("d0")
    world.record(first).draining = False
    world.record(first).presence = Presence.UNKNOWN
    assert not served("d0")
    world.attach(first)
    assert served("d0")
    node = NodeView(first.identity.name, device_labels(first.identity), unschedulable=True)
    world.grid.fleet.set_node(node)
    assert not admitted("d0")
    assert admitted("d1")
    world.grid.fleet.remove_node(node.name)
    assert not admitted("d0")
    world.record(first).presence = Presence.LOST
    world.grid.fleet.forget(first.identity.name)
    columns = roster.columns()
    assert "d0" not in columns.rows
    del world.devices[first.identity.name]
    world.run(200)
    assert job.stage is Stage.COMPLETE
    world.grid.active.clear()
    columns = roster.columns()
    assert not columns.jobs
    assert not columns.held.any()
