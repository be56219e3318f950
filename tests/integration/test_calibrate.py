"""`pocketgrid calibrate` with real agents, one of which rewrites models less than the other and so rounds otherwise."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from hack.controlplane.child import bound_to_parent
from pocketgrid.api.convert import to_tolerance_profile
from pocketgrid.model.numerics import comparable
from pocketgrid.model.trust import Comparator, ComparatorKind
from tests.fakes.real_models import digest_of

pytestmark = pytest.mark.timeout(120)
WIDTH = 24


def write_model(path: Path) -> None:
    """A small network in float32 with normalisation, which an optimiser folds and so rounds otherwise."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(WIDTH, WIDTH, 3, 3)) * 0.1, rng.normal(size=WIDTH) ** 2 + 0.5, rng.normal(size=WIDTH)]
    weights += [rng.normal(size=WIDTH), rng.normal(size=WIDTH) ** 2 + 0.5]
    initializers = [
        numpy_helper.from_array(value.astype(np.float32), name)
        for value, name in zip(weights, ("w", "scale", "bias", "mean", "var"), strict=True)
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["b"]),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["y"], axes=[2, 3], keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])
    graph = helper.make_graph(nodes, "net", [x], [y], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def manifest(folder: Path, items: int = 60) -> Path:
    write_model(folder / "net.onnx")
    np.save(folder / "x.npy", np.random.default_rng(1).normal(size=(items, WIDTH, 8, 8)).astype(np.float32))
    body = {
        "apiVersion": "pocketgrid.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"name": "net"},
        "spec": {
            "model": {"uri": "net.onnx", "sha256": digest_of(folder / "net.onnx")},
            "input": {"uri": "x.npy", "format": "NPY", "columns": [{"column": "data", "input": "x"}]},
            "output": {"uri": "out"},
        },
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


class Calibration:
    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self.process = process
        self.said = ""

    async def invitation(self) -> list[str]:
        """What it asks people to type on the other device."""
        assert self.process.stderr is not None
        while (found := re.search(r"pocketgrid-agent (run .*) --state-dir calibrate", self.said)) is None:
            line = (await self.process.stderr.readline()).decode()
            assert line, self.said
            self.said += line
        return found[1].split()

    async def ended(self) -> int:
        assert self.process.stderr is not None
        self.said += (await self.process.stderr.read()).decode()
        return await self.process.wait()


@asynccontextmanager
async def calibrating(folder: Path, job: Path, *options: str) -> AsyncIterator[Calibration]:
    arguments = ["pocketgrid", "calibrate", str(job), "--output", str(folder / "profile.yaml"), "--wait", "60"]
    async with started(folder, *arguments, "--state-dir", str(folder / "state"), *options) as process:
        yield Calibration(folder, process)


@asynccontextmanager
async def started(folder: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *bound_to_parent([sys.executable, "-m", *arguments]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "COLUMNS": "1000"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def other_agent(folder: Path, *options: str) -> list[str]:
    home = folder / "other"
    return [
        "--name",
        "other",
        "--state-dir",
        str(home),
        "--cache-dir",
        str(home / "models"),
        "--threads",
        "1",
        *options,
    ]


async def test_a_profile_is_measured_and_lets_honest_results_be_compared(tmp_path: Path) -> None:
    job = manifest(tmp_path)
    async with calibrating(tmp_path, job) as calibration:
        invitation = await calibration.invitation()
        other = ["pocketgrid_agent", *invitation, *other_agent(tmp_path, "--graph-optimization", "off")]
        async with started(tmp_path, *other):
            assert await calibration.ended() == 0, calibration.said
    profile = to_tolerance_profile(yaml.safe_load((tmp_path / "profile.yaml").read_text()))
    (((one, another), found),) = profile.pairs.items()
    assert another == f"{one} graph=off"
    assert found.items == 60
    assert not found.identical
    assert 0 < found.absolute < 1e-4
    profiles = [profile]
    close = Comparator(ComparatorKind.ALL_CLOSE, atol=1e-3)
    assert comparable(profiles, profile.model, close, one, another)
    assert not comparable(profiles, profile.model, Comparator(), one, another)


async def test_devices_of_one_class_leave_nothing_to_measure(tmp_path: Path) -> None:
    async with calibrating(tmp_path, manifest(tmp_path, 4), "--agents", "2", "--devices", "0") as calibration:
        assert await calibration.ended() == 1
    assert "compute the same bits; let a device of another kind join" in calibration.said
    assert not (tmp_path / "profile.yaml").exists()
