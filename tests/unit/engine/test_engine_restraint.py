"""Devices whose owners hold them back: no new work, the old one goes elsewhere, and the grid says why it waits."""

from pathlib import Path

from pocketgrid.model.device import Restraint, RestraintLevel
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.view import Stage
from tests.fakes.devices import FakeDevice
from tests.unit.engine.engine_world import JobMaker, an_engine, job_reaches, until, view_of

LOW = Restraint(RestraintLevel.PAUSED, "BatteryLow", "battery at 9 %, works from 30 % on")
WARM = Restraint(RestraintLevel.EASED, "BatteryWarm", "battery at 41 °C of at most 45 °C")


def give_back(device: FakeDevice) -> None:
    """What an agent does right after it has said that it is paused."""
    for job in {job for job, _ in device.queue}:
        tokens = tuple(shard.token for uid, shard in device.queue[1:] if uid == job)
        device.engine.devices.returned(device, job, tokens)
    del device.queue[1:]


async def test_a_paused_device_gets_no_leases_and_its_work_goes_to_others(tmp_path: Path) -> None:
    spec = JobMaker(tmp_path)(400)
    async with an_engine(tmp_path) as engine:
        tired, fresh = FakeDevice(engine, "tired", items_per_second=100), FakeDevice(engine, "fresh")
        tired.attach()
        engine.submit(spec)
        await until(engine, lambda: len(tired.queue) > 1)
        engine.devices.restrained(tired, LOW)
        give_back(tired)
        leases = tired.leases
        view = engine.device_views()[DeviceName("tired")]
        assert (view.restraint, view.schedulable) == (LOW, False)
        await until(engine, lambda: view_of(engine, spec).obstacle is not None)
        obstacle = view_of(engine, spec).obstacle
        assert obstacle is not None
        assert "1 paused by its owner (BatteryLow)" in obstacle.message
        fresh.attach()
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_failed == 0
        assert tired.leases == leases, "a paused device was given new work"


async def test_a_device_goes_on_in_the_same_session_when_its_owner_lets_it(tmp_path: Path) -> None:
    spec = JobMaker(tmp_path)(200)
    async with an_engine(tmp_path) as engine:
        phone = FakeDevice(engine, "phone")
        phone.attach()
        engine.devices.restrained(phone, LOW)
        engine.submit(spec)
        await until(engine, lambda: view_of(engine, spec).obstacle is not None)
        assert not phone.orders, "it need not even fetch the model"
        engine.devices.restrained(phone, Restraint())
        await job_reaches(engine, spec, Stage.COMPLETE)


async def test_a_device_that_works_gently_works(tmp_path: Path) -> None:
    spec = JobMaker(tmp_path)(200)
    async with an_engine(tmp_path) as engine:
        phone = FakeDevice(engine, "phone")
        phone.attach()
        engine.devices.restrained(phone, WARM)
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
        view = engine.device_views()[DeviceName("phone")]
        assert (view.restraint, view.schedulable) == (WARM, True)


async def test_a_new_session_begins_unrestrained(tmp_path: Path) -> None:
    async with an_engine(tmp_path) as engine:
        phone = FakeDevice(engine, "phone")
        phone.attach()
        engine.devices.restrained(phone, LOW)
        await phone.vanish()
        phone.attach()
        assert engine.device_views()[DeviceName("phone")].restraint == Restraint()


async def test_what_a_device_sustains_stands_beside_what_it_once_reached(tmp_path: Path) -> None:
    spec = JobMaker(tmp_path)(3000, per_shard=100)
    async with an_engine(tmp_path) as engine:
        hot = FakeDevice(engine, "hot", items_per_second=4000)
        hot.attach()
        engine.submit(spec)
        await until(engine, lambda: view_of(engine, spec).items_done >= 1000)
        hot.items_per_second = 1000
        await job_reaches(engine, spec, Stage.COMPLETE)
        view = engine.device_views()[DeviceName("hot")]
        model = spec.model.sha256
        assert view.peak_speeds[model] >= 3000
        assert view.speeds[model] < 0.8 * view.peak_speeds[model]
