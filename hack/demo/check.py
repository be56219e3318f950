"""Was anything lost, doubled or wrong? Compared with the input, and with bare onnxruntime on a random sample."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hack.demo.manifests import Embedding

SAMPLE = 300
TOLERANCE = 1e-5
"""Largest allowed difference of any component of a unit vector. The same model on the same machine differs, if at all,
by rounding: other batches and other graph optimisations move single components by up to 3e-6."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What is wrong with an output; all zeros if nothing is."""

    rows: int
    lost: int
    duplicates: int
    mismatches: int

    @property
    def clean(self) -> bool:
        """Whether all is well."""
        return not (self.lost or self.duplicates or self.mismatches)


def check_output(
    output: Path,
    texts: Mapping[str, str],
    embedding: Embedding,
    max_length: int,
    rng: random.Random,
    sample: int = SAMPLE,
) -> Findings:
    """Compare the output with the texts (by key) it was made from; the values of `sample` rows are recomputed."""
    import pyarrow.dataset as ds

    table = ds.dataset(output, format="parquet").to_table()
    keys = table["synset"].to_pylist()
    vectors = dict(zip(keys, table["last_hidden_state"].to_pylist(), strict=True))
    known = sorted(set(keys) & set(texts))
    chosen = rng.sample(known, min(sample, len(known)))
    expected = embed([texts[k] for k in chosen], embedding, max_length)
    found = np.array([vectors[k] for k in chosen], dtype=np.float32)
    wrong = ~np.all(np.abs(found - expected) <= TOLERANCE, axis=1) if chosen else np.zeros(0, bool)
    # A row that nobody asked for is as wrong as one that differs.
    foreign = len(set(keys) - set(texts))
    return Findings(
        rows=len(keys),
        lost=len(set(texts) - set(keys)),
        duplicates=len(keys) - len(set(keys)),
        mismatches=int(wrong.sum()) + foreign,
    )


def embed(texts: Sequence[str], embedding: Embedding, max_length: int) -> np.ndarray:
    """Sentence embeddings with bare onnxruntime, one text at a time. Returns float32 [texts, 384], rows of length 1."""
    import onnxruntime as ort
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(embedding.tokenizer))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    session = ort.InferenceSession(embedding.model, providers=["CPUExecutionProvider"])
    vectors = []
    for text in texts:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (hidden,) = session.run(["last_hidden_state"], feed)
        mean = hidden[0].mean(axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.array(vectors, dtype=np.float32)
