"""What does the grid's own work cost where the model costs next to nothing?

The limit takes 25 microseconds for 256 items, so the ratio is bound to be small for anybody: what counts is how many
items come through, and what a shard costs the coordinator.
"""

from __future__ import annotations

from collections.abc import Sequence

from hack.bench import workloads
from hack.bench.figures import Definition, Figure
from hack.bench.grid import Grid
from hack.bench.measurements.base import AGENTS, Conditions, Measurement, Round, median, median_stages, play_rounds

ROWS, QUICK_ROWS = 4_000_000, 500_000
FIXED_SHARD = 256

RATE_FIXED = Definition(
    name="items_per_second_mlp",
    unit="items/s",
    goal=500_000,
    at_least=True,
    meaning="Items per second of two one-thread agents: 4 million digits, 20 KB network, 256 items a shard",
    origin="three times the best task system measured for the design; a coordinator without features reached 0.64 M",
)
EFFICIENCY_FIXED = Definition(
    name="efficiency_mlp",
    unit="ratio",
    goal=0.05,
    at_least=True,
    meaning="The same over two bare onnxruntime processes with the same shards",
    origin="the goal in items per second over the 9 to 10 M that the limit reaches",
)
COORDINATOR = Definition(
    name="coordinator_cpu_ms_per_shard",
    unit="ms",
    goal=1.0,
    at_least=False,
    meaning="The same job: processor time of the operator, all threads, per shard of 256 items",
    origin="1,000 shards a second and core; a coordinator without features took 0.33 ms",
)
RATE_AUTOMATIC = Definition(
    name="items_per_second_mlp_automatic",
    unit="items/s",
    goal=1_200_000,
    at_least=True,
    meaning="Items per second of two one-thread agents: the same rows, shards as the grid chooses them",
    origin="twice the rate of small shards, as measured for the design with larger ones",
)
EFFICIENCY_AUTOMATIC = Definition(
    name="efficiency_mlp_automatic",
    unit="ratio",
    goal=0.12,
    at_least=True,
    meaning="The same over two bare onnxruntime processes with the same shards",
    origin="the goal in items per second over the 10 M that the limit reaches",
)
READING = Definition(
    name="reading_cores_mlp_automatic",
    unit="cores",
    goal=0.5,
    at_least=False,
    meaning="The same job: processor seconds per second that reading and encoding the rows take",
    origin="two threads read, so at half of one reading is far from being what limits the job",
)


def _run_fixed(conditions: Conditions) -> Sequence[Figure]:
    rounds, fractional = _measure(conditions, FIXED_SHARD)
    coordinator = Figure(
        COORDINATOR,
        tuple(r.grid.coordinator_ms_per_shard for r in rounds),
        {"fractional": median(fractional[1])},
    )
    return (*_figures(RATE_FIXED, EFFICIENCY_FIXED, rounds, fractional[0]), coordinator)


def _run_automatic(conditions: Conditions) -> Sequence[Figure]:
    rounds, fractional = _measure(conditions, 0)
    reading = Figure(
        READING,
        tuple(1e-6 * r.grid.items_per_second * sum(r.grid.stages[s] for s in ("read", "encode")) for r in rounds),
    )
    return (*_figures(RATE_AUTOMATIC, EFFICIENCY_AUTOMATIC, rounds, fractional[0]), reading)


def _measure(conditions: Conditions, per_shard: int) -> tuple[list[Round], tuple[list[float], list[float]]]:
    """Rounds on digits as they are; rates and milliseconds per shard of the grid alone on fractional ones."""
    rows = QUICK_ROWS if conditions.quick else ROWS
    grid = Grid(conditions.folder / "grid", AGENTS)
    conditions.progress.say(f"writing {rows:,} rows twice, {2 * rows * 256 / 1e9:.1f} GB in all")
    rounds = play_rounds(conditions, workloads.digits(conditions.folder / "rows", rows, per_shard), grid)
    workload = workloads.digits(conditions.folder / "fractional", rows, per_shard, fractional=True)
    rates, costs = [], []
    for number in range(1, conditions.rounds + 1):
        run = grid.run(workload)
        grid.discard(run)
        rates.append(run.items_per_second)
        costs.append(run.coordinator_ms_per_shard)
        conditions.progress.say(f"fractions {number}/{conditions.rounds}: {run.items_per_second:,.0f} items/s")
    return rounds, (rates, costs)


def _figures(
    rate: Definition, efficiency: Definition, rounds: Sequence[Round], fractional: Sequence[float]
) -> tuple[Figure, Figure]:
    return (
        Figure(
            rate,
            tuple(r.grid.items_per_second for r in rounds),
            {
                "limit_items_per_second": median(bare.items_per_second for r in rounds for bare in r.limits),
                "fractional_items_per_second": median(fractional),
                "items_per_shard": median(r.grid.per_shard for r in rounds),
            },
        ),
        Figure(
            efficiency,
            tuple(r.ratio for r in rounds),
            {
                "whole_job_ratio": median(r.whole_job_ratio for r in rounds),
                "processor_time_ratio": median(r.processor_ratio for r in rounds),
            },
            median_stages(rounds),
        ),
    )


FIXED = Measurement("digits, 256 a shard", (RATE_FIXED, EFFICIENCY_FIXED, COORDINATOR), _run_fixed)
AUTOMATIC = Measurement("digits, automatic shards", (RATE_AUTOMATIC, EFFICIENCY_AUTOMATIC, READING), _run_automatic)
