"""Who was caught stays out, and only the taint on its Node being taken away lets it in again."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from pocketgrid.model.device import DISTRUSTED_TAINT_KEY, NodeView, device_labels
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.selectors import Taint, Toleration
from pocketgrid.model.trust import Verification, VerificationMode
from pocketgrid.model.view import Stage
from tests.fakes.devices import FakeDevice
from tests.unit.engine.engine_world import JobMaker, job_reaches, until, view_of
from tests.unit.engine.test_engine_verification import Liar, attach, check_output, strangers, verified

TAINT = Taint(DISTRUSTED_TAINT_KEY, "NoSchedule", "WrongResults")


@asynccontextmanager
async def an_engine_at_work(tmp_path):
    """With its tasks begun, for tests that wait for nothing themselves."""
    async with strangers(tmp_path) as engine:
        await asyncio.sleep(0)
        yield engine


@pytest.fixture
def make_job(tmp_path) -> JobMaker:
    return JobMaker(tmp_path)


def node_of(device: FakeDevice, *taints: Taint, uid: str = "uid-1") -> NodeView:
    identity = device.identity
    return NodeView(DeviceName(identity.node_name or identity.name), device_labels(identity), taints, uid=uid)


def is_distrusted(engine, device: FakeDevice) -> str:
    return engine.distrusted().get(device.identity.name, "")


async def test_the_taint_and_its_removal_are_what_decides(tmp_path) -> None:
    async with an_engine_at_work(tmp_path) as engine:
        (ada,) = attach(engine, "ada")
        engine.set_node(node_of(ada))
        assert not is_distrusted(engine, ada)
        engine.set_node(node_of(ada, TAINT))
        assert "administrator" in is_distrusted(engine, ada)
        assert engine.device_views()[ada.identity.name].distrusted
        assert not engine.device_views()[ada.identity.name].schedulable
        engine.set_node(replace(node_of(ada, TAINT), unschedulable=True))
        assert is_distrusted(engine, ada)
        engine.set_node(node_of(ada))
        assert not is_distrusted(engine, ada)
        assert engine.device_views()[ada.identity.name].schedulable


async def test_another_node_of_the_same_name_pardons_nobody(tmp_path) -> None:
    async with an_engine_at_work(tmp_path) as engine:
        (ada,) = attach(engine, "ada")
        engine.set_node(node_of(ada, TAINT))
        engine.set_node(node_of(ada, uid="uid-2"))
        assert is_distrusted(engine, ada)
        engine.remove_node(ada.identity.name, deregister=False)
        engine.set_node(node_of(ada, uid="uid-3"))
        assert is_distrusted(engine, ada), "a Node without the taint that never had it says nothing"


async def test_who_attaches_to_a_tainted_node_is_distrusted_from_then_on(tmp_path) -> None:
    async with an_engine_at_work(tmp_path) as engine:
        board = FakeDevice(engine, "device-ada")
        board.identity = replace(board.identity, node_name="board")
        engine.set_node(node_of(board, TAINT))
        board.attach()
        assert is_distrusted(engine, board)
        await board.vanish(forget=True)
        engine.set_node(node_of(board))
        assert not is_distrusted(engine, board)
        board.attach()
        assert not engine.device_views()[board.identity.name].distrusted


async def test_what_a_predecessor_knew_holds_for_devices_that_are_not_there(tmp_path) -> None:
    async with an_engine_at_work(tmp_path) as engine:
        board = FakeDevice(engine, "device-ada")
        board.identity = replace(board.identity, node_name="board")
        engine.distrust(board.identity.name, "wrong on an item", node="board")
        engine.set_node(node_of(board, TAINT))
        assert is_distrusted(engine, board) == "wrong on an item"
        engine.set_node(node_of(board))
        assert not is_distrusted(engine, board)


async def test_no_toleration_lets_a_distrusted_device_work(tmp_path, make_job) -> None:
    spec = make_job(400, 20)
    anything = replace(spec.placement, tolerations=(Toleration(operator="Exists"),))
    async with strangers(tmp_path) as engine:
        ada, bob = attach(engine, "ada", "bob")
        engine.set_node(node_of(ada, TAINT))
        engine.submit(replace(spec, placement=anything))
        await job_reaches(engine, spec, Stage.COMPLETE)
    assert ada.leases == 0
    assert bob.leases > 0


async def test_a_device_that_is_forgotten_and_comes_back_is_still_distrusted(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.QUORUM, 400)
    async with strangers(tmp_path) as engine:
        attach(engine, "ada", "bob", "cyd")
        (liar,) = attach(engine, "eve", kind=Liar)
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.verification is not None
        assert liar.identity.name in view.verification.taken_back
        await liar.vanish(forget=True)
        engine._grid.fleet.forget(liar.identity.name)
        leases = liar.leases
        liar.identity = replace(liar.identity, boot_id="boot-2")
        liar.attach()
        trust = engine.device_views()[liar.identity.name].trust
        assert trust is not None
        assert (trust.times_caught, trust.verified_items, trust.histories) == (1, 0, ())
        assert trust.caught > 0
        other = make_job(400, 20, name="other", verification=Verification(VerificationMode.AUDIT))
        engine.submit(other)
        await job_reaches(engine, other, Stage.COMPLETE)
    assert liar.leases == leases
    check_output(tmp_path, spec, 400)


async def test_what_a_caught_device_brought_before_a_crash_is_done_again(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.AUDIT, 400)
    async with strangers(tmp_path) as engine:
        attach(engine, "eve", kind=Liar)
        engine.submit(spec)
        await until(engine, lambda: (v := view_of(engine, spec)).shards > 0 and v.shards_done == v.shards)
    async with strangers(tmp_path) as engine:
        engine.distrust(DeviceName("device-eve"), "caught in another job")
        engine.submit(spec)
        attach(engine, "ada", "bob", "cyd")
        view = await job_reaches(engine, spec, Stage.COMPLETE)
    assert view.verification is not None
    assert view.verification.taken_back == {"device-eve": 20}
    assert view.verification.disagreement_rate == 0, "nothing of it had to be compared"
    check_output(tmp_path, spec, 400)


async def test_reputations_survive_a_restart(tmp_path, make_job) -> None:
    spec = verified(make_job, VerificationMode.ADAPTIVE, 2000)
    async with strangers(tmp_path) as engine:
        ada, *_ = attach(engine, "ada", "bob", "cyd")
        engine.submit(spec)
        await job_reaches(engine, spec, Stage.COMPLETE)
        trust = engine.device_views()[ada.identity.name].trust
    assert trust is not None
    assert trust.verified_items > 0
    (history,) = trust.histories
    kept = {
        "owner": "ada",
        "tier": "PUBLIC",
        "caught": 0,
        "since": trust.since,
        "histories": [
            {
                "fingerprint": history.fingerprint,
                "confirmed": history.confirmed,
                "refuted": history.refuted,
                "suspicion": history.suspicion,
                "consecutive": history.consecutive,
                "at": history.at,
            }
        ],
    }
    async with an_engine_at_work(tmp_path) as engine:
        engine.restore_trust(ada.identity.name, kept)
        attach(engine, "ada")
        assert engine.device_views()[ada.identity.name].trust == trust
