"""`python -m hack.demo_trust`: the command line of the demonstration of trust."""

from __future__ import annotations

import sys

from hack.demo.command import run_command
from hack.demo_trust.scenario import run_demo

LEAST_ROWS = 1000

if __name__ == "__main__":
    sys.exit(
        run_command(
            "hack.demo_trust",
            "Embed WordNet glosses on six strangers' devices under a real API server; one lies from the start, one "
            "after it has earned trust. Ends with one line of JSON.",
            run_demo,
            least_rows=LEAST_ROWS,
            why=f"below {LEAST_ROWS} the job is done before a device has earned trust",
        )
    )
