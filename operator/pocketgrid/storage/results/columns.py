"""Result columns: what a result must look like, how it is staged, and what a reader of the output sees.

Responsible for types and conversions. Staged values are exactly the bytes a device sent, as Arrow arrays; only when
a part is written do they become what the user asked for (labels, booleans, float32 for float16).

| model output, per item   | Parquet                                       |
|--------------------------|-----------------------------------------------|
| scalar                   | plain column                                  |
| fixed shape              | FixedSizeList, flattened; `shape` in metadata |
| ragged                   | List of the above                             |
| Argmax with labels       | string (or lists of strings)                  |

float16 is written as float32: every value is kept and every reader knows it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pocketgrid.model.job import AdmittedJob, Operation
from pocketgrid.model.tensors import Dim, TensorData
from pocketgrid.storage.logentries import Layout

_ASSUMED_LENGTH = 128
"""Elements along an axis of unknown length, only for estimating how many rows make a part."""


@dataclass(frozen=True, slots=True)
class Column:
    """One result column.

    Attributes:
        name: of the model output.
        dtype: as the device sends it; empty while unknown.
        shape: of an item, or of one element of a ragged item; None while unknown.
        ragged: whether items differ in length along their first own axis; None while unknown.
        labels: name of each index, for Argmax.
        estimated_values: numbers per row, for sizing parts.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    ragged: bool | None
    labels: tuple[str, ...] = ()
    estimated_values: int = 1

    @property
    def known(self) -> bool:
        """Whether nothing about the column is open."""
        return bool(self.dtype) and self.shape is not None and self.ragged is not None

    def problem(self, tensor: TensorData) -> str | None:
        """Why `tensor` cannot be this column, or None."""
        if self.dtype and tensor.dtype != self.dtype:
            return f"output {self.name!r} is {tensor.dtype}, not {self.dtype}"
        if self.shape is not None and self.ragged is not None:
            folded = self.ragged and tensor.row_lengths is None  # dense: every item has the same length
            own = tensor.shape[2:] if folded else tensor.shape[1:]
            if own != self.shape or (not self.ragged and tensor.row_lengths is not None):
                return f"output {self.name!r} has item shape {list(own)}, not {list(self.shape)}"
        elif self.ragged and tensor.row_lengths is None and len(tensor.shape) < 2:
            return f"output {self.name!r} has one value per item where a sequence is due"
        if self.labels and tensor.data:
            indexes = np.frombuffer(tensor.data, dtype=tensor.dtype)
            low, high = int(indexes.min()), int(indexes.max())
            if low < 0 or high >= len(self.labels):
                wrong = high if low >= 0 else low
                return f"output {self.name!r} has class {wrong}, but there are {len(self.labels)} labels"
        return None

    def settled_by(self, tensor: TensorData) -> Column:
        """This column with everything open decided as in `tensor`, the first that was seen."""
        if self.known:
            return self
        ragged = tensor.row_lengths is not None if self.ragged is None else self.ragged
        own = tensor.shape[2:] if ragged and tensor.row_lengths is None else tensor.shape[1:]
        return replace(self, dtype=self.dtype or tensor.dtype, shape=own, ragged=ragged)

    # ---- staged form ----

    @property
    def staged_type(self) -> pa.DataType:
        """Type in staging: the values as they travelled."""
        return self._nested(self._staged_value)

    def staged_array(self, tensor: TensorData) -> pa.Array:
        """The values of a conforming `tensor`, not copied."""
        width = self._width
        array = pa.Array.from_buffers(self._staged_value, math.prod(tensor.shape), [None, pa.py_buffer(tensor.data)])
        if width is not None:
            array = pa.FixedSizeListArray.from_arrays(array, width)
        if self.ragged:
            lengths = tensor.row_lengths
            if lengths is None:
                lengths = (tensor.shape[1],) * tensor.shape[0]
            offsets = np.fromiter(itertools.accumulate(lengths, initial=0), np.int32, len(lengths) + 1)
            array = pa.ListArray.from_arrays(pa.array(offsets), array)
        return array

    def tensor(self, staged: pa.Array) -> TensorData:
        """The tensor of `staged` values; one with row lengths if the column is ragged."""
        assert self.shape is not None
        lengths: tuple[int, ...] | None = None
        if self.ragged:
            lengths = tuple(np.diff(staged.offsets.to_numpy()).tolist())
            staged = staged.values
        count = sum(lengths) if lengths is not None else len(staged)
        flat = staged.values if self._width is not None else staged
        data = np.ascontiguousarray(flat.to_numpy(zero_copy_only=True)).tobytes()
        return TensorData(self.dtype, (count, *self.shape), data, lengths)

    # ---- what readers see ----

    @property
    def field(self) -> pa.Field:
        """Name, type and metadata in the output."""
        metadata = {"shape": json.dumps(list(self.shape))} if self.shape and len(self.shape) > 1 else None
        return pa.field(self.name, self._nested(self._output_value), metadata=metadata)

    def output_array(self, staged: pa.Array) -> pa.Array:
        """What readers see of `staged` values."""
        if self._output_value == self._staged_value and not self.labels:
            return staged
        if self.ragged:
            offsets = staged.offsets
            return pa.ListArray.from_arrays(offsets, self._output_fixed(staged.values))
        return self._output_fixed(staged)

    def _output_fixed(self, staged: pa.Array) -> pa.Array:
        if self._width is None:
            return self._output_flat(staged)
        return pa.FixedSizeListArray.from_arrays(self._output_flat(staged.flatten()), self._width)

    def _output_flat(self, values: pa.Array) -> pa.Array:
        if self.labels:
            return pa.array(self.labels, pa.string()).take(values)
        return values.cast(self._output_value)

    @property
    def _staged_value(self) -> pa.DataType:
        return pa.uint8() if self.dtype == "bool" else pa.from_numpy_dtype(np.dtype(self.dtype))

    @property
    def _output_value(self) -> pa.DataType:
        if self.labels:
            return pa.string()
        match self.dtype:
            case "bool":
                return pa.bool_()
            case "float16":
                return pa.float32()
            case _:
                return self._staged_value

    @property
    def _width(self) -> int | None:
        """Values per item or element; None for a single one."""
        assert self.shape is not None
        return math.prod(self.shape) if self.shape else None

    def _nested(self, value: pa.DataType) -> pa.DataType:
        width = self._width
        inner = value if width is None else pa.list_(value, width)
        return pa.list_(inner) if self.ragged else inner


def derive_columns(job: AdmittedJob) -> tuple[Column, ...]:
    """The result columns of `job`, as far as model and postprocessing determine them.

    Argmax takes the last axis away and yields int64; MeanPool takes the sequence axis away; Normalize keeps the shape.
    """
    specs = {spec.name: spec for spec in job.signature.outputs}
    columns = []
    for plan in job.order.outputs:
        spec = specs.get(plan.output)
        dtype = spec.dtype if spec else ""
        dims: list[Dim] | None = list(spec.item_shape) if spec else None
        for operation in plan.operations:
            match operation:
                case Operation.MEAN_POOL:
                    dims = dims[1:] if dims else dims
                    dtype = dtype if dtype == "float32" else ""
                case Operation.NORMALIZE:
                    dtype = dtype if dtype == "float32" else ""
                case Operation.ARGMAX:
                    dims = dims[:-1] if dims else dims
                    dtype = "int64"
                case Operation.BATCH_FIRST:
                    swapped = spec.swapped_item_shape if spec else None
                    dims = list(swapped) if swapped is not None else None
        steps = [s for s in job.spec.output.postprocess if s.output == plan.output]
        labels = next((s.labels for s in steps if s.operation is Operation.ARGMAX), ())
        estimate = math.prod(d if isinstance(d, int) and d > 0 else _ASSUMED_LENGTH for d in dims or [])
        own = dims[1:] if plan.ragged and dims else dims
        fixed = own is not None and all(isinstance(d, int) for d in own)
        shape = tuple(d for d in own or () if isinstance(d, int)) if fixed else None
        ragged = True if plan.ragged else (False if fixed else None)
        columns.append(Column(plan.output, dtype, shape, ragged, labels, max(1, estimate)))
    return tuple(columns)


def with_layout(columns: Sequence[Column], layout: Layout) -> tuple[Column, ...]:
    """`columns` as an earlier writer has settled them."""
    settled = {name: (dtype, shape, ragged) for name, dtype, shape, ragged in layout.columns}
    return tuple(
        replace(c, dtype=settled[c.name][0], shape=settled[c.name][1], ragged=settled[c.name][2])
        if c.name in settled
        else c
        for c in columns
    )


def layout_of(columns: Sequence[Column]) -> Layout:
    """What the log keeps of settled columns."""
    return Layout(tuple((c.name, c.dtype, c.shape or (), bool(c.ragged)) for c in columns))


def unseen(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Columns of a job without a single result: what stayed open becomes a list of float32."""
    return tuple(
        c if c.known else replace(c, dtype=c.dtype or "float32", shape=c.shape or (), ragged=True) for c in columns
    )


def misfit(columns: Sequence[Column], outputs: Sequence[TensorData], rows: int) -> str | None:
    """Why `outputs` cannot be `columns` over `rows` rows, or None. No look at values, but for class labels."""
    if not rows and not any(t.items for t in outputs):
        return None
    if len(outputs) != len(columns):
        return f"there are {len(outputs)} outputs where {len(columns)} are due"
    for column, tensor in zip(columns, outputs, strict=True):
        if problem := tensor.problem():
            return f"output {column.name!r}: {problem}"
        if tensor.items != rows:
            return f"output {column.name!r} has {tensor.items} rows where {rows} are due"
        if problem := column.problem(tensor):
            return problem
    return None
