"""Hundreds of devices on one operator, each with a connection of its own, before and after they all lose it.

Figures at full size are `make bench`'s business (`connections`); here it is only asked whether every device gets a
stream that works in both directions, and keeps it.
"""

from pathlib import Path

import pytest

from hack.bench.load.crowd import Crowd

DEVICES = 500
DEADLINE_S = 50.0


@pytest.mark.timeout(240)
def test_a_crowd_attaches_and_comes_back_after_the_operator_is_killed(tmp_path: Path) -> None:
    with Crowd(tmp_path / "crowd", DEVICES, processes=1) as crowd:
        empty = crowd.operator_state()["resident_bytes"]
        crowd.start_devices()
        crowd.until(lambda s: s["answered"] == DEVICES, "every device has had a heartbeat answered", DEADLINE_S)
        state = crowd.devices_state()
        assert state["welcomes"] == DEVICES, "nobody had to dial twice"
        assert (crowd.operator_state()["resident_bytes"] - empty) / DEVICES < 150e3

        crowd.kill_operator()
        crowd.start_operator()
        crowd.until(
            lambda s: s["lost"] == DEVICES and s["answered"] == DEVICES, "every device is back and heard", DEADLINE_S
        )
        state = crowd.devices_state()
        assert state["attached"] == DEVICES
        assert not state["refused"]
