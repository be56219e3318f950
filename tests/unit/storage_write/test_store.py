"""The result store: who may write where, what a restart finds, what is reported."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketgrid.errors import CorruptLogError, InternalError, InvalidSpecError, StaleEpochError, StoreError
from pocketgrid.model.ids import ShardIndex
from pocketgrid.model.job import OutputFormat
from pocketgrid.model.tensors import TensorSpec
from pocketgrid.storage.logreading import segment_names
from pocketgrid.storage.results import ResultStore, StoreLimits, read_manifest, verify
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys, word_keys

ITEMS, PER_SHARD, SHARDS = 20, 3, 7


def values(shard: int) -> np.ndarray:
    return np.arange(shard * PER_SHARD, min(ITEMS, (shard + 1) * PER_SHARD))


def opened(folder: Path, *, take_over: bool = False, part_rows: int = 6, **job: object) -> ResultStore:
    limits = StoreLimits(part_rows=part_rows)
    return ResultStore.open(a_job(folder, ITEMS, **job), no_keys, take_over=take_over, limits=limits)


def half_done(folder: Path, shards: tuple[int, ...] = (0, 1, 5)) -> ResultStore:
    store = opened(folder)
    store.plan(PER_SHARD)
    store.commit([a_result(n, (values(n),)) for n in shards])
    return store


def finish(store: ResultStore) -> None:
    committed = store._log.state.committed
    store.commit([a_result(n, (values(n),)) for n in range(SHARDS) if n not in committed])
    store.finish()
    store.close()


# ---- restarts ----


def test_a_restart_finds_what_was_committed(tmp_path: Path) -> None:
    first = half_done(tmp_path / "out")
    assert first.recovered.epoch == 1
    assert first.recovered.per_shard == 0
    first.close()
    second = opened(tmp_path / "out")
    found = second.recovered
    assert (found.epoch, found.per_shard, found.committed.to_text()) == (2, PER_SHARD, "0,1,5")
    assert (found.rows_done, found.rows_failed, found.finished, found.notes) == (9, 0, False, ())
    assert found.token_key == first.recovered.token_key
    assert len(found.token_key) == 32
    assert found.token_key.hex() not in repr(found)
    second.close()


def test_two_jobs_have_different_token_keys(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b"):
        store = opened(tmp_path / name)
        keys.add(store.recovered.token_key)
        store.close()
    assert len(keys) == 2


def test_a_finished_job_is_found_finished(tmp_path: Path) -> None:
    finish(half_done(tmp_path / "out"))
    store = opened(tmp_path / "out")
    assert store.recovered.finished
    assert store.recovered.rows_done == ITEMS
    assert store.finish() == read_manifest(str(tmp_path / "out")) == read_manifest(f"file://{tmp_path}/out")
    store.close()


def test_a_shard_committed_again_keeps_its_first_result(tmp_path: Path) -> None:
    store = half_done(tmp_path / "out")
    again = store.commit([a_result(0, (values(0) + 100,)), a_result(2, (values(2),)), a_result(2, (values(2) + 100,))])
    assert (again.new, again.already) == ((2,), (0, 2))
    finish(store)
    assert pq.read_table(tmp_path / "out")["y"].to_pylist() == list(range(ITEMS))


def test_lost_staging_is_noticed_and_done_again(tmp_path: Path) -> None:
    half_done(tmp_path / "out").close()
    for path in (tmp_path / "out/_pocketgrid/staging").iterdir():
        path.unlink()
    for _ in range(2):  # what was reopened stays open
        store = opened(tmp_path / "out")
        assert store.recovered.committed.to_text() == ""
        store.close()
    finish(opened(tmp_path / "out"))
    assert verify(str(tmp_path / "out")) == []


def test_damaged_staging_is_found_when_the_part_is_sealed(tmp_path: Path) -> None:
    store = half_done(tmp_path / "out")
    (path,) = (tmp_path / "out/_pocketgrid/staging").iterdir()
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    assert store.seal() == 0
    assert store.take_reopened() == [0]
    assert store.take_reopened() == []
    assert list((tmp_path / "out").glob("part-*")) == []
    with pytest.raises(StoreError, match="2 of 7 shards are committed"):
        store.finish()
    assert store.commit([a_result(0, (values(0),))]).new == (0,)
    finish(store)
    assert verify(str(tmp_path / "out")) == []


def test_a_part_that_vanished_is_done_again(tmp_path: Path) -> None:
    store = half_done(tmp_path / "out")
    assert store.seal() == 1
    store.close()
    (tmp_path / "out/part-00000.parquet").unlink()
    store = opened(tmp_path / "out")
    assert store.recovered.committed.to_text() == "5"
    assert "part-00000.parquet is missing" in store.recovered.notes[0]
    finish(store)
    assert verify(str(tmp_path / "out")) == []


def test_a_crash_between_putting_a_part_in_place_and_entering_it_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = half_done(tmp_path / "out")
    monkeypatch.setattr(store._log, "append", lambda entries: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.seal()
    store.close()
    before = (tmp_path / "out/part-00000.parquet").read_bytes()
    store = opened(tmp_path / "out")
    assert store.seal() == 1
    assert (tmp_path / "out/part-00000.parquet").read_bytes() == before
    finish(store)


def test_staging_is_removed_as_parts_are_sealed(tmp_path: Path) -> None:
    limits = StoreLimits(part_rows=6, segment_bytes=1)
    store = ResultStore.open(a_job(tmp_path / "out", ITEMS), no_keys, limits=limits)
    store.plan(PER_SHARD)
    staging = tmp_path / "out/_pocketgrid/staging"
    most = 0
    for shard in range(SHARDS):
        store.commit([a_result(shard, (values(shard),))])
        store.seal()
        most = max(most, len(list(staging.iterdir())))
    assert most <= 3
    store.finish()
    assert list(staging.iterdir()) == []
    store.close()


# ---- who may write ----


def test_a_second_writer_on_this_host_is_refused_by_name(tmp_path: Path) -> None:
    store = half_done(tmp_path / "out")
    with pytest.raises(StoreError, match=f"is being written by process {os.getpid()} on "):
        opened(tmp_path / "out")
    assert store.commit([a_result(2, (values(2),))]).new == (2,)  # the refused one has fenced off nobody
    store.close()
    opened(tmp_path / "out").close()


def test_taking_over_fences_off_the_first_writer(tmp_path: Path) -> None:
    first = half_done(tmp_path / "out")
    second = opened(tmp_path / "out", take_over=True)
    with pytest.raises(StaleEpochError):
        first.commit([a_result(2, (values(2),))])
    with pytest.raises(StaleEpochError):
        first.seal()
    assert list((tmp_path / "out").glob("part-*")) == []
    assert second.commit([a_result(2, (values(2),))]).new == (2,)
    finish(second)
    with pytest.raises(StaleEpochError):
        first.commit([a_result(3, (values(3),))])
    first.close()


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"uid": "job-2"}, "OutputHoldsAnotherJob", "spec.output.uri"),
        ({"fingerprint": "data-2"}, "InputChanged", "spec.input.uri"),
        ({"model": "n" * 64}, "ModelChanged", "spec.model.sha256"),
        ({"format_": OutputFormat.JSONL}, "OutputChanged", "spec.output"),
    ],
)
def test_another_or_a_changed_job_is_refused_and_fences_off_nobody(
    tmp_path: Path, change: dict[str, object], reason: str, field: str
) -> None:
    store = half_done(tmp_path / "out")
    with pytest.raises(InvalidSpecError) as refusal:
        opened(tmp_path / "out", take_over=True, **change)
    assert (refusal.value.reason, refusal.value.field) == (reason, field)
    assert store.commit([a_result(2, (values(2),))]).new == (2,)
    store.close()


@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00007.jsonl", "_manifest.json"])
def test_a_folder_with_results_of_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    """Another job's output from which the log was removed, or files of another program."""
    (tmp_path / name).write_bytes(b"precious")
    for _ in range(2):
        with pytest.raises(InvalidSpecError, match=f"already holds {name}, which is not of this job") as refusal:
            opened(tmp_path)
        assert (refusal.value.reason, refusal.value.field) == ("OutputHoldsAnotherJob", "spec.output.uri")
    assert (tmp_path / name).read_bytes() == b"precious"


def test_the_finished_output_of_another_job_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    finish(half_done(tmp_path / "out"))
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(InvalidSpecError, match="holds the output of job job-1; name another folder or remove it"):
        opened(tmp_path / "out", uid="job-2")
    after = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != "lock"}
    assert after == {p: data for p, data in before.items() if p.name != "lock"}


@pytest.mark.parametrize("uri", ["s3://bucket/out", "relative/out", "file://elsewhere/out", ""])
def test_only_local_folders_can_be_written(uri: str) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        opened(uri)  # type: ignore[arg-type]  # the builder takes text as well
    assert refusal.value.reason == "UnsupportedOutput"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InvalidSpecError) as refusal:
        opened(tmp_path / "out")
    assert refusal.value.reason == "OutputUnwritable"


def test_a_key_column_with_the_name_of_an_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        opened(tmp_path / "out", key="y")
    assert refusal.value.reason == "NameCollision"


def test_an_output_called_row_moves_the_row_number_aside(tmp_path: Path) -> None:
    store = opened(tmp_path / "out", outputs=(TensorSpec("row", "int64", ("b",)),))
    store.plan(PER_SHARD)
    finish(store)
    assert pq.read_table(tmp_path / "out").column_names == ["row_number", "row"]
    assert verify(str(tmp_path / "out")) == []


@pytest.mark.parametrize("moved", ["", "_pocketgrid", "_pocketgrid/log"])
def test_a_folder_that_vanishes_is_missed_and_work_goes_on_when_it_is_back(tmp_path: Path, moved: str) -> None:
    store = half_done(tmp_path / "out")
    folder = tmp_path / "out" / moved
    folder.rename(tmp_path / "aside")
    for _ in range(3):
        with pytest.raises(StoreError, match="put it back"):
            store.commit([a_result(2, (values(2),))])
        with pytest.raises(StoreError, match="put it back"):
            store.seal()
    assert store._log.state.committed.to_text() == "0,1,5"
    (tmp_path / "aside").rename(folder)
    assert store.commit([a_result(2, (values(2),))]).new == (2,)
    finish(store)
    assert verify(str(tmp_path / "out")) == []


def test_a_log_without_its_beginning_is_not_gone_on_with(tmp_path: Path) -> None:
    """Nothing may be acknowledged in a folder whose next reader would not know what was acknowledged before."""
    half_done(tmp_path / "out").close()
    store = opened(tmp_path / "out")
    store.commit([a_result(2, (values(2),))])
    log = tmp_path / "out/_pocketgrid/log"
    for name in segment_names(log):
        (log / name).rename(tmp_path / name)
    with pytest.raises(StoreError, match="removed or moved"):
        store.commit([a_result(3, (values(3),))])
    (tmp_path / "E0000000002-S000001.log").rename(log / "E0000000002-S000001.log")
    with pytest.raises(StoreError, match=r"E0000000001-S000001\.log failed: it was removed or moved"):
        store.commit([a_result(3, (values(3),))])
    (tmp_path / "E0000000001-S000001.log").rename(log / "E0000000001-S000001.log")
    assert store.commit([a_result(3, (values(3),))]).new == (3,)
    finish(store)
    assert verify(str(tmp_path / "out")) == []


def test_a_folder_that_was_removed_and_begun_anew_by_somebody_else_stops_the_writer(tmp_path: Path) -> None:
    """Both are of epoch 1, and what the first one writes goes into files without a name."""
    first = half_done(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    second = half_done(tmp_path / "out", shards=(0,))
    assert second.recovered.epoch == first.recovered.epoch == 1
    with pytest.raises(StaleEpochError, match="another file than before"):
        first.commit([a_result(2, (values(2),))])
    with pytest.raises(StaleEpochError):
        first.seal()
    finish(second)
    first.close()
    assert verify(str(tmp_path / "out")) == []


# ---- misuse and damage ----


def test_a_plan_is_for_ever(tmp_path: Path) -> None:
    store = opened(tmp_path / "out")
    with pytest.raises(InternalError, match="before the job was planned"):
        store.commit([a_result(0, (values(0),))])
    store.plan(PER_SHARD)
    store.plan(PER_SHARD)
    with pytest.raises(InternalError, match="cut by 3 items, not by 4"):
        store.plan(4)
    store.close()


@pytest.mark.parametrize(
    ("shard", "rows", "failures", "word"),
    [(7, 3, (), "no shard 7 among 7"), (0, 2, (3,), "not distinct rows"), (0, 1, (1, 1), "not distinct rows"),
     (0, 3, (1,), "3 rows where 2 are due"), (6, 3, (), "3 rows where 2 are due")],
)  # fmt: skip
def test_a_result_that_is_not_of_its_shard_is_refused(
    tmp_path: Path, shard: int, rows: int, failures: tuple[int, ...], word: str
) -> None:
    store = half_done(tmp_path / "out", shards=())
    committed = store.commit([a_result(shard, (np.arange(rows),), failures)])
    assert committed.new == ()
    assert word in committed.refused[0][1]
    store.close()


def test_keys_that_change_their_number_or_type_are_the_fault_of_the_input(tmp_path: Path) -> None:
    def shrinking(start: int, stop: int) -> pa.Array:
        return word_keys(start, min(stop, 4))

    def turning(start: int, stop: int) -> pa.Array:
        return pa.array(range(start, stop)) if stop <= 1 else word_keys(start, stop)

    for name, keys, reason in (("a", shrinking, "InputChanged"), ("b", turning, "KeyTypeChanges")):
        store = ResultStore.open(a_job(tmp_path / name, ITEMS, key="id"), keys)
        store.plan(PER_SHARD)
        store.commit([a_result(n, (values(n),)) for n in range(SHARDS)])
        with pytest.raises(InvalidSpecError) as refusal:
            store.seal()
        assert refusal.value.reason == reason
        store.close()


def test_a_newer_version_of_the_log_is_left_alone(tmp_path: Path) -> None:
    half_done(tmp_path / "out").close()
    (path,) = (tmp_path / "out/_pocketgrid/log").iterdir()
    import zlib

    lines = []
    for line in path.read_bytes().splitlines():
        payload = line[9:].replace(b'"version":3', b'"version":4')
        lines.append(b"%08x %b\n" % (zlib.crc32(payload), payload))
    path.write_bytes(b"".join(lines))
    with pytest.raises(StoreError, match="newer version"):
        opened(tmp_path / "out")


def test_a_log_of_another_number_of_items_is_corrupt(tmp_path: Path) -> None:
    half_done(tmp_path / "out").close()
    with pytest.raises((InvalidSpecError, CorruptLogError)):
        ResultStore.open(a_job(tmp_path / "out", ITEMS + 1), no_keys)


def test_shards_are_numbers_of_the_grid(tmp_path: Path) -> None:
    committed = half_done(tmp_path / "out")
    assert committed.commit([]).new == ()
    assert committed.commit([a_result(ShardIndex(6), (values(6),))]).new == (6,)
    committed.close()
