"""Confidential data goes to devices that somebody vouches for, and comes back as soon as nobody does any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.model.device import AgentFeature, NodeView, device_labels
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import JobSpec, Placement
from pocketgrid.model.trust import DataClass, TrustTier
from pocketgrid.model.view import Stage
from tests.fakes.devices import FakeDevice
from tests.unit.engine.engine_world import DEADLINE_S, SETTINGS, JobMaker, an_engine, job_reaches, until, view_of

INTERNAL = Placement(data_class=DataClass.INTERNAL)


@asynccontextmanager
async def a_cluster(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine that believes of devices what it is told, not what they say."""
    import asyncio

    async with (
        asyncio.timeout(4 * DEADLINE_S),
        Engine(SETTINGS, SystemClock(), tmp_path / "m", nodes_from_facts=False) as engine,
    ):
        engine.jobs_listed()
        yield engine


def able(device: FakeDevice) -> FakeDevice:
    device.identity = replace(device.identity, features=frozenset({AgentFeature.SEALED_CACHE}))
    return device


def a_device(engine: Engine, name: str, tier: TrustTier | None = None, **changes) -> FakeDevice:
    device = able(FakeDevice(engine, name, **changes))
    engine.set_node(NodeView(DeviceName(name), device_labels(device.identity)))
    if tier is not None:
        engine.set_tier(DeviceName(name), tier)
    device.attach()
    return device


def received_nothing(device: FakeDevice, spec: JobSpec) -> bool:
    model = device.engine.devices.model_for(device.identity.name, spec.model.sha256)
    return not device.leases and not device.orders and model is None


@pytest.mark.parametrize("below", [None, TrustTier.PUBLIC])
async def test_a_device_below_the_data_class_gets_neither_items_nor_model(tmp_path, below: TrustTier | None) -> None:
    make = JobMaker(tmp_path)
    async with a_cluster(tmp_path) as engine:
        stranger = a_device(engine, "stranger", below)
        spec = make(placement=INTERNAL)
        engine.submit(spec)
        await until(engine, lambda: (v := engine.job_view(spec.uid)) is not None and v.obstacle is not None)
        obstacle = view_of(engine, spec).obstacle
        assert obstacle is not None
        assert (obstacle.reason, "1 tier Public is below data class Internal" in obstacle.message) == (
            "NoReadyNodes",
            True,
        )
        assert received_nothing(stranger, spec)

        ours = a_device(engine, "ours", TrustTier.VETTED)
        await job_reaches(engine, spec, Stage.COMPLETE)
        assert ours.leases
        assert received_nothing(stranger, spec)
        assert engine.device_views()[DeviceName("ours")].tier is TrustTier.VETTED


async def test_a_device_that_rises_gets_work_at_once(tmp_path) -> None:
    make = JobMaker(tmp_path)
    async with a_cluster(tmp_path) as engine:
        device = a_device(engine, "rising")
        spec = make(placement=Placement(data_class=DataClass.CONFIDENTIAL))
        engine.submit(spec)
        await until(engine, lambda: (v := engine.job_view(spec.uid)) is not None and v.obstacle is not None)
        engine.set_tier(device.identity.name, TrustTier.VETTED)
        assert received_nothing(device, spec)
        engine.set_tier(device.identity.name, TrustTier.OWNED)
        await job_reaches(engine, spec, Stage.COMPLETE)


@pytest.mark.parametrize("how", ["the tier is lowered", "the data class is raised"])
async def test_what_a_device_may_no_longer_have_is_taken_back_at_once(tmp_path, how: str) -> None:
    make = JobMaker(tmp_path)
    async with a_cluster(tmp_path) as engine:
        slow = a_device(engine, "slow", TrustTier.VETTED, items_per_second=20.0)
        spec = make(items=400, placement=INTERNAL)
        engine.submit(spec)
        await until(engine, lambda: len(slow.queue) > 1)
        if how == "the tier is lowered":
            engine.set_tier(slow.identity.name, TrustTier.PUBLIC)
        else:
            engine.submit(replace(spec, placement=Placement(data_class=DataClass.CONFIDENTIAL)))
        assert slow.queue == []
        assert slow.orders == {}
        assert engine.devices.model_for(slow.identity.name, spec.model.sha256) is None
        leases = slow.leases
        a_device(engine, "ours", TrustTier.OWNED)
        await job_reaches(engine, spec, Stage.COMPLETE)
        assert slow.leases == leases


async def test_what_is_being_read_for_a_device_is_held_back_if_it_falls_meanwhile(tmp_path, monkeypatch) -> None:
    make = JobMaker(tmp_path)
    async with a_cluster(tmp_path) as engine:
        device = able(FakeDevice(engine, "falling"))
        engine.set_node(NodeView(device.identity.name, device_labels(device.identity)))
        engine.set_tier(device.identity.name, TrustTier.OWNED)
        spec = make(placement=INTERNAL)
        engine.submit(spec)
        await until(engine, lambda: view_of(engine, spec).stage is Stage.RUNNING)
        record = None

        def lowered(*_args) -> None:
            # Without a word to anybody, as if what follows from a tier were forgotten somewhere.
            nonlocal record
            record = engine._grid.fleet.devices[device.identity.name]
            record.tier = TrustTier.PUBLIC

        original = engine._grid.jobs[spec.uid].encode

        async def encode(*arguments):
            encoded = await original(*arguments)
            lowered()
            return encoded

        monkeypatch.setattr(type(engine._grid.jobs[spec.uid]), "encode", lambda _self, *a: encode(*a))
        device.attach()
        await until(engine, lambda: record is not None)
        monkeypatch.undo()
        await until(engine, lambda: view_of(engine, spec).shards_active == 0)
        assert device.leases == 0


async def test_without_a_cluster_all_devices_are_ours(tmp_path) -> None:
    make = JobMaker(tmp_path)
    async with an_engine(tmp_path) as engine:
        able(FakeDevice(engine, "laptop")).attach()
        spec = make(placement=Placement(data_class=DataClass.CONFIDENTIAL))
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)


async def test_an_agent_that_would_keep_a_confidential_model_as_it_is_gets_none(tmp_path) -> None:
    make = JobMaker(tmp_path)
    async with an_engine(tmp_path) as engine:
        old = FakeDevice(engine, "old")
        old.attach()
        public, internal = make(name="public"), make(name="internal", placement=INTERNAL)
        engine.submit(public)
        await job_reaches(engine, public, Stage.COMPLETE)
        leases = old.leases
        engine.submit(internal)
        await until(engine, lambda: (v := engine.job_view(internal.uid)) is not None and v.obstacle is not None)
        obstacle = view_of(engine, internal).obstacle
        assert obstacle is not None
        assert "1 agent too old for SealedCache: update it" in obstacle.message
        assert old.leases == leases
