"""Jobs whose results are verified: what is wrong does not stay, who lied is found out, and nobody waits for ever."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from pocketgrid.engine.engine import Engine
from pocketgrid.engine.links import LeasedShard, ModelStatus, ShardOutcome
from pocketgrid.model.device import HardwareClass, NodeView, device_labels
from pocketgrid.model.job import ItemFailure, JobSpec
from pocketgrid.model.money import Budget, BudgetAction, PriceList
from pocketgrid.model.selectors import LabelSelector
from pocketgrid.model.tensors import TensorData
from pocketgrid.model.trust import Comparator, ComparatorKind, Verification, VerificationMode
from pocketgrid.model.view import Stage
from pocketgrid.storage.results import verify_output
from pocketgrid.storage.results.manifest import load_manifest
from tests.fakes.devices import FakeDevice
from tests.unit.engine.engine_world import JobMaker, an_engine, job_reaches, until, view_of

MODES = [VerificationMode.AUDIT, VerificationMode.QUORUM, VerificationMode.ADAPTIVE]


@pytest.fixture
def make_job(tmp_path: Path) -> JobMaker:
    return JobMaker(tmp_path)


class Liar(FakeDevice):
    """Computes as it should until it has computed `honest` items; then every `nth` item is wrong."""

    honest = 0
    nth = 1
    seen = 0
    told = 0

    def _compute(self, shard: LeasedShard) -> ShardOutcome:
        outcome = super()._compute(shard)
        (y,) = outcome.outputs
        values = np.frombuffer(y.data, y.dtype).reshape(y.shape).copy()
        for row in range(len(values)):
            self.seen += 1
            if self.seen > self.honest and self.seen % self.nth == 0:
                values[row] += 1.0
                self.told += 1
        return ShardOutcome(
            shard.index, shard.token, outcome.compute_us, (TensorData(y.dtype, y.shape, values.tobytes()),)
        )


def verified(make_job: JobMaker, mode: VerificationMode, items: int = 2000, **changes) -> JobSpec:
    return make_job(items, 20, verification=Verification(mode, **changes))


def check_output(folder: Path, spec: JobSpec, items: int) -> None:
    assert verify_output(spec.output.uri).findings == []
    table = ds.dataset(folder / "out-job", format="parquet").to_table()
    assert table["row"].to_pylist() == list(range(items))
    x = np.load(folder / f"items-{items}.npy")
    np.testing.assert_array_equal(np.array(table["y"].to_pylist(), np.float32), x * 2 + 1)


@asynccontextmanager
async def strangers(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine in a cluster, where devices are of tier Public."""
    async with an_engine(tmp_path, listed=False) as engine:
        engine.jobs_listed()
        yield engine


def attach(engine: Engine, *owners: str, kind: type[FakeDevice] = FakeDevice, **fields) -> list[FakeDevice]:
    made = [kind(engine, f"device-{owner}", owner=owner) for owner in owners]
    for device in made:
        for name, value in fields.items():
            setattr(device, name, value)
        engine.set_node(NodeView(device.identity.name, device_labels(device.identity)))
        device.attach()
    return made


@pytest.mark.parametrize("mode", MODES)
async def test_an_honest_fleet_completes_and_is_believed(tmp_path, make_job, mode) -> None:
    spec = verified(make_job, mode)
    async with strangers(tmp_path) as engine:
        attach(engine, "ada", "bob", "cyd")
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
    assert view.verification is not None
    assert view.verification.rows_verified == 2000
    assert view.verification.disagreement_rate == 0
    assert view.verification.redundancy > 1
    check_output(tmp_path, spec, 2000)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("honest", [0, 300], ids=["from the start", "after it has earned trust"])
async def test_a_liar_is_caught_and_leaves_no_wrong_row(tmp_path, make_job, mode, honest) -> None:
    spec = verified(make_job, mode)
    async with strangers(tmp_path) as engine:
        attach(engine, "ada", "bob", "cyd", "dan")
        (liar,) = attach(engine, "eve", kind=Liar, honest=honest)
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert liar.told > 0, "it had no occasion"
        assert engine.device_views()[liar.identity.name].distrusted
    assert view.verification is not None
    assert view.verification.rows_verified == 2000
    assert view.verification.disagreement_rate > 0
    check_output(tmp_path, spec, 2000)


async def test_where_nobody_may_check_the_job_says_so_and_goes_on_when_somebody_comes(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.AUDIT, 400)
    async with strangers(tmp_path) as engine:
        attach(engine, "ada")
        engine.submit(spec)
        await until(engine, lambda: (v := view_of(engine, spec)).shards > 0 and v.shards_done == v.shards)
        await until(engine, lambda: (o := view_of(engine, spec).obstacle) is not None and o.reason == "NoVerifier")
        assert view_of(engine, spec).stage is Stage.RUNNING
        attach(engine, "bob")
        view = await job_reaches(engine, spec, Stage.COMPLETE)
    assert view.verification is not None
    assert view.verification.rows_verified == 400
    check_output(tmp_path, spec, 400)


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_provisional_is_still_so_after_a_restart(tmp_path, make_job, mode) -> None:
    spec = verified(make_job, mode, 400)
    async with strangers(tmp_path) as engine:
        attach(engine, "eve", kind=Liar, nth=3)
        engine.submit(spec)
        await until(engine, lambda: (v := view_of(engine, spec)).shards > 0 and v.shards_done >= v.shards // 2)
    async with strangers(tmp_path) as engine:
        engine.submit(spec)
        attach(engine, "ada", "bob", "cyd", "dan")
        view = await job_reaches(engine, spec, Stage.COMPLETE)
    assert view.verification is not None
    assert view.verification.rows_verified == 400
    check_output(tmp_path, spec, 400)


@pytest.mark.parametrize("mode", MODES)
async def test_devices_that_vanish_with_checks_hold_nobody_up(tmp_path, make_job, mode) -> None:
    spec = verified(make_job, mode, 1000)
    async with strangers(tmp_path) as engine:
        fleet = attach(engine, "ada", "bob", "cyd", items_per_second=4000)
        engine.submit(spec)
        for round_number in range(6):
            device = fleet[round_number % 3]
            await until(engine, lambda device=device: bool(device.queue) or over(engine, spec))
            if device.attached:
                await device.vanish(forget=round_number % 2 == 0)
                device.attach()
        await job_reaches(engine, spec, Stage.COMPLETE)
    check_output(tmp_path, spec, 1000)


def over(engine: Engine, spec: JobSpec) -> bool:
    return view_of(engine, spec).stage is Stage.COMPLETE


async def test_a_check_looks_like_any_other_work(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.ADAPTIVE, 2000)
    async with strangers(tmp_path) as engine:
        fleet = attach(engine, "ada", "bob", "cyd", kind=Remembers)
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        await until(engine, lambda: all(not device.results for device in fleet))
    work = [shard for device in fleet for shard in device.work]
    assert len(work) > view.shards, "some of it was checks"
    inputs = {shard.index: shard.inputs for shard in work}
    # A shard may be handed out twice, and a device may answer the second time with the result it has.
    assert all(inputs[shard.index] == shard.inputs for shard in work), "two things under one number"
    assert max(shard.index for shard in work) > 1 << 50, "numbers tell nothing"
    assert {len(shard.token) for shard in work} == {24}
    assert max(shard.items for shard in work) == 20
    tokens = {shard.token for shard in work}
    settled = {device.settled[shard.token] for device in fleet for shard in device.work}
    assert len(tokens) == len(work)
    assert settled <= {"committed", "superseded"}


class Remembers(FakeDevice):
    """Keeps all it was ever given."""

    work: list[LeasedShard]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.work = []

    def send_lease(self, job, lease, ttl_s, shards) -> None:
        self.work += shards
        super().send_lease(job, lease, ttl_s, shards)


async def test_who_claims_that_items_cannot_be_computed_is_asked_like_any_liar(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.QUORUM, 400)
    async with strangers(tmp_path) as engine:
        attach(engine, "ada", "bob", "cyd")
        (shirker,) = attach(engine, "eve", kind=Shirker)
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert engine.device_views()[shirker.identity.name].distrusted
    assert view.items_failed == 0
    check_output(tmp_path, spec, 400)


class Shirker(FakeDevice):
    """Says of every item that it failed."""

    def _compute(self, shard: LeasedShard) -> ShardOutcome:
        outcome = super()._compute(shard)
        failures = tuple(ItemFailure(row, "Tired", "not today") for row in range(shard.items))
        return ShardOutcome(shard.index, shard.token, outcome.compute_us, outcome.outputs, failures)


async def test_a_device_that_was_caught_gets_no_work_until_it_is_pardoned(tmp_path, make_job) -> None:
    async with strangers(tmp_path) as engine:
        attach(engine, "ada", "bob", "cyd")
        (liar,) = attach(engine, "eve", kind=Liar)
        spec = verified(make_job, VerificationMode.QUORUM, 400)
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
        leases = liar.leases
        other = make_job(400, 20, name="other", verification=Verification(VerificationMode.AUDIT))
        engine.submit(other)
        await job_reaches(engine, other, Stage.COMPLETE)
        assert liar.leases == leases
        liar.honest = 1 << 30
        engine.pardon(liar.identity.name)
        third = make_job(4000, 20, name="third", verification=Verification(VerificationMode.QUORUM))
        engine.submit(third)
        await job_reaches(engine, third, Stage.COMPLETE)
        assert liar.leases > leases


async def test_verified_work_is_paid_and_wrong_work_is_not(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.QUORUM, 400)
    async with strangers(tmp_path) as engine:
        engine.set_classes({"all": HardwareClass("all", LabelSelector(), PriceList(7))})
        attach(engine, "ada", "bob", "cyd")
        attach(engine, "eve", kind=Liar)
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
    manifest = load_manifest(tmp_path / "out-job" / "_manifest.json")
    assert view.cost is not None
    assert view.cost.escrow_micro == 0
    # Each row once for who brought it and at least once for who confirmed it.
    assert manifest.cost == view.cost.spent_micro >= 2 * 400 * 7
    assert manifest.work is not None
    assert {share.device for share in manifest.work.devices} == {"device-ada", "device-bob", "device-cyd"}
    check_output(tmp_path, spec, 400)


async def test_a_budget_is_never_overspent_and_can_be_raised(tmp_path, make_job) -> None:
    limit = 7 * 500
    spec = verified(make_job, VerificationMode.QUORUM, 400)
    spec = replace(spec, budget=Budget(limit, BudgetAction.STOP))
    async with strangers(tmp_path) as engine:
        engine.set_classes({"all": HardwareClass("all", LabelSelector(), PriceList(7))})
        attach(engine, "ada", "bob", "cyd")
        engine.submit(spec)
        reason = "BudgetExhausted"
        await until(engine, lambda: (o := view_of(engine, spec).obstacle) is not None and o.reason == reason)
        view = view_of(engine, spec)
        assert view.cost is not None
        assert 0 < view.cost.spent_micro + view.cost.escrow_micro <= limit
        assert view.stage is Stage.RUNNING
        engine.submit(replace(spec, budget=Budget(100 * limit, BudgetAction.STOP)))
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.cost is not None
        assert view.cost.spent_micro >= 2 * 400 * 7
    check_output(tmp_path, spec, 400)


async def test_a_comparator_that_cannot_work_is_refused(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.AUDIT, comparator=Comparator(ComparatorKind.TOP_K, k=1000))
    async with strangers(tmp_path) as engine:
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.REFUSED)
    assert view.explanation is not None
    assert view.explanation.reason == "UnfitComparator"
    assert "k 1000" in view.explanation.message


class Boaster(FakeDevice):
    """Says that it is a thousand times faster than it is."""

    def _report(self, status: ModelStatus) -> None:
        super()._report(replace(status, items_per_second=1000 * status.items_per_second))

    def _compute(self, shard: LeasedShard) -> ShardOutcome:
        outcome = super()._compute(shard)
        return replace(outcome, compute_us=max(1, outcome.compute_us // 1000))


async def test_a_device_is_as_fast_as_its_answers_come_not_as_it_says(tmp_path, make_job) -> None:
    spec = make_job(4000, 20)
    async with strangers(tmp_path) as engine:
        (boaster,) = attach(engine, "eve", kind=Boaster, items_per_second=2000)
        sizes: list[int] = []
        send = boaster.send_lease
        boaster.send_lease = lambda job, lease, ttl_s, shards: (
            sizes.append(len(shards)),
            send(job, lease, ttl_s, shards),
        )
        engine.submit(spec)
        await until(engine, lambda: (v := view_of(engine, spec)).shards > 0 and v.shards_done > 40)
        speed = engine.device_views()[boaster.identity.name].speeds[spec.model.sha256]
        assert speed < 8 * 2000
        assert sum(sizes[:2]) <= 2, "on its word alone"
        await job_reaches(engine, spec, Stage.COMPLETE)


async def test_a_newcomer_proves_itself_on_known_answers_before_it_gets_work(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.QUORUM, 4000)
    async with strangers(tmp_path) as engine:
        attach(engine, "ada", "bob", items_per_second=4000)
        engine.submit(spec)
        await until(engine, lambda: (v := view_of(engine, spec).verification) is not None and v.rows_verified > 400)
        (liar,) = attach(engine, "eve", kind=Liar)
        (honest,) = attach(engine, "cyd")
        await until(engine, lambda: liar.told > 0)
        await job_reaches(engine, spec, Stage.COMPLETE)
        assert liar.seen == 8, "one trial, and nothing after it"
        assert engine.device_views()[liar.identity.name].distrusted
        assert len(honest.computed) > 1
    check_output(tmp_path, spec, 4000)


async def test_a_stranger_that_does_not_answer_holds_no_more_than_its_first_lease(tmp_path, make_job) -> None:
    spec = make_job(4000, 20)
    async with strangers(tmp_path) as engine:
        (silent,) = attach(engine, "eve", kind=Boaster, items_per_second=0.01)
        (busy,) = attach(engine, "ada", items_per_second=4000)
        engine.submit(spec)
        await until(engine, lambda: len(busy.computed) >= 60)
        assert silent.identity.slots <= len(silent.queue) <= 2 * silent.identity.slots
