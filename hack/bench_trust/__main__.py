"""Command line: `python -m hack.bench_trust`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hack.bench.document import rewrite
from hack.bench.progress import Progress
from hack.bench_trust import boinc
from hack.bench_trust.crowd import SCENARIOS, Scenario
from hack.bench_trust.document import BEGIN, END, build_section
from hack.bench_trust.figures import Result, build_figures
from hack.bench_trust.ours import Fleet
from hack.bench_trust.outcome import Outcome
from pocketgrid.model.trust import Verification, VerificationMode

PAGE = Path(__file__).parents[2] / "docs" / "trust-benchmarks.md"
DEVICES, ITEMS_EACH = 1_000, 10_000
QUICK_DEVICES, QUICK_ITEMS_EACH = 60, 500
SEED = 1

_DESCRIPTION = """\
Puts the real trust code among simulated devices of which some lie, with BOINC's adaptive replication and a fixed quorum
of two beside it. Standard output gets one line of JSON per figure, standard error tells what is going on. A complete
run rewrites the tables in docs/trust-benchmarks.md; one with --quick or --only does not.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate; returns 0, whether goals are met or not."""
    options = _parser().parse_args(arguments)
    devices, items = (QUICK_DEVICES, QUICK_ITEMS_EACH) if options.quick else (DEVICES, ITEMS_EACH)
    spec = Verification(VerificationMode.ADAPTIVE)
    progress = Progress()
    results = [
        _simulate(scenario, spec, devices, items, options.seed, progress)
        for scenario in SCENARIOS
        if not options.only or scenario.name in options.only
    ]
    figures = build_figures(results, spec.max_error_rate)
    for figure in figures:
        print(figure.to_json(), flush=True)
    if not (options.only or options.quick or options.no_write):
        PAGE.write_text(rewrite(PAGE.read_text(), build_section(results, figures, devices, items), BEGIN, END))
        progress.say(f"written to docs/{PAGE.name}")
    return 0


def _simulate(
    scenario: Scenario, spec: Verification, devices: int, items: int, seed: int, progress: Progress
) -> Result:
    progress.begin(scenario.name)
    ours = Fleet(scenario, spec, devices, items, seed).run()
    progress.say(_tell("PocketGrid", ours))
    adaptive = boinc.run(scenario, devices, items, seed, adaptive=True)
    progress.say(_tell("BOINC adaptive", adaptive))
    quorum = boinc.run(scenario, devices, items, seed, adaptive=False)
    progress.say(_tell("quorum of 2", quorum))
    return Result(scenario, ours, adaptive, quorum)


def _tell(name: str, outcome: Outcome) -> str:
    return f"{name}: wrong rows {outcome.wrong:.2e}, redundancy {outcome.redundancy:.4f}"


def _parser() -> argparse.ArgumentParser:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="python -m hack.bench_trust",
        description=_DESCRIPTION,
        epilog="scenarios: " + ", ".join(names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="only this scenario; repeat")
    parser.add_argument("--quick", action="store_true", help="a small fleet, to see that everything works")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help=f"default {SEED}")
    parser.add_argument("--no-write", action="store_true", help="leave docs/trust-benchmarks.md as it is")
    return parser


if __name__ == "__main__":
    sys.exit(main())
