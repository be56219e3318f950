"""From a work order to a model that is ready: fetch, verify, load, measure.

Each digest is fetched once, however many jobs want it, and goes on where it stopped: after a lost link, in the next
session; after a kill, in the next process; and after another agent of the same cache gave up, in this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import Callable
from pathlib import Path

from pocketgrid.errors import ProtocolError, RefusedError, StoreError
from pocketgrid_agent import measure, tuning
from pocketgrid_agent.cache import BudgetError, DigestMismatchError, ModelCache, OpenModel, PartialModel
from pocketgrid_agent.compute import ComputePool, Program
from pocketgrid_agent.events import NotReady, Order, Ready
from pocketgrid_agent.link import Link
from pocketgrid_agent.runtime import Engine, LoadedModels, LoadError
from pocketgrid_agent.stream import LinkDownError

log = logging.getLogger(__name__)

OTHER_PROCESS_SECONDS = 0.2
"""Between looks at a model another agent on this machine is fetching."""

PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
"""Between tries to fetch, doubling."""

TRIES = 3
"""Of a model that arrives damaged, or is evicted between fetching and loading."""


class Preparation:
    """Gets models ready, and keeps them for as long as their jobs are known.

    Args:
        engine: loads and runs them.
        cache: where their files are.
        link: where they are fetched.
        pool: where they are measured.
        memory_bytes: budget of loaded models and their runs.
        slots, micro_batch: as in Settings.
        resident: memory of this process at the moment, bytes.
    """

    def __init__(
        self,
        engine: Engine,
        cache: ModelCache,
        link: Link,
        pool: ComputePool,
        *,
        memory_bytes: int,
        slots: int,
        micro_batch: int,
        resident: Callable[[], int],
    ) -> None:
        self._cache = cache
        self._link = link
        self._pool = pool
        self._memory_bytes = memory_bytes
        self._slots = slots
        self._micro_batch = micro_batch
        self._resident = resident
        self._loaded = LoadedModels(engine, self._locate, memory_bytes=memory_bytes // 2, resident=resident)
        self._programs: dict[str, Program] = {}
        self._orders: dict[str, Order] = {}
        # While a job is known its model's file is protected from other agents of the same cache.
        self._pins: dict[str, OpenModel] = {}
        self._fetching: dict[str, asyncio.Lock] = {}

    def program(self, job: str) -> Program:
        """How to compute shards of a job that was prepared."""
        return self._programs[job]

    def dismiss(self, job: str) -> None:
        """The job is over; its model may be evicted. A sealed one leaves memory with its last job, as does the key."""
        self._programs.pop(job, None)
        self._unpin(job)
        order = self._orders.pop(job, None)
        if order is not None and order.cache_key and all(o.model != order.model for o in self._orders.values()):
            self._loaded.drop(order.model)

    def _unpin(self, job: str) -> None:
        pin = self._pins.pop(job, None)
        if pin is not None:
            pin.close()

    def close(self) -> None:
        """Let go of all models."""
        for job in {*self._pins, *self._orders}:
            self.dismiss(job)
        self._loaded.close()

    async def prepare(self, order: Order) -> Ready | NotReady:
        """Make everything ready for shards of `order`. Safe to cancel at any point."""
        known = self._orders.get(order.job)
        if known is not None and known.cache_key != order.cache_key:
            self._unpin(order.job)  # an operator that lost its secret has made new keys
        self._orders[order.job] = order
        try:
            fetch_ms = await self._pin(order)
            started = time.perf_counter()
            model = await asyncio.to_thread(self._loaded.get, order.model)
            load_ms = _elapsed_ms(started)
            guard = tuning.Guard(memory_bytes=self._memory_bytes)
            measured = await asyncio.wrap_future(
                self._pool.call(
                    lambda: measure.measure(
                        model,
                        order,
                        slots=self._slots,
                        fixed_micro_batch=self._micro_batch,
                        guard=guard,
                        resident=self._resident,
                    )
                )
            )
        except RefusedError as error:
            return NotReady(error.reason, str(error))
        except DigestMismatchError as error:
            return NotReady("DigestMismatch", str(error))
        except BudgetError as error:
            return NotReady("DiskFull", str(error))
        except StoreError as error:
            return NotReady("CacheFailed", str(error))
        except LoadError as error:
            return NotReady(error.reason, str(error))
        except MemoryError as error:
            return NotReady("OutOfMemory", f"model {order.model} does not fit this device's memory: {error}")
        self._programs[order.job] = Program(order, measured.size, self._loaded.get)
        _log_ready(order, measured, fetch_ms, load_ms)
        return Ready(measured.items_per_second * self._pool.duty, measured.micro_batch, fetch_ms, load_ms)

    async def _pin(self, order: Order) -> int:
        """Have the model's file here and protected. Milliseconds of fetching, 0 if it was here."""
        if order.job in self._pins:
            return 0
        started = time.perf_counter()
        lock = self._fetching.setdefault(order.model, asyncio.Lock())
        async with lock:
            opened = await asyncio.to_thread(self._cache.open, order.model, order.cache_key)
            if opened is not None:
                self._pins[order.job] = opened
                return 0
            for _ in range(TRIES):
                await self._fetch(order)
                opened = await asyncio.to_thread(self._cache.open, order.model, order.cache_key)
                if opened is not None:
                    self._pins[order.job] = opened
                    return max(1, _elapsed_ms(started))
        raise LoadError(
            "CacheFailed", f"model {order.model} was stored {TRIES} times and was damaged or gone each time"
        )

    async def _fetch(self, order: Order) -> None:
        digest, total_bytes, key = order.model, order.model_bytes, order.cache_key
        mismatches = refusals = interruptions = 0
        while True:
            partial = await asyncio.to_thread(self._cache.fetch, digest, total_bytes, key)
            if partial is None:
                if self._cache.holds(digest, key):
                    return
                await asyncio.sleep(OTHER_PROCESS_SECONDS)
                continue
            try:
                if partial.offset < total_bytes:
                    await self._link.attached()
                    log.info("fetching model=%s bytes=%d from=%d", digest, total_bytes, partial.offset)
                    await self._receive(partial, digest, total_bytes)
                if partial.offset == total_bytes:
                    await asyncio.to_thread(partial.finish)
                    return
            except DigestMismatchError:
                # Bytes of an earlier process may have been to blame; a fresh fetch decides.
                mismatches += 1
                if mismatches == TRIES:
                    raise
            except RefusedError:
                # A gateway that has just restarted may not know yet which models its work orders are about to name.
                refusals += 1
                if refusals == TRIES:
                    raise
            except LinkDownError as error:
                interruptions += 1
                log.info("fetching interrupted model=%s at=%d cause=%s", digest, partial.offset, error)
            except ProtocolError as error:
                raise RefusedError("ModelSourceBroken", str(error), retry=False) from error
            finally:
                partial.close()
            # The stream's own backoff paces tries while detached, this one tries while attached.
            await asyncio.sleep(min(LONGEST_PAUSE_SECONDS, PAUSE_SECONDS * 2.0 ** min(interruptions, 10)))

    async def _receive(self, partial: PartialModel, digest: str, total_bytes: int) -> None:
        async with contextlib.aclosing(self._link.fetch_model(digest, partial.offset)) as chunks:
            async for chunk in chunks:
                if chunk.offset != partial.offset or chunk.total_bytes != total_bytes:
                    raise ProtocolError(
                        f"model {digest}: chunk at {chunk.offset} of {chunk.total_bytes}, where "
                        f"{partial.offset} of {total_bytes} was due"
                    )
                await asyncio.to_thread(partial.append, chunk.data)

    def _locate(self, digest: str) -> tuple[Path | bytes, Callable[[], None]]:
        key = next((order.cache_key for order in self._orders.values() if order.model == digest), b"")
        # What is encrypted on disk is decrypted into memory only, where the engine takes it from.
        content = io.BytesIO() if key else None
        opened = self._cache.open(digest, key, content)
        if opened is None:
            raise LoadError("ModelDamaged", f"model {digest} vanished from the cache or was damaged there")
        return opened.path if content is None else content.getvalue(), opened.close


def _log_ready(order: Order, measured: measure.Measurement, fetch_ms: int, load_ms: int) -> None:
    log.info(
        "ready job=%s model=%s items_per_second=%.1f micro_batch=%d fetch_ms=%d load_ms=%d",
        order.job,
        order.model[:12],
        measured.items_per_second,
        measured.micro_batch,
        fetch_ms,
        load_ms,
    )


def _elapsed_ms(started: float) -> int:
    return int((time.perf_counter() - started) * 1000)
