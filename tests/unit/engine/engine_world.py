"""What tests of the whole engine share: jobs over a tiny model, an engine, and waiting with a deadline."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from pocketgrid.clock import Clock, SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.engine.links import ModelStatus
from pocketgrid.model.ids import JobUid, ModelDigest
from pocketgrid.model.job import (
    ColumnBinding,
    InputFormat,
    InputRef,
    JobSpec,
    ModelRef,
    OutputFormat,
    OutputRef,
    Sharding,
)
from pocketgrid.model.view import JobView, Stage
from pocketgrid.settings import EngineSettings
from tests.fakes.devices import FakeDevice
from tests.fakes.models import write_affine_model, write_npy

SETTINGS = EngineSettings(tick_seconds=0.02, reconnect_grace_seconds=0.1, readmission_seconds=0.05)
DEADLINE_S = 6.0


class JobMaker:
    """Makes specs over one model and one data set for each number of items."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sha256 = ModelDigest(write_affine_model(folder / "model.onnx"))

    def __call__(self, items: int = 100, per_shard: int = 10, name: str = "job", **changes) -> JobSpec:
        data = self.folder / f"items-{items}.npy"
        if not data.exists():
            write_npy(data, items)
        fields = {
            "uid": JobUid(f"uid-{name}"),
            "namespace": "default",
            "name": name,
            "model": ModelRef(f"file://{self.folder}/model.onnx", self.sha256),
            "input": InputRef(f"file://{data}", InputFormat.NPY, columns=(ColumnBinding("data", "x"),)),
            "output": OutputRef(f"file://{self.folder}/out-{name}", OutputFormat.PARQUET),
            "sharding": Sharding(items_per_shard=per_shard, lease_seconds=1.0),
        }
        return JobSpec(**{**fields, **changes})


@asynccontextmanager
async def an_engine(
    tmp_path: Path, *, settings: EngineSettings = SETTINGS, clock: Clock | None = None, listed: bool = True
) -> AsyncIterator[Engine]:
    engine = Engine(settings, clock or SystemClock(), tmp_path / "models", nodes_from_facts=listed)
    async with asyncio.timeout(4 * DEADLINE_S), engine:
        yield engine


async def until(engine: Engine, condition: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    revision = 0
    async with asyncio.timeout(seconds):
        while not condition():
            revision = await engine.changed(revision, 0.02)


def view_of(engine: Engine, spec: JobSpec) -> JobView:
    view = engine.job_view(spec.uid)
    assert view is not None
    return view


async def job_reaches(engine: Engine, spec: JobSpec, stage: Stage) -> JobView:
    await until(engine, lambda: (v := engine.job_view(spec.uid)) is not None and v.stage is stage)
    return view_of(engine, spec)


async def job_in_trouble(engine: Engine, spec: JobSpec, reason: str) -> JobView:
    def there() -> bool:
        view = engine.job_view(spec.uid)
        return view is not None and view.trouble is not None and view.trouble.reason == reason

    await until(engine, there)
    return view_of(engine, spec)


class NeverLoads(FakeDevice):
    """Takes orders and never says what became of them."""

    def _report(self, status: ModelStatus) -> None:
        pass
