"""How does the grid compare with task systems that people would otherwise use for the same rows?

Only if they are installed (`make peers`). The tiny network shows overhead as nothing else does. What the peers are
spared: TLS, fencing, journals, checks, a commit log and output files; their results stay in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from hack.bench import workloads
from hack.bench.figures import Definition, Figure
from hack.bench.grid import Grid, GridRun
from hack.bench.limit import run_limit
from hack.bench.measurements.base import AGENTS, Conditions, Measurement, median
from hack.bench.peers import PeerRun, are_installed, run_peer

ROWS, QUICK_ROWS = 4_000_000, 500_000
FIXED_SHARD = 256
PEERS = {"dask_distributed": "Dask", "ray_data": "Ray Data"}


def _definition(module: str, per_shard: int) -> Definition:
    size = f"{per_shard} items a shard" if per_shard else "shards as the grid chooses them"
    return Definition(
        name=f"rate_over_{module}_mlp" + ("" if per_shard else "_automatic"),
        unit="ratio",
        goal=3.0 if module.startswith("dask") else 1.0,
        at_least=True,
        meaning=f"Items per second of the grid over those of {PEERS[module]}, both with two workers: 4 million digits, "
        f"{size}",
        origin="three times Dask, and no slower than Ray Data once its actors run, as measured for the design",
    )


def _run(conditions: Conditions, per_shard: int) -> Sequence[Figure]:
    if not are_installed():
        conditions.progress.say("left out: peers are not installed; `make peers` does that")
        return ()
    rows = QUICK_ROWS if conditions.quick else ROWS
    grid = Grid(conditions.folder / "grid", AGENTS)
    workload = workloads.digits(conditions.folder / "rows", rows, per_shard)
    warm = grid.run(workload)
    grid.discard(warm)
    cut = workload.with_per_shard(warm.per_shard)
    expected = run_limit(cut, AGENTS).results
    rounds: list[tuple[GridRun, dict[str, PeerRun]]] = []
    for number in range(1, conditions.rounds + 1):
        run = grid.run(cut)
        grid.discard(run)
        others = {module: run_peer(module, cut, AGENTS, expected, conditions.folder) for module in PEERS}
        rounds.append((run, others))
        rates = ", ".join(f"{PEERS[m]} {r.items_per_second:,.0f}" for m, r in others.items())
        conditions.progress.say(
            f"round {number}/{conditions.rounds}: {run.items_per_second:,.0f} items/s; {rates}; results are the same"
        )
    return tuple(
        Figure(
            _definition(module, per_shard),
            tuple(run.items_per_second / others[module].items_per_second for run, others in rounds),
            {
                "grid_items_per_second": median(run.items_per_second for run, _ in rounds),
                "peer_items_per_second": median(others[module].items_per_second for _, others in rounds),
                "whole_job_ratio": median(others[module].whole_s / run.whole_s for run, others in rounds),
                "grid_first_result_s": median(run.first_s for run, _ in rounds),
                "peer_first_result_s": median(others[module].first_s for _, others in rounds),
            },
        )
        for module in PEERS
    )


FIXED = Measurement(
    "peers, 256 a shard", tuple(_definition(m, FIXED_SHARD) for m in PEERS), lambda c: _run(c, FIXED_SHARD)
)
AUTOMATIC = Measurement("peers, automatic shards", tuple(_definition(m, 0) for m in PEERS), lambda c: _run(c, 0))
