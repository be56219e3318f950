"""From the tensors of a shard to micro-batches, and from the engine's outputs to one result in item order.

Ragged rows (token ids) are sorted by length, so that rows of like length are padded together; padding is wasted
work. Attention mask and zero inputs are made here from the row lengths, so they need not travel. When the engine
refuses a micro-batch, its items are bisected: the good ones succeed and only the bad ones fail, whatever they were
batched with.

Not here: how large a micro-batch should be (`tuning`), threads, tensors' wire form (`codec`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketgrid_agent import affine, postprocess
from pocketgrid_agent.events import MASK_SOURCE, ZEROS_SOURCE, Binding, Order

Array = npt.NDArray[Any]
Run = Callable[[Sequence[str], Mapping[str, Array]], list[Array]]
"""Names of outputs and inputs by name in, outputs out. Raises MemoryError, or RunError for anything else."""

LONGEST_MESSAGE = 500
"""Engines explain themselves at length; what travels per failed item is cut here."""


class RunError(Exception):
    """The engine refused or failed to compute a batch."""


class MalformedShardError(Exception):
    """Tensors of a shard contradict each other or the work order."""


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one tensor over the items of a shard.

    Attributes:
        values: (items, ...); if ragged, the first two axes are folded: (sum of lengths, ...).
        lengths: (items,) int64, length of each item, for ragged tensors.
    """

    values: Array
    lengths: Array | None = None

    @property
    def items(self) -> int:
        """How many items there are."""
        return len(self.values) if self.lengths is None else len(self.lengths)


@dataclass(frozen=True, slots=True)
class BadItem:
    """An item the engine refused even alone."""

    row: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ShardOutput:
    """What became of a shard: one column per planned output, unless every item failed."""

    columns: tuple[Column, ...]
    failures: tuple[BadItem, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How many items go into one run.

    Attributes:
        items: at most so many.
        positions: for ragged items, at most so many items times padded length (but always one item); 0: no limit.
    """

    items: int
    positions: int = 0


@dataclass(frozen=True, slots=True)
class _Source:
    """What feeds one model input: a column, cast to what the model wants, and where each ragged row starts."""

    binding: Binding
    values: Array
    lengths: Array | None
    starts: Array | None


@dataclass(slots=True)
class _Collected:
    """Rows of one output as they come, in any order."""

    ragged: bool
    items: int
    dense: Array | None = None
    pieces: dict[int, Array] = field(default_factory=dict)

    def put(self, rows: Array | slice, values: Array, lengths: Array | None) -> None:
        if self.ragged:
            numbers = np.arange(self.items)[rows]
            if lengths is None or values.ndim < 2:
                raise RunError(f"a ragged output of shape {values.shape} has no sequence axis to cut")
            # Copies, or one long row would keep its whole padded micro-batch in memory.
            for number, row, length in zip(numbers.tolist(), values, lengths.tolist(), strict=True):
                self.pieces[number] = row[:length].copy()
            return
        if self.dense is None:
            if len(values) == self.items and isinstance(rows, slice):
                self.dense = values  # one micro-batch took it all: nothing to copy
                return
            self.dense = np.zeros((self.items, *values.shape[1:]), values.dtype)
        if self.dense.shape[1:] != values.shape[1:]:
            raise RunError(f"items of one output have shapes {self.dense.shape[1:]} and {values.shape[1:]}")
        self.dense[rows] = values

    def column(self) -> Column:
        if not self.ragged:
            assert self.dense is not None, "every item failed, which the caller has ruled out"
            return Column(self.dense)
        some = next(iter(self.pieces.values()))
        empty = some[:0]
        ordered = [self.pieces.get(number, empty) for number in range(self.items)]
        lengths = np.fromiter((len(piece) for piece in ordered), np.int64, self.items)
        return Column(np.concatenate(ordered), lengths)


class ShardRunner:
    """Computes shards of one job. Holds no state between shards; safe in several threads if `run` is.

    Args:
        order: the job's work order.
        run: the engine.
        fixed_lengths: for inputs whose sequence axis the model fixes, its length; ragged rows are padded to it.
    """

    def __init__(self, order: Order, run: Run, *, fixed_lengths: Mapping[str, int] | None = None) -> None:
        self._order = order
        self._run = run
        self._fixed_lengths = fixed_lengths or {}
        self._names = [output.name for output in order.outputs]

    def compute(
        self,
        inputs: Sequence[Column],
        items: int,
        size: BatchSize,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> ShardOutput | None:
        """Compute one shard.

        Args:
            inputs: as the work order's bindings number them.
            items: how many items there are.
            size: largest micro-batch; a fixed batch axis of the model overrides it.
            cancelled: asked between micro-batches.

        Returns:
            Columns in the order of the work order's outputs, rows in the order of the items; None if cancelled.

        Raises:
            MalformedShardError: the inputs do not fit each other or the work order.
            MemoryError: a run needs more memory than there is.
        """
        sources = self._sources(inputs, items)
        collected = [_Collected(output.ragged, items) for output in self._order.outputs]
        failures: list[BadItem] = []
        for rows in self._micro_batches(sources, items, size):
            if cancelled() or not self._attempt(sources, rows, collected, failures, cancelled):
                return None
        failures.sort(key=lambda failure: failure.row)
        if len(failures) == items:
            return ShardOutput((), tuple(failures))
        return ShardOutput(tuple(c.column() for c in collected), tuple(failures))

    def _sources(self, inputs: Sequence[Column], items: int) -> list[_Source]:
        if items < 1:
            raise MalformedShardError("the shard has no items")
        if not inputs or not self._order.bindings:
            # Nothing would bound the number of items then.
            raise MalformedShardError("the shard has no tensors, or the work order has no use for them")
        for number, column in enumerate(inputs):
            if column.items != items:
                raise MalformedShardError(f"tensor {number} has {column.items} items, the shard {items}")
        sources = []
        for binding in self._order.bindings:
            if not 0 <= max(binding.source, 0) < len(inputs):
                raise MalformedShardError(f"input {binding.input!r} wants tensor {binding.source} of {len(inputs)}")
            column = inputs[max(binding.source, 0)]
            if binding.source < 0 and column.lengths is None:
                raise MalformedShardError(f"input {binding.input!r} is made from row lengths; there are none")
            values = column.values
            if binding.affine is not None:
                # Done for each micro-batch: for the whole shard at once it would take four times the shard's memory.
                why = "it is ragged" if column.lengths is not None else affine.problem(binding.affine, values.shape[1:])
                if why:
                    raise MalformedShardError(f"input {binding.input!r} cannot be scaled: {why}")
            elif binding.source >= 0:
                values = values.astype(binding.dtype, copy=False)
            starts = None if column.lengths is None else np.cumsum(column.lengths) - column.lengths
            sources.append(_Source(binding, values, column.lengths, starts))
        return sources

    def _micro_batches(self, sources: list[_Source], items: int, size: BatchSize) -> Iterator[Array | slice]:
        limit = self._order.fixed_batch or max(1, size.items)
        lengths = next((c.lengths for c in sources if c.lengths is not None), None)
        if lengths is None:
            if size.positions and sources[0].values.ndim > 1:
                limit = max(1, min(limit, size.positions // max(1, sources[0].values.shape[1])))
            limit = self._order.fixed_batch or limit
            for start in range(0, items, limit):
                yield slice(start, min(start + limit, items))
            return
        by_length = np.argsort(lengths, kind="stable")
        positions = 0 if self._order.fixed_batch else size.positions
        start = 0
        while start < items:
            stop = min(start + limit, items)
            if positions:
                # Sorted upwards, so the last row of a batch is its longest.
                padded = lengths[by_length[start:stop]] * np.arange(1, stop - start + 1)
                stop = start + max(1, int(np.searchsorted(padded, positions, side="right")))
            yield by_length[start:stop]
            start = stop

    def _attempt(
        self,
        sources: list[_Source],
        rows: Array | slice,
        collected: list[_Collected],
        failures: list[BadItem],
        cancelled: Callable[[], bool],
    ) -> bool:
        """Run one micro-batch, by halves where it fails. False if cancelled meanwhile."""
        try:
            self._compute(sources, rows, collected)
        except RunError as error:
            numbers = np.arange(collected[0].items)[rows] if isinstance(rows, slice) else rows
            if len(numbers) == 1:
                failures.append(BadItem(int(numbers[0]), "EngineRefusedItem", str(error)[:LONGEST_MESSAGE]))
                return True
            middle = len(numbers) // 2
            for half in (numbers[:middle], numbers[middle:]):
                if cancelled() or not self._attempt(sources, half, collected, failures, cancelled):
                    return False
        return True

    def _compute(self, sources: list[_Source], rows: Array | slice, collected: list[_Collected]) -> None:
        feeds: dict[str, Array] = {}
        lengths: Array | None = None
        count = 0
        for source in sources:
            fed, fed_lengths = self._feed(source, rows)
            count = len(fed)
            if lengths is None:
                lengths = fed_lengths
            if self._order.fixed_batch:
                fed = _fill(fed, self._order.fixed_batch)
            feeds[source.binding.input] = fed
        outputs = self._run(self._names, feeds)
        finished = []
        batch = self._order.fixed_batch or count
        for plan, whole in zip(self._order.outputs, outputs, strict=True):
            output, operations = postprocess.batch_first(whole, plan.operations)
            if output.ndim < 1 or len(output) != batch:
                raise RunError(f"output {plan.name!r} has shape {output.shape} for {batch} items")
            values = output[:count]
            try:
                for operation in operations:
                    values = postprocess.apply(operation, values, lengths)
            except ValueError as error:
                raise RunError(f"output {plan.name!r}: {error}") from error
            finished.append(values)
        for target, values in zip(collected, finished, strict=True):
            target.put(rows, values, lengths)

    def _feed(self, source: _Source, rows: Array | slice) -> tuple[Array, Array | None]:
        """One input of one micro-batch, and the true lengths of its rows if they are padded."""
        if source.lengths is None or source.starts is None:
            values = source.values[rows]
            if source.binding.affine is not None:
                values = affine.apply(source.binding.affine, values).astype(source.binding.dtype, copy=False)
            return values, None
        binding = source.binding
        lengths = source.lengths[rows]
        longest = int(lengths.max(initial=0))
        padded_to = self._fixed_lengths.get(binding.input) or max(1, longest)
        if longest > padded_to:
            raise RunError(f"{longest} positions do not fit the {padded_to} of input {binding.input!r}")
        shape = (len(lengths), padded_to)
        if binding.source == ZEROS_SOURCE:
            return np.zeros(shape, binding.dtype), lengths
        true = np.arange(padded_to) < lengths[:, None]
        if binding.source == MASK_SOURCE:
            return true.astype(binding.dtype), lengths
        padded = np.full((*shape, *source.values.shape[1:]), self._order.pad_token_id, source.values.dtype)
        padded[true] = source.values[(source.starts[rows][:, None] + np.arange(padded_to))[true]]
        return padded, lengths


def _fill(values: Array, length: int) -> Array:
    """Repeat the last row until there are `length`: a real row, so the engine meets nothing it would refuse."""
    missing = length - len(values)
    return values if missing <= 0 else np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
