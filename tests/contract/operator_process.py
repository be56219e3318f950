"""An engine and a gateway as a process of their own, to be killed; says how many shards are done."""

import asyncio
import sys
from pathlib import Path

from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.server import Gateway
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
from pocketgrid.model.view import Stage
from pocketgrid.settings import EngineSettings, GatewaySettings


async def main(folder: Path, port: int, model: str, sha256: str, data: str, output: str) -> None:
    clock = SystemClock()
    spec = JobSpec(
        uid=JobUid("uid-outlives"),
        namespace="default",
        name="outlives",
        model=ModelRef(model, ModelDigest(sha256)),
        input=InputRef(data, InputFormat.NPY, columns=(ColumnBinding("data", "x"),)),
        output=OutputRef(output, OutputFormat.PARQUET),
        sharding=Sharding(items_per_shard=25, lease_seconds=1.0),
    )
    async with (
        Engine(EngineSettings(), clock, folder / "models", nodes_from_facts=True) as engine,
        Gateway(engine, GatewaySettings(port=port), clock, folder / "gateway"),
    ):
        engine.submit(spec)
        print(0, flush=True)
        revision, told = 0, 0
        while True:
            revision = await engine.changed(revision, 0.1)
            view = engine.job_view(spec.uid)
            # The last shard is told of only when the manifest is there.
            done = view.shards_done if view.stage is Stage.COMPLETE else min(view.shards_done, max(view.shards - 1, 0))
            if done > told:
                told = done
                print(done, flush=True)


folder, port, *rest = sys.argv[1:]
asyncio.run(main(Path(folder), int(port), *rest))
