"""A job whose output folder fails for real: full, read-only, gone. It says so, waits, and ends as if nothing was."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pocketgrid.model.device import HardwareClass
from pocketgrid.model.job import OutputFormat, OutputRef
from pocketgrid.model.selectors import LabelSelector, Requirement
from pocketgrid.model.view import Stage
from pocketgrid.storage.results import DeviceWork, read_manifest, verify
from tests.fakes.devices import FakeDevice
from tests.unit.engine.engine_world import JobMaker, an_engine, job_in_trouble, job_reaches, until, view_of

ITEMS = 600
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="a file system can be mounted by root only")


@pytest.fixture
def make_job(tmp_path: Path) -> JobMaker:
    return JobMaker(tmp_path)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "pocketgrid-test", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte of a file system free."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return ballast


def check(out: Path) -> None:
    assert verify(str(out)) == []
    assert pq.read_table(out)["row"].to_pylist() == list(range(ITEMS))


@ROOT_ONLY
@pytest.mark.parametrize("from_the_start", [False, True], ids=["in mid-job", "from the start"])
async def test_a_full_disk(tmp_path: Path, make_job: JobMaker, mount: Path, from_the_start: bool) -> None:
    spec = make_job(ITEMS, output=OutputRef(f"file://{mount}/out", OutputFormat.PARQUET))
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=500)
        device.attach()
        ballast = fill(mount) if from_the_start else None
        engine.submit(spec)
        if ballast is None:
            await until(engine, lambda: view_of(engine, spec).shards_done > 3)
            ballast = fill(mount)
        reason = "StoreUnavailable" if from_the_start else "StorageFailed"
        view = await job_in_trouble(engine, spec, reason)
        assert view.trouble is not None
        assert str(mount) in view.trouble.message
        assert "No space left on device; free space on that file system; work goes on by itself" in view.trouble.message
        done = view.shards_done
        acknowledged = list(device.settled.values()).count("committed")
        assert acknowledged <= done
        ballast.unlink()
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.trouble is None
        assert view.shards_done >= done
    check(mount / "out")


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """What has been opened for writing stays so, as after a change of permissions; nothing can be created."""
    if subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@ROOT_ONLY
async def test_a_folder_that_becomes_read_only(tmp_path: Path, make_job: JobMaker) -> None:
    spec, out = make_job(ITEMS), tmp_path / "out-job"
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", items_per_second=1000).attach()
        engine.submit(spec)
        await until(engine, lambda: view_of(engine, spec).shards_done > 3)
        with read_only(out):
            view = await job_in_trouble(engine, spec, "StorageFailed")
            assert view.trouble is not None
            assert "Read-only file system; mount the file system for writing" in view.trouble.message
        await job_reaches(engine, spec, Stage.COMPLETE)
    check(out)


async def test_a_folder_that_is_moved_away_and_back(tmp_path: Path, make_job: JobMaker) -> None:
    spec, out = make_job(ITEMS), tmp_path / "out-job"
    async with an_engine(tmp_path) as engine:
        device = FakeDevice(engine, "a", items_per_second=500)
        device.attach()
        engine.submit(spec)
        await until(engine, lambda: view_of(engine, spec).shards_done > 3)
        out.rename(tmp_path / "aside")
        view = await job_in_trouble(engine, spec, "StorageFailed")
        assert view.trouble is not None
        assert "put it back as it was, and work goes on by itself" in view.trouble.message
        assert not out.exists(), "nothing is begun anew where the log was"
        (tmp_path / "aside").rename(out)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.trouble is None
    check(out)


async def test_a_folder_that_is_deleted_for_good_is_begun_anew_by_the_next_operator(
    tmp_path: Path, make_job: JobMaker
) -> None:
    spec, out = make_job(ITEMS), tmp_path / "out-job"
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", items_per_second=500).attach()
        engine.submit(spec)
        await until(engine, lambda: view_of(engine, spec).shards_done > 3)
        shutil.rmtree(out)
        await job_in_trouble(engine, spec, "StorageFailed")
        assert not out.exists()
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a", items_per_second=5000).attach()
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
    check(out)


async def test_the_manifest_names_devices_with_their_classes_and_engines(tmp_path: Path, make_job: JobMaker) -> None:
    spec = make_job(ITEMS)
    kinds = Requirement("pocketgrid.dev/kind", "In", ("sbc",))
    classes = {name: HardwareClass(name, LabelSelector(expressions=(kinds,))) for name in ("small", "boards")}
    async with an_engine(tmp_path) as engine:
        engine.set_classes(classes)
        FakeDevice(engine, "a", items_per_second=2000).attach()
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
    work = read_manifest(str(tmp_path / "out-job")).work
    assert work is not None
    (line,) = work.devices
    assert line == DeviceWork("a", "boards,small", "onnxruntime 1.32.0", 60, ITEMS, 0, line.compute_us)
    assert line.compute_us > 0
    check(tmp_path / "out-job")
