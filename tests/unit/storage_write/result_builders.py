"""Small jobs and results for the tests of the writing side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pocketgrid.model.ids import DeviceName, JobUid, ModelDigest, ShardIndex, attempt_seq
from pocketgrid.model.job import (
    AdmittedJob,
    InputFormat,
    InputRef,
    ItemFailure,
    JobSpec,
    ModelRef,
    Operation,
    OutputFormat,
    OutputPlan,
    OutputRef,
    PostprocessStep,
    WorkOrder,
)
from pocketgrid.model.tensors import ModelSignature, TensorData, TensorSpec
from pocketgrid.storage.results import ShardCommit

ARGMAX = (Operation.ARGMAX,)


def a_job(
    folder: Path,
    items: int,
    *,
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "int64", ("batch",)),),
    plans: tuple[OutputPlan, ...] | None = None,
    steps: tuple[PostprocessStep, ...] = (),
    format_: OutputFormat = OutputFormat.PARQUET,
    key: str = "",
    uid: str = "job-1",
    fingerprint: str = "data-1",
    model: str = "m" * 64,
) -> AdmittedJob:
    plans = plans or tuple(OutputPlan(o.name) for o in outputs)
    spec = JobSpec(
        uid=JobUid(uid),
        namespace="default",
        name="test",
        model=ModelRef("file:///m.onnx", ModelDigest(model)),
        input=InputRef("file:///in.jsonl", InputFormat.JSONL, key=key),
        output=OutputRef(str(folder), format_, steps),
    )
    signature = ModelSignature((TensorSpec("x", "float32", ("batch", 2)),), outputs, 17, 8)
    order = WorkOrder(spec.uid, spec.model.sha256, 1, (), plans)
    return AdmittedJob(spec, signature, order, items, 8.0, fingerprint)


def tensor(values: np.ndarray, row_lengths: tuple[int, ...] | None = None) -> TensorData:
    values = np.ascontiguousarray(values)
    return TensorData(values.dtype.name, values.shape, values.tobytes(), row_lengths)


def a_result(
    shard: int, outputs: tuple[np.ndarray | TensorData, ...], failures: tuple[int, ...] = (), counter: int = 1
) -> ShardCommit:
    return ShardCommit(
        shard=ShardIndex(shard),
        seq=attempt_seq(1, counter),
        device=DeviceName("phone-1"),
        owner="ada",
        outputs=tuple(o if isinstance(o, TensorData) else tensor(o) for o in outputs),
        failures=tuple(ItemFailure(row, "BadRow", f"row {row} is bad") for row in failures),
        compute_us=1234,
        engine="onnxruntime 1.32.0",
    )


def no_keys(start: int, stop: int) -> pa.Array:
    raise AssertionError("row numbers need no keys")


def word_keys(start: int, stop: int) -> pa.Array:
    return pa.array([f"k{i}" for i in range(start, stop)])
