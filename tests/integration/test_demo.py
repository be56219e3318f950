"""The demo itself, with fewer rows: real API server, real operator, real agents, real kills."""

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
def test_the_demo_loses_nothing(control_plane: ControlPlane) -> None:
    # `control_plane` is asked for so that the API server is built before the clock starts; the demo has its own.
    assert control_plane.kubeconfig.exists()
    run = subprocess.run(
        [sys.executable, "-m", "hack.demo", "--rows", "800"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    outcome = json.loads(run.stdout.splitlines()[-1])
    assert outcome["rows"] == 800
    assert outcome["lost"] == outcome["duplicates"] == outcome["mismatches"] == 0
    assert (outcome["agents"], outcome["agents_killed"], outcome["operator_restarts"]) == (4, 1, 1)
    assert outcome["items_per_second"] > 0
    assert "kubectl cordon board-2" in run.stderr
    assert "SchedulingDisabled" in run.stderr
