"""Which column meets which model input, and whether it can: everything refused before a row is sent.

Responsible for the binding of columns and of what a tokenizer makes to a model's inputs, for the shape that all
rows of the data set must have, and for whether a column can be a key. See `storage.casting` for the rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.decoding import Affine
from pocketgrid.model.job import MASK_SOURCE, ZEROS_SOURCE, ColumnBinding, TensorBinding, TokenizerRef
from pocketgrid.model.tensors import Dim, ModelSignature, TensorSpec
from pocketgrid.storage.casting import RowCaster, fits, row_shape, wire_dtype
from pocketgrid.storage.datasets.base import ABSENT, BINARY, NOT_NUMBERS, STRING, ColumnInfo, DataSet
from pocketgrid.storage.decoding import Decoder
from pocketgrid.storage.decoding.binding import bind_decoder
from pocketgrid.storage.feeding import ColumnFeed, DecodeFeed, TokenFeed
from pocketgrid.storage.reasons import Refusal
from pocketgrid.storage.tokenizing import TextTokenizer

SEARCH_STEP = 64
SEARCH_LIMIT = 1024
"""If none of so many first rows is good, the data set is refused instead of failing row by row."""

_REMEDIES = {STRING: "; use a tokenizer for text", BINARY: "; say with decode.image or decode.bytes what they become"}
"""How a column of this kind can still feed a model."""

_Pair = tuple[ColumnInfo, TensorSpec, str]
"""A column, the model input that it feeds, and the field that says so."""


def bind_tokenizer(
    data_set: DataSet, ref: TokenizerRef, signature: ModelSignature
) -> tuple[tuple[TokenFeed], tuple[TensorBinding, ...]]:
    """Feed a text model from a text column.

    Raises:
        InvalidSpecError: blaming a field under ``spec.input.tokenizer``.
    """
    column = _column(data_set, ref.column, "spec.input.tokenizer.column")
    if column.dtype != STRING:
        raise InvalidSpecError(
            Refusal.WRONG_TYPE,
            f"column {column.name!r} holds {column.text}, not text",
            field="spec.input.tokenizer.column",
        )
    bindings = _token_bindings(signature)
    return (TokenFeed(column.name, TextTokenizer(ref)),), bindings


def bind_columns(
    data_set: DataSet, bound: tuple[ColumnBinding, ...], signature: ModelSignature
) -> tuple[tuple[ColumnFeed | DecodeFeed, ...], tuple[TensorBinding, ...]]:
    """Feed a model's inputs from columns, as they are or decoded.

    Raises:
        InvalidSpecError: blaming a field under ``spec.input.columns``.
    """
    inputs = {spec.name: spec for spec in signature.inputs}
    pairs: list[_Pair] = []
    decoders: dict[str, tuple[Decoder, Affine | None]] = {}
    for index, binding in enumerate(bound):
        field = f"spec.input.columns[{index}]"
        spec = inputs.get(binding.input)
        if spec is None:
            raise InvalidSpecError(
                Refusal.UNKNOWN_INPUT,
                f"the model has no input {binding.input!r}; it has {_names(inputs)}",
                field=f"{field}.input",
            )
        if any(spec is other for _, other, _ in pairs):
            raise InvalidSpecError(
                Refusal.DUPLICATE_BINDING,
                f"model input {binding.input!r} is fed twice",
                field=f"{field}.input",
            )
        column = _column(data_set, binding.column, f"{field}.column")
        if binding.decode is None:
            _check_fit(column, spec, field)
        else:
            decoders[spec.name] = bind_decoder(column, binding.decode, spec, field)
        pairs.append((column, spec, field))
    missing = [name for name in inputs if name not in {b.input for b in bound}]
    if missing:
        raise InvalidSpecError(
            Refusal.UNBOUND_INPUT, f"no column feeds model input {_names(missing)}", field="spec.input.columns"
        )
    shapes = _settle_shapes(data_set, pairs, {name: decoder.item_shape for name, (decoder, _) in decoders.items()})
    feeds: list[ColumnFeed | DecodeFeed] = []
    bindings: list[TensorBinding] = []
    for source, ((column, spec, _), shape) in enumerate(zip(pairs, shapes, strict=True)):
        affine = None
        item_shape = shape
        if spec.name in decoders:
            decoder, affine = decoders[spec.name]
            feeds.append(DecodeFeed(column.name, decoder))
        else:
            caster = _caster(column, spec, shape)
            item_shape = caster.item_shape
            feeds.append(ColumnFeed(column.name, caster))
        bindings.append(TensorBinding(spec.name, source, spec.dtype, affine, item_shape))
    return tuple(feeds), tuple(bindings)


def key_column(data_set: DataSet, name: str) -> ColumnInfo:
    """The column whose values identify rows.

    Raises:
        InvalidSpecError: blaming ``spec.input.key``.
    """
    column = _column(data_set, name, "spec.input.key")
    integer = column.dtype not in NOT_NUMBERS and np.dtype(column.dtype).kind in "iu"
    if not (column.dtype == STRING or integer) or column.item_shape:
        raise InvalidSpecError(
            Refusal.INVALID_KEY,
            f"a key is text or an integer, but column {name!r} holds {column.note or column.text}",
            field="spec.input.key",
        )
    return column


def _token_bindings(signature: ModelSignature) -> tuple[TensorBinding, ...]:
    field = "spec.input.tokenizer"
    sources = {"input_ids": 0, "attention_mask": MASK_SOURCE, "token_type_ids": ZEROS_SOURCE}
    inputs = {spec.name: spec for spec in signature.inputs}
    strange = [name for name in inputs if name not in sources]
    if strange or "input_ids" not in inputs:
        raise InvalidSpecError(
            Refusal.UNBOUND_INPUT if strange else Refusal.UNKNOWN_INPUT,
            f"a tokenizer feeds input_ids, attention_mask and token_type_ids; the model wants {_names(inputs)}",
            field=field,
        )
    for spec in signature.inputs:
        if len(spec.shape) != 2:
            raise InvalidSpecError(
                Refusal.WRONG_SHAPE,
                f"model input {spec.name!r} must be [batch, sequence], not {_shape_text(spec.shape)}",
                field=field,
            )
        if isinstance(spec.shape[1], int):
            raise InvalidSpecError(
                Refusal.WRONG_SHAPE,
                f"model input {spec.name!r} has a sequence axis fixed at {spec.shape[1]}; export the model with a "
                "dynamic one",
                field=field,
            )
    ids = inputs["input_ids"]
    if ids.dtype not in ("int32", "int64"):
        raise InvalidSpecError(
            Refusal.WRONG_TYPE, f"model input 'input_ids' takes {ids.dtype}, not token ids", field=field
        )
    return tuple(TensorBinding(s.name, sources[s.name], s.dtype) for s in signature.inputs)


def _check_fit(column: ColumnInfo, spec: TensorSpec, field: str) -> None:
    have, want = column.text, f"{spec.dtype}{_shape_text(spec.item_shape)}"
    if column.dtype in NOT_NUMBERS or wire_dtype(column.dtype, spec.dtype) is None:
        remedy = _REMEDIES.get(column.dtype, "")
        why = column.note or f"{have} cannot become {want} without loss"
        raise InvalidSpecError(
            Refusal.WRONG_TYPE,
            f"column {column.name!r} does not suit model input {spec.name!r}: {why}{remedy}",
            field=field,
        )
    if not fits(column.item_shape, spec.item_shape):
        raise InvalidSpecError(
            Refusal.WRONG_SHAPE,
            f"column {column.name!r} holds {have} per row; model input {spec.name!r} takes {want}",
            field=field,
        )


def _settle_shapes(data_set: DataSet, pairs: list[_Pair], decoded: dict[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shape that all rows of each column must have; open lengths come from the first row that is good."""
    wanted = [
        decoded[spec.name] if spec.name in decoded else row_shape(column.item_shape, spec.item_shape)
        for column, spec, _ in pairs
    ]
    undecided = {i: pairs[i] for i, shape in enumerate(wanted) if None in shape}
    found = _first_fitting_row(data_set, undecided, wanted) if undecided else {}
    shapes = [found.get(i, tuple(d for d in shape if d is not None)) for i, shape in enumerate(wanted)]
    _check_symbols(pairs, shapes)
    return shapes


def _first_fitting_row(
    data_set: DataSet, undecided: dict[int, _Pair], wanted: list[tuple[int | None, ...]]
) -> dict[int, tuple[int, ...]]:
    names = tuple({column.name for column, _, _ in undecided.values()})
    limit = min(SEARCH_LIMIT, data_set.items)
    for start in range(0, limit, SEARCH_STEP):
        rows = data_set.read(start, min(start + SEARCH_STEP, limit), names)
        for row in range(rows.count):
            shapes = {
                i: shape
                for i, (column, spec, _) in undecided.items()
                if (shape := _shape_if_good(rows.columns[column.name][row], column, spec, wanted[i])) is not None
            }
            if len(shapes) == len(undecided):
                return shapes
    column, _, field = next(iter(undecided.values()))
    raise InvalidSpecError(
        Refusal.NO_USABLE_ROW,
        f"none of the first {limit} rows has a usable {column.name!r}, so the length of its rows is unknown",
        field=field,
    )


def _shape_if_good(
    value: Any, column: ColumnInfo, spec: TensorSpec, wanted: tuple[int | None, ...]
) -> tuple[int, ...] | None:
    if value is None or value is ABSENT:
        return None
    try:
        shape = np.shape(value)
    except ValueError:  # a list of lists of different lengths
        return None
    if len(shape) != len(wanted) or not fits(wanted, shape):
        return None
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    _, faults = _caster(column, spec, shape).cast([plain], 1)
    return None if faults else shape


def _caster(column: ColumnInfo, spec: TensorSpec, shape: tuple[int, ...]) -> RowCaster:
    wire = wire_dtype(column.dtype, spec.dtype)
    assert wire is not None, "checked by _check_fit"
    pairs = zip(shape, spec.item_shape, strict=False)
    as_it_is = len(shape) == len(spec.item_shape) and all(d == n or not isinstance(d, int) for n, d in pairs)
    item_shape = shape if as_it_is else tuple(d for d in spec.item_shape if isinstance(d, int))
    return RowCaster(column.dtype, wire, shape, item_shape)


def _check_symbols(pairs: list[_Pair], shapes: list[tuple[int, ...]]) -> None:
    lengths: dict[str, tuple[int, str]] = {}
    for (column, spec, field), shape in zip(pairs, shapes, strict=True):
        for length, symbol in zip(shape, spec.item_shape, strict=False):
            if not isinstance(symbol, str) or len(shape) != len(spec.item_shape):
                continue
            expected, by = lengths.setdefault(symbol, (length, column.name))
            if expected != length:
                raise InvalidSpecError(
                    Refusal.WRONG_SHAPE,
                    f"the model wants one length for {symbol!r}, but column {by!r} has {expected} and column "
                    f"{column.name!r} has {length}",
                    field=field,
                )


def _column(data_set: DataSet, name: str, field: str) -> ColumnInfo:
    for column in data_set.columns:
        if column.name == name:
            return column
    raise InvalidSpecError(
        Refusal.UNKNOWN_COLUMN,
        f"there is no column {name!r}{data_set.columns_note}; there are {_names(c.name for c in data_set.columns)}",
        field=field,
    )


def _shape_text(shape: tuple[Dim, ...]) -> str:
    return "[" + ",".join("?" if d is None else str(d) for d in shape) + "]"


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(n) for n in names) or "none"
