"""What every measurement is given and gives, and the interleaved rounds most of them share."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.bench.comparing import read_output, require_equal
from hack.bench.figures import Definition, Figure
from hack.bench.grid import Grid, GridRun
from hack.bench.limit import LimitRun, run_limit
from hack.bench.progress import Progress
from hack.bench.workloads import Workload

AGENTS = 2
"""One thread each, against as many processes of bare onnxruntime."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """How to measure.

    Attributes:
        rounds: how often.
        quick: with few rows, to see that everything works; the figures are worth little.
        folder: for everything that is made; removed afterwards.
    """

    rounds: int
    quick: bool
    folder: Path
    progress: Progress


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement: a title for progress, the figures it gives, and how they are taken."""

    title: str
    definitions: tuple[Definition, ...]
    run: Callable[[Conditions], Sequence[Figure]]


@dataclass(frozen=True, slots=True)
class Round:
    """The grid between two runs of bare onnxruntime, on the same rows and the same shards."""

    grid: GridRun
    limits: tuple[LimitRun, LimitRun]

    @property
    def ratio(self) -> float:
        """Rate of the grid over the mean rate of the limit."""
        return self.grid.items_per_second / statistics.fmean(bare.items_per_second for bare in self.limits)

    @property
    def whole_job_ratio(self) -> float:
        """The same from the start of the first process to the last result, so with everything that starting costs."""
        return statistics.fmean(bare.whole_s for bare in self.limits) / self.grid.whole_s

    @property
    def processor_ratio(self) -> float:
        """Processor time per item, the limit's over the grid's. Unlike rates it hardly depends on the neighbours."""
        return statistics.fmean(bare.cpu_us_per_item for bare in self.limits) / self.grid.cpu_us_per_item


def play_rounds(conditions: Conditions, workload: Workload, grid: Grid) -> list[Round]:
    """Limit, grid, limit, in every round, after one run of the grid that is not counted; results are compared.

    Raises:
        BenchError: a run failed, or the results differ.
    """
    say = conditions.progress.say
    say("warming up: models into the agents' cache, files into memory")
    warm = grid.run(workload)
    grid.discard(warm)
    # A job that is cut by the grid is cut alike every time it measures about the same; the limit needs a number.
    per_shard = workload.per_shard or warm.per_shard
    rounds = []
    for number in range(1, conditions.rounds + 1):
        say(f"round {number}/{conditions.rounds}")
        before = run_limit(workload.with_per_shard(per_shard), AGENTS)
        run = grid.run(workload)
        after = run_limit(workload.with_per_shard(per_shard), AGENTS)
        require_equal(workload, read_output(workload, run.output), before.results)
        grid.discard(run)
        rounds.append(Round(run, (before, after)))
        say(
            f"round {number}/{conditions.rounds}: {run.items_per_second:,.0f} items/s of "
            f"{before.items_per_second:,.0f} and {after.items_per_second:,.0f}; results are the same"
        )
    return rounds


def median_stages(rounds: Sequence[Round]) -> dict[str, float]:
    """Median over the rounds of what each stage takes."""
    return {stage: median(r.grid.stages[stage] for r in rounds) for stage in rounds[0].grid.stages}


def median(values: Iterable[float]) -> float:
    """Median, for baselines."""
    return statistics.median(values)
