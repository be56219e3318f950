"""What the engine does when its own side fails: disks that fill up, inputs that vanish, writers that are replaced.

Whatever happens, the job says so, work stops or goes on as it should, and nothing waits for ever.
"""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pocketgrid.engine.attendance import Attendance
from pocketgrid.errors import InvalidSpecError, StaleEpochError, StoreError
from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef, Placement, Sharding
from pocketgrid.model.view import Stage
from pocketgrid.storage.encoding import Encoder
from pocketgrid.storage.results import ResultStore, verify
from tests.fakes.devices import FakeDevice
from tests.unit.engine.engine_world import (
    JobMaker,
    NeverLoads,
    an_engine,
    job_in_trouble,
    job_reaches,
    until,
    view_of,
)


@pytest.fixture
def make_job(tmp_path: Path) -> JobMaker:
    return JobMaker(tmp_path)


class Fault:
    """Makes a method raise while it is switched on, or only for its first calls."""

    def __init__(self, monkeypatch, owner: type, method: str, error: Exception, *, calls: int | None = None) -> None:
        real = getattr(owner, method)
        self.on = True
        self.raised = 0

        def faulty(this, *args, **kwargs):
            if self.on and (calls is None or self.raised < calls):
                self.raised += 1
                raise error
            return real(this, *args, **kwargs)

        monkeypatch.setattr(owner, method, faulty)


# ---- our disk ----


async def test_while_results_cannot_be_written_the_job_says_so_and_hands_out_nothing(
    tmp_path, make_job, monkeypatch
) -> None:
    spec = make_job(400)
    full = Fault(monkeypatch, ResultStore, "commit", StoreError("no space left on device"))
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=20_000)
        device.attach()
        engine.submit(spec)
        view = await job_in_trouble(engine, spec, "StorageFailed")
        assert "no space left" in view.trouble.message
        machine = engine._grid.jobs[spec.uid].machine
        assert machine is not None
        await until(engine, lambda: not machine.attempts)  # all that was cut before the trouble is sent and answered
        leases = device.leases
        FakeDevice(engine, "b").attach()
        await until(engine, lambda: full.raised >= 3)
        assert device.leases == leases
        assert "committed" not in device.settled.values()
        assert view_of(engine, spec).shards_done == 0
        full.on = False
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.trouble is None
    assert verify(spec.output.uri) == []


@pytest.mark.parametrize("per_shard", [pytest.param(10, id="cut by the user"), pytest.param(0, id="cut by the grid")])
async def test_a_cut_that_cannot_be_written_is_tried_again(tmp_path, make_job, monkeypatch, per_shard: int) -> None:
    spec = make_job(100, per_shard)
    full = Fault(monkeypatch, ResultStore, "plan", StoreError("no space left on device"))
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a").attach()
        engine.submit(spec)
        await job_in_trouble(engine, spec, "StorageFailed")
        full.on = False
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.trouble is None


@pytest.mark.parametrize("method", ["plan", "commit", "seal", "finish"])
async def test_a_job_whose_disk_is_full_can_be_removed(tmp_path, make_job, monkeypatch, method: str) -> None:
    spec = make_job(20)
    Fault(monkeypatch, ResultStore, method, StoreError("no space left on device"))
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a").attach()
        engine.submit(spec)
        await job_in_trouble(engine, spec, "StorageFailed")
        async with asyncio.timeout(10):
            await engine.remove(spec.uid)
        assert engine.job_view(spec.uid) is None


async def test_a_manifest_that_cannot_be_written_is_tried_again(tmp_path, make_job, monkeypatch) -> None:
    spec = make_job(20)
    full = Fault(monkeypatch, ResultStore, "finish", StoreError("no space left on device"))
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a").attach()
        engine.submit(spec)
        view = await job_in_trouble(engine, spec, "StorageFailed")
        assert view.stage is Stage.FINISHING
        full.on = False
        await job_reaches(engine, spec, Stage.COMPLETE)
    assert verify(spec.output.uri) == []


@pytest.mark.parametrize("method", ["plan", "commit", "finish"])
async def test_a_writer_that_was_replaced_stops_and_keeps_nobody_waiting(
    tmp_path, make_job, monkeypatch, method: str
) -> None:
    spec = make_job(200)
    Fault(monkeypatch, ResultStore, method, StaleEpochError("epoch 2 exists"))
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=5000)
        device.attach()
        engine.submit(spec)
        await job_in_trouble(engine, spec, "TakenOver")
        assert "committed" not in device.settled.values() or method == "finish"
        if device.results:
            job, outcome = next(iter(device.results.values()))
            async with asyncio.timeout(5):
                for _ in range(300):
                    await engine.devices.results(device, job, [outcome])
        other = FakeDevice(engine, "b")
        other.attach()
        next_job = make_job(20, name="next")
        monkeypatch.undo()
        engine.submit(next_job)
        await job_reaches(engine, next_job, Stage.COMPLETE)
        assert all(job != spec.uid for job, _ in other.computed)
        async with asyncio.timeout(10):
            await engine.remove(spec.uid)


async def test_a_data_set_that_changed_under_the_job_fails_it_with_the_reason(tmp_path, make_job, monkeypatch) -> None:
    spec = make_job(20)
    Fault(monkeypatch, ResultStore, "seal", InvalidSpecError("InputChanged", "the keys are not what they were"))
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a").attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.FAILED)
        assert view.explanation is not None
        assert view.explanation.reason == "InputChanged"
        async with asyncio.timeout(10):
            await engine.remove(spec.uid)


async def test_results_that_do_not_fit_after_all_are_done_again(tmp_path, make_job, monkeypatch) -> None:
    from pocketgrid.storage.results import Committed

    real = ResultStore.commit
    refused = []

    def choosy(this, batch):
        if not refused:
            refused.extend(c.shard for c in batch)
            return Committed((), (), tuple((shard, "does not fit") for shard in refused))
        return real(this, batch)

    monkeypatch.setattr(ResultStore, "commit", choosy)
    spec = make_job(100)
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a")
        device.attach()
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
        assert list(device.settled.values()).count("refused") == len(refused) > 0
    assert verify(spec.output.uri) == []


async def test_failed_rows_of_a_damaged_shard_count_once(tmp_path, make_job, monkeypatch) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"v": [1, 2, 3, 4]}\nnot json\n' * 4)
    spec = make_job(
        input=InputRef(f"file://{data}", InputFormat.JSONL, columns=(ColumnBinding("v", "x"),)),
        sharding=Sharding(2),
    )
    real = ResultStore.seal
    damaged = []

    def seal(this) -> int:
        if not damaged and this._log.state.ready_part() is not None:
            (part,) = this._log.state.staged
            damaged.append(part)
            for commit in this._log.state.staged[part].values():
                with this._staging.path(commit.staging).open("r+b") as staged:
                    staged.seek(commit.offset)
                    staged.write(bytes(commit.length))
        return real(this)

    monkeypatch.setattr(ResultStore, "seal", seal)
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a")
        device.attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert damaged
        assert len(device.computed) == 8
        assert (view.items_done, view.items_failed) == (8, 4)
    assert verify(spec.output.uri) == []


async def test_a_job_is_cut_once_however_fast_a_device_is_ready(tmp_path, make_job, monkeypatch, caplog) -> None:
    real = ResultStore.plan
    written = threading.Event()

    def slow_plan(this, per_shard: int, **options: object) -> None:
        assert written.wait(10)
        real(this, per_shard, **options)

    monkeypatch.setattr(ResultStore, "plan", slow_plan)
    spec = make_job(100, 10)
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a")
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: device.identity.name in engine.device_views() and bool(device.orders))
        await until(engine, lambda: bool(engine.device_views()[device.identity.name].speeds))
        written.set()
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_per_shard == 10
    assert not [r.message for r in caplog.records if r.levelname == "ERROR"]


# ---- what we read ----


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError("input/output error"), id="the file system fails"),
        pytest.param(RuntimeError("driver gone"), id="a storage driver raises what it likes"),
    ],
)
async def test_a_job_whose_input_cannot_be_read_pauses_and_goes_on_by_itself(
    tmp_path, make_job, monkeypatch, error: Exception
) -> None:
    monkeypatch.setattr("pocketgrid.engine.feeder.READ_RETRY_S", 0.05)
    spec = make_job(100)
    async with an_engine(tmp_path) as engine:
        broken = Fault(monkeypatch, Encoder, "encode", error)
        broken.on = False
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.RUNNING)
        broken.on = True
        device = FakeDevice(engine, "a")
        device.attach()
        view = await job_in_trouble(engine, spec, "InputUnreadable")
        assert str(error) in view.trouble.message
        await until(engine, lambda: broken.raised >= 3)
        assert device.leases == 0
        broken.on = False
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.trouble is None
    assert verify(spec.output.uri) == []


async def test_a_late_result_that_cannot_be_judged_costs_nobody_the_link(tmp_path, make_job, monkeypatch) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"v": [1, 2, 3, 4]}\nnot json\n' * 4)
    spec = make_job(
        input=InputRef(f"file://{data}", InputFormat.JSONL, columns=(ColumnBinding("v", "x"),)),
        sharding=Sharding(2),
    )
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=2)
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: bool(device.queue))
        job, shard = device.queue[0]
        await device.vanish(forget=True)
    async with an_engine(tmp_path) as engine:
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.RUNNING)
        late = FakeDevice(engine, "a")
        late.attach()
        late.queue.clear()
        broken = Fault(monkeypatch, Encoder, "encode", OSError("input/output error"))
        await engine.devices.results(late, job, [late._compute(shard)])
        assert broken.raised
        assert shard.token in late.settled
        broken.on = False
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert (view.items_done, view.items_failed) == (8, 4)


async def test_a_bug_in_admission_is_shown_on_the_job(tmp_path, make_job, monkeypatch) -> None:
    def buggy(*_args):
        raise KeyError("graph")

    monkeypatch.setattr("pocketgrid.engine.admission.admit", buggy)
    spec = make_job(20)
    async with an_engine(tmp_path) as engine:
        engine.submit(spec)
        await job_in_trouble(engine, spec, "InternalError")
        async with asyncio.timeout(5):
            await engine.remove(spec.uid)


# ---- at any moment ----


class SlowAdmission:
    """Admission that takes until it is let go on."""

    def __init__(self, monkeypatch, *, refuse: bool) -> None:
        from pocketgrid.engine import admission

        real = admission.admit
        self.begun = threading.Event()
        self.go_on = threading.Event()

        def admit(*args):
            self.begun.set()
            assert self.go_on.wait(10)
            if refuse:
                raise InvalidSpecError("Unreadable", "not there", field="spec.model.uri")
            return real(*args)

        monkeypatch.setattr(admission, "admit", admit)


@pytest.mark.parametrize("refuse", [False, True], ids=["which then succeeds", "which then refuses"])
@pytest.mark.parametrize("how", ["removed", "engine stopped"])
async def test_a_job_can_end_during_its_admission(tmp_path, make_job, monkeypatch, refuse: bool, how: str) -> None:
    slow = SlowAdmission(monkeypatch, refuse=refuse)
    spec = make_job(20)
    async with asyncio.timeout(10):
        async with an_engine(tmp_path) as engine:
            engine.submit(spec)
            await until(engine, slow.begun.is_set)
            if how == "removed":
                removal = asyncio.create_task(engine.remove(spec.uid))
                await asyncio.sleep(0)
                slow.go_on.set()
                await removal
                assert engine.job_view(spec.uid) is None
            else:
                asyncio.get_running_loop().call_later(0.05, slow.go_on.set)
    # The store was let go of: somebody else can have it.
    monkeypatch.undo()
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a").attach()
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)


async def test_an_edit_during_admission_is_heeded_at_once(tmp_path, make_job, monkeypatch) -> None:
    from pocketgrid.settings import EngineSettings

    slow = SlowAdmission(monkeypatch, refuse=True)
    spec = make_job(20)
    async with an_engine(tmp_path, settings=EngineSettings(tick_seconds=0.02, readmission_seconds=600)) as engine:
        engine.submit(spec)
        await until(engine, slow.begun.is_set)
        engine.submit(replace(spec, priority=3, placement=Placement(hardware_classes=("boards",))))
        slow.go_on.set()

        def refused_for_the_class() -> bool:
            view = view_of(engine, spec)
            return view.explanation is not None and view.explanation.reason == "UnknownClass"

        await until(engine, refused_for_the_class, 5)


@pytest.mark.parametrize("per_shard", [pytest.param(10, id="cut by the user"), pytest.param(0, id="cut by the grid")])
async def test_a_job_suspended_from_its_first_day_says_so_and_can_be_resumed(tmp_path, make_job, per_shard) -> None:
    spec = make_job(50, per_shard)
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a")
        device.attach()
        engine.submit(replace(spec, suspend=True))
        await job_reaches(engine, spec, Stage.SUSPENDED)
        assert not device.orders
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)


async def test_a_job_removed_before_its_cut_leaves_nothing_on_its_devices(tmp_path, make_job) -> None:
    spec = make_job(50, 0)
    async with an_engine(tmp_path) as engine:
        device = NeverLoads(engine, "a")
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: bool(device.orders))
        await engine.remove(spec.uid)
        assert not device.orders
        assert engine.devices.model_for(device.identity.name, spec.model.sha256) is None


async def test_a_job_may_come_again_after_its_removal(tmp_path, make_job) -> None:
    spec = make_job(200)
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=1000)
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: "committed" in device.settled.values())
        first, second = (asyncio.create_task(engine.remove(spec.uid)) for _ in range(2))
        await first
        engine.submit(spec)
        await second
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_done == 200
    assert verify(spec.output.uri) == []


async def test_results_of_jobs_not_read_yet_never_block_their_start(tmp_path, make_job) -> None:
    from pocketgrid.settings import EngineSettings

    spec = make_job(200, sharding=Sharding(10, lease_seconds=30.0))
    settings = EngineSettings(tick_seconds=0.02, orphan_bytes=4096, commit_queue_bytes=1024)
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=10)
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: len(device.queue) >= 10)
        work = list(device.queue)
        await device.vanish()
    outcomes = [device._compute(shard) for _, shard in work]
    async with an_engine(tmp_path, settings=settings, listed=False) as engine:
        from pocketgrid.model.device import NodeView, device_labels

        late = FakeDevice(engine, "a")
        late.attach()
        engine.set_node(NodeView(late.identity.name, device_labels(late.identity)))
        for outcome in outcomes:
            await engine.devices.results(late, spec.uid, [outcome])
        engine.submit(spec)
        engine.jobs_listed()
        await job_reaches(engine, spec, Stage.COMPLETE)
        assert "committed" in [late.settled.get(o.token) for o in outcomes]
    assert isinstance(engine.devices, Attendance)
    assert engine.devices._orphan_bytes == 0
    assert not engine.devices._orphans


def lines_job(make_job, path: Path, **changes):
    bound = (ColumnBinding("v", "x"),)
    return make_job(input=InputRef(path.as_uri(), InputFormat.JSONL, columns=bound, **changes), sharding=Sharding(10))


async def test_a_file_that_changes_while_its_job_runs_fails_the_job_and_is_named(tmp_path, make_job) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"v": [1, 2, 3, 4]}\n' * 4000)
    spec = lines_job(make_job, data)
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=40)  # far too slow to have been handed everything
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: view_of(engine, spec).items_done > 0)
        with data.open("a") as file:
            file.write('{"v": [5, 6, 7, 8]}\n')
        view = await job_reaches(engine, spec, Stage.FAILED)
        assert view.explanation is not None
        assert view.explanation.reason == "InputChanged"
        assert str(data) in view.explanation.message
        assert "size went from 80000 to 80020 bytes" in view.explanation.message
        assert not device.orders
        async with asyncio.timeout(10):
            await engine.remove(spec.uid)


async def test_a_change_that_only_the_keys_show_fails_the_job_too(tmp_path, make_job) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"v": [1, 2, 3, 4], "id": "a"}\n' * 40)
    spec = replace(lines_job(make_job, data, key="id"), sharding=Sharding(10, lease_seconds=60))
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=20)
        device.attach()
        engine.submit(spec)
        # All rows are handed out; from here on only keys are read, when the part is written.
        await until(engine, lambda: sum(shard.items for _, shard in device.queue) + len(device.computed) * 10 >= 40)
        data.write_text("gone\n")
        device.items_per_second = 10_000
        view = await job_reaches(engine, spec, Stage.FAILED)
        assert view.explanation is not None
        assert view.explanation.reason == "InputChanged"


async def test_a_job_whose_files_are_out_of_reach_for_a_while_goes_on_by_itself(
    tmp_path, make_job, monkeypatch
) -> None:
    monkeypatch.setattr("pocketgrid.engine.feeder.READ_RETRY_S", 0.05)
    monkeypatch.setattr("pocketgrid.storage.datasets._KEPT_OPEN", 0)
    folder = tmp_path / "mounted"
    folder.mkdir()
    for part in range(4):
        (folder / f"{part}.jsonl").write_text('{"v": [1, 2, 3, 4]}\n' * 100)
    spec = make_job(
        input=InputRef(f"{folder.as_uri()}/", InputFormat.JSONL, columns=(ColumnBinding("v", "x"),)),
        sharding=Sharding(10),
    )
    async with an_engine(tmp_path) as engine:
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.RUNNING)
        folder.rename(tmp_path / "unmounted")
        FakeDevice(engine, "a").attach()
        view = await job_in_trouble(engine, spec, "InputUnreadable")
        assert str(folder) in view.trouble.message
        (tmp_path / "unmounted").rename(folder)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_done == 400
    assert verify(spec.output.uri) == []
