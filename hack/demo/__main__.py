"""`python -m hack.demo`: the command line of the demo."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from hack.controlplane import ControlPlane, ControlPlaneError, ensure
from hack.datasets import DatasetError
from hack.demo.scenario import run_demo
from hack.demo.world import DemoError

EXIT_BAD_RESULT = 1
EXIT_IMPOSSIBLE = 2


def main() -> int:
    """Run the demo; returns 0 if nothing was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m hack.demo",
        description="Embed WordNet glosses on four devices under a real API server, while an agent and the operator "
        "are killed and a Node is cordoned. Ends with one line of JSON.",
    )
    parser.add_argument("--rows", type=int, default=3000, help="glosses to embed (default 3000, at least 400)")
    parser.add_argument("--kubeconfig", type=Path, help="use this cluster instead of starting an API server")
    parser.add_argument("--context", help="context of the kubeconfig")
    parser.add_argument("--seed", type=int, default=0, help="of the sample that is compared (default 0)")
    parser.add_argument("--keep", action="store_true", help="keep output, state and logs, and say where they are")
    arguments = parser.parse_args()
    if arguments.rows < 400:
        parser.error("--rows must be at least 400, or the job is done before anything can be killed")
    console = Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="pocketgrid-demo-"))
    kept = arguments.keep
    try:
        source = ensure(arguments.kubeconfig, arguments.context)
        with ControlPlane(source) as control_plane:
            outcome = run_demo(control_plane, arguments.rows, folder, console, random.Random(arguments.seed))
    except (ControlPlaneError, DatasetError, DemoError) as exc:
        kept = True
        console.print(f"[red]demo:[/] {exc}", highlight=False)
        return EXIT_IMPOSSIBLE
    else:
        print(outcome.to_json())
        kept = kept or not outcome.findings.clean
        return 0 if outcome.findings.clean else EXIT_BAD_RESULT
    finally:
        if kept:
            console.print(f"output, state and logs are in {folder}", highlight=False)
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
