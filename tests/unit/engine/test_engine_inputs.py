"""Whole jobs over awkward data: every item comes out once, with its own result or its own failure."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pocketgrid.model.decoding import BytesDecode
from pocketgrid.model.ids import ModelDigest
from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef, JobSpec, ModelRef, Sharding
from pocketgrid.model.view import Stage
from pocketgrid.storage.datasets import files
from pocketgrid.storage.results import verify
from tests.fakes.devices import FakeDevice
from tests.fakes.models import write_affine_model
from tests.unit.engine.engine_world import JobMaker, an_engine, job_reaches


@pytest.fixture
def make_job(tmp_path: Path) -> JobMaker:
    return JobMaker(tmp_path)


def output_of(spec: JobSpec) -> Path:
    return Path(spec.output.uri.removeprefix("file://"))


def rows_of(spec: JobSpec) -> list[dict]:
    return [row for part in sorted(output_of(spec).glob("part-*")) for row in pq.read_table(part).to_pylist()]


def failures_of(spec: JobSpec) -> list[dict]:
    parts = sorted((output_of(spec) / "_errors").glob("*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


async def run(tmp_path: Path, spec: JobSpec) -> None:
    async with an_engine(tmp_path) as engine:
        FakeDevice(engine, "a").attach()
        engine.submit(spec)
        view = await job_reaches(engine, spec, Stage.COMPLETE)
        assert view.items_failed == len(failures_of(spec))


async def test_rows_with_the_same_key_stay_attributable_by_their_number(tmp_path, make_job) -> None:
    bad = ["not json", '{"v": [1, 2, 3], "id": "ragged"}', '{"id": "a"}', '{"v": ["x", 1, 1, 1], "id": "b"}', ""]
    lines, expected = [], {}
    for number in range(200):
        if number % 20 < len(bad):
            lines.append(bad[number % 20])
        else:
            lines.append(json.dumps({"v": [number] * 4, "id": f"key {number % 3}"}))
            expected[number] = [2.0 * number + 1] * 4
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "1.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[:90]).encode()))
    (folder / "2.jsonl").write_text("\n".join(lines[90:]))
    bound = (ColumnBinding("v", "x"),)
    spec = make_job(input=InputRef(f"{folder}/", InputFormat.JSONL, key="id", columns=bound), sharding=Sharding(7))
    await run(tmp_path, spec)

    failed = {failure["row"]: failure for failure in failures_of(spec)}
    assert len(failed) == 50
    assert {f["reason"] for f in failed.values()} == {
        "InvalidJSON", "WrongShape", "MissingColumn", "WrongType", "EmptyLine"
    }  # fmt: skip
    assert failed[101]["key"] == "ragged"
    good = [number for number in range(200) if number not in failed]
    assert good == sorted(expected)
    for number, row in zip(good, rows_of(spec), strict=True):
        assert row["id"] == f"key {number % 3}"
        assert row["y"] == expected[number]


async def test_files_that_cannot_be_read_are_named_and_all_others_have_results(tmp_path, make_job, monkeypatch) -> None:
    monkeypatch.setattr(files, "LIMIT_BYTES", 1000)
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.bin").write_bytes(bytes([number, number, number, number]))
    (folder / "07.bin").unlink()
    (folder / "07.bin").symlink_to(folder / "nowhere")
    (folder / "09.bin").write_bytes(bytes(2000))
    decode = BytesDecode(beginning=4)
    bound = (ColumnBinding("bytes", "x", decode),)
    spec = make_job(input=InputRef(f"{folder}/", InputFormat.FILES, columns=bound), sharding=Sharding(4))
    await run(tmp_path, spec)
    assert [(f["key"], f["reason"]) for f in failures_of(spec)] == [
        ("07.bin", "UnreadableFile"), ("09.bin", "FileTooLarge")
    ]  # fmt: skip
    rows = rows_of(spec)
    assert [row["path"] for row in rows] == [f"{n:02}.bin" for n in range(30) if n not in (7, 9)]
    for row in rows:
        np.testing.assert_array_equal(row["y"], [2.0 * int(row["path"][:2]) + 1] * 4)
    assert verify(spec.output.uri) == []


async def test_csv_with_bad_rows_and_quoted_line_ends(tmp_path, make_job) -> None:
    data = tmp_path / "data.csv"
    data.write_text('id,x\n"two\nlines",1\nb,oops\nc\n"d ""quoted""",3\n,4\n')
    sha256 = ModelDigest(write_affine_model(tmp_path / "scalar.onnx", width=1))
    spec = make_job(
        model=ModelRef(f"file://{tmp_path}/scalar.onnx", sha256),
        input=InputRef(str(data), InputFormat.CSV, key="id", columns=(ColumnBinding("x", "x"),)),
    )
    await run(tmp_path, spec)
    assert rows_of(spec) == [
        {"id": "two\nlines", "y": [3.0]}, {"id": 'd "quoted"', "y": [7.0]}, {"id": "", "y": [9.0]}
    ]  # fmt: skip
    assert [(f["row"], f["key"], f["reason"]) for f in failures_of(spec)] == [
        (1, "b", "InvalidNumber"), (2, None, "WrongCellCount")
    ]  # fmt: skip


async def test_the_output_of_one_job_is_the_input_of_the_next(tmp_path, make_job) -> None:
    first = make_job(100, name="first")
    await run(tmp_path, first)
    again = InputRef(f"{first.output.uri}/", InputFormat.PARQUET, key="row", columns=(ColumnBinding("y", "x"),))
    second = make_job(name="second", input=again)
    await run(tmp_path, second)
    values = np.arange(400, dtype=np.float32).reshape(100, 4)
    np.testing.assert_array_equal([row["y"] for row in rows_of(second)], (values * 2 + 1) * 2 + 1)
    assert [row["row"] for row in rows_of(second)] == list(range(100))
