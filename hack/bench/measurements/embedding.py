"""How much of what bare onnxruntime delivers does the grid deliver, for a model of usual weight?"""

from __future__ import annotations

from collections.abc import Sequence

from hack.bench import workloads
from hack.bench.figures import Definition, Figure
from hack.bench.grid import Grid
from hack.bench.measurements.base import AGENTS, Conditions, Measurement, median, median_stages, play_rounds

ROWS, QUICK_ROWS = 12_000, 1_280

EFFICIENCY = Definition(
    name="efficiency_minilm",
    unit="ratio",
    goal=0.95,
    at_least=True,
    meaning="Items per second of two one-thread agents over two bare onnxruntime processes: 12,000 WordNet glosses, "
    "MiniLM int8, 64-row shards, micro-batches of 8",
    origin="what is lost to coordination should not show; stretch 0.97, and a bare coordinator reached 0.98",
)


def _run(conditions: Conditions) -> Sequence[Figure]:
    workload = workloads.embedding(conditions.folder / "rows", QUICK_ROWS if conditions.quick else ROWS)
    rounds = play_rounds(conditions, workload, Grid(conditions.folder / "grid", AGENTS))
    efficiency = Figure(
        EFFICIENCY,
        tuple(r.ratio for r in rounds),
        {
            "grid_items_per_second": median(r.grid.items_per_second for r in rounds),
            "limit_items_per_second": median(bare.items_per_second for r in rounds for bare in r.limits),
            "whole_job_ratio": median(r.whole_job_ratio for r in rounds),
            "processor_time_ratio": median(r.processor_ratio for r in rounds),
            "coordinator_ms_per_shard": median(r.grid.coordinator_ms_per_shard for r in rounds),
        },
        median_stages(rounds),
    )
    return (efficiency,)


MEASUREMENT = Measurement("embeddings", (EFFICIENCY,), _run)
