"""A slow line is not a dead one: what crawls over it must not hide that both ends are alive."""

import random

import numpy as np
import pytest

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.view import Presence
from tests.contract.test_link import agents
from tests.faults.proxy import Conditions, FaultProxy
from tests.unit.gateway.grid import a_grid, a_job, until

pytestmark = pytest.mark.timeout(120)

SILENCE_S = 2.5
"""The product's is 8 s; lines here are faster by the same factor."""

WIDTH, ROWS = 512, 500
"""A shard of 1 MB: somewhat larger than the grid makes them when it may choose."""


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_megabit_line_carries_the_largest_shards(tmp_path, way: str) -> None:
    """At 1 Mbit/s the largest message takes as long as the longest silence that is forgiven (8 s)."""
    rate = 125e3 * 8.0 / SILENCE_S
    spec = a_job(tmp_path, items=ROWS, per_shard=ROWS, width=WIDTH)
    # Numbers that need all their digits, so that they travel as they are.
    np.save(tmp_path / "job.npy", np.random.default_rng(1).random((ROWS, WIDTH), np.float32))
    async with (
        a_grid(tmp_path, silence_seconds=SILENCE_S, heartbeat_seconds=0.5) as grid,
        FaultProxy(grid.gateway.port, random.Random(1)).serving() as proxy,
        agents(tmp_path, "one") as (one,),
    ):
        setattr(proxy, way, Conditions(bytes_per_s=rate))
        grid.engine.submit(spec)
        await one.start(grid, f"127.0.0.1:{proxy.port}")
        view = grid.engine.device_views
        await until(lambda: DeviceName("one") in view(), "attached", 30.0)
        await until(lambda: str(grid.stage(spec)) == "Complete", "complete", 60.0)
        assert view()[DeviceName("one")].presence is Presence.CONNECTED
    assert "detached cause" not in one.said()
