"""`python -m hack.demo`: the command line of the demo."""

from __future__ import annotations

import sys

from hack.demo.command import run_command
from hack.demo.scenario import run_demo

LEAST_ROWS = 400

if __name__ == "__main__":
    sys.exit(
        run_command(
            "hack.demo",
            "Embed WordNet glosses on four devices under a real API server, while an agent and the operator are killed "
            "and a Node is cordoned. Ends with one line of JSON.",
            run_demo,
            least_rows=LEAST_ROWS,
            why="or the job is done before anything can be killed",
        )
    )
