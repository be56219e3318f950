"""What a device is shown to have earned is what the logs of its jobs say."""

import pytest

from pocketgrid.model.device import HardwareClass
from pocketgrid.model.money import PriceList
from pocketgrid.model.selectors import LabelSelector
from pocketgrid.model.trust import VerificationMode
from pocketgrid.model.view import EarningsView, Stage
from tests.unit.engine.engine_world import JobMaker, job_reaches, until, view_of
from tests.unit.engine.test_engine_verification import Liar, attach, strangers, verified

PRICED = {"all": HardwareClass("all", LabelSelector(), PriceList(7))}


@pytest.fixture
def make_job(tmp_path) -> JobMaker:
    return JobMaker(tmp_path)


def shown(engine) -> dict[str, EarningsView]:
    return {str(name): view.earnings for name, view in engine.device_views().items() if view.earnings is not None}


async def test_devices_earn_what_the_job_costs_and_a_liar_nothing(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.QUORUM, 400)
    async with strangers(tmp_path) as engine:
        engine.set_classes(PRICED)
        attach(engine, "ada", "bob", "cyd")
        attach(engine, "eve", kind=Liar)
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.cost is not None
        earned = shown(engine)
        assert sum(entry.earned_micro for entry in earned.values()) == view.cost.spent_micro > 0
        assert {entry.provisional_micro for entry in earned.values()} == {0}
        assert earned.get("device-eve", EarningsView(0, 0)) == EarningsView(0, 0)
        await engine.remove(spec.uid)
        assert shown(engine) == earned, "what a job that is gone has paid is not forgotten"


async def test_what_was_earned_before_a_restart_is_not_counted_again(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.QUORUM, 2000)
    async with strangers(tmp_path) as engine:
        engine.set_classes(PRICED)
        attach(engine, "ada", "bob", "cyd", items_per_second=2000)
        engine.submit(spec)
        await until(engine, lambda: (cost := view_of(engine, spec).cost) is not None and cost.spent_micro > 2000)
    # As the log has it when all is written.
    async with strangers(tmp_path) as engine:
        engine.set_classes(PRICED)
        engine.submit(spec)
        await until(engine, lambda: view_of(engine, spec).cost is not None)
        cost = view_of(engine, spec).cost
        assert cost is not None
        before = cost.spent_micro
        attach(engine, "ada", "bob", "cyd")
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.cost is not None
        assert sum(entry.earned_micro for entry in shown(engine).values()) == view.cost.spent_micro - before > 0
