"""Who computed what: told from the log, over restarts and damage, and bounded in the manifest."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketgrid.errors import StoreError
from pocketgrid.model.ids import DeviceName
from pocketgrid.storage.logentries import Commit, Introduced, Share, Worker, decode_line, encode_lines, segment_name
from pocketgrid.storage.logreading import read_log
from pocketgrid.storage.results import (
    DeviceWork,
    GroupWork,
    ResultStore,
    StoreLimits,
    read_manifest,
    verify,
    verify_output,
)
from pocketgrid.storage.results.work import OTHERS, summarize_work, total_of
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys

ITEMS, PER_SHARD, SHARDS = 20, 3, 7
ORT, NEWER = "onnxruntime 1.30.0", "onnxruntime 1.32.0"


def values(shard: int) -> np.ndarray:
    return np.arange(shard * PER_SHARD, min(ITEMS, (shard + 1) * PER_SHARD))


def opened(out: Path) -> ResultStore:
    store = ResultStore.open(a_job(out, ITEMS), no_keys, limits=StoreLimits(part_rows=6))
    store.plan(PER_SHARD)
    return store


def commit(store: ResultStore, shard: int, device: str, classes: tuple[str, ...], engine: str = ORT) -> None:
    failures = (2,) if shard == 2 else ()
    result = a_result(shard, (values(shard)[: 2 if failures else None],), failures)
    done = store.commit([replace(result, device=DeviceName(device), classes=classes, engine=engine, compute_us=10)])
    assert done.new == (shard,)


def test_the_manifest_says_who_computed_what(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    commit(store, 0, "phone-1", ("arm", "phone"))
    commit(store, 1, "phone-2", ("arm", "phone"))
    commit(store, 2, "phone-1", ("arm", "phone"))
    store.close()
    store = opened(tmp_path / "out")  # the device comes back with a newer engine, to a newer operator
    commit(store, 3, "phone-1", ("arm", "phone"), NEWER)
    while store.seal():
        pass
    store.close()
    store = opened(tmp_path / "out")
    commit(store, 4, "board-7", ())
    commit(store, 5, "phone-1", ("arm", "phone"), NEWER)
    commit(store, 6, "phone-1", ("arm",), NEWER)
    work = store.finish().work
    store.close()
    assert work is not None
    assert work.devices == (
        DeviceWork("board-7", "", ORT, 1, 3, 0, 10),
        DeviceWork("phone-1", "arm", NEWER, 1, 2, 0, 10),
        DeviceWork("phone-1", "arm,phone", ORT, 2, 5, 1, 20),
        DeviceWork("phone-1", "arm,phone", NEWER, 2, 6, 0, 20),
        DeviceWork("phone-2", "arm,phone", ORT, 1, 3, 0, 10),
    )
    assert work.classes == (
        GroupWork("", 1, 1, 3, 0, 10),
        GroupWork("arm", 1, 1, 2, 0, 10),
        GroupWork("arm,phone", 3, 5, 14, 1, 50),
    )
    assert work.engines == (GroupWork(ORT, 3, 4, 11, 1, 40), GroupWork(NEWER, 2, 3, 8, 0, 30))
    assert work.other_devices == ()
    assert read_manifest(str(tmp_path / "out")).work == work
    assert '"ada"' not in (tmp_path / "out/_manifest.json").read_text(), "owners are not for readers of the output"
    assert verify(str(tmp_path / "out")) == []


def test_a_part_that_is_done_again_counts_for_who_did_it_again(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    for shard in range(SHARDS):
        commit(store, shard, "phone-1", ())
    store.finish()
    store.close()
    (tmp_path / "out/part-00001.parquet").unlink()
    store = opened(tmp_path / "out")
    for shard in (2, 3):
        commit(store, shard, "phone-2", ())
    work = store.finish().work
    store.close()
    assert work is not None
    assert [(d.device, d.shards, d.rows, d.failed) for d in work.devices] == [
        ("phone-1", 5, 14, 0), ("phone-2", 2, 5, 1)
    ]  # fmt: skip
    assert verify(str(tmp_path / "out")) == []


def cut_lines(folder: Path, *words: bytes) -> int:
    """Damage every line of the log that has one of `words`; how many."""
    damaged = 0
    for path in folder.iterdir():
        lines = path.read_bytes().split(b"\n")
        for at, line in enumerate(lines):
            if any(word in line for word in words):
                lines[at] = line[:-1] + b"?"
                damaged += 1
        path.write_bytes(b"\n".join(lines))
    return damaged


def test_lost_lines_of_single_shards_cost_a_sealed_part_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    for shard in range(SHARDS):
        commit(store, shard, f"phone-{shard % 2}", ())
    before = store.finish().work
    store.close()
    assert cut_lines(tmp_path / "out/_pocketgrid/log", b'["c",') == SHARDS
    store = opened(tmp_path / "out")
    assert store.recovered.finished
    assert store.finish().work == before
    store.close()


def test_a_lost_introduction_costs_the_name_and_not_the_shard_nor_another_device_its_work(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    commit(store, 0, "phone-1", ())
    commit(store, 1, "phone-2", ())
    store.close()
    assert cut_lines(tmp_path / "out/_pocketgrid/log", b"phone-2") == 2
    store = opened(tmp_path / "out")
    assert store.recovered.committed.to_text() == "0,1"
    for shard in range(2, SHARDS):
        commit(store, shard, "phone-3", ())  # must not be given phone-2's number
    work = store.finish().work
    store.close()
    assert work is not None
    assert [(d.device, d.shards) for d in work.devices] == [("", 1), ("phone-1", 1), ("phone-3", 5)]
    result = verify_output(str(tmp_path / "out"))
    assert result.intact
    assert "E0000000001-S000001.log has 2 damaged" in result.notes[0]


def test_what_a_failed_append_introduced_is_introduced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path / "out")
    real, calls = os.fdatasync, []

    def failing(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:  # the first is of the staged data
            raise OSError(5, "Input/output error")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(StoreError):
            commit(store, 0, "phone-1", ())
    commit(store, 0, "phone-2", ())
    commit(store, 1, "phone-1", ())
    store.close()
    state = read_log(tmp_path / "out/_pocketgrid/log").state
    assert {worker.device for worker in state.staged_work(0)} == {"phone-1", "phone-2"}


def test_tables_are_bounded_and_add_up() -> None:
    workers = {
        Worker(f"d{n:05d}", "ada", f"class-{n % 7}" if n % 8 else "", f"engine {n % 50}"): Share(0, 1 + n % 3, n, 1, 5)
        for n in range(3000)
    }
    work = summarize_work(workers)
    assert len(work.devices) == 1000
    assert {d.device for d in work.devices} == {f"d{n:05d}" for n in range(2000, 3000)}
    assert sum(g.devices for g in work.other_devices) == 2000
    assert len(work.classes) == 8
    assert total_of(work.classes) == total_of(work.engines) == total_of([*work.devices, *work.other_devices])
    assert total_of(work.classes).rows == sum(range(3000))
    few = summarize_work(workers, most=10)
    assert len(few.engines) == 10
    assert few.engines[0].name == OTHERS
    assert total_of(few.engines) == total_of(work.engines)
    assert len(json.dumps([[d.device, d.engine] for d in few.devices])) < 1000


# ---- version 1 ----

OLD = Path(__file__).with_name("output_of_version_1")


def test_a_log_of_version_1_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Written by the first version: shards 0 and 1 are sealed, 2 and 5 staged; board-7 did shard 1."""
    shutil.copytree(OLD, tmp_path / "out")
    store = opened(tmp_path / "out")
    assert store.recovered.committed.to_text() == "0-2,5"
    assert (store.recovered.rows_done, store.recovered.rows_failed, store.recovered.notes) == (12, 1, ())
    assert store.recovered.token_key == bytes(32)
    for shard in (3, 4, 6):
        commit(store, shard, "phone-9", ("phone",))
    work = store.finish().work
    store.close()
    assert work is not None
    assert work.devices == (
        DeviceWork("board-7", "", ORT, 1, 2, 1, 1234),
        DeviceWork("phone-1", "", NEWER, 3, 9, 0, 3702),
        DeviceWork("phone-9", "phone", ORT, 3, 8, 0, 30),
    )
    assert verify(str(tmp_path / "out")) == []
    again = opened(tmp_path / "out")
    assert again.finish().work == work
    again.close()


def test_a_part_of_version_1_that_is_done_again_forgets_who_did_it_first(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "out")
    (tmp_path / "out/part-00000.parquet").unlink()
    store = opened(tmp_path / "out")
    for shard in (0, 1, 3, 4, 6):
        commit(store, shard, "phone-9", ())
    work = store.finish().work
    store.close()
    assert work is not None
    assert [(d.device, d.shards) for d in work.devices] == [("phone-1", 2), ("phone-9", 5)]


def test_a_finished_manifest_of_version_1_can_be_read(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    for shard in range(SHARDS):
        commit(store, shard, "phone-1", ())
    store.finish()
    store.close()
    path = tmp_path / "out/_manifest.json"
    document = json.loads(path.read_text())
    del document["work"], document["model_uri"]
    path.write_text(json.dumps(document | {"version": 1}))
    shutil.rmtree(tmp_path / "out/_pocketgrid")
    assert read_manifest(str(tmp_path / "out")).work is None
    assert verify(str(tmp_path / "out")) == []


def test_the_lines_that_the_documentation_shows_are_lines() -> None:
    text = (Path(__file__).parents[3] / "docs/commit-log.md").read_bytes()
    worker, commit = (decode_line(line) for line in re.findall(rb"^[0-9a-f]{8} [{\[].*$", text, re.MULTILINE))
    assert isinstance(worker, Introduced)
    assert isinstance(commit, Commit)
    assert (commit.shard, commit.worker, commit.rows, commit.staging) == (12, worker.number, 64, segment_name(1, 2))


def test_a_shard_of_a_job_of_a_million_takes_less_than_92_bytes() -> None:
    lines = encode_lines(
        Commit(n, (3 << 32) + n, n % 200 + 1, 10, 0, 251_234, "E0000000003-S000061", n * 61, 15_872, 15_872, 2**32 - n)
        for n in range(990_000, 991_000)
    )
    assert len(lines) / 1000 < 92
