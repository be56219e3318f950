"""What users write that cannot run, on the real API server and with real agents: each is told what, why, what to do."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.dataset as ds
import pytest
from onnx import TensorProto, helper, numpy_helper

from hack.controlplane import ControlPlane
from hack.controlplane.servers import free_port
from pocketgrid.storage.results import verify
from tests.fakes.models import write_affine_model, write_npy
from tests.integration.controller_world import World, a_world
from tests.integration.processes import Processes, processes

WIDTH = 4


@pytest.fixture
async def grid(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Processes]:
    async with a_world(control_plane, tmp_path) as world, processes(world) as made:
        yield made


def save_model(path: Path, nodes: list[Any], weights: list[Any] = [], opset: int = 17) -> dict[str, str]:  # noqa: B006
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", WIDTH]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, path.stem, ports[:1], ports[1:], weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return reference(path)


def reference(path: Path) -> dict[str, str]:
    return {"uri": f"file://{path}", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def message(body: dict[str, Any], condition: str) -> str:
    return next(c["message"] for c in body["status"]["conditions"] if c["type"] == condition)


async def create(world: World, body: dict[str, Any]) -> None:
    await world.kubectl("create", "--validate=false", "--filename=-", stdin=body)


@pytest.mark.cluster
async def test_what_admission_refuses_names_thing_reason_and_remedy(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    async with a_world(control_plane, tmp_path) as world, world.operator() as operator:
        good = tmp_path / "good.onnx"
        write_affine_model(good, WIDTH)
        cut = tmp_path / "cut.onnx"
        cut.write_bytes(good.read_bytes()[:60])
        taken = tmp_path / "out-taken"
        taken.mkdir()
        theirs = json.dumps({"job": "somebody-elses", "name": "their/job"})
        (taken / "_manifest.json").write_text(theirs)
        (tmp_path / "file").write_text("not a folder")
        cases: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
            "digest": ({"model": {**reference(good), "sha256": "0" * 64}}, "DigestMismatch", ("0" * 64, "spec.model")),
            "truncated": ({"model": reference(cut)}, "NotAnOnnxModel", ("cut.onnx", "spec.model")),
            "absent": ({"model": {**reference(good), "uri": "file:///nowhere.onnx"}}, "NotFound", ("nowhere.onnx",)),
            "format": ({"output": {"uri": f"file://{tmp_path}/file/out"}}, "OutputUnwritable", ("name a folder",)),
            "taken": ({}, "", ("out-taken",)),
        }
        for name, (change, _, _) in cases.items():
            await create(world, world.job(name, **change))
        for name, (_, reason, words) in cases.items():
            body = await world.job_with(name, Accepted=f"False/{reason}" if reason else "False", Stalled="True")
            for word in words:
                assert word in message(body, "Accepted"), name
            assert message(body, "Accepted") == message(body, "Stalled")
        assert not operator.task.done()
        # Nothing of what was there has been touched.
        assert (taken / "_manifest.json").read_text() == theirs
        assert list(taken.glob("part-*")) == []


@pytest.mark.cluster
@pytest.mark.timeout(240)
async def test_models_that_no_device_can_run_wait_for_one_that_can_and_nan_is_a_value(grid: Processes) -> None:
    world, folder = grid.world, grid.world.folder
    grid.door.target = free_port()
    operator = grid.operator("operator", grid.door.target)
    await operator.start()
    await operator.says("ready gateway=")
    small = grid.agent("small", "--cache-budget", "200Ki")
    await small.start()
    big = numpy_helper.from_array(np.ones((WIDTH, 100_000), dtype=np.float32), "big")
    strange = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")
    jobs = {
        "unknown-op": save_model(folder / "unknown.onnx", [strange]),
        "too-new": save_model(folder / "new.onnx", [helper.make_node("Identity", ["x"], ["y"])], opset=99),
        "too-large": save_model(
            folder / "large.onnx",
            [helper.make_node("MatMul", ["x", "big"], ["h"]), helper.make_node("ReduceSum", ["h"], ["s"], keepdims=1),
             helper.make_node("Add", ["x", "s"], ["y"])],
            [big],
        ),
    }  # fmt: skip
    for name, model in jobs.items():
        await create(world, world.job(name, model=model))
    said = {}
    for name in jobs:
        body = await world.job_with(name, Accepted="True", Placed="False/ModelLoadFailed", within=40)
        said[name] = message(body, "Placed")
        assert "attach a device that can" in said[name]
    assert "Frobnicate" in said["unknown-op"]
    assert "opset" in said["too-new"].lower()
    assert "--cache-budget" in said["too-large"]
    # It recovers by itself when somebody brings a larger device; the others go on waiting, for a newer one.
    await grid.agent("large").start()
    await world.job_with("too-large", Complete="True", within=40)
    assert verify(f"file://{folder}/out-too-large") == []
    for name in ("unknown-op", "too-new"):
        await world.job_with(name, Placed="False/ModelLoadFailed", within=20)
    await check_that_nan_and_infinity_are_values(world)


async def check_that_nan_and_infinity_are_values(world: World) -> None:
    folder = world.folder
    # The logarithm of -1, 0, 1 and of infinity.
    model = save_model(folder / "log.onnx", [helper.make_node("Log", ["x"], ["y"])])
    for name, form in (("columns", "Parquet"), ("lines", "JSONL")):
        body = world.job(name, model=model)
        np.save(folder / f"{name}.npy", np.tile(np.float32([-1.0, 0.0, 1.0, np.inf]), (30, 1)))
        body["spec"]["output"]["format"] = form
        await create(world, body)
        done = await world.job_with(name, Complete="True", within=40)
        assert done["status"]["items"] == {"total": 30, "done": 30, "failed": 0}
        assert verify(f"file://{folder}/out-{name}") == []
    rows = ds.dataset(folder / "out-columns", format="parquet").to_table()["y"].to_pylist()
    for row in rows:
        assert np.isnan(row[0])
        assert row[1:] == [-np.inf, 0.0, np.inf]
    lines = [json.loads(line) for line in (folder / "out-lines" / "part-00000.jsonl").read_text().splitlines()]
    assert [line["y"] for line in lines] == [[None, None, 0, None]] * 30


def test_the_command_line_points_at_line_and_column_and_the_nearest_field(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    write_affine_model(model, WIDTH)
    write_npy(tmp_path / "d.npy", 10, WIDTH)
    head = "apiVersion: pocketgrid.dev/v1alpha1\nkind: InferenceJob\nmetadata: {name: j}\nspec:\n"
    rest = "  input: {uri: d.npy, format: NPY, columns: [{column: data, input: x}]}\n"
    rest += f"  output: {{uri: {tmp_path}/out}}\n"
    texts = {
        "bad.yaml:5:": head + "  model: {uri: m.onnx, sha256: [}\n" + rest,
        "spec.model.sha265: unknown field; did you mean sha256?": head + "  model: {uri: m.onnx, sha265: abc}\n" + rest,
        "DigestMismatch": head + f"  model: {{uri: m.onnx, sha256: {'f' * 64}}}\n" + rest,
    }
    for words, text in texts.items():
        (tmp_path / "bad.yaml").write_text(text)
        command = [sys.executable, "-m", "pocketgrid", "run", str(tmp_path / "bad.yaml"), "--agents", "1"]
        command += ["--state-dir", str(tmp_path / "state")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 2, ended.stderr
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
