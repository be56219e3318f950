"""Results that no message can carry, from real agents: what the user is told, and that following it helps."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.dataset as ds
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketgrid.storage.results import verify
from tests.fakes.models import write_npy
from tests.integration.test_local_run import command

pytestmark = pytest.mark.timeout(90)
DEADLINE_S = 60.0
ITEMS, WIDTH, COPIES = 18, 4, 1_000_000
"""The result of a row has 4 MB, so eighteen of them are more than the 64 MiB of a message."""

MANIFEST = """
apiVersion: pocketgrid.dev/v1alpha1
kind: InferenceJob
metadata: {{name: {name}}}
spec:
  model: {{uri: wide.onnx, sha256: {sha256}}}
  input: {{uri: data.npy, format: NPY, columns: [{{column: data, input: x}}]}}
  output: {{uri: out-{name}, postprocess: [{steps}]}}
  sharding: {{itemsPerShard: {items}}}
  backoffLimitPerShard: 0
"""


def write_wide_model(path: Path) -> str:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", WIDTH * COPIES])
    copies = numpy_helper.from_array(np.array([1, COPIES], np.int64), "copies")
    nodes = [
        helper.make_node("Cast", ["x"], ["small"], to=TensorProto.UINT8),
        helper.make_node("Tile", ["small", "copies"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "wide", [x], [y], [copies])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(folder: Path, name: str, sha256: str, steps: str = "") -> tuple[int, dict[str, Any]]:
    manifest = folder / f"{name}.yaml"
    manifest.write_text(MANIFEST.format(name=name, sha256=sha256, steps=steps, items=ITEMS))
    line = command(folder, manifest, "--json", "--agents", "1")
    done = subprocess.run(line, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.stdout, done.stderr
    (job,) = json.loads(done.stdout)["jobs"]
    return done.returncode, job


def test_a_result_too_large_for_a_message_says_what_to_do_and_doing_it_helps(tmp_path: Path) -> None:
    sha256 = write_wide_model(tmp_path / "wide.onnx")
    write_npy(tmp_path / "data.npy", ITEMS, WIDTH)

    status, job = run(tmp_path, "whole", sha256)
    # No row is lost: all are in the error file, each with the reason. How many may fail is the job's to say.
    assert (status, job["failed"]) == (0, ITEMS), job
    (written,) = (tmp_path / "out-whole/_errors").iterdir()
    errors = [json.loads(line) for line in written.read_text().splitlines()]
    assert [error["row"] for error in errors] == list(range(ITEMS))
    assert {error["reason"] for error in errors} == {"ResultTooLarge"}
    assert "use smaller shards (itemsPerShard) or outputs" in errors[0]["message"]

    status, job = run(tmp_path, "small", sha256, "{operation: Argmax, output: y}")
    assert (status, job["done"], job["failed"]) == (0, ITEMS, 0)
    assert verify(f"file://{tmp_path}/out-small") == []
    # Each row ends with its largest number, and then begins again.
    table = ds.dataset(tmp_path / "out-small", format="parquet").to_table()
    assert table["y"].to_pylist() == [WIDTH - 1] * ITEMS
