"""Command line: `python -m hack.bench`."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Before anything can import onnxruntime, which otherwise reports to its maker.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from hack.bench.document import build_section, rewrite
from hack.bench.errors import BenchError
from hack.bench.figures import Figure
from hack.bench.machine import QUIET_CORES, Neighbours, machine_facts
from hack.bench.measurements import ALL, Conditions, Measurement
from hack.bench.progress import Progress
from hack.controlplane import ControlPlaneError
from hack.datasets import DatasetError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
ROUNDS = 3

EXIT_INCOMPLETE = 1

_DESCRIPTION = """\
Measures PocketGrid against bare onnxruntime on this machine. Standard output gets one line of JSON per figure, standard
error tells what is going on. A complete run rewrites the table in docs/benchmarks.md; one with --quick or --only, or
one in which something could not be measured, does not.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns 0 if everything asked for was measured, met or not, else 1."""
    options = _parser().parse_args(arguments)
    # Child processes find package hack from here.
    os.chdir(ROOT)
    chosen = [m for m in ALL if not options.only or any(d.name in options.only for d in m.definitions)]
    progress = Progress()
    neighbours = Neighbours.begin(time.monotonic())
    figures: list[Figure] = []
    complete = True
    for measurement in chosen:
        taken = _take(measurement, options, progress)
        complete = complete and taken is not None
        for figure in taken or ():
            if not options.only or figure.definition.name in options.only:
                print(figure.to_json(), flush=True)
                figures.append(figure)
    cores = neighbours.cores(time.monotonic())
    progress.begin("machine")
    noise = f"other processes kept {cores:.2f} cores busy meanwhile"
    progress.say(noise if cores <= QUIET_CORES else f"{noise}: too many for figures to be believed; measure again")
    if complete and not (options.only or options.quick or options.no_write):
        facts = {**machine_facts(dt.datetime.now(dt.UTC).date()), "Other processes": f"{cores:.2f} cores on average"}
        command = "make bench" if options.rounds == ROUNDS else f"python -m hack.bench --rounds {options.rounds}"
        PAGE.write_text(rewrite(PAGE.read_text(), build_section(figures, facts, command)))
        progress.say(f"written to {PAGE.relative_to(ROOT)}")
    return 0 if complete else EXIT_INCOMPLETE


def _take(measurement: Measurement, options: argparse.Namespace, progress: Progress) -> Sequence[Figure] | None:
    progress.begin(measurement.title)
    with tempfile.TemporaryDirectory(prefix="pocketgrid-bench-", ignore_cleanup_errors=True) as folder:
        try:
            return measurement.run(Conditions(options.rounds, options.quick, Path(folder), progress))
        except (BenchError, ControlPlaneError, DatasetError) as error:
            progress.say(f"could not be measured: {error}")
            return None


def _parser() -> argparse.ArgumentParser:
    names = [definition.name for measurement in ALL for definition in measurement.definitions]
    parser = argparse.ArgumentParser(
        prog="python -m hack.bench",
        description=_DESCRIPTION,
        epilog="figures: " + ", ".join(names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="only this figure; repeat")
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, metavar="N", help=f"default {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="few rows, to see that everything works; not for figures")
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md as it is")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} rounds measure nothing")
    return number


if __name__ == "__main__":
    sys.exit(main())
