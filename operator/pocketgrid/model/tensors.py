"""Tensors as they travel: a dtype, a shape and bytes. What they mean is said once per job, not per tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

DTYPES: dict[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
}
"""numpy dtype name -> bytes per element. Strings do not travel: tokenise or encode them first."""

Dim = int | str | None
"""A fixed length, a symbolic one named by the model, or one the model leaves open."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: as the model calls it.
        dtype: a key of `DTYPES`.
        shape: dimensions with the batch axis first.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def item_shape(self) -> tuple[Dim, ...]:
        """Shape of one item: without the batch axis."""
        return self.shape[1:]

    @property
    def swapped_item_shape(self) -> tuple[Dim, ...] | None:
        """Shape of one item if the batch axis is in fact the second; None if too few axes are stated to be believed."""
        return (self.shape[0], *self.shape[2:]) if len(self.shape) > 2 else None


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """What can be known of a model without running it.

    Attributes:
        inputs: what must be fed, initialisers excluded.
        outputs: what can be asked for.
        opset: version of the default operator set.
        ir_version: version of the ONNX file format.
        fixed_batch: length of a fixed batch axis, 0 if it is dynamic.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int
    fixed_batch: int = 0


@dataclass(frozen=True, slots=True)
class TensorData:
    """Values of one tensor over the items of one shard.

    Attributes:
        dtype: a key of `DTYPES`; values are little-endian and C-contiguous.
        shape: (items, ...) for a dense tensor. For a ragged one (`row_lengths` given) the first two axes are
            folded: (sum of row_lengths, ...).
        data: the bytes.
        row_lengths: length of each item along its first own axis, for ragged tensors such as token ids.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    row_lengths: tuple[int, ...] | None = None

    @property
    def items(self) -> int:
        """How many items this tensor has values for."""
        if self.row_lengths is not None:
            return len(self.row_lengths)
        return self.shape[0] if self.shape else 0

    def problem(self) -> str | None:
        """What is inconsistent about this tensor, or None. Cheap: looks at no value."""
        width = DTYPES.get(self.dtype)
        if width is None:
            return f"unknown dtype {self.dtype!r}"
        if not self.shape or any(d < 0 for d in self.shape):
            return f"impossible shape {self.shape}"
        if math.prod(self.shape) * width != len(self.data):
            return f"{len(self.data)} bytes do not fill {self.dtype}{list(self.shape)}"
        if self.row_lengths is not None and (
            any(n < 0 for n in self.row_lengths) or sum(self.row_lengths) != self.shape[0]
        ):
            return f"row lengths do not add up to {self.shape[0]}"
        return None
