"""The demonstration of trust, with fewer rows: real API server, operator and agents, two of them liars."""

import pytest

from hack.controlplane import ControlPlane
from tests.integration.demos import play


@pytest.mark.cluster
@pytest.mark.demo
@pytest.mark.timeout(400)
def test_the_demo_of_trust_leaves_no_wrong_row(control_plane: ControlPlane) -> None:
    outcome, _ = play(control_plane, "hack.demo_trust", 1000)
    assert outcome["rows"] == 1000
    assert outcome["wrong_rows"] == outcome["honest_caught"] == 0
    assert outcome["liars"] == outcome["liars_caught"] == 2
    assert outcome["redundancy"] > 1
