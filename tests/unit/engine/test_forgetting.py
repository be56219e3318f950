"""Devices that stay away are given up, then forgotten; nothing of their work is lost by that."""

from dataclasses import replace

from pocketgrid.model.view import Presence, Stage
from tests.fakes.devices import FakeDevice
from tests.unit.engine.engine_world import SETTINGS, JobMaker, an_engine, job_reaches, until


async def test_a_device_lost_for_long_is_forgotten_and_welcome_again(tmp_path) -> None:
    spec = JobMaker(tmp_path)(items=400, per_shard=10)
    async with an_engine(tmp_path, settings=replace(SETTINGS, forget_seconds=0.3)) as engine:
        leaving, staying = (FakeDevice(engine, name, items_per_second=200.0) for name in ("leaving", "staying"))
        leaving.attach()
        engine.submit(spec)
        await until(engine, lambda: len(leaving.computed) >= 2)
        await leaving.vanish()
        staying.attach()
        await until(engine, lambda: engine.device_views()["leaving"].presence is Presence.LOST)
        assert engine.device_views()["leaving"].items_done
        await until(engine, lambda: "leaving" not in engine.device_views())
        assert engine.device_views()["staying"].presence is Presence.CONNECTED, "who is there is not forgotten"
        leaving.attach()
        await until(engine, lambda: engine.device_views()["leaving"].presence is Presence.CONNECTED)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_done == 400
        await leaving.stop()
        await staying.stop()


async def test_a_device_that_returns_in_time_is_not_forgotten_for_having_been_away(tmp_path) -> None:
    async with an_engine(tmp_path, settings=replace(SETTINGS, forget_seconds=0.3)) as engine:
        device, other = FakeDevice(engine, "flapping"), FakeDevice(engine, "other")
        other.attach()
        await other.vanish()
        device.attach()
        await device.vanish()
        await until(engine, lambda: engine.device_views()["flapping"].presence is Presence.LOST)
        device.attach()
        # The other one left no later, so by now it would have been its turn.
        await until(engine, lambda: "other" not in engine.device_views())
        await until(engine, lambda: engine.device_views()["flapping"].presence is Presence.CONNECTED)
        await device.stop()
