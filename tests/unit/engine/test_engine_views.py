"""What the engine says of jobs and devices, where saying it wrongly would be easy."""

from pocketgrid.engine.links import AttemptFailure
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import Placement
from pocketgrid.model.view import Presence, Stage
from tests.fakes.devices import FakeDevice
from tests.unit.engine.engine_world import JobMaker, NeverLoads, an_engine, job_reaches, until, view_of


async def test_a_job_finished_before_the_operator_started_has_no_throughput(tmp_path) -> None:
    make_job = JobMaker(tmp_path)
    spec = make_job(400)
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", items_per_second=4000).attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert 0 < view.throughput < 4000
    async with an_engine(tmp_path) as engine:
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.throughput == 0.0
        assert (view.items_done, view.shards_done, view.completed_text) == (400, 40, "0-39")


async def test_while_some_device_may_still_load_the_model_nothing_is_said_to_have_failed(tmp_path) -> None:
    make_job = JobMaker(tmp_path)
    spec = make_job(20)
    async with an_engine(tmp_path) as engine:
        bad, slow = FakeDevice(engine, "bad", refuse_model=True), NeverLoads(engine, "slow")
        slow.attach()
        engine.submit(spec)
        await until(engine, lambda: bool(slow.orders))
        bad.attach()
        await until(engine, lambda: bool(bad.orders))
        await until(engine, lambda: bool(engine._grid.fleet.devices[bad.identity.name].orders[spec.uid].message))
        assert view_of(engine, spec).obstacle is None
        await slow.vanish()
        await until(engine, lambda: view_of(engine, spec).obstacle is not None)
        assert view_of(engine, spec).obstacle.reason == "ModelLoadFailed"


async def test_what_could_not_be_computed_is_not_counted_as_a_devices_work(tmp_path) -> None:
    from pocketgrid.model.job import Limits

    make_job = JobMaker(tmp_path)
    spec = make_job(20, limits=Limits(backoff_limit_per_shard=0))
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", fail_with=AttemptFailure(True, "EngineError", "bad item")).attach()
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
        assert engine.device_views()[DeviceName("a")].items_done == 0


async def test_every_device_is_accounted_for_in_the_obstacle(tmp_path) -> None:
    make_job = JobMaker(tmp_path)
    spec = make_job(20, placement=Placement(node_selector=(("room", "lab"),)))
    async with an_engine(tmp_path) as engine:
        there, gone = FakeDevice(engine, "there"), FakeDevice(engine, "gone")
        there.attach()
        gone.attach()
        await gone.vanish()
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.RUNNING)
        await until(engine, lambda: engine.device_views()[DeviceName("gone")].presence is Presence.LOST)
        obstacle = view_of(engine, spec).obstacle
        assert obstacle is not None
        assert obstacle.message.endswith("0/2 devices can work: 2 label room is not lab, 1 not connected")
