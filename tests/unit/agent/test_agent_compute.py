"""Slots, loaded models, measurements and the keeping of results, below the level of processes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from pocketgrid.errors import StoreError
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import compute, measure, tensors
from pocketgrid_agent.batching import Array, BatchSize, RunError
from pocketgrid_agent.compute import ComputePool, Done, Program
from pocketgrid_agent.events import Attempt, Binding, Order, Output
from pocketgrid_agent.journal import Entry, Journal
from pocketgrid_agent.keeper import ResultKeeper
from pocketgrid_agent.runtime import LoadedModels, LoadError, Model, OnnxRuntime, Port
from pocketgrid_agent.sensors import resident_bytes
from pocketgrid_agent.tuning import Guard
from tests.unit.agent import onnx_models

ORDER = Order("job", "d" * 64, 1, (Binding("x", 0, "float32"),), (Output("y"),))
DEADLINE_S = 10.0


class FakeModel:
    """y = x, and whatever else a test wants to happen in a run."""

    def __init__(self, during: Callable[[int], None] = lambda items: None) -> None:
        self.inputs: Mapping[str, Port] = {"x": Port("float32", (None, 2))}
        self.outputs = frozenset({"y"})
        self.during = during
        self.sizes: list[int] = []

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        self.sizes.append(len(feeds["x"]))
        self.during(len(feeds["x"]))
        return [feeds["x"] for _ in names]


class FakeEngine:
    description, providers, opset = "fake", (), 0

    def load(self, path: Path) -> Model:
        if not path.read_bytes():
            raise LoadError("LoadFailed", "empty")
        return FakeModel()


def attempt(shard: int, items: int = 4) -> Attempt:
    values = np.arange(items * 2, dtype=np.float32).reshape(items, 2)
    tensor = pb.Tensor(dtype="float32", shape=values.shape, data=values.tobytes())
    token = b"%d" % shard
    return Attempt("job", shard, token, items, 1, pb.Shard(index=shard, token=token, items=items, inputs=[tensor]))


class Pool:
    """A pool whose results can be waited for."""

    def __init__(self, slots: int = 1) -> None:
        self.woken = threading.Semaphore(0)
        self.wakes = 0
        self.pool = ComputePool(slots, self._wake)
        self.pool.start()

    def _wake(self) -> None:
        self.wakes += 1
        self.woken.release()

    def wait(self, count: int) -> list[Done]:
        done: list[Done] = []
        while len(done) < count:
            assert self.woken.acquire(timeout=DEADLINE_S), f"{len(done)} of {count} done"
            done += self.pool.collect()
        return done


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.pool.stop(DEADLINE_S)


def program(model: Model, items: int = 100) -> Program:
    return Program(ORDER, BatchSize(items), lambda digest: model)


def result_of(done: Done) -> pb.ShardResult:
    assert done.body is not None
    return pb.ShardResult.FromString(done.body)


def test_shards_come_out_in_order_with_their_values(pool: Pool) -> None:
    prepared = program(FakeModel())
    for number in range(5):
        pool.pool.submit(attempt(number), prepared)
    done = pool.wait(5)
    assert [d.attempt.shard for d in done] == list(range(5))
    values = np.frombuffer(result_of(done[0]).outputs[0].data, np.float32)
    np.testing.assert_array_equal(values, np.arange(8))


def test_the_loop_is_woken_once_for_all_that_waits(pool: Pool) -> None:
    prepared = program(FakeModel())
    for number in range(50):
        pool.pool.submit(attempt(number), prepared)
    pool.pool.call(lambda: None).result(DEADLINE_S)  # behind all of them
    assert pool.wakes == 1
    assert len(pool.wait(50)) == 50


@pytest.mark.parametrize("items", [8, 2], ids=["several micro-batches", "one micro-batch"])
def test_a_device_that_works_gently_rests_and_says_how_slow_that_makes_it(pool: Pool, items: int) -> None:
    pool.pool.duty = 0.25
    pool.pool.submit(attempt(0, items=items), program(FakeModel(lambda _: time.sleep(0.02)), items=2))
    compute_us = result_of(pool.wait(1)[0]).compute_us
    working_us = 20_000 * items / 2
    assert compute_us >= 3.9 * working_us, "three times as long at rest as at work, counted as the device's own time"


def test_a_pause_between_micro_batches_holds_up_nobody_for_long(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "LONGEST_REST_SECONDS", 0.05)
    pool.pool.duty = 0.001
    pool.pool.submit(attempt(0, items=2), program(FakeModel(lambda _: time.sleep(0.02)), items=2))
    assert result_of(pool.wait(1)[0]).compute_us < 5_000_000


def test_short_memory_halves_the_micro_batch_and_keeps_it_so(pool: Pool) -> None:
    def during(items: int) -> None:
        if items > 3:
            raise MemoryError("too much")

    model = FakeModel(during)
    prepared = program(model, items=8)
    pool.pool.submit(attempt(0, items=16), prepared)
    assert not result_of(pool.wait(1)[0]).HasField("failure")
    assert model.sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    pool.pool.submit(attempt(1, items=2), prepared)
    pool.wait(1)
    assert prepared.size.items == 2


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (MemoryError("none left"), "OutOfMemory"),
        (LoadError("ModelDamaged", "gone"), "ModelDamaged"),
        (ZeroDivisionError("a bug"), "InternalError"),
    ],
)
def test_trouble_of_the_device_is_not_held_against_the_shard(pool: Pool, trouble: Exception, reason: str) -> None:
    def during(items: int) -> None:
        raise trouble

    pool.pool.submit(attempt(0), program(FakeModel(during)))
    (done,) = pool.wait(1)
    assert done.failed
    failure = result_of(done).failure
    assert (failure.cause, failure.reason) == (pb.ShardFailure.CAUSE_NODE, reason)
    pool.pool.submit(attempt(1), program(FakeModel()))
    assert not pool.wait(1)[0].failed, "the slot lives on"


def test_abandoned_shards_stop_between_micro_batches(pool: Pool) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def during(items: int) -> None:
        begun.set()
        assert go_on.wait(DEADLINE_S)

    model = FakeModel(during)
    pool.pool.submit(attempt(0, items=10), program(model, items=1))
    pool.pool.submit(attempt(1), program(model))
    assert begun.wait(DEADLINE_S)
    pool.pool.abandon((b"0", b"1"))
    go_on.set()
    assert [d.body for d in pool.wait(2)] == [None, None]
    assert model.sizes == [1]


# ---- models in memory ----


def test_models_are_dropped_least_recently_used_first(tmp_path: Path) -> None:
    released: list[str] = []
    located: list[str] = []

    def locate(digest: str) -> tuple[Path, Callable[[], None]]:
        path = tmp_path / digest
        path.write_bytes(b"x" * 100)
        located.append(digest)
        return path, lambda: released.append(digest)

    models = LoadedModels(FakeEngine(), locate, memory_bytes=250, resident=lambda: 0)
    first = models.get("a")
    models.get("b")
    assert models.get("a") is first
    models.get("c")
    assert released == ["b"]
    assert models.memory_bytes == 200
    models.get("b")
    assert located == ["a", "b", "c", "b"]
    models.close()
    assert sorted(released) == ["a", "b", "b", "c"]


def test_a_model_that_cannot_be_loaded_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    released: list[bool] = []
    models = LoadedModels(
        FakeEngine(), lambda d: (path, lambda: released.append(True)), memory_bytes=1, resident=lambda: 0
    )
    with pytest.raises(LoadError):
        models.get("a")
    assert released == [True]
    assert "a" not in models


# ---- measuring ----


def measured(model: Model, order: Order = ORDER, **options: int) -> measure.Measurement:
    given = {"slots": 1, "fixed_micro_batch": 0, **options}
    return measure.measure(model, order, guard=Guard(1 << 40), resident=resident_bytes, **given)


@pytest.mark.parametrize("sequence", ["s", 16])
def test_token_models_are_measured_with_rows_of_32_tokens_in_a_fraction_of_a_second(
    tmp_path: Path, sequence: int | str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_models.tokens(sequence="s" if sequence == "s" else 64))
    order = Order(
        "job",
        "d" * 64,
        1,
        (Binding("ids", 0, "int64"), Binding("mask", -1, "int64"), Binding("types", -2, "int64")),
        (Output("hidden", ("MeanPool",)),),
    )
    model = OnnxRuntime(threads=1, spin=False).load(path)
    started = time.perf_counter()
    found = measured(model, order)
    assert time.perf_counter() - started < 2.0  # 0.3 s on an idle machine
    assert found.items_per_second > 100
    assert found.micro_batch > 1
    if sequence == "s":
        assert found.size.positions == 32 * found.micro_batch


def test_the_owner_may_fix_the_micro_batch_and_the_model_overrules_him(tmp_path: Path) -> None:
    assert measured(FakeModel(), fixed_micro_batch=7).size == BatchSize(7)
    fixed = Order("job", "d" * 64, 1, ORDER.bindings, ORDER.outputs, fixed_batch=4)
    assert measured(FakeModel(), fixed, fixed_micro_batch=7).size == BatchSize(4)


def test_a_model_that_refuses_zeros_is_ready_at_unknown_speed() -> None:
    def during(items: int) -> None:
        raise RunError("no zeros, please")

    found = measured(FakeModel(during))
    assert found == measure.Measurement(0.0, 1, BatchSize(1))


def test_a_model_that_fits_not_even_once_is_out_of_memory() -> None:
    def during(items: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        measured(FakeModel(during))


# ---- keeping ----


class Kept:
    """A keeper, and what it said was safe."""

    def __init__(self, journal: Journal) -> None:
        self.journaled: list[bytes] = []
        self.event = asyncio.Event()
        self.keeper = ResultKeeper(journal, self._journaled)

    def _journaled(self, tokens: tuple[bytes, ...]) -> None:
        self.journaled += tokens
        self.event.set()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.journaled) < count:
                self.event.clear()
                await self.event.wait()

    async def shards(self, *tokens: bytes) -> list[list[int]]:
        return [[r.shard for r in message.results] async for message in self.keeper.results("job", tokens)]


def entry(number: int, size: int = 100) -> Entry:
    tensor = pb.Tensor(dtype="uint8", shape=[size], data=b"x" * size)
    body = pb.ShardResult(shard=number, token=b"t%d" % number, outputs=[tensor]).SerializeToString()
    return Entry("job", number, b"t%d" % number, False, body)


async def test_results_are_written_in_groups_and_sent_in_messages_of_bounded_size(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    kept = Kept(journal)
    for number in range(4):
        kept.keeper.keep(entry(number, size=100 << 10))
        kept.keeper.write_soon(idle=False)
    await kept.wait(4)
    assert await kept.shards(b"t0", b"t1", b"unknown", b"t2", b"t3") == [[0, 1], [2, 3]]
    assert await kept.shards(b"t3") == [[3]], "again, from the journal"
    kept.keeper.forget([b"t0", b"t1", b"t2", b"t3"])
    await kept.keeper.close()
    again = Journal(tmp_path / "j")
    assert again.summaries() == []
    again.close()


async def test_a_reissued_result_has_the_new_token_and_the_old_outputs(tmp_path: Path) -> None:
    kept = Kept(Journal(tmp_path / "j"))
    kept.keeper.keep(entry(1))
    kept.keeper.write_soon(idle=True)
    kept.keeper.reissue("job", 1, b"t1", b"from memory")
    kept.keeper.write_soon(idle=True)
    await kept.wait(2)
    assert await kept.shards(b"t1", b"from memory") == [[1, 1]]
    kept.keeper.reissue("job", 1, b"t1", b"from disk")
    kept.keeper.write_soon(idle=True)
    await kept.wait(3)
    (message,) = [m async for m in kept.keeper.results("job", [b"from disk"])]
    (result,) = message.results
    assert result.token == b"from disk"
    assert result.outputs == pb.ShardResult.FromString(entry(1).body).outputs
    await kept.keeper.close()


async def test_with_a_full_disk_results_live_in_memory_until_they_are_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "j")

    def full(entries: Sequence[Entry], forget: Sequence[bytes] = ()) -> None:
        raise StoreError("database or disk is full")

    monkeypatch.setattr(journal, "write", full)
    kept = Kept(journal)
    kept.keeper.keep(entry(1))
    kept.keeper.write_soon(idle=True)
    await kept.wait(1)
    assert await kept.shards(b"t1") == [[1]]
    assert await kept.shards(b"t1") == [[1]], "sent again after the link was lost"
    kept.keeper.forget([b"t1"])
    assert await kept.shards(b"t1") == []
    monkeypatch.undo()
    await kept.keeper.close()


async def test_memory_of_undelivered_results_is_bounded(tmp_path: Path) -> None:
    kept = Kept(Journal(tmp_path / "j"))
    for number in range(40):
        kept.keeper.keep(entry(number, size=1 << 20))
        kept.keeper.write_soon(idle=True)
    await kept.wait(40)
    assert kept.keeper._fresh_bytes <= 32 << 20
    messages = await kept.shards(*(b"t%d" % n for n in range(40)))
    assert [shard for message in messages for shard in message] == list(range(40))
    await kept.keeper.close()


def test_tensors_survive_the_wire_in_every_dtype() -> None:
    for name in ("bool", "uint8", "int8", "int16", "float16", "int32", "float32", "int64", "uint64", "float64"):
        values = np.array([[0, 1], [1, 0]], name)
        shard = pb.Shard(inputs=[pb.Tensor(dtype=name, shape=[2, 2], data=values.tobytes())])
        (column,) = tensors.columns_of(shard)
        assert column.values.dtype == np.dtype(name)
        np.testing.assert_array_equal(column.values, values)


@pytest.mark.parametrize("limit", ["LARGEST_RESULT_BYTES", "MOST_FAILED_ITEMS"])
def test_a_result_no_message_can_carry_is_said_to_be_one(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    def refuse_odd_ones(items: int) -> None:
        if limit == "MOST_FAILED_ITEMS" and items == 1:
            raise RunError("no")

    monkeypatch.setattr(compute, limit, 1)
    wanted = program(FakeModel(refuse_odd_ones), items=1)
    pool.pool.submit(attempt(0, items=8), wanted)
    (done,) = pool.wait(1)
    result = result_of(done)
    assert done.failed
    assert (result.failure.cause, result.failure.reason) == (pb.ShardFailure.CAUSE_ITEMS, "ResultTooLarge")
    assert "use smaller shards" in result.failure.message
    assert not result.outputs
    assert not result.failures
