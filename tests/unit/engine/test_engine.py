"""The engine with real admission, real storage and devices that are only in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.engine.links import AttemptFailure
from pocketgrid.model.device import HardwareClass, NodeView, device_labels
from pocketgrid.model.ids import DeviceName, JobUid, ModelDigest
from pocketgrid.model.job import (
    ColumnBinding,
    InputFormat,
    InputRef,
    JobSpec,
    Limits,
    ModelRef,
    OutputFormat,
    OutputRef,
    Placement,
    Sharding,
)
from pocketgrid.model.selectors import LabelSelector, Requirement, Taint
from pocketgrid.model.view import JobView, Presence, Stage
from pocketgrid.settings import EngineSettings
from pocketgrid.storage.results import verify
from tests.fakes.devices import FakeDevice
from tests.fakes.models import write_affine_model, write_npy

SETTINGS = EngineSettings(tick_seconds=0.02, reconnect_grace_seconds=0.1, readmission_seconds=0.05)
DEADLINE_S = 20.0


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., JobSpec]:
    sha256 = write_affine_model(tmp_path / "model.onnx")

    def make(items: int = 400, per_shard: int = 10, name: str = "job", **changes) -> JobSpec:
        data = tmp_path / f"{name}.npy"
        if not data.exists():
            write_npy(data, items)
        fields = {
            "uid": JobUid(f"uid-{name}"),
            "namespace": "default",
            "name": name,
            "model": ModelRef(f"file://{tmp_path}/model.onnx", ModelDigest(sha256)),
            "input": InputRef(f"file://{data}", InputFormat.NPY, columns=(ColumnBinding("data", "x"),)),
            "output": OutputRef(f"file://{tmp_path}/out-{name}", OutputFormat.PARQUET),
            "sharding": Sharding(items_per_shard=per_shard, lease_seconds=1.0),
        }
        return JobSpec(**{**fields, **changes})

    return make


@asynccontextmanager
async def an_engine(tmp_path: Path, *, cluster: bool = False) -> AsyncIterator[Engine]:
    async with Engine(SETTINGS, SystemClock(), tmp_path / "models", nodes_from_facts=not cluster) as engine:
        yield engine


async def until(engine: Engine, condition: Callable[[], bool]) -> None:
    revision = 0
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            revision = await engine.changed(revision, 0.02)


async def job_reaches(engine: Engine, spec: JobSpec, stage: Stage) -> JobView:
    def there() -> bool:
        view = engine.job_view(spec.uid)
        return view is not None and view.stage is stage

    await until(engine, there)
    view = engine.job_view(spec.uid)
    assert view is not None
    return view


def check_output(spec: JobSpec, items: int) -> None:
    folder = spec.output.uri.removeprefix("file://")
    assert verify(spec.output.uri) == []
    table = ds.dataset(folder, format="parquet").to_table()
    assert table["row"].to_pylist() == list(range(items))
    expected = np.arange(items * 4, dtype=np.float32).reshape(items, 4) * 2 + 1
    found = np.array(table["y"].to_pylist(), dtype=np.float32)
    np.testing.assert_array_equal(found, expected)


async def test_a_job_runs_to_its_manifest(tmp_path, make_job) -> None:
    spec = make_job()
    async with an_engine(tmp_path) as engine:
        devices = [FakeDevice(engine, n) for n in ("a", "b")]
        engine.submit(spec)
        for device in devices:
            device.attach()
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_done == 400
        assert view.items_failed == 0
        assert view.shards_done == view.shards == 40
        assert view.completed_text == "0-39"
        assert all(d.computed for d in devices)
        await until(engine, lambda: not any(d.results for d in devices))
        assert not any(d.orders for d in devices), "a finished job's order is withdrawn"
    check_output(spec, 400)


async def test_the_grid_chooses_the_cut_from_a_measured_speed(tmp_path, make_job) -> None:
    spec = make_job(items=5000, per_shard=0)
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", items_per_second=2000).attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_per_shard == 312, "a sixteenth of the data set, which is less than a quarter of a second"
    check_output(spec, 5000)


async def test_a_vanished_devices_shards_go_to_others(tmp_path, make_job) -> None:
    spec = make_job()
    async with an_engine(tmp_path) as engine:
        slow, fast = FakeDevice(engine, "slow", items_per_second=10), FakeDevice(engine, "fast")
        slow.attach()
        engine.submit(spec)
        await until(engine, lambda: slow.leases > 0)
        await slow.vanish(forget=True)
        fast.attach()
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        # Given up with the device, or raced by a copy while its return was waited for.
        assert view.attempts_lost + view.copies > 0
        await until(engine, lambda: engine.device_views()[DeviceName("slow")].presence is Presence.LOST)
    check_output(spec, 400)


async def test_a_returning_device_keeps_its_leases_and_redoes_nothing(tmp_path, make_job) -> None:
    spec = make_job(items=100, per_shard=10)
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=400)
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: len(device.computed) >= 2)
        await device.vanish()
        device.attach()
        await job_reaches(engine, spec, Stage.COMPLETE)
        shards = [s for _, s in device.computed]
        assert sorted(shards) == sorted(set(shards))
    check_output(spec, 100)


async def test_results_finished_before_the_operator_died_count_after_it(tmp_path, make_job) -> None:
    spec = make_job(items=60, per_shard=10)
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=100)
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: device.leases > 0 and len(device.queue) >= 2)
        job, shard = device.queue[0]
        await device.vanish()
    # While no operator is there, the device finishes a shard.
    device.queue.remove((job, shard))
    device.results[shard.token] = (job, device._compute(shard))
    async with an_engine(tmp_path) as engine:
        device.engine = engine
        device.attach()
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
        await until(engine, lambda: shard.token in device.settled)
        assert device.settled[shard.token] == "committed"
    check_output(spec, 60)


async def test_a_restarted_engine_goes_on_where_the_log_ends(tmp_path, make_job) -> None:
    spec = make_job()
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", items_per_second=2000).attach()
        engine.submit(spec)

        def some_done() -> bool:
            view = engine.job_view(spec.uid)
            return view is not None and view.shards_done >= 5

        await until(engine, some_done)
    async with an_engine(tmp_path) as engine:
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.RUNNING)
        assert view.shards_done >= 5
        FakeDevice(engine, "b").attach()
        await job_reaches(engine, spec, Stage.COMPLETE)
    async with an_engine(tmp_path) as engine:
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_done == 400
    check_output(spec, 400)


async def test_results_of_the_wrong_shape_are_refused_and_done_elsewhere(tmp_path, make_job) -> None:
    spec = make_job(items=100)
    async with an_engine(tmp_path) as engine:
        liar, honest = FakeDevice(engine, "liar", wrong=True), FakeDevice(engine, "honest", items_per_second=2000)
        liar.attach()
        engine.submit(spec)
        await until(engine, lambda: "refused" in liar.settled.values())
        honest.attach()
        await job_reaches(engine, spec, Stage.COMPLETE)
        assert "committed" not in liar.settled.values()
    check_output(spec, 100)


async def test_a_device_cannot_answer_for_another(tmp_path, make_job) -> None:
    spec = make_job(items=100)
    async with an_engine(tmp_path) as engine:
        victim, thief = FakeDevice(engine, "victim", items_per_second=20), FakeDevice(engine, "thief")
        victim.attach()
        engine.submit(spec)
        await until(engine, lambda: bool(victim.queue))
        job, shard = victim.queue[0]
        thief.fail_with = AttemptFailure(False, "Busy", "not today")
        thief.attach()
        forged = FakeDevice(engine, "forger")._compute(shard)
        await engine.devices.results(thief, job, [forged])
        assert thief.settled[shard.token] == "refused"
        view = engine.job_view(spec.uid)
        assert view is not None
        assert view.shards_done == 0


async def test_items_to_blame_fail_after_the_backoff_limit_and_the_job_goes_on(tmp_path, make_job) -> None:
    spec = make_job(items=40, limits=Limits(backoff_limit_per_shard=1))
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", fail_with=AttemptFailure(True, "EngineError", "bad item")).attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_failed == view.items_done == 40
    assert verify(spec.output.uri) == []


async def test_too_many_failed_items_fail_the_job(tmp_path, make_job) -> None:
    spec = make_job(items=40, limits=Limits(backoff_limit_per_shard=0, max_failed_items=9))
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", fail_with=AttemptFailure(True, "EngineError", "bad item")).attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.FAILED)
        assert view.explanation is not None
        assert view.explanation.reason == "MaxFailedItemsExceeded"


async def test_trouble_of_a_device_never_counts_against_a_shard(tmp_path, make_job) -> None:
    spec = make_job(items=40, limits=Limits(backoff_limit_per_shard=0, max_failed_items=0))
    async with an_engine(tmp_path) as engine:
        sick = FakeDevice(engine, "sick", fail_with=AttemptFailure(False, "OutOfMemory", "too big"))
        sick.attach()
        engine.submit(spec)
        await until(engine, lambda: len(sick.computed) > 4)

        def shown() -> bool:
            view = engine.job_view(spec.uid)
            return view is not None and view.obstacle is not None and view.obstacle.reason == "DevicesFailing"

        await until(engine, shown)
        view = engine.job_view(spec.uid)
        assert view is not None
        assert view.obstacle is not None
        assert "OutOfMemory: too big" in view.obstacle.message
        FakeDevice(engine, "well", items_per_second=100_000).attach()
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_failed == 0
    check_output(spec, 40)


async def test_suspend_takes_work_back_and_resume_goes_on(tmp_path, make_job) -> None:
    spec = make_job()
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=500)
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: len(device.computed) > 2)
        engine.submit(replace_spec(spec, suspend=True))
        await job_reaches(engine, spec, Stage.SUSPENDED)

        def at_rest() -> bool:
            view = engine.job_view(spec.uid)
            return view is not None and view.devices == {} and view.shards_active == 0 and not device.queue

        await until(engine, at_rest)
        device.items_per_second = 100_000
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
    check_output(spec, 400)


async def test_removal_stops_work_and_keeps_committed_output(tmp_path, make_job) -> None:
    spec = make_job()
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=500)
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: "committed" in device.settled.values())
        await engine.remove(spec.uid)
        assert engine.job_view(spec.uid) is None
        assert not device.queue
        assert not device.orders
    assert (Path(spec.output.uri.removeprefix("file://")) / "_pocketgrid" / "log").is_dir()


async def test_a_slow_devices_unbegun_shards_are_taken_back_when_others_idle(tmp_path, make_job) -> None:
    spec = make_job(items=200, per_shard=10, sharding=Sharding(10, lease_seconds=30.0))
    async with an_engine(tmp_path) as engine:
        slow = FakeDevice(engine, "slow", items_per_second=20)
        slow.attach()
        engine.submit(spec)
        await until(engine, lambda: len(slow.queue) >= 10)
        fast = FakeDevice(engine, "fast", items_per_second=5000)
        fast.attach()
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert len(fast.computed) > len(slow.computed)
        assert view.copies <= 1
    check_output(spec, 200)


async def test_a_straggler_gets_a_second_copy(tmp_path, make_job) -> None:
    spec = make_job(items=20, per_shard=10)
    async with an_engine(tmp_path) as engine:
        stuck = FakeDevice(engine, "stuck", items_per_second=1)
        stuck.attach()
        engine.submit(spec)
        await until(engine, lambda: bool(stuck.queue))
        FakeDevice(engine, "fast").attach()
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.copies >= 1
        await until(engine, lambda: not stuck.queue)
    check_output(spec, 20)


async def test_a_refusal_names_field_and_reason_and_heals_when_the_file_appears(tmp_path, make_job) -> None:
    spec = make_job(items=20)
    data = Path(spec.input.uri.removeprefix("file://"))
    hidden = data.rename(data.with_suffix(".hidden"))
    async with an_engine(tmp_path) as engine:
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.REFUSED)
        assert view.explanation is not None
        assert view.explanation.field == "spec.input.uri"
        hidden.rename(data)
        FakeDevice(engine, "a").attach()
        await job_reaches(engine, spec, Stage.COMPLETE)
    check_output(spec, 20)


async def test_an_unknown_class_is_refused_until_somebody_defines_it(tmp_path, make_job) -> None:
    spec = make_job(items=20, placement=Placement(hardware_classes=("boards",)))
    boards = HardwareClass("boards", LabelSelector(expressions=(Requirement("pocketgrid.dev/kind", "In", ("sbc",)),)))
    async with an_engine(tmp_path) as engine:
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.REFUSED)
        assert view.explanation is not None
        assert view.explanation.reason == "UnknownClass"
        engine.set_classes({"boards": boards})
        FakeDevice(engine, "a").attach()
        await job_reaches(engine, spec, Stage.COMPLETE)


async def test_a_class_without_ready_devices_is_an_obstacle_not_a_refusal(tmp_path, make_job) -> None:
    spec = make_job(items=20, placement=Placement(node_selector=(("room", "lab"),)))
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a").attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.RUNNING)
        assert view.obstacle is not None
        assert view.obstacle.reason == "NoReadyNodes"
        assert "label room is not lab" in view.obstacle.message


async def test_a_device_that_cannot_load_the_model_is_passed_over(tmp_path, make_job) -> None:
    spec = make_job(items=20)
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", refuse_model=True).attach()
        engine.submit(spec)

        def obstructed() -> bool:
            view = engine.job_view(spec.uid)
            return view is not None and view.obstacle is not None and view.obstacle.reason == "ModelLoadFailed"

        await until(engine, obstructed)
        FakeDevice(engine, "b").attach()
        await job_reaches(engine, spec, Stage.COMPLETE)


async def test_priority_decides_who_is_served_first(tmp_path, make_job) -> None:
    low, high = make_job(name="low", items=200), make_job(name="high", items=200, priority=5)
    async with an_engine(tmp_path) as engine:
        engine.submit(low)
        engine.submit(high)
        await job_reaches(engine, low, Stage.RUNNING)
        await job_reaches(engine, high, Stage.RUNNING)
        device = FakeDevice(engine, "a", items_per_second=5000)
        device.attach()
        await job_reaches(engine, high, Stage.COMPLETE)
        await job_reaches(engine, low, Stage.COMPLETE)
        order = [job for job, _ in device.computed]
        assert order == sorted(order, key=lambda job: job != high.uid)


async def test_equal_jobs_share_the_fleet(tmp_path, make_job) -> None:
    jobs = [make_job(name=n, items=400) for n in ("one", "two")]
    async with an_engine(tmp_path) as engine:
        for spec in jobs:
            engine.submit(spec)
            await job_reaches(engine, spec, Stage.RUNNING)
        devices = [FakeDevice(engine, n, items_per_second=500) for n in ("a", "b")]
        for device in devices:
            device.attach()
        await until(engine, lambda: all(len(d.computed) >= 3 for d in devices))
        assert {d.computed[0][0] for d in devices} == {j.uid for j in jobs}


async def test_max_nodes_is_kept(tmp_path, make_job) -> None:
    spec = make_job(items=400, placement=Placement(max_nodes=2))
    async with an_engine(tmp_path) as engine:
        engine.submit(spec)
        devices = [FakeDevice(engine, n, items_per_second=2000) for n in "abcd"]
        for device in devices:
            device.attach()
        await job_reaches(engine, spec, Stage.COMPLETE)
        assert sum(bool(d.computed) for d in devices) == 2


def a_node(device: FakeDevice, **changes) -> NodeView:
    return NodeView(**{"name": device.identity.name, "labels": device_labels(device.identity), **changes})


async def test_in_a_cluster_a_device_works_only_once_it_has_a_node(tmp_path, make_job) -> None:
    spec = make_job(items=20)
    async with an_engine(tmp_path, cluster=True) as engine:
        device = FakeDevice(engine, "a")
        device.attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.RUNNING)
        assert view.obstacle is not None
        assert "has no Node" in view.obstacle.message
        engine.set_node(a_node(device))
        await job_reaches(engine, spec, Stage.COMPLETE)


async def test_a_cordon_stops_new_leases_and_an_uncordon_brings_them_back(tmp_path, make_job) -> None:
    spec = make_job()
    async with an_engine(tmp_path, cluster=True) as engine:
        device = FakeDevice(engine, "a", items_per_second=1000)
        device.attach()
        engine.set_node(a_node(device))
        engine.submit(spec)
        await until(engine, lambda: device.leases > 0)
        engine.set_node(a_node(device, unschedulable=True))
        await until(engine, lambda: not device.queue)
        leases = device.leases
        view = engine.job_view(spec.uid)
        assert view is not None
        assert view.stage is Stage.RUNNING
        assert device.leases == leases
        engine.set_node(a_node(device))
        await job_reaches(engine, spec, Stage.COMPLETE)
    check_output(spec, 400)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"taints": (Taint("maintenance", "NoExecute"),)}, id="NoExecute taint"),
        pytest.param({"labels": {"pocketgrid.dev/kind": "server"}}, id="label no longer selected"),
    ],
)
async def test_eviction_takes_running_work_away(tmp_path, make_job, change) -> None:
    spec = make_job(placement=Placement(node_selector=(("pocketgrid.dev/kind", "sbc"),)))
    async with an_engine(tmp_path, cluster=True) as engine:
        device = FakeDevice(engine, "a", items_per_second=100)
        device.attach()
        engine.set_node(a_node(device))
        engine.submit(spec)
        await until(engine, lambda: bool(device.queue))
        engine.set_node(a_node(device, **change))
        assert not device.queue
        view = engine.job_view(spec.uid)
        assert view is not None
        assert view.obstacle is not None


async def test_a_deleted_node_ends_the_session_until_the_agent_starts_anew(tmp_path, make_job) -> None:
    from dataclasses import replace

    from pocketgrid.errors import RefusedError

    spec = make_job(items=100)
    async with an_engine(tmp_path, cluster=True) as engine:
        device = FakeDevice(engine, "a", items_per_second=50)
        device.attach()
        engine.set_node(a_node(device))
        engine.submit(spec)
        await until(engine, lambda: bool(device.queue))
        engine.remove_node(DeviceName("a"), deregister=True)
        assert device.closed == ("Deregistered", False)
        with pytest.raises(RefusedError, match="restart the agent"):
            device.attach()
        await until(engine, lambda: engine.device_views()[DeviceName("a")].presence is Presence.LOST)
        device.identity = replace(device.identity, boot_id="boot-2")
        device.items_per_second = 5000
        device.queue.clear()
        device.attach()
        engine.set_node(a_node(device))
        await job_reaches(engine, spec, Stage.COMPLETE)


async def test_unreadable_rows_are_committed_without_a_device(tmp_path, make_job) -> None:
    lines = ['{"v": [1, 2, 3, 4]}', "not json", '{"w": 1}'] * 4
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(lines) + "\n")
    spec = make_job(
        input=InputRef(f"file://{data}", InputFormat.JSONL, columns=(ColumnBinding("v", "x"),)),
        sharding=Sharding(1),
    )
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a").attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert (view.items_done, view.items_failed) == (12, 8)
    assert verify(spec.output.uri) == []


def replace_spec(spec: JobSpec, **changes) -> JobSpec:
    from dataclasses import replace

    return replace(spec, **changes)
