"""ToleranceProfiles of a real API server reach the engine, also after a restart, and leave it when they are deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.controlplane import ControlPlane
from pocketgrid.api.convert import to_tolerance_profile
from tests.integration.controller_world import Operator, a_world, eventually
from tests.unit.api.manifests import TOLERANCE_PROFILE, changed

pytestmark = pytest.mark.cluster


async def until_known(operator: Operator, *expected: object) -> None:
    async def known() -> list[object]:
        ours = to_tolerance_profile(TOLERANCE_PROFILE).model
        return [profile for profile in operator.engine._grid.fleet.profiles if profile.model == ours]

    await eventually(known, lambda profiles: profiles == list(expected), 10)


async def test_a_profile_counts_from_when_it_is_applied_until_it_is_deleted(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with a_world(control_plane, tmp_path) as world:
        name = world.name("minilm")
        body = changed(TOLERANCE_PROFILE, {"metadata.name": name})
        measured = to_tolerance_profile(body)
        async with world.operator() as operator:
            await until_known(operator)
            await world.kubectl("create", "--validate=false", "--filename=-", stdin=body)
            await until_known(operator, measured)
            wider = changed(body, {"spec.pairs[0].absolute": "0.5"})
            await world.kubectl("apply", "--validate=false", "--filename=-", stdin=wider)
            await until_known(operator, to_tolerance_profile(wider))
        async with world.operator() as operator:
            await until_known(operator, to_tolerance_profile(wider))
            await world.kubectl("delete", "toleranceprofile", name)
            await until_known(operator)
