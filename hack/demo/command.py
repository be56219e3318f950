"""The command line of a demonstration: options, an API server, a folder that is removed unless something is wrong."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rich.console import Console

from hack.controlplane import ControlPlane, ControlPlaneError, ensure
from hack.datasets import DatasetError
from hack.demo.world import DemoError

EXIT_BAD_RESULT = 1
EXIT_IMPOSSIBLE = 2


class Outcome(Protocol):
    """What a demonstration found."""

    @property
    def clean(self) -> bool:
        """Whether all is as it should be."""
        ...

    def to_json(self) -> str:
        """Its last line."""
        ...


Story = Callable[[ControlPlane, int, Path, Console, random.Random], Outcome]


def run_command(module: str, description: str, story: Story, *, least_rows: int, why: str) -> int:
    """Play `story` as the command line says.

    Returns:
        0 if all is as it should be, 1 if something was lost, doubled or wrong, 2 if it could not be played.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument(
        "--rows", type=int, default=3000, help=f"glosses to embed (default 3000, at least {least_rows})"
    )
    parser.add_argument("--kubeconfig", type=Path, help="use this cluster instead of starting an API server")
    parser.add_argument("--context", help="context of the kubeconfig")
    parser.add_argument("--seed", type=int, default=0, help="of the sample that is compared (default 0)")
    parser.add_argument("--keep", action="store_true", help="keep output, state and logs, and say where they are")
    arguments = parser.parse_args()
    if arguments.rows < least_rows:
        parser.error(f"--rows must be at least {least_rows}: {why}")
    console = Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="pocketgrid-demo-"))
    kept = arguments.keep
    try:
        source = ensure(arguments.kubeconfig, arguments.context)
        with ControlPlane(source) as control_plane:
            outcome = story(control_plane, arguments.rows, folder, console, random.Random(arguments.seed))
    except (ControlPlaneError, DatasetError, DemoError) as exc:
        kept = True
        console.print(f"[red]demo:[/] {exc}", highlight=False)
        return EXIT_IMPOSSIBLE
    else:
        print(outcome.to_json())
        kept = kept or not outcome.clean
        return 0 if outcome.clean else EXIT_BAD_RESULT
    finally:
        if kept:
            console.print(f"output, state and logs are in {folder}", highlight=False)
        else:
            shutil.rmtree(folder, ignore_errors=True)
