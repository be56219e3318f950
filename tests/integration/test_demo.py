"""The demo itself, with fewer rows: real API server, real operator, real agents, real kills."""

import pytest

from hack.controlplane import ControlPlane
from tests.integration.demos import play


@pytest.mark.cluster
@pytest.mark.demo
@pytest.mark.timeout(400)
def test_the_demo_loses_nothing(control_plane: ControlPlane) -> None:
    outcome, shown = play(control_plane, "hack.demo", 800)
    assert outcome["rows"] == 800
    assert outcome["lost"] == outcome["duplicates"] == outcome["mismatches"] == 0
    assert (outcome["agents"], outcome["agents_killed"], outcome["operator_restarts"]) == (4, 1, 1)
    assert outcome["items_per_second"] > 0
    assert "kubectl cordon board-2" in shown
    assert "SchedulingDisabled" in shown
