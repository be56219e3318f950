"""The output as pandas, Polars, DuckDB and PyArrow see it, by the very code that docs/results.md shows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pocketgrid.model.job import OutputFormat, OutputPlan, PostprocessStep
from pocketgrid.model.tensors import TensorSpec
from pocketgrid.storage.results import ResultStore, StoreLimits
from tests.unit.storage_write.result_builders import ARGMAX, a_job, a_result, tensor, word_keys

PAGE = Path(__file__).parents[3] / "docs/results.md"
PER_SHARD, SHARDS, WIDTH = 5, 60, 4
FAILED = {n * PER_SHARD + 2 for n in range(0, SHARDS, 3)} | set(range(25, 30))
ROWS = [row for row in range(PER_SHARD * SHARDS) if row not in FAILED]
LABELS = ("cat", "dog", "fox")


def vector(row: int) -> list[float]:
    return [row + n / WIDTH for n in range(WIDTH)]


def write(out: Path, format_: OutputFormat) -> None:
    """Twelve parts, one of them without any row, committed in a wild order."""
    outputs = (
        TensorSpec("embedding", "float32", ("batch", WIDTH)),
        TensorSpec("label", "int64", ("batch",)),
        TensorSpec("score", "float16", ("batch",)),
        TensorSpec("tokens", "int32", ("batch", "sequence")),
    )
    plans = (
        OutputPlan("embedding"), OutputPlan("label", ARGMAX), OutputPlan("score"), OutputPlan("tokens", ragged=True)
    )  # fmt: skip
    steps = (PostprocessStep(ARGMAX[0], "label", LABELS),)
    job = a_job(out, PER_SHARD * SHARDS, outputs=outputs, plans=plans, steps=steps, format_=format_, key="id")
    store = ResultStore.open(job, word_keys, limits=StoreLimits(part_rows=5 * PER_SHARD))
    store.plan(PER_SHARD)
    for shard in np.random.default_rng(7).permutation(SHARDS).tolist():
        own = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        good = [row for row in own if row not in FAILED]
        lengths = tuple(row % 3 for row in good)
        results = (
            np.array([vector(row) for row in good], np.float32),
            np.array([row % 3 for row in good], np.int64),
            np.array([row % 8 / 8 for row in good], np.float16),
            tensor(np.array([row for row, n in zip(good, lengths, strict=True) for _ in range(n)], np.int32), lengths),
        )
        failures = tuple(row - own[0] for row in own if row in FAILED)
        assert store.commit([a_result(shard, results if good else (), failures)]).new == (shard,)
    store.finish()
    store.close()


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Python and shell blocks of the page, over outputs of this test."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "glosses", OutputFormat.PARQUET)
    write(folder / "glosses-jsonl", OutputFormat.JSONL)
    text = PAGE.read_text().replace("/data/", f"{folder}/")
    return tuple(re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "sh"))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def names(blocks: tuple[list[str], list[str]]) -> dict[str, Any]:
    """What the page's Python leaves behind."""
    found: dict[str, Any] = {}
    for block in blocks[0]:
        exec(compile(block, str(PAGE), "exec"), found)  # our own documentation
    return found


def test_the_page_shows_how_to_read(blocks: tuple[list[str], list[str]]) -> None:
    assert len(blocks[0]) >= 7
    assert len(blocks[1]) == 1


def rows_of_pandas(frame: Any) -> list[dict[str, Any]]:
    return frame.to_dict("records")


def rows_of_polars(table: Any) -> list[dict[str, Any]]:
    return table.to_dicts()


def rows_of_duckdb(relation: Any) -> list[dict[str, Any]]:
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


READERS: list[tuple[str, Callable[[Any], list[dict[str, Any]]]]] = [
    ("frame", rows_of_pandas),
    ("table", rows_of_polars),
    ("lazy", lambda lazy: lazy.collect().to_dicts()),
    ("rows", rows_of_duckdb),
    ("dataset", lambda dataset: dataset.to_table().to_pylist()),
    ("frame_of_lines", rows_of_pandas),
    ("table_of_lines", rows_of_polars),
    ("rows_of_lines", rows_of_duckdb),
]


@pytest.mark.parametrize(("name", "as_rows"), READERS, ids=[name for name, _ in READERS])
def test_every_reader_sees_every_row_once_and_in_order(
    names: dict[str, Any], name: str, as_rows: Callable[[Any], list[dict[str, Any]]]
) -> None:
    rows = as_rows(names[name])
    assert [row["id"] for row in rows] == [f"k{row}" for row in ROWS], "failed rows are absent, the others in order"
    assert all(list(row) == ["id", "embedding", "label", "score", "tokens"] for row in rows)
    for row, number in zip(rows, ROWS, strict=True):
        assert list(row["embedding"]) == vector(number)
        assert row["label"] == LABELS[number % 3]
        assert row["score"] == number % 8 / 8
        assert list(row["tokens"]) == [number] * (number % 3)


def test_types_are_those_of_the_page(names: dict[str, Any]) -> None:
    import polars as pl

    frame, table, rows = names["frame"], names["table"], names["rows"]
    assert str(frame.dtypes["score"]) == "float32"
    assert frame["embedding"][0].dtype == np.float32
    assert dict(table.schema) == {
        "id": pl.String, "embedding": pl.Array(pl.Float32, WIDTH), "label": pl.String,
        "score": pl.Float32, "tokens": pl.List(pl.Int32),
    }  # fmt: skip
    assert [str(t) for t in rows.types] == ["VARCHAR", "FLOAT[]", "VARCHAR", "FLOAT", "INTEGER[]"]
    assert names["dataset"].schema.field("embedding").type == pa.list_(pa.float32(), WIDTH)
    assert names["table_of_lines"].schema["embedding"] == pl.List(pl.Float64)


@pytest.mark.parametrize("name", ["from_pandas", "from_polars", "from_duckdb"])
def test_vectors_become_one_array(names: dict[str, Any], name: str) -> None:
    array = np.stack(names[name])
    assert array.dtype == np.float32
    assert np.array_equal(array, np.array([vector(row) for row in ROWS], np.float32))


def test_failed_rows_can_be_read_too(names: dict[str, Any]) -> None:
    failures = rows_of_duckdb(names["failures"])
    assert [f["row"] for f in failures] == sorted(FAILED)
    assert [f["key"] for f in failures] == [f"k{row}" for row in sorted(FAILED)]
    assert {f["reason"] for f in failures} == {"BadRow"}


def test_the_commands_of_the_page_say_that_all_is_well(blocks: tuple[list[str], list[str]]) -> None:
    (commands,) = blocks[1]
    for command in commands.strip().splitlines():
        words = command.split()
        assert words[0] == "pocketgrid"
        process = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip
        assert process.returncode == 0, process.stdout + process.stderr
        assert "as it should be" in process.stdout or '"intact": true' in process.stdout
