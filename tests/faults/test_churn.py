"""A job ends although devices keep being killed, and what that cost is told."""

import os
import random
from dataclasses import replace

import pytest

from tests.faults.campaign import nurseries
from tests.faults.churn import Churn, run_churn
from tests.faults.proxy import Conditions
from tests.faults.schedule import Schedule
from tests.faults.world import QUICK, make_job


@pytest.mark.skipif(
    "POCKETGRID_TEST_CHURN" not in os.environ, reason="belongs to `make chaos`; set POCKETGRID_TEST_CHURN to run it"
)
@pytest.mark.timeout(300)
async def test_a_job_ends_while_a_tenth_of_the_fleet_keeps_dying(tmp_path) -> None:
    """Small and quick: of 10 devices one dies every 1.5 s. `python -m tests.chaos --churn` takes the product's pace."""
    shards = 180
    timing = replace(QUICK, line=Conditions(bytes_per_s=30e3))
    job = make_job(tmp_path / "job", shards=shards)
    churn = Churn(devices=10, share=0.1, every_s=1.5, away_s=(1.0, 3.0))
    async with nurseries(tmp_path) as nursery_of:
        result = await run_churn(churn, job, nursery_of(Schedule(0, ())), tmp_path / "run", timing, random.Random(1))
    assert result.problem == ""
    assert result.kills >= 2
    assert result.computed >= result.shards == shards
    assert result.lost > 0
