"""A device paused by its owner, as people see it with kubectl, on a real API server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hack.controlplane import ControlPlane
from pocketgrid.controller.client import EDGE_NODES, NODES
from pocketgrid.model.device import Restraint, RestraintLevel
from tests.integration.controller_world import World, a_world, eventually, has_condition

pytestmark = pytest.mark.cluster

LOW = Restraint(RestraintLevel.PAUSED, "BatteryLow", "battery at 9 %, works from 30 % on")
NODE_CONDITION = "pocketgrid.dev/Paused"


@pytest.fixture
async def world(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(control_plane, tmp_path) as made:
        yield made


async def test_kubectl_shows_that_and_why_a_device_is_paused(world: World) -> None:
    async with world.operator() as operator:
        phone = operator.device()
        phone.attach()
        for endpoint, kind in ((EDGE_NODES, "Paused"), (NODES, NODE_CONDITION)):
            await eventually(
                lambda e=endpoint: world.get(e, phone.name), lambda b, k=kind: has_condition(b, k, "False/WorkAllowed")
            )
        operator.engine.devices.restrained(phone, LOW)
        for endpoint, kind in ((EDGE_NODES, "Paused"), (NODES, NODE_CONDITION)):
            await eventually(
                lambda e=endpoint: world.get(e, phone.name), lambda b, k=kind: has_condition(b, k, "True/BatteryLow")
            )
        node = await world.get(NODES, phone.name)
        assert has_condition(node, "Ready", "True"), "a paused device is there all the same"
        table = (await world.kubectl("get", "edgenodes", phone.name)).splitlines()
        row = dict(zip(table[0].split(), table[1].split(), strict=False))
        assert (row["READY"], row["PAUSED"], row["WHY"]) == ("True", "True", "BatteryLow")
        operator.engine.devices.restrained(phone, Restraint())
        for endpoint, kind in ((EDGE_NODES, "Paused"), (NODES, NODE_CONDITION)):
            await eventually(
                lambda e=endpoint: world.get(e, phone.name), lambda b, k=kind: has_condition(b, k, "False/WorkAllowed")
            )
