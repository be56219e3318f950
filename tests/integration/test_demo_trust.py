"""The demonstration of trust, with fewer rows: real API server, operator and agents, two of them liars."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hack.controlplane import ControlPlane

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.cluster
@pytest.mark.demo
@pytest.mark.timeout(400)
def test_the_demo_of_trust_leaves_no_wrong_row(control_plane: ControlPlane) -> None:
    # `control_plane` is asked for so that the API server is built before the clock starts; the demo has its own.
    assert control_plane.kubeconfig.exists()
    run = subprocess.run(
        [sys.executable, "-m", "hack.demo_trust", "--rows", "1000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    outcome = json.loads(run.stdout.splitlines()[-1])
    assert outcome["rows"] == 1000
    assert outcome["wrong_rows"] == outcome["honest_caught"] == 0
    assert outcome["liars"] == outcome["liars_caught"] == 2
    assert outcome["redundancy"] > 1
