"""Runs a demonstration as a user does, and reads its last line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hack.controlplane import ControlPlane

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 380


def play(control_plane: ControlPlane, module: str, rows: int) -> tuple[dict[str, Any], str]:
    """What `python -m module` says on its last line, and all it shows meanwhile.

    `control_plane` is asked for so that the API server is built before the clock starts; the demo has its own.
    """
    assert control_plane.kubeconfig.exists()
    run = subprocess.run(
        [sys.executable, "-m", module, "--rows", str(rows)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr
