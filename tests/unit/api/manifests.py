"""Manifests for tests: one that is valid and uses every field, and ways to spoil it."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any

DIGEST = "0123456789abcdef" * 4

JOB: dict[str, Any] = {
    "apiVersion": "pocketgrid.dev/v1alpha1",
    "kind": "InferenceJob",
    "metadata": {
        "name": "embed",
        "namespace": "team-a",
        "uid": "7d1b2c9e-0000-4000-8000-000000000001",
        "creationTimestamp": "2026-11-23T05:00:00Z",
    },
    "spec": {
        "mode": "Batch",
        "suspend": False,
        "priority": 7,
        "model": {
            "uri": "file:///var/lib/pocketgrid/models/minilm.onnx",
            "sha256": DIGEST,
            "outputs": ["last_hidden_state"],
        },
        "input": {
            "uri": "s3://corpora/wordnet.jsonl",
            "format": "JSONL",
            "key": "id",
            "tokenizer": {
                "uri": "file:///var/lib/pocketgrid/models/tokenizer.json",
                "sha256": DIGEST,
                "column": "text",
                "maxLength": 128,
            },
        },
        "output": {
            "uri": "file:///var/lib/pocketgrid/results/wordnet",
            "format": "JSONL",
            "postprocess": [
                {"operation": "MeanPool", "output": "last_hidden_state"},
                {"operation": "Normalize", "output": "last_hidden_state"},
            ],
        },
        "placement": {
            "hardwareClasses": ["phones", "boards"],
            "nodeSelector": {"pocketgrid.dev/owner": "lab"},
            "tolerations": [{"key": "slow", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}],
            "maxNodes": 20,
            "dataClass": "Internal",
        },
        "sharding": {"itemsPerShard": 256, "leaseSeconds": 10},
        "verification": {
            "mode": "Quorum",
            "quorum": 3,
            "comparator": {"cosine": {"minimum": "0.999"}},
            "maxErrorRate": "0.0005",
            "auditFloor": "0.02",
        },
        "budget": {"limit": "12.5", "action": "Warn"},
        "backoffLimitPerShard": 2,
        "maxFailedItems": 100,
        "activeDeadlineSeconds": 3600,
        "ttlSecondsAfterFinished": 600,
    },
}

MINIMAL_SPEC: dict[str, Any] = {
    "model": {"uri": "file:///m/digits.onnx", "sha256": DIGEST},
    "input": {
        "uri": "file:///d/digits.npz",
        "format": "NPZ",
        "columns": [{"column": "pixels", "input": "X"}],
    },
    "output": {"uri": "file:///r/digits"},
}

GONE = object()
"""As a value: take the field away."""


def job(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The valid manifest with some fields set or taken away, by path such as ``spec.input.columns[0].input``."""
    return changed(JOB, changes or {})


def minimal_job(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return changed({**JOB, "spec": MINIMAL_SPEC}, changes or {})


def changed(body: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    body = copy.deepcopy(body)
    for path, value in changes.items():
        *parents, last = [int(s) if s.isdigit() else s for s in re.split(r"\.|\[|\]\.?", path) if s]
        at: Any = body
        for step in parents:
            at = at[step]
        if value is GONE:
            del at[last]
        else:
            at[last] = copy.deepcopy(value)
    return body


@dataclass(frozen=True)
class Refusal:
    """A change to the valid manifest that must be refused.

    Attributes:
        field: path that is blamed.
        structural: whether an API server without CEL refuses it too.
    """

    name: str
    changes: dict[str, Any] = field(hash=False)
    field: str
    reason: str = "InvalidField"
    structural: bool = True


BINDING = {"column": "pixels", "input": "X"}


def decoding(**decode: Any) -> dict[str, Any]:
    """The change that binds a column of bytes instead of a tokenizer."""
    return {"spec.input.tokenizer": GONE, "spec.input.columns": [{**BINDING, "decode": decode}]}


def decoding_image(**changes: Any) -> dict[str, Any]:
    return decoding(image={"width": 224, "height": 224, "resize": "Cover", **changes})


def comparing(**comparator: Any) -> dict[str, Any]:
    return {"spec.verification.comparator": comparator}


_DECODE = "spec.input.columns[0].decode"
_VERIFICATION = "spec.verification"
REFUSALS = (
    Refusal("a mode that does not exist yet", {"spec.mode": "Service"}, "spec.mode"),
    Refusal("suspend as text", {"spec.suspend": "yes"}, "spec.suspend"),
    Refusal("a number as text", {"spec.priority": "7"}, "spec.priority"),
    Refusal("a fraction", {"spec.priority": 1.5}, "spec.priority"),
    Refusal("a flag for a number", {"spec.backoffLimitPerShard": True}, "spec.backoffLimitPerShard"),
    Refusal("a priority beyond int32", {"spec.priority": 2**31}, "spec.priority"),
    Refusal("no model", {"spec.model": GONE}, "spec.model", "MissingField"),
    Refusal("no input", {"spec.input": GONE}, "spec.input", "MissingField"),
    Refusal("no output", {"spec.output": GONE}, "spec.output", "MissingField"),
    Refusal("no digest", {"spec.model.sha256": GONE}, "spec.model.sha256", "MissingField"),
    Refusal("no format", {"spec.input.format": GONE}, "spec.input.format", "MissingField"),
    Refusal("a short digest", {"spec.model.sha256": "abc"}, "spec.model.sha256"),
    Refusal("a digest in capitals", {"spec.model.sha256": DIGEST.upper()}, "spec.model.sha256"),
    Refusal("a digest with a line break", {"spec.model.sha256": DIGEST + "\n"}, "spec.model.sha256"),
    Refusal("an empty place", {"spec.model.uri": ""}, "spec.model.uri"),
    Refusal("a place without scheme", {"spec.input.uri": "data.jsonl"}, "spec.input.uri"),
    Refusal("a relative file: place", {"spec.input.uri": "file:data.jsonl"}, "spec.input.uri"),
    Refusal(
        "a relative place after file://",
        {"spec.output.uri": "file://results/x"},
        "spec.output.uri",
        "RelativePath",
        structural=False,
    ),
    Refusal("a place too long", {"spec.model.uri": "s3://" + "x" * 2048}, "spec.model.uri"),
    Refusal("the same output twice", {"spec.model.outputs": ["a", "a"]}, "spec.model.outputs", "Duplicate"),
    Refusal("an unknown format", {"spec.input.format": "ORC"}, "spec.input.format"),
    Refusal("no place", {"spec.input.uri": GONE}, "spec.input", "UriOrUris", structural=False),
    Refusal("a place and places", {"spec.input.uris": ["s3://b/2.jsonl"]}, "spec.input", "UriOrUris", structural=False),
    Refusal("an empty list of places", {"spec.input.uri": GONE, "spec.input.uris": []}, "spec.input", "UriOrUris",
            structural=False),
    Refusal("a place twice", {"spec.input.uri": GONE, "spec.input.uris": ["s3://b/1", "s3://b/1"]}, "spec.input.uris",
            "Duplicate"),
    Refusal("places without scheme", {"spec.input.uri": GONE, "spec.input.uris": ["1.jsonl"]}, "spec.input.uris[0]"),
    Refusal("CSV options without CSV", {"spec.input.csv": {}}, "spec.input", "CsvOptionsWithoutCsv", structural=False),
    Refusal("two characters between cells", {"spec.input.format": "CSV", "spec.input.csv": {"delimiter": "||"}},
            "spec.input.csv.delimiter"),
    Refusal("quotes between cells", {"spec.input.format": "CSV", "spec.input.csv": {"delimiter": '"'}},
            "spec.input.csv.delimiter"),
    Refusal("two columns of one name", {"spec.input.format": "CSV", "spec.input.csv": {"columns": ["a", "a"]}},
            "spec.input.csv.columns", "Duplicate"),
    Refusal("an unknown compression", {"spec.input.compression": "Rar"}, "spec.input.compression"),
    Refusal("compressed Parquet", {"spec.input.format": "Parquet", "spec.input.compression": "Gzip"}, "spec.input",
            "CompressionOfBinaryFormat", structural=False),
    Refusal("an empty key", {"spec.input.key": ""}, "spec.input.key"),
    Refusal(
        "columns beside a tokenizer",
        {"spec.input.columns": [BINDING]},
        "spec.input",
        "ColumnsOrTokenizer",
        structural=False,
    ),
    Refusal(
        "neither columns nor tokenizer",
        {"spec.input.tokenizer": GONE},
        "spec.input",
        "ColumnsOrTokenizer",
        structural=False,
    ),
    Refusal(
        "no columns but an empty list",
        {"spec.input.tokenizer": GONE, "spec.input.columns": []},
        "spec.input",
        "ColumnsOrTokenizer",
        structural=False,
    ),
    Refusal(
        "two columns for one input",
        {"spec.input.tokenizer": GONE, "spec.input.columns": [BINDING, {"column": "other", "input": "X"}]},
        "spec.input.columns",
        "Duplicate",
    ),
    Refusal(
        "a column without name",
        {"spec.input.tokenizer": GONE, "spec.input.columns": [BINDING, {"column": "", "input": "Y"}]},
        "spec.input.columns[1].column",
    ),
    Refusal("no text column", {"spec.input.tokenizer.column": GONE}, "spec.input.tokenizer.column", "MissingField"),
    Refusal("texts of no tokens", {"spec.input.tokenizer.maxLength": 0}, "spec.input.tokenizer.maxLength"),
    Refusal("results as NPY", {"spec.output.format": "NPY"}, "spec.output.format"),
    Refusal(
        "an unknown operation",
        {"spec.output.postprocess[0].operation": "Softmax"},
        "spec.output.postprocess[0].operation",
    ),
    Refusal(
        "labels for a mean",
        {"spec.output.postprocess[0].labels": ["cat", "dog"]},
        "spec.output.postprocess[0]",
        "LabelsWithoutArgmax",
        structural=False,
    ),
    Refusal(
        "post-processing of an output not asked for",
        {"spec.output.postprocess[1].output": "pooler"},
        "spec",
        "PostprocessOfUnwantedOutput",
        structural=False,
    ),
    Refusal("a class that cannot exist", {"spec.placement.hardwareClasses": ["Phones!"]},
            "spec.placement.hardwareClasses[0]"),
    Refusal("the same class twice", {"spec.placement.hardwareClasses": ["a", "a"]},
            "spec.placement.hardwareClasses", "Duplicate"),
    Refusal("a label value that cannot exist", {"spec.placement.nodeSelector": {"a": "b c"}},
            "spec.placement.nodeSelector.a"),
    Refusal("at most no node", {"spec.placement.maxNodes": 0}, "spec.placement.maxNodes"),
    Refusal(
        "a toleration of no key",
        {"spec.placement.tolerations": [{"value": "x"}]},
        "spec.placement.tolerations[0]",
        "TolerationWithoutKey",
        structural=False,
    ),
    Refusal(
        "a toleration of any value that has one",
        {"spec.placement.tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]},
        "spec.placement.tolerations[0]",
        "TolerationWithValue",
        structural=False,
    ),
    Refusal("an unknown effect", {"spec.placement.tolerations[0].effect": "Evict"},
            "spec.placement.tolerations[0].effect"),
    Refusal("shards of nothing", {"spec.sharding.itemsPerShard": 0}, "spec.sharding.itemsPerShard"),
    Refusal("leases of no time", {"spec.sharding.leaseSeconds": 0}, "spec.sharding.leaseSeconds"),
    Refusal("leases of half a second", {"spec.sharding.leaseSeconds": 0.5}, "spec.sharding.leaseSeconds"),
    Refusal("a negative limit", {"spec.maxFailedItems": -1}, "spec.maxFailedItems"),
    Refusal("a deadline at once", {"spec.activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds"),
    Refusal("a list for an object", {"spec.sharding": [1]}, "spec.sharding"),
    Refusal("an object for a list", {"spec.model.outputs": {"a": "b"}}, "spec.model.outputs"),
    Refusal("an object for text", {"spec.model.uri": {}}, "spec.model.uri"),
    Refusal("nothing to decode", decoding(), _DECODE, "ImageOrBytes", structural=False),
    Refusal(
        "bytes that are an image",
        decoding(image={"width": 1, "height": 1, "resize": "Fit"}, bytes={"beginning": 1}),
        _DECODE,
        "ImageOrBytes",
        structural=False,
    ),
    Refusal("an image without a say on its shape", decoding(image={"width": 1, "height": 1}),
            f"{_DECODE}.image.resize", "MissingField"),
    Refusal("an image of no width", decoding_image(width=0), f"{_DECODE}.image.width"),
    Refusal("an image as large as a wall", decoding_image(height=4097), f"{_DECODE}.image.height"),
    Refusal("an unknown resize", decoding_image(resize="Squeeze"), f"{_DECODE}.image.resize"),
    Refusal("a shorter side of a stretched image", decoding_image(resize="Stretch", shorterSide=256),
            f"{_DECODE}.image", "ShorterSideDoesNotCover", structural=False),
    Refusal("a shorter side that is too short", decoding_image(shorterSide=223),
            f"{_DECODE}.image", "ShorterSideDoesNotCover", structural=False),
    Refusal("two means for three channels", decoding_image(mean=["0.5", "0.5"]),
            f"{_DECODE}.image", "WrongNumberOfChannels", structural=False),
    Refusal("three means for one channel", decoding_image(mode="Gray", std=["1", "1", "1"]),
            f"{_DECODE}.image", "WrongNumberOfChannels", structural=False),
    Refusal("division by zero", decoding_image(std=["0.00"]), f"{_DECODE}.image.std[0]", "DivisionByZero",
            structural=False),
    Refusal("a float for a decimal text", decoding_image(scale=0.5), f"{_DECODE}.image.scale"),
    Refusal("a fraction for a decimal text", decoding_image(scale="1/255"), f"{_DECODE}.image.scale"),
    Refusal("a grey beyond white", decoding_image(fill=256), f"{_DECODE}.image.fill"),
    Refusal("no window", decoding(bytes={"middle": 0}), f"{_DECODE}.bytes", "NoWindow", structural=False),
    Refusal("a window beyond the block", decoding(bytes={"end": 5000}), f"{_DECODE}.bytes", "WindowBeyondBlock",
            structural=False),
    Refusal("a minimum beyond the window", decoding(bytes={"beginning": 8, "minimum": 9}), f"{_DECODE}.bytes",
            "MinimumBeyondBeginning", structural=False),
    Refusal("an unknown data class", {"spec.placement.dataClass": "Secret"}, "spec.placement.dataClass"),
    Refusal("an unknown way to verify", {"spec.verification.mode": "Trust"}, f"{_VERIFICATION}.mode"),
    Refusal("a quorum of one", {f"{_VERIFICATION}.quorum": 1}, f"{_VERIFICATION}.quorum"),
    Refusal("a quorum of everybody", {f"{_VERIFICATION}.quorum": 16}, f"{_VERIFICATION}.quorum"),
    Refusal("a quorum for audits", {f"{_VERIFICATION}.mode": "Audit"}, _VERIFICATION, "QuorumOfAnotherMode",
            structural=False),
    Refusal("a quorum for nothing", {f"{_VERIFICATION}.mode": GONE}, _VERIFICATION, "QuorumOfAnotherMode",
            structural=False),
    Refusal("no error at all", {f"{_VERIFICATION}.maxErrorRate": "0.0"}, f"{_VERIFICATION}.maxErrorRate", "NotAShare",
            structural=False),
    Refusal("more audits than items", {f"{_VERIFICATION}.auditFloor": "1.01"}, f"{_VERIFICATION}.auditFloor",
            "NotAShare", structural=False),
    Refusal("a rate as a number", {f"{_VERIFICATION}.maxErrorRate": 0.001}, f"{_VERIFICATION}.maxErrorRate"),
    Refusal("a rate with an exponent", {f"{_VERIFICATION}.maxErrorRate": "1e-3"}, f"{_VERIFICATION}.maxErrorRate"),
    Refusal("two comparators", comparing(cosine={"minimum": "1"}, topK={}), f"{_VERIFICATION}.comparator",
            "SeveralComparators", structural=False),
    Refusal("a tolerance of nothing", comparing(allClose={"rtol": "0.0"}), f"{_VERIFICATION}.comparator.allClose",
            "NoTolerance", structural=False),
    Refusal("a tolerance of everything", comparing(allClose={"rtol": "1"}), f"{_VERIFICATION}.comparator.allClose.rtol",
            "ToleratesEverything", structural=False),
    Refusal("a negative tolerance", comparing(allClose={"atol": "-1"}), f"{_VERIFICATION}.comparator.allClose.atol"),
    Refusal("a cosine of nothing", comparing(cosine={}), f"{_VERIFICATION}.comparator.cosine.minimum", "MissingField"),
    Refusal("the best of no class", comparing(topK={"k": 0}), f"{_VERIFICATION}.comparator.topK.k"),
    Refusal("no money", {"spec.budget.limit": "0.000000"}, "spec.budget.limit", "NoMoney", structural=False),
    Refusal("less than a millionth", {"spec.budget.limit": "0.0000001"}, "spec.budget.limit"),
    Refusal("a debt", {"spec.budget.limit": "-1"}, "spec.budget.limit"),
    Refusal("money as a number", {"spec.budget.limit": 12}, "spec.budget.limit"),
    Refusal("a budget of no limit", {"spec.budget": {}}, "spec.budget.limit", "MissingField"),
    Refusal("an unknown end of a budget", {"spec.budget.action": "Beg"}, "spec.budget.action"),
    Refusal("padding beyond 16 bits", decoding(bytes={"end": 1, "padding": 65_536}), f"{_DECODE}.bytes.padding"),
)  # fmt: skip

UNKNOWN_FIELDS = (
    ("spec.shardings", "did you mean sharding?"),
    ("spec.sharding.itemPerShard", "did you mean itemsPerShard?"),
    ("spec.input.tokenizer.maxlength", "did you mean maxLength?"),
    ("spec.output.postprocess[0].outputs", "did you mean output?"),
    ("spec.placement.tolerations[0].tolerationSeconds", "known are effect, key, operator, value"),
    # Fields of later parts must not be accepted and ignored.
    ("spec.slo", "unknown field"),
    ("spec.verification.comparator.cosine.min", "did you mean minimum?"),
    ("spec.verification.comparator.exact", "known are allClose, cosine, topK"),
)

HARDWARE_CLASS: dict[str, Any] = {
    "apiVersion": "pocketgrid.dev/v1alpha1",
    "kind": "HardwareClass",
    "metadata": {"name": "phones"},
    "spec": {
        "description": "Phones.",
        "numericsClass": "arm64-neon",
        "price": {"perItem": "0.0004", "models": [{"sha256": DIGEST, "perItem": "1"}]},
        "nodeSelector": {
            "matchLabels": {"pocketgrid.dev/os": "android"},
            "matchExpressions": [{"key": "pocketgrid.dev/kind", "operator": "In", "values": ["phone"]}],
        },
    },
}

TOLERANCE_PROFILE: dict[str, Any] = {
    "apiVersion": "pocketgrid.dev/v1alpha1",
    "kind": "ToleranceProfile",
    "metadata": {"name": "minilm"},
    "spec": {
        "modelSha256": DIGEST,
        "measuredTime": "2026-11-23T12:00:00Z",
        "pairs": [
            {
                "one": "amd64/avx2/onnxruntime 1.32.0",
                "other": "arm64/neon/onnxruntime 1.26.0",
                "items": 256,
                "identical": False,
                "absolute": "0.0125",
                "cosine": "0.00021",
            }
        ],
    },
}
