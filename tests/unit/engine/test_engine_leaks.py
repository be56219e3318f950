"""An engine that has seen many shards and many jobs holds no more than one that has seen few."""

import asyncio
import threading

from pocketgrid.model.job import Sharding
from pocketgrid.model.view import Stage
from tests.fakes.devices import FakeDevice
from tests.unit.engine.engine_world import JobMaker, an_engine, job_reaches, until

JOBS = 40


async def test_ended_jobs_leave_nothing_behind(tmp_path, caplog) -> None:
    make_job = JobMaker(tmp_path)
    async with an_engine(tmp_path) as engine:
        devices = [FakeDevice(engine, n) for n in ("a", "b")]
        for device in devices:
            device.attach()
        grid = engine._grid
        for index in range(JOBS):
            spec = make_job(20, 0 if index % 5 == 0 else 10, name=f"job-{index}")
            engine.submit(spec)
            if index % 4 == 0:
                await asyncio.sleep(0)
                await engine.remove(spec.uid)
                continue
            await job_reaches(engine, spec, Stage.COMPLETE)
            await until(engine, lambda: not any(d.results for d in devices))
            if index % 2 == 0:
                await engine.remove(spec.uid)
        assert not grid.active
        assert not engine.devices._orphans
        assert engine.devices._orphan_bytes == 0
        for record in grid.fleet.devices.values():
            left = (record.orders, record.speeds, record.progress_at, record.setbacks, record.held)
            assert not any(left), f"{record.name} remembers ended jobs"
            assert len(record.model_speeds) == 1
        for job in grid.jobs.values():
            assert job.machine is not None
            assert not any((job.unread, job.in_flight, job.revoking, job.readings))
            assert not any((job.machine.attempts, job.machine._deadlines, job.machine._by_shard))
            await until(engine, lambda job=job: all(task.done() for task in job.tasks))
            assert len(job.tasks) <= 3

        def no_store_threads() -> bool:
            return not [t.name for t in threading.enumerate() if t.name.startswith("store-")]

        await until(engine, no_store_threads)
        assert not [r.message for r in caplog.records if r.levelname == "ERROR"]
        assert len([t for t in asyncio.all_tasks() if not t.done()]) < 12


async def test_ten_thousand_shards_leave_no_more_than_ten(tmp_path) -> None:
    make_job = JobMaker(tmp_path)
    spec = make_job(10_000, sharding=Sharding(1, lease_seconds=1.0))
    async with an_engine(tmp_path) as engine:
        devices = [FakeDevice(engine, n, items_per_second=1e9) for n in ("a", "b", "c")]
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.RUNNING)
        job = engine._grid.jobs[spec.uid]
        largest: dict[str, int] = {}

        def measure() -> bool:
            machine = job.machine
            assert machine is not None
            for name in ("unread", "in_flight", "revoking", "tasks", "eligibility", "working"):
                largest[name] = max(largest.get(name, 0), len(getattr(job, name)))
            for name in ("attempts", "by_device", "_by_shard", "_blame"):
                largest[name] = max(largest.get(name, 0), len(getattr(machine, name)))
            largest["runs"] = max(largest.get("runs", 0), len(list(machine.committed.runs())))
            return job.stage is Stage.COMPLETE

        for device in devices:
            device.attach()
        await until(engine, measure, 40)
        held = 3 * devices[0].identity.credits.shards
        assert largest["attempts"] <= held
        assert largest["in_flight"] <= 2 * held
        assert largest["runs"] <= 2 * held
        assert largest["tasks"] <= 3
        assert largest["unread"] == largest["_blame"] == 0
        assert not any((job.unread, job.in_flight, job.revoking))
