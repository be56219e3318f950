"""From a range of items to tensors that travel: the good rows, and why each of the others is not among them.

Responsible for joining a data set and a model's inputs, by columns or by a tokenizer, and for row keys. What can
never fit is refused when the encoder is opened; what does not fit in a single row is an `ItemFailure`. The outcome
for a row depends on that row alone, never on the shard it is in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketgrid.errors import InputChangedError, InvalidSpecError, StoreError
from pocketgrid.model.job import InputRef, ItemFailure, TensorBinding
from pocketgrid.model.tensors import ModelSignature, TensorData
from pocketgrid.storage.binding import SEARCH_LIMIT, SEARCH_STEP, bind_columns, bind_tokenizer, key_column
from pocketgrid.storage.casting import Faults
from pocketgrid.storage.datasets import open_data_set
from pocketgrid.storage.datasets.base import STRING, ColumnInfo, DataSet, Rows
from pocketgrid.storage.feeding import ColumnFeed, DecodeFeed, Mask, TokenFeed, keys_of
from pocketgrid.storage.reasons import Refusal
from pocketgrid.worktimes import Work, WorkTimes

if TYPE_CHECKING:
    import pyarrow as pa


DECODED_SAMPLE_ITEMS = 4
"""All decoded items weigh the same, and decoding takes its time."""

DECODED_AT_ONCE = 8
"""Items that are read at a time where they are decoded: photographs have megabytes each."""

Feed = ColumnFeed | DecodeFeed | TokenFeed


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """The items of one shard, ready to be sent.

    Attributes:
        inputs: good rows only, in order; in the order of the sources that the work order's bindings name.
        rows: how many rows are good.
        failures: the others, ascending; `row` counts all rows of the shard.
    """

    inputs: tuple[TensorData, ...]
    rows: int
    failures: tuple[ItemFailure, ...]


class Encoder:
    """The items of one job as tensors; immutable and thread-safe. Made by `open_encoder`.

    Attributes:
        items: how many the data set has.
        bindings: how a device fills the model's inputs.
        pad_token_id: see `WorkOrder`.
        fingerprint: changes when what is encoded may have changed.
        bytes_per_item: mean weight of the first good rows on the wire.
        sample_items: how many items are enough to know what they weigh.
    """

    def __init__(
        self,
        data_set: DataSet,
        feeds: Sequence[Feed],
        bindings: tuple[TensorBinding, ...],
        key: ColumnInfo | None,
    ) -> None:
        self._data_set = data_set
        self._feeds = feeds
        self._key = key
        self._read_columns = tuple(dict.fromkeys([f.column for f in feeds] + ([key.name] if key else [])))
        self.items = data_set.items
        self.bindings = bindings
        tokenizers = [f.tokenizer for f in feeds if isinstance(f, TokenFeed)]
        self.pad_token_id = tokenizers[0].pad_token_id if tokenizers else 0
        parts = [data_set.fingerprint, *(t.sha256 for t in tokenizers)]
        self.fingerprint = hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
        self.bytes_per_item = 0.0
        decodes = any(isinstance(f, DecodeFeed) for f in feeds)
        self.sample_items = DECODED_SAMPLE_ITEMS if decodes else SEARCH_STEP
        self._at_once = DECODED_AT_ONCE if decodes else max(1, data_set.items)

    def encode(self, start: int, stop: int, times: WorkTimes | None = None) -> EncodedShard:
        """Items [start, stop). Blocking. What it costs is added to `times`.

        Raises:
            StoreError: see `DataSet.read`.
        """
        times = times or WorkTimes()
        # What is read and decoded can weigh a thousand times what comes of it, so only a little is held at a time.
        runs = [
            (first, min(first + self._at_once, end))
            for begin, end in self._data_set.bites(start, stop)
            for first in range(begin, max(end, begin + 1), self._at_once)
        ]
        if len(runs) == 1:
            return self._read_and_encode(start, stop, times)
        return _joined([(first - start, self._read_and_encode(first, end, times)) for first, end in runs])

    def encode_items(self, items: Sequence[int], times: WorkTimes | None = None) -> EncodedShard:
        """Some items, in the order given; `row` of a failure is the position in `items`. Blocking.

        Raises:
            StoreError: see `DataSet.read`.
        """
        if isinstance(items, range) and items.step == 1:
            return self.encode(items.start, items.stop, times)
        pieces = []
        first = 0
        for at in range(1, len(items) + 1):
            if at == len(items) or items[at] != items[at - 1] + 1:
                pieces.append((first, self.encode(items[first], items[at - 1] + 1, times)))
                first = at
        return pieces[0][1] if len(pieces) == 1 else _joined(pieces)

    def _read_and_encode(self, start: int, stop: int, times: WorkTimes) -> EncodedShard:
        with times.measure(Work.READ):
            rows = self._data_set.read(start, stop, self._read_columns)
        with times.measure(Work.ENCODE):
            return self._encode(rows, start)

    def _encode(self, rows: Rows, start: int) -> EncodedShard:
        failures = {failure.row: failure for failure in rows.failures}
        if self._key is not None:
            _, faults = keys_of(self._key, rows)
            _add(failures, faults, "key ", self._key.name, start)
        prepared: list[Any] = []
        for feed in self._feeds:
            values, faults = feed.prepare(rows.columns[feed.column], rows.count)
            _add(failures, faults, "", feed.column, start)
            prepared.append(values)
        good: Mask | None = None
        if failures:
            good = np.ones(rows.count, np.bool_)
            good[list(failures)] = False
        inputs = tuple(feed.tensor(p, good) for feed, p in zip(self._feeds, prepared, strict=True))
        ordered = tuple(failures[row] for row in sorted(failures))
        return EncodedShard(inputs, rows.count - len(ordered), ordered)

    def keys(self, start: int, stop: int) -> pa.Array:
        """Row keys of items [start, stop): text, int64 or uint64 of the key column, or int64 row numbers.

        The type is the same for every range. A row whose key cannot be read has null.

        Raises:
            StoreError: see `DataSet.read`.
        """
        import pyarrow as pa

        if self._key is None:
            return pa.array(np.arange(start, stop, dtype=np.int64))
        arrow_type = {STRING: pa.string(), "uint64": pa.uint64()}.get(self._key.dtype, pa.int64())
        pieces = []
        for first, end in self._data_set.bites(start, stop):
            keys, _ = keys_of(self._key, self._data_set.read(first, end, (self._key.name,)))
            pieces.append(pa.array(keys, arrow_type))
        return pa.concat_arrays(pieces)

    def close(self) -> None:
        """Close the data set. No call may be under way."""
        self._data_set.close()


def open_encoder(job_input: InputRef, signature: ModelSignature, *, spool_folder: Path | None = None) -> Encoder:
    """Open the data set and join it to the model's inputs. Blocking.

    Args:
        job_input: what the user wrote.
        signature: of the model.
        spool_folder: see `open_data_set`.

    Raises:
        InvalidSpecError: blaming a field under ``spec.input``.
    """
    if bool(job_input.columns) == (job_input.tokenizer is not None):
        raise InvalidSpecError(Refusal.INVALID_BINDING, "state either columns or a tokenizer", field="spec.input")
    data_set = open_data_set(job_input, types=_column_types(job_input, signature), spool_folder=spool_folder)
    try:
        if data_set.items == 0:
            raise InvalidSpecError(Refusal.EMPTY_DATA_SET, f"{job_input.text} has no items", field="spec.input.uri")
        key = key_column(data_set, job_input.key) if job_input.key else None
        feeds: Sequence[Feed]
        if job_input.tokenizer is not None:
            feeds, bindings = bind_tokenizer(data_set, job_input.tokenizer, signature)
        else:
            feeds, bindings = bind_columns(data_set, job_input.columns, signature)
        encoder = Encoder(data_set, feeds, bindings, key)
        _find_good_row(encoder)
        return encoder
    except InputChangedError:
        # Looking at it again will find it as it is by then.
        data_set.close()
        raise
    except StoreError as error:
        data_set.close()
        raise InvalidSpecError(Refusal.UNREADABLE, str(error), field="spec.input.uri") from error
    except BaseException:
        data_set.close()
        raise


def _column_types(job_input: InputRef, signature: ModelSignature) -> dict[str, str]:
    """What cells without a type of their own are read as: the widest type of the kind that the model wants."""
    wanted = {spec.name: np.dtype(spec.dtype) for spec in signature.inputs}
    types: dict[str, str] = {}
    for binding in job_input.columns:
        dtype = wanted.get(binding.input)
        if dtype is None or binding.decode is not None:
            continue
        name = {"f": "float64", "b": "bool"}.get(dtype.kind) or ("uint64" if dtype == np.uint64 else "int64")
        if types.setdefault(binding.column, name) != name:
            types[binding.column] = "float64"  # feeds two inputs of different kinds
    return types


def _find_good_row(encoder: Encoder) -> None:
    """Make sure that there is one, and weigh the first ones."""
    first_failure = ""
    for start in range(0, min(SEARCH_LIMIT, encoder.items), encoder.sample_items):
        shard = encoder.encode(start, min(start + encoder.sample_items, encoder.items))
        if shard.rows:
            weight = sum(len(t.data) + 4 * len(t.row_lengths or ()) for t in shard.inputs)
            encoder.bytes_per_item = weight / shard.rows
            return
        first_failure = first_failure or f"{shard.failures[0].reason}, {shard.failures[0].message}"
    raise InvalidSpecError(
        Refusal.NO_USABLE_ROW,
        f"none of the first {min(SEARCH_LIMIT, encoder.items)} rows can be used; the first says: {first_failure}",
        field="spec.input",
    )


def _joined(pieces: Sequence[tuple[int, EncodedShard]]) -> EncodedShard:
    """Consecutive runs of items as one, each given with the number of its first item."""
    inputs = []
    for tensors in zip(*(piece.inputs for _, piece in pieces), strict=True):
        shape = (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:])
        lengths = None
        if tensors[0].row_lengths is not None:
            lengths = tuple(length for t in tensors for length in t.row_lengths or ())
        inputs.append(TensorData(tensors[0].dtype, shape, b"".join(t.data for t in tensors), lengths))
    failures = tuple(replace(f, row=first + f.row) for first, piece in pieces for f in piece.failures)
    return EncodedShard(tuple(inputs), sum(piece.rows for _, piece in pieces), failures)


def _add(failures: dict[int, ItemFailure], faults: Faults, kind: str, column: str, start: int) -> None:
    for row, (reason, what) in faults.items():
        if row not in failures:
            message = f"row {start + row}: {kind}column {column!r} {what}"
            failures[row] = ItemFailure(row, reason, message)
