"""The threads that compute: one per slot, fed through a queue, heard through an outbox.

The event loop and the slots meet in three thread-safe places only: the queue of tasks, the set of tokens to abandon
and the outbox of what is done. A slot wakes the loop once for all that is in the outbox, not once per shard, so a
busy loop is not woken a thousand times a second by a tiny model. The queue is bounded by the machine, which begins
only a few attempts ahead of the slots.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from pocketgrid.wire.framing import MESSAGE_BYTES
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import codec, measure, tensors
from pocketgrid_agent.batching import BatchSize, MalformedShardError, ShardRunner
from pocketgrid_agent.events import Attempt, Order, Token
from pocketgrid_agent.runtime import LoadError, Model

log = logging.getLogger(__name__)

T = TypeVar("T")

LARGEST_RESULT_BYTES = MESSAGE_BYTES - (1 << 10)
MOST_FAILED_ITEMS = 100_000
"""Of one shard: beyond these no message can carry its result."""

LONGEST_REST_SECONDS = 2.0
"""Between two micro-batches, however long the first was: a cancellation must not wait for longer."""


@dataclass(frozen=True, slots=True)
class Done:
    """A computed attempt and its serialised ShardResult; None if it was abandoned half-way."""

    attempt: Attempt
    body: bytes | None
    failed: bool = False


@dataclass(slots=True)
class Program:
    """What computing shards of one job takes. `size` shrinks when memory turns out to be short.

    Attributes:
        model: gives the model of a digest, loading it again if it was dropped.
    """

    order: Order
    size: BatchSize
    model: Callable[[str], Model]
    _runner: tuple[Model, ShardRunner] | None = None

    def runner(self) -> ShardRunner:
        """Computes shards on the model as it is loaded now. Raises LoadError, MemoryError."""
        model = self.model(self.order.model)
        known = self._runner
        if known is None or known[0] is not model:
            # Kept, but not so that it would keep a dropped model in memory: the next call replaces it.
            known = self._runner = (model, measure.runner(model, self.order))
        return known[1]


@dataclass(frozen=True, slots=True)
class _Shard:
    attempt: Attempt
    program: Program


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[], None]


@dataclass
class ComputePool:
    """Slots that compute shards.

    Attributes:
        slots: number of threads.
        duty: share of the time a slot computes, above 0 to 1; it rests after each micro-batch. May change at any time.
        wake: called from a slot when the outbox has something and the last wake-up has been answered by `collect`.
    """

    slots: int
    wake: Callable[[], None]
    duty: float = 1.0
    _tasks: queue.SimpleQueue[_Shard | _Call | None] = field(default_factory=queue.SimpleQueue)
    _outbox: deque[Done] = field(default_factory=deque)
    _abandoned: set[Token] = field(default_factory=set)
    _woken: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start the threads; daemons, for a run of the engine cannot be interrupted and must not hold up an exit."""
        for slot in range(self.slots):
            thread = threading.Thread(target=self._work, name=f"slot-{slot}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def submit(self, attempt: Attempt, program: Program) -> None:
        """Have an attempt computed; it comes out of `collect` once."""
        self._tasks.put(_Shard(attempt, program))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run something else on a slot, between shards, so that it does not compete with them."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._tasks.put(_Call(run))
        return future

    def abandon(self, tokens: tuple[Token, ...]) -> None:
        """Stop computing these at the next micro-batch."""
        self._abandoned.update(tokens)

    def collect(self) -> list[Done]:
        """Everything done since the last call."""
        with self._lock:
            self._woken = False
            done, self._outbox = list(self._outbox), deque()
        for each in done:
            self._abandoned.discard(each.attempt.token)
        return done

    def stop(self, deadline_s: float) -> None:
        """End the threads once their tasks are done, or leave them behind after the deadline."""
        for _ in self._threads:
            self._tasks.put(None)
        until = time.monotonic() + deadline_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if isinstance(task, _Call):
                task.function()
                continue
            done = self._compute(task)
            with self._lock:
                self._outbox.append(done)
                wake, self._woken = not self._woken, True
            if wake:
                self.wake()

    def _compute(self, task: _Shard) -> Done:
        attempt = task.attempt
        started = time.perf_counter()
        try:
            result = self._result(task, started)
        except MemoryError as error:
            result = codec.node_failure(attempt, "OutOfMemory", str(error)[:500], _elapsed_us(started))
        except LoadError as error:
            result = codec.node_failure(attempt, error.reason, str(error), _elapsed_us(started))
        except MalformedShardError as error:
            result = codec.node_failure(attempt, "MalformedShard", str(error), _elapsed_us(started))
        except Exception as error:
            # A slot must outlive whatever a shard does to it, or the device goes quiet with a live link.
            log.exception("shard failed unexpectedly job=%s shard=%d", attempt.job, attempt.shard)
            result = codec.node_failure(attempt, "InternalError", repr(error)[:500], _elapsed_us(started))
        if result is None:
            return Done(attempt, None)
        body = result.SerializeToString()
        if len(body) > LARGEST_RESULT_BYTES or len(result.failures) > MOST_FAILED_ITEMS:
            # It would be too large on any device, and could never be sent from this one.
            text = (
                f"a result of {len(body)} bytes with {len(result.failures)} failed items; at most "
                f"{LARGEST_RESULT_BYTES} and {MOST_FAILED_ITEMS} travel: use smaller shards (itemsPerShard) or outputs"
            )
            result = codec.items_failure(attempt, "ResultTooLarge", text, _elapsed_us(started))
            body = result.SerializeToString()
        return Done(attempt, body, result.HasField("failure"))

    def _result(self, task: _Shard, started: float) -> pb.ShardResult | None:
        attempt, program = task.attempt, task.program
        if attempt.token in self._abandoned:
            return None
        assert isinstance(attempt.payload, pb.Shard)
        inputs = tensors.columns_of(attempt.payload)
        runner = program.runner()
        rested_at = time.perf_counter()

        def unwanted() -> bool:
            nonlocal rested_at
            self._rest(time.perf_counter() - rested_at)
            rested_at = time.perf_counter()
            return attempt.token in self._abandoned

        while True:
            size = program.size
            try:
                output = runner.compute(inputs, attempt.items, size, unwanted)
            except MemoryError:
                if size.items == 1 or program.order.fixed_batch:
                    raise
                smaller = max(1, size.items // 2)
                program.size = BatchSize(smaller, size.positions // 2 if size.positions else 0)
                log.warning("out of memory: micro-batch cut job=%s items=%d", attempt.job, smaller)
                continue
            if output is None:
                return None
            self._rest(time.perf_counter() - rested_at)
            return tensors.result_of(attempt, output, _elapsed_us(started))

    def _rest(self, worked_s: float) -> None:
        # Within the shard, so that the time it took, by which the grid judges this device's speed, is the true one.
        duty = self.duty
        if duty < 1.0:
            time.sleep(min(worked_s * (1.0 / duty - 1.0), LONGEST_REST_SECONDS))


def _elapsed_us(started: float) -> int:
    return int((time.perf_counter() - started) * 1e6)
