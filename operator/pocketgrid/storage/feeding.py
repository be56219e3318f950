"""How one column feeds one tensor, and how the key column names the rows. The working half of `storage.encoding`.

A feed works in two steps, since a row counts as good only once all columns have been looked at: `prepare` converts
a range of rows and says which of them fail, `tensor` keeps the good ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid.model.tensors import TensorData
from pocketgrid.storage.casting import Faults, RowCaster
from pocketgrid.storage.datasets.base import ABSENT, STRING, ColumnInfo, Rows, Values
from pocketgrid.storage.decoding import Decoder
from pocketgrid.storage.reasons import ItemReason
from pocketgrid.storage.tokenizing import TextTokenizer

Mask = npt.NDArray[np.bool_]
TokenRows = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""Ids of all rows one after the other, and how many each row has."""
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class ColumnFeed:
    """A column that becomes one dense tensor."""

    column: str
    caster: RowCaster

    def prepare(self, values: Values, count: int) -> tuple[npt.NDArray[Any], Faults]:
        """Cast `count` rows."""
        return self.caster.cast(values, count)

    def tensor(self, prepared: npt.NDArray[Any], good: Mask | None) -> TensorData:
        """The rows where `good`; all if it is None."""
        kept = prepared if good is None else prepared[good]
        return TensorData(kept.dtype.name, kept.shape, _bytes_of(kept))


@dataclass(frozen=True, slots=True)
class DecodeFeed:
    """A column of bytes that becomes one dense tensor."""

    column: str
    decoder: Decoder

    def prepare(self, values: Values, count: int) -> tuple[npt.NDArray[Any], Faults]:
        """Decode `count` rows; those with faults hold anything."""
        decoded = np.zeros((count, *self.decoder.item_shape), self.decoder.dtype)
        faults: Faults = {}
        for row, value in enumerate(values):
            if value is ABSENT or value is None or isinstance(value, str | int | float | list | dict):
                faults[row] = _fault(value, "bytes")
            elif (fault := self.decoder.decode(value, decoded[row])) is not None:
                faults[row] = fault
        return decoded, faults

    def tensor(self, prepared: npt.NDArray[Any], good: Mask | None) -> TensorData:
        """The rows where `good`; all if it is None."""
        kept = prepared if good is None else prepared[good]
        return TensorData(kept.dtype.name, kept.shape, kept.tobytes())


@dataclass(frozen=True, slots=True)
class TokenFeed:
    """A text column that becomes one ragged tensor of ids."""

    column: str
    tokenizer: TextTokenizer

    def prepare(self, values: Values, count: int) -> tuple[TokenRows, Faults]:
        """Tokenise `count` rows; those with faults are tokenised as empty text."""
        faults: Faults = {}
        texts = list(values)
        for row, text in enumerate(texts):
            if type(text) is not str:
                faults[row] = _fault(text, "text")
                texts[row] = ""
        if not _is_unicode("".join(texts)):
            for row, text in enumerate(texts):
                if not _is_unicode(text):
                    faults[row] = ItemReason.INVALID_TEXT, "is not valid Unicode"
                    texts[row] = ""
        ids, lengths = self.tokenizer.encode(texts)
        for row in np.flatnonzero(lengths == 0).tolist():
            faults.setdefault(row, (ItemReason.NO_TOKENS, "gives no tokens"))
        return (ids, lengths), faults

    def tensor(self, prepared: TokenRows, good: Mask | None) -> TensorData:
        """The rows where `good`; all if it is None."""
        ids, lengths = prepared
        if good is not None:
            ids, lengths = ids[np.repeat(good, lengths)], lengths[good]
        return TensorData("int32", ids.shape, _bytes_of(ids), tuple(lengths.tolist()))


def keys_of(key: ColumnInfo, rows: Rows) -> tuple[Values, Faults]:
    """The keys of `rows`, None where a row has no usable one, and why."""
    values = rows.columns[key.name]
    if not isinstance(values, list):
        return values, {}
    faults: Faults = {}
    keys: list[Any] = []
    for row, value in enumerate(values):
        kept = _key(value, key.dtype)
        if value is None or value is ABSENT:
            faults[row] = ItemReason.KEY_MISSING, "is null" if value is None else "is missing"
        elif kept is None:
            needed = "text" if key.dtype == STRING else key.dtype
            faults[row] = ItemReason.KEY_WRONG_TYPE, f"is {type(value).__name__}, not valid {needed}"
        keys.append(kept)
    for failure in rows.failures:
        keys[failure.row] = None
    return keys, faults


def _key(value: Any, dtype: str) -> str | int | None:
    if dtype == STRING:
        if type(value) is int:
            return str(value)
        return value if type(value) is str and _is_unicode(value) else None
    return value if type(value) is int and (value in _INT64 or dtype == "uint64") else None


def _fault(value: Any, wanted: str) -> tuple[str, str]:
    if value is ABSENT:
        return ItemReason.MISSING_COLUMN, "is missing"
    if value is None:
        return ItemReason.NULL_VALUE, "is null"
    return ItemReason.WRONG_TYPE, f"is {type(value).__name__}, not {wanted}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes_of(array: npt.NDArray[Any]) -> bytes:
    """The values of `array`; without a copy if it is a view of all of a `bytes`, as one read from a file is."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, bytes) and len(owner) == array.nbytes and array.flags.c_contiguous:
        return owner
    return array.tobytes()
