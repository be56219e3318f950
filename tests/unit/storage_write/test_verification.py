"""`verify` recomputes everything: each kind of damage is named with its file, and its remedy works."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pocketgrid.app import app
from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.model.job import OutputFormat
from pocketgrid.model.tensors import TensorSpec
from pocketgrid.storage.results import Damage, Finding, ResultStore, StoreLimits, verify, verify_output
from pocketgrid.storage.results.duplicates import DuplicateFinder, key_hash
from tests.unit.storage_write.result_builders import a_job, a_result, no_keys

ITEMS, PER_SHARD, SHARDS = 20, 3, 7
FORMATS = [OutputFormat.PARQUET, OutputFormat.JSONL]


def values(shard: int) -> np.ndarray:
    return np.arange(shard * PER_SHARD, min(ITEMS, (shard + 1) * PER_SHARD))


def words(start: int, stop: int) -> pa.Array:
    return pa.array([f"k{n}" for n in range(start, stop)])


def written(out: Path, format_: OutputFormat = OutputFormat.PARQUET, *, key: str = "", keys: object = None) -> None:
    """Do what is open of the job of this test, as a job that is started again does. Row 8 has no result."""
    job = a_job(out, ITEMS, format_=format_, key=key)
    store = ResultStore.open(job, keys or (words if key else no_keys), limits=StoreLimits(part_rows=6))
    store.plan(PER_SHARD)
    for shard in range(SHARDS):
        if shard not in store.recovered.committed:
            failures = (2,) if shard == 2 else ()
            store.commit([a_result(shard, (values(shard)[: 2 if failures else None],), failures)])
    store.finish()
    store.close()


def found(out: Path) -> list[tuple[Damage, str]]:
    findings = verify_output(str(out)).findings
    assert all(f.message.startswith((f.file, str(out))) for f in findings)
    assert all(f.remedy and str(f) == f"{f.message}; {f.remedy}" for f in findings)
    return [(f.damage, f.file) for f in findings]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("key", ["", "id"])
def test_what_was_written_is_as_it_should_be(tmp_path: Path, format_: OutputFormat, key: str) -> None:
    written(tmp_path / "out", format_, key=key)
    seen: list[tuple[int, int]] = []
    result = verify_output(f"file://{tmp_path}/out", progress=lambda done, total: seen.append((done, total)))
    assert result.intact
    assert result.findings == result.notes == []
    assert seen[-1][0] == seen[-1][1] > 0


# ---- files ----

SUFFIX = {OutputFormat.PARQUET: "parquet", OutputFormat.JSONL: "jsonl"}


def flip_a_byte(out: Path, suffix: str) -> list[tuple[Damage, str]]:
    path = out / f"part-00002.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return [(Damage.CHANGED, path.name)]


def drop_a_part(out: Path, suffix: str) -> list[tuple[Damage, str]]:
    (out / f"part-00003.{suffix}").unlink()
    return [(Damage.MISSING, f"part-00003.{suffix}")]


def swap_two_parts(out: Path, suffix: str) -> list[tuple[Damage, str]]:
    first, second = out / f"part-00000.{suffix}", out / f"part-00002.{suffix}"
    first.rename(out / "aside")
    second.rename(first)
    (out / "aside").rename(second)
    return [(Damage.MISPLACED, first.name), (Damage.MISPLACED, second.name)]


def cut_a_part(out: Path, suffix: str) -> list[tuple[Damage, str]]:
    path = out / f"part-00001.{suffix}"
    path.write_bytes(path.read_bytes()[:-7])
    return [(Damage.TRUNCATED, path.name)]


def add_to_a_part(out: Path, suffix: str) -> list[tuple[Damage, str]]:
    with (out / f"part-00001.{suffix}").open("ab") as sink:
        sink.write(b"more")
    return [(Damage.CHANGED, f"part-00001.{suffix}")]


def empty_a_part(out: Path, suffix: str) -> list[tuple[Damage, str]]:
    (out / f"part-00001.{suffix}").write_bytes(b"")
    return [(Damage.TRUNCATED, f"part-00001.{suffix}")]


def change_an_error(out: Path, suffix: str) -> list[tuple[Damage, str]]:
    path = out / "_errors/part-00001.jsonl"
    path.write_text(path.read_text().replace("bad", "BAD"))
    return [(Damage.CHANGED, "_errors/part-00001.jsonl")]


def drop_the_errors(out: Path, suffix: str) -> list[tuple[Damage, str]]:
    shutil.rmtree(out / "_errors")
    return [(Damage.MISSING, "_errors/part-00001.jsonl")]


DAMAGES = [flip_a_byte, drop_a_part, swap_two_parts, cut_a_part, add_to_a_part, empty_a_part, change_an_error,
           drop_the_errors]  # fmt: skip


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damage_is_named_with_its_file_and_the_remedy_works(
    tmp_path: Path, format_: OutputFormat, damage: Callable[[Path, str], list[tuple[Damage, str]]]
) -> None:
    out = tmp_path / "out"
    written(out, format_)
    before = {p.name: p.read_bytes() for p in out.glob("part-*")}
    expected = damage(out, SUFFIX[format_])
    assert found(out) == expected
    for _, file in expected:  # "delete it and start the job again"
        (out / file).unlink(missing_ok=True)
    written(out, format_)
    assert found(out) == []
    assert {p.name: p.read_bytes() for p in out.glob("part-*")} == before


@pytest.mark.parametrize("name", ["part-00099.parquet", "notes.txt", "_errors/part-00000.jsonl"])
def test_a_file_that_readers_would_take_for_data_is_named(tmp_path: Path, name: str) -> None:
    written(tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"")
    assert found(tmp_path / "out") == [(Damage.UNEXPECTED, name)]


def test_what_readers_skip_is_let_be(tmp_path: Path) -> None:
    written(tmp_path / "out")
    for name in ("_SUCCESS", ".DS_Store"):
        (tmp_path / "out" / name).write_bytes(b"")
    assert found(tmp_path / "out") == []


# ---- the manifest and the log ----


def edit(out: Path, **changes: object) -> None:
    document = json.loads((out / "_manifest.json").read_text())
    (out / "_manifest.json").write_text(json.dumps(document | changes, indent=1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 20}, "20 rows and 1 failed, but its parts have 19 and 1"),
        ({"items": 21}, "says 21 items, but 19 rows and 1 failed"),
        ({"model": "0" * 64}, "is of model 000"),
        ({"job": "job-2"}, "is of job job-2, the commit log of job job-1"),
        ({"input_fingerprint": "data-2"}, "is of input data-2/20, the commit log of input data-1/20"),
        ({"parts": []}, "does not list part 0, which the commit log has"),
        ({"work": {"engines": [], "classes": [], "devices": [], "other_devices": []}}, "who computed what"),
        ({"name": "default/other"}, "the commit log has another digest of it"),
    ],
)
def test_an_edited_manifest_is_found_and_written_anew(tmp_path: Path, change: dict[str, object], words: str) -> None:
    out = tmp_path / "out"
    written(out)
    before = (out / "_manifest.json").read_bytes()
    edit(out, **change)
    findings = verify_output(str(out)).findings
    assert any(f.damage is Damage.MANIFEST and words in f.message for f in findings), findings
    assert {f.file for f in findings if f.damage is Damage.MANIFEST} == {"_manifest.json"}
    (out / "_manifest.json").unlink()
    written(out)
    assert (out / "_manifest.json").read_bytes() == before
    assert found(out) == []


def test_a_manifest_that_names_files_elsewhere_is_not_followed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(out)
    (tmp_path / "secret").write_bytes(b"")
    parts = json.loads((out / "_manifest.json").read_text())["parts"]
    parts[0]["data"]["path"] = "../secret"
    edit(out, parts=parts)
    assert {damage for damage, _ in found(out)} == {Damage.MANIFEST, Damage.UNEXPECTED}


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"version": 2}', '{"version": "x"}', '{"version": 2, "parts": [1]}']
)
def test_what_is_no_manifest_is_no_crash(tmp_path: Path, text: str) -> None:
    written(tmp_path / "out")
    (tmp_path / "out/_manifest.json").write_text(text)
    with pytest.raises(StoreError, match="delete it and start the job again"):
        verify(str(tmp_path / "out"))


def test_without_a_manifest_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has not finished"):
        verify(str(tmp_path))
    with pytest.raises(InvalidSpecError, match="cannot be written to"):
        verify("s3://bucket/out")


def test_without_its_log_an_output_is_judged_by_the_manifest_alone(tmp_path: Path) -> None:
    written(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/_pocketgrid")
    result = verify_output(str(tmp_path / "out"))
    assert result.intact
    assert "no commit log any more" in result.notes[0]
    drop_a_part(tmp_path / "out", "parquet")
    assert found(tmp_path / "out") == [(Damage.MISSING, "part-00003.parquet")]


def test_a_part_that_was_replaced_together_with_its_entry_is_found_by_the_log(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(out)
    path = out / "part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, table.schema.field("y"), pa.array([9] * 6)), path)
    import hashlib

    parts = json.loads((out / "_manifest.json").read_text())["parts"]
    data = path.read_bytes()
    parts[0]["data"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(out, parts=parts)
    messages = verify(str(out))
    assert any("disagree about part-00000.parquet" in m for m in messages), messages


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(out)
    (path,) = (out / "_pocketgrid/log").iterdir()
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line[:-1] if b'["c",' in line else line for line in lines))
    result = verify_output(str(out))
    assert result.intact, "what the lines of single shards say is proven by the parts"
    assert result.notes == [
        "commit log: E0000000001-S000001.log has 7 damaged or unknown lines; what only they said is done again"
    ]
    path.write_bytes(b"\n".join(line[:-1] if b'"sealed","part":2' in line else line for line in lines))
    (finding,) = verify_output(str(out)).findings
    assert (finding.damage, finding.file) == (Damage.LOG, "_pocketgrid/log")
    assert "does not say, or no longer, that part-00002.parquet is final" in finding.message
    written(out)
    assert found(out) == []
    for newer in set((out / "_pocketgrid/log").iterdir()) - {path}:
        newer.unlink()
    path.write_bytes(b"\n".join(line for line in lines if b'"header"' not in line))
    assert found(out) == [(Damage.LOG, "_pocketgrid/log")]
    path.write_bytes(b"")
    assert verify_output(str(out)).notes == ["the commit log is empty, so nothing could be compared with it"]


def test_the_model_can_be_compared(tmp_path: Path) -> None:
    written(tmp_path / "out")
    model = tmp_path / "model.onnx"
    model.write_bytes(b"another")
    (finding,) = verify_output(str(tmp_path / "out"), model=model).findings
    assert (finding.damage, finding.file) == (Damage.MODEL, str(model))


# ---- rows: what no digest tells, since whoever wrote the manifest believed it ----


def rewritten(out: Path, part: int, change: Callable[[pa.Table], pa.Table]) -> list[Finding]:
    """Replace a part by a changed one as if the job had written it so; what `verify` says of that."""
    import hashlib

    shutil.rmtree(out / "_pocketgrid")
    path = out / f"part-{part:05d}.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    parts = json.loads((out / "_manifest.json").read_text())["parts"]
    data = path.read_bytes()
    parts[part]["data"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(out, parts=parts)
    return verify_output(str(out)).findings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.take([0, 2, 1, 3, 4, 5]), "has row 2 at line 1, where 1 is due"),
        (lambda t: t.take([0, 1, 2, 2, 4, 5]), "has row 2 at line 3, where 3 is due"),
        (lambda t: t.slice(0, 5), "has 5 rows where 6 are due"),
        (lambda t: pa.concat_tables([t, t.slice(5)]), "has row 5 at line 6, where none is due any more"),
    ],
    ids=["order", "twice", "missing", "one more"],
)
def test_rows_out_of_order_twice_or_missing(tmp_path: Path, change: Callable[[pa.Table], pa.Table], words: str) -> None:
    written(tmp_path / "out")
    findings = rewritten(tmp_path / "out", 0, change)
    assert [(f.damage, f.file) for f in findings] == [(Damage.ROWS, "part-00000.parquet")]
    assert words in findings[0].message


def test_a_part_with_other_columns(tmp_path: Path) -> None:
    written(tmp_path / "out")
    findings = rewritten(tmp_path / "out", 1, lambda t: t.set_column(1, "y", t["y"].cast(pa.float32())))
    assert [(f.damage, f.file) for f in findings] == [(Damage.SCHEMA, "part-00001.parquet")]


@pytest.mark.parametrize("format_", FORMATS)
def test_keys_that_occur_twice(tmp_path: Path, format_: OutputFormat) -> None:
    out = tmp_path / "out"
    written(out, format_, key="id", keys=lambda start, stop: pa.array([i // 2 for i in range(start, stop)]))
    (finding,) = verify_output(str(out)).findings
    assert finding.damage is Damage.KEYS
    assert "10 keys occur more than once in column 'id', such as 0, 1, 2" in finding.message


@pytest.mark.parametrize("in_memory", [10, 1 << 20])
def test_duplicates_are_found_in_bounded_memory(in_memory: int) -> None:
    keys = [f"k{n}" for n in range(5000)]
    with DuplicateFinder(hashes_in_memory=in_memory) as finder:
        for start in range(0, 5000, 100):
            finder.add(keys[start : start + 100])
            assert sum(len(h) for h in finder._held) <= in_memory + 100
        assert finder.suspects(10) == (set(), 0)
        finder.add(["k7", "k7", "k4999", None, b"x", ["a"]])
        assert finder.suspects(10) == ({key_hash("k7"), key_hash("k4999")}, 3)
        assert len(finder.suspects(1)[0]) == 1


def test_an_output_of_vectors_is_not_read_for_its_keys(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = a_job(out, 6, outputs=(TensorSpec("v", "float32", ("batch", 4)),), format_=OutputFormat.JSONL)
    store = ResultStore.open(job, no_keys)
    store.plan(3)
    store.commit([replace(a_result(n, (np.full((3, 4), np.nan, np.float32),)), shard=n) for n in (0, 1)])
    store.finish()
    store.close()
    assert found(out) == []


# ---- the command ----


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["results", "verify", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_how_it_is_by_its_exit_status(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(out)
    status, text, _ = run(str(out))
    assert (status, text) == (0, "19 rows and 1 failed in 4 parts: as it should be\n")
    drop_a_part(out, "parquet")
    status, text, _ = run(str(out))
    assert status == 1
    assert "part-00003.parquet is missing" in text
    assert "delete it and start the job again" in text
    (out / "_manifest.json").unlink()
    status, _, text = run(str(out))
    assert status == 3
    assert "has not finished" in text
    process = subprocess.run(
        [sys.executable, "-m", "pocketgrid", "results", "verify", "s3://bucket/out"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert "UnsupportedOutput" in process.stderr


def test_the_command_speaks_json(tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(out)
    status, text, _ = run(str(out), "--json")
    document = json.loads(text)
    assert status == 0
    assert document["intact"] is True
    assert (document["items"], document["rows"], document["failed"], document["parts"]) == (20, 19, 1, 4)
    flip_a_byte(out, "parquet")
    status, text, _ = run(str(out), "--json")
    (finding,) = json.loads(text)["findings"]
    assert status == 1
    assert (finding["damage"], finding["file"]) == ("Changed", "part-00002.parquet")
    assert finding["remedy"]
    (out / "_manifest.json").unlink()
    status, text, _ = run(str(out), "--json")
    assert status == 3
    assert json.loads(text)["intact"] is None
    assert "has not finished" in json.loads(text)["error"]
