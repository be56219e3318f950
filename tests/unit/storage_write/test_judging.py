"""Judgements about committed shards: what becomes final, what is done again, and what both mean for pay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketgrid.errors import InternalError, InvalidSpecError, StoreError
from pocketgrid.model.ids import DeviceName, ShardIndex
from pocketgrid.model.job import ItemFailure, OutputPlan
from pocketgrid.model.ranges import IndexSet
from pocketgrid.model.tensors import TensorData, TensorSpec
from pocketgrid.storage.logentries import Worker
from pocketgrid.storage.results import Check, ResultStore, Settled, ShardCommit, StoreLimits, verify_output
from pocketgrid.storage.results.manifest import read_manifest
from pocketgrid.storage.results.staging import Staging
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys, tensor

ITEMS, PER_SHARD, SHARDS = 14, 3, 5  # three parts of two, two and one shards; the last shard has two rows
PRICE = {"ada": 5, "bo": 7}
LIMITS = StoreLimits(part_rows=6)


def opened(folder: Path, *, verify: bool = True) -> ResultStore:
    store = ResultStore.open(a_job(folder, ITEMS), no_keys, limits=LIMITS)
    store.plan(PER_SHARD, verify=verify)
    return store


def rows_of(shard: int) -> int:
    return min(PER_SHARD, ITEMS - shard * PER_SHARD)


def by(owner: str, shard: int, *, base: int = 0, failures: tuple[int, ...] = ()) -> ShardCommit:
    values = np.arange(rows_of(shard) - len(failures)) + 100 * shard + base
    result = a_result(shard, (values,), failures)
    return replace(result, owner=owner, device=DeviceName(f"{owner}-phone"), price=PRICE[owner])


def worker(owner: str) -> Worker:
    return by(owner, 0).worker


def shards(*numbers: int) -> list[ShardIndex]:
    return [ShardIndex(n) for n in numbers]


def test_a_part_is_sealed_only_when_all_of_its_shards_are_verified(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", n) for n in range(SHARDS)])
    assert not store.has_ready_part
    assert store.seal() == 0
    assert store.settle(verified=shards(0)).verified == (0,)
    assert not store.has_ready_part
    assert store.settle(verified=shards(0, 1)).verified == (1,)
    assert store.has_ready_part
    assert store.seal() == 1
    assert store.seal() == 0
    with pytest.raises(StoreError, match="2 of 5 shards are verified"):
        store.finish()
    store.settle(verified=shards(2, 3, 4))
    assert store.finish().rows == ITEMS
    store.close()


def test_a_job_without_verification_is_sealed_as_ever_and_pays_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path / "out", verify=False)
    store.commit([by("ada", n) for n in range(SHARDS)])
    with pytest.raises(InternalError, match="not planned with verification"):
        store.settle(verified=shards(0))
    manifest = store.finish()
    assert (manifest.verified, manifest.cost) == (False, 0)
    assert not store.verified
    store.close()


def test_pay_is_held_until_verified_and_let_go_of_when_reopened(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", 0), by("ada", 1, failures=(2,)), by("bo", 2)])
    assert (store.pay.held_micro, store.pay.earned_micro) == (5 * 5 + 3 * 7, 0)
    settled = store.settle(verified=shards(1, 3), reopened=shards(2, 4))
    assert settled == Settled(verified=(1,), reopened=(2,)), "what is not committed is passed over"
    assert (store.pay.held_micro, store.pay.earned_micro) == (3 * 5, 2 * 5), "a failed row is not paid"
    assert store.take_reopened() == [], "who judged knows"
    assert store.settle(reopened=shards(1)) == Settled(), "what is final stays final"
    assert store.commit([by("bo", 2, base=1)]).new == (2,)
    store.close()


def test_everything_of_it_survives_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    assert store.recovered.verify is False, "it was not planned then"
    store.commit([by("ada", n) for n in range(4)])
    store.settle(
        verified=shards(0, 1, 2),
        reopened=shards(3),
        checks=[Check(worker("bo"), agreed=3, shards=(ShardIndex(0),)), Check(worker("bo"), agreed=1, disagreed=2)],
    )
    assert store.seal() == 1
    before = store.pay
    store.close()
    store = opened(tmp_path / "out")
    assert store.recovered.verify
    assert store.recovered.verified == IndexSet.from_text("0-2")
    assert store.recovered.committed == IndexSet.from_text("0-2")
    assert store.pay == before
    assert store.pay.earned_micro == 9 * 5 + 4 * 7
    assert store.pay.held_micro == 0
    store.close()


def test_the_recovered_sets_do_not_change_with_the_store(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.close()
    store = opened(tmp_path / "out")
    store.commit([by("ada", 0)])
    store.settle(verified=shards(0))
    assert not store.recovered.verified
    assert store.verified == IndexSet.from_text("0")
    store.close()


def test_a_shard_cannot_be_final_and_done_again(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", 0)])
    with pytest.raises(InternalError, match="shard 0 was judged both"):
        store.settle(verified=shards(0), reopened=shards(0))
    assert not store.verified
    store.close()


def test_verification_is_for_the_whole_life_of_a_job(tmp_path: Path) -> None:
    opened(tmp_path / "out").close()
    store = ResultStore.open(a_job(tmp_path / "out", ITEMS), no_keys, limits=LIMITS)
    store.plan(PER_SHARD, verify=True)
    with pytest.raises(InvalidSpecError, match="begun with verification") as refusal:
        store.plan(PER_SHARD)
    assert refusal.value.reason == "VerificationChanged"
    store.close()


def test_what_was_verified_and_then_damaged_stays_paid(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", 0), by("ada", 1)])
    store.settle(verified=shards(0))
    store.close()
    (data,) = (tmp_path / "out/_pocketgrid/staging").glob("*.data")
    data.unlink()
    store = opened(tmp_path / "out")
    assert not store.recovered.committed
    assert not store.recovered.verified
    assert (store.pay.held_micro, store.pay.earned_micro) == (0, 15)
    store.commit([by("bo", n) for n in range(SHARDS)])
    store.settle(verified=shards(*range(SHARDS)))
    manifest = store.finish()
    assert manifest.cost == 15 + ITEMS * 7
    store.close()
    assert ResultStore.open(a_job(tmp_path / "out", ITEMS), no_keys, limits=LIMITS).pay.earned_micro == 15 + ITEMS * 7
    assert verify_output(str(tmp_path / "out")).intact


def test_damage_found_on_sealing_is_reopened_and_stays_paid(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", 0), by("ada", 1)])
    store.settle(verified=shards(0, 1))
    (data,) = (tmp_path / "out/_pocketgrid/staging").glob("*.data")
    content = bytearray(data.read_bytes())
    content[20] ^= 1
    data.write_bytes(content)
    assert store.seal() == 0
    assert store.take_reopened() == [0]
    assert store.verified == IndexSet.from_text("1")
    assert store.pay.earned_micro == 6 * 5
    store.close()


def test_a_sealed_part_that_vanished_is_verified_anew(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", n) for n in range(SHARDS)])
    store.settle(verified=shards(*range(SHARDS)))
    store.finish()
    store.close()
    (tmp_path / "out/part-00001.parquet").unlink()
    store = opened(tmp_path / "out")
    assert store.recovered.verified == IndexSet.from_text("0-1,4")
    store.commit([by("bo", 2), by("bo", 3)])
    assert store.seal() == 0
    store.settle(verified=shards(2, 3))
    manifest = store.finish()
    assert (manifest.verified, manifest.cost) == (True, ITEMS * 5 + 6 * 7)
    store.close()


def test_the_manifest_says_that_it_is_verified_and_what_it_cost(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", n) for n in range(SHARDS)])
    store.settle(verified=shards(*range(SHARDS)), checks=[Check(worker("bo"), agreed=4, disagreed=9)])
    manifest = store.finish()
    store.close()
    assert (manifest.verified, manifest.cost) == (True, ITEMS * 5 + 4 * 7)
    found = verify_output(str(tmp_path / "out"))
    assert found.intact, found.findings
    path = tmp_path / "out/_manifest.json"
    path.write_text(path.read_text().replace(f'"cost": {manifest.cost}', '"cost": 1'))
    assert any("it cost 1 micro-units" in f.message for f in verify_output(str(tmp_path / "out")).findings)
    path.write_text(path.read_text().replace('"verified": true', '"verified": false'))
    assert any("whether the rows were verified" in f.message for f in verify_output(str(tmp_path / "out")).findings)
    path.write_text(path.read_text().replace('"cost": 1', '"cost": 1.5'))
    with pytest.raises(StoreError, match="cost is no whole number"):
        read_manifest(str(tmp_path / "out"))


def test_a_judgement_that_is_durable_is_told_so_even_if_tidying_up_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be tried again, and its checks paid again."""
    store = opened(tmp_path / "out")
    store.commit([by("ada", 0)])

    def failing(self: Staging, live: object) -> None:
        raise StoreError("the folder cannot be listed")

    monkeypatch.setattr(Staging, "sweep", failing)
    assert store.settle(reopened=shards(0), checks=[Check(worker("bo"), agreed=4)]).reopened == (0,)
    assert store.pay.earned_micro == 4 * 7
    store.close()


def test_a_changed_price_is_another_worker(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", 0), replace(by("ada", 1), price=6)])
    assert store.pay.held_micro == 3 * 5 + 3 * 6
    store.settle(verified=shards(0, 1), checks=[Check(worker("bo"), agreed=1)])
    store.commit([by("ada", 2), by("bo", 3)])
    assert store.pay_by_device() == {"ada-phone": (3 * 5 + 3 * 6, 3 * 5), "bo-phone": (7, 3 * 7)}
    assert store.seal() == 1
    assert store.pay.earned_micro == 3 * 5 + 3 * 6 + 7
    store.close()


# ---- looking at what was committed ----

RAGGED = (
    TensorSpec("a", "float16", ("batch", "seq", 2)),
    TensorSpec("b", "int64", ("batch",)),
    TensorSpec("c", "bool", ("batch", 2, 2)),
)


def three_columns(folder: Path) -> ResultStore:
    plans = (OutputPlan("a", (), ragged=True), OutputPlan("b"), OutputPlan("c"))
    store = ResultStore.open(a_job(folder, 6, outputs=RAGGED, plans=plans), no_keys)
    store.plan(3, verify=True)
    return store


def three_outputs(seed: int) -> tuple[TensorData, ...]:
    rng = np.random.default_rng(seed)
    return (
        tensor(rng.normal(size=(5, 2)).astype(np.float16), (3, 0, 2)),
        tensor(rng.integers(0, 9, 3)),
        tensor(rng.integers(0, 2, (3, 2, 2)).astype(bool)),
    )


def test_a_staged_result_is_read_as_it_was_committed(tmp_path: Path) -> None:
    store = three_columns(tmp_path / "out")
    first = a_result(0, three_outputs(1))
    dense = tensor(np.arange(8, dtype=np.float16).reshape(2, 2, 2))
    second = a_result(1, (dense, *(tensor(np.zeros(s, t)) for s, t in (((2,), np.int64), ((2, 2, 2), bool)))), (1,))
    store.commit([first, second])
    found = store.read_staged(ShardIndex(0))
    assert found is not None
    assert found.outputs == first.outputs
    assert found.failures == ()
    assert found.worker == first.worker
    other = store.read_staged(ShardIndex(1))
    assert other is not None
    assert other.outputs[0] == replace(dense, shape=(4, 2), row_lengths=(2, 2)), "ragged columns have row lengths"
    assert other.outputs[1:] == second.outputs[1:]
    assert other.failures == (ItemFailure(1, "BadRow", "row 1 is bad"),)
    store.close()


def test_there_is_nothing_to_read_of_what_is_not_staged_or_damaged(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("ada", 0), by("ada", 2), by("ada", 3)])
    assert store.read_staged(ShardIndex(1)) is None
    assert store.read_staged(ShardIndex(99)) is None
    store.settle(verified=shards(2, 3))
    store.seal()
    assert store.read_staged(ShardIndex(2)) is None
    (data,) = (tmp_path / "out/_pocketgrid/staging").glob("*.data")
    content = bytearray(data.read_bytes())
    content[20] ^= 1
    data.write_bytes(content)
    assert store.read_staged(ShardIndex(0)) is None
    assert store.settle(reopened=shards(0)).reopened == (0,)
    store.close()


def test_a_shard_without_any_result_is_read_too(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([replace(a_result(0, (), (0, 1, 2)), price=5)])
    found = store.read_staged(ShardIndex(0))
    assert found is not None
    assert found.outputs == ()
    assert [f.row for f in found.failures] == [0, 1, 2]
    assert store.pay.held_micro == 0
    store.close()


def test_it_is_known_who_brought_what_is_provisional(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    store.commit([by("bo", 4), by("ada", 0), by("ada", 2), by("bo", 3)])
    store.settle(verified=shards(2, 3))
    store.seal()
    assert store.provisional() == [(0, worker("ada")), (4, worker("bo"))]
    store.close()
