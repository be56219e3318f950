"""How fast this device computes a model, found out in a fraction of a second before any lease arrives.

The runs go the same way as real shards, batching and post-processing included, over items made of zeros. That makes
the figure comparable between devices; what real items cost is learned by the grid from the results.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pocketgrid_agent import tuning
from pocketgrid_agent.batching import BatchSize, Column, RunError, ShardRunner
from pocketgrid_agent.events import Order
from pocketgrid_agent.runtime import LoadError, Model

OPEN_DIMENSIONS = (tuning.TOKENS_PER_ITEM, 64, 224)
"""Lengths tried, in this order, for dimensions the model leaves open: tokens, small and usual images."""

FINAL_SECONDS = 0.1
"""How long the chosen size is measured."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a measurement found.

    Attributes:
        items_per_second: over all slots together; 0 if the engine refused every synthetic item.
        micro_batch: items per run at which that was measured.
        size: what real shards should be cut into.
    """

    items_per_second: float
    micro_batch: int
    size: BatchSize


def check(model: Model, order: Order) -> None:
    """Refuse an order this model cannot serve. Raises LoadError."""
    for output in order.outputs:
        if output.name not in model.outputs:
            raise LoadError("UnknownOutput", f"the model has no output {output.name!r}")
    bound = {binding.input for binding in order.bindings}
    for name in sorted(bound ^ set(model.inputs)):
        problem = "is not in the model" if name in bound else "is not filled by the work order"
        raise LoadError("UnknownInput", f"input {name!r} {problem}")


def runner(model: Model, order: Order) -> ShardRunner:
    """What computes shards of `order` on `model`."""
    fixed = {name: port.shape[1] for name, port in model.inputs.items() if len(port.shape) > 1}
    return ShardRunner(order, model.run, fixed_lengths={name: n for name, n in fixed.items() if n})


def measure(
    model: Model,
    order: Order,
    *,
    slots: int,
    fixed_micro_batch: int,
    guard: tuning.Guard,
    resident: Callable[[], int],
) -> Measurement:
    """Warm up, choose a micro-batch, measure.

    Args:
        model: loaded.
        order: the job's.
        slots: how many shards will be computed at the same time.
        fixed_micro_batch: chosen by the owner; 0 lets the samples decide.
        guard: bounds of time and memory.
        resident: memory of this process at the moment, bytes.

    Raises:
        LoadError: the model cannot serve this order at all.
        MemoryError: not even the smallest run fits.
    """
    check(model, order)
    fixed = order.fixed_batch or fixed_micro_batch
    shards = runner(model, order)
    for length in OPEN_DIMENSIONS:
        try:
            _timed(shards, model, order, fixed or 1, length)  # warm-up: first runs allocate and pack weights
        except RunError:
            continue
        sample = _sample(shards, model, order, fixed, length, guard, resident)
        speed = _all_slots(shards, model, order, sample.items, length, slots)
        return Measurement(speed, sample.items, _size(model, order, sample.items, fixed))
    return Measurement(0.0, fixed or 1, BatchSize(fixed or 1))


def _size(model: Model, order: Order, items: int, fixed: int) -> BatchSize:
    if fixed or not any(_open_sequence(model, b.input) and not b.item_shape for b in order.bindings):
        return BatchSize(items)
    # Long rows in small runs and short rows in larger ones keep the length of a run about as it was measured.
    return BatchSize(4 * items, items * tuning.TOKENS_PER_ITEM)


def _sample(
    shards: ShardRunner,
    model: Model,
    order: Order,
    fixed: int,
    length: int,
    guard: tuning.Guard,
    resident: Callable[[], int],
) -> tuning.Sample:
    if fixed:
        return tuning.Sample(fixed, _timed(shards, model, order, fixed, length), resident())
    samples: list[tuning.Sample] = []
    while (items := tuning.next_items(samples, guard)) is not None:
        try:
            seconds = _timed(shards, model, order, items, length)
            if seconds < tuning.ENOUGH_SECONDS:  # the first run of a size allocates; a short one is mostly that
                seconds = min(seconds, *(_timed(shards, model, order, items, length) for _ in range(2)))
        except MemoryError:
            if not samples:
                raise
            break
        samples.append(tuning.Sample(items, seconds, resident()))
    return tuning.choose(samples, guard)


def _all_slots(shards: ShardRunner, model: Model, order: Order, items: int, length: int, slots: int) -> float:
    """Items per second of `slots` threads computing at the same time."""
    done = [0.0] * slots

    def work(slot: int) -> None:
        started = time.perf_counter()
        runs = 0
        while runs < 2 or time.perf_counter() - started < FINAL_SECONDS:
            _timed(shards, model, order, items, length)
            runs += 1
        done[slot] = runs * items / (time.perf_counter() - started)

    others = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(1, slots)]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()
    return sum(done)


def _timed(shards: ShardRunner, model: Model, order: Order, items: int, length: int) -> float:
    inputs = _synthetic(model, order, items, length)
    started = time.perf_counter()
    output = shards.compute(inputs, items, BatchSize(items))
    seconds = time.perf_counter() - started
    if output is None or output.failures:
        raise RunError("the engine refused synthetic items")
    return max(seconds, 1e-9)


def _synthetic(model: Model, order: Order, items: int, length: int) -> list[Column]:
    """Tensors of zeros as the bindings number them."""
    count = 1 + max((max(binding.source, 0) for binding in order.bindings), default=0)
    columns = [Column(np.zeros(items, np.int64))] * count
    for binding in order.bindings:
        if binding.source < 0 and model.inputs[binding.input].shape[1:]:
            columns[0] = _tokens(items, length, "int64")
    for binding in order.bindings:
        if binding.source < 0:
            continue
        shape = model.inputs[binding.input].shape
        if _open_sequence(model, binding.input) and not binding.item_shape:
            columns[binding.source] = _tokens(items, length, binding.dtype, shape[2:])
        else:
            # Where the work order says what will come, nothing is left to guess.
            dense = binding.item_shape or tuple(length if d is None else d for d in shape[1:])
            if columns[binding.source].lengths is not None and len(dense) == 1:
                continue  # ragged tokens for a fixed length: padded when fed
            columns[binding.source] = Column(np.zeros((items, *dense), binding.dtype))
    return columns


def _open_sequence(model: Model, name: str) -> bool:
    shape = model.inputs[name].shape
    return len(shape) > 1 and shape[1] is None


def _tokens(items: int, length: int, dtype: str, rest: tuple[int | None, ...] = ()) -> Column:
    own = tuple(length if d is None else d for d in rest)
    return Column(np.zeros((items * length, *own), dtype), np.full(items, length, np.int64))
