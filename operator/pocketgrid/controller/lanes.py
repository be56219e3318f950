"""One write at a time for each object, tried again with growing pauses, and never waited for by those who ask.

Whoever wants something written looks at the desired state again and again (level-based), so a request that finds its
lane busy or pausing is dropped: the next look will make a newer one. Nothing queues up while the API server is away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

from pocketgrid.clock import Clock, Rng
from pocketgrid.controller.client import FencedError, UnavailableError
from pocketgrid.errors import PeerError

log = logging.getLogger(__name__)

CONCURRENT_CALLS = 16
"""Calls under way at once, over all objects: enough to hide latency, too few to bother an API server."""

CONCURRENT_DEVICE_CALLS = 12
"""Of these, on behalf of devices: ten thousand of them have more to write than an API server can take, and the status
of jobs must not wait behind them."""

_OF_DEVICES = frozenset({"node", "node-status", "lease", "edge", "edgenodes"})
"""First parts of the keys of such lanes."""

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0


@dataclass(slots=True)
class _Lane:
    task: asyncio.Task[None] | None = None
    failures: int = 0
    resume_at: float = 0.0
    complaint: str = field(default="", repr=False)


class Lanes:
    """Runs writes in the background. Use as an async context manager; leaving it cancels what is under way.

    Args:
        permitted: asked before each write; false while another operator may lead. (A write of several calls asks
            again before each of them: see `Cluster.fenced`.)
    """

    def __init__(self, clock: Clock, rng: Rng, permitted: Callable[[], bool]) -> None:
        self._clock = clock
        self._rng = rng
        self._permitted = permitted
        self._lanes: dict[str, _Lane] = {}
        self._slots = asyncio.Semaphore(CONCURRENT_CALLS - CONCURRENT_DEVICE_CALLS)
        self._device_slots = asyncio.Semaphore(CONCURRENT_DEVICE_CALLS)

    async def __aenter__(self) -> Self:
        """Nothing to prepare."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Cancel what is under way."""
        tasks = self._running()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def free(self, key: str) -> bool:
        """Whether a write for `key` would be begun now."""
        lane = self._lanes.get(key)
        return lane is None or (lane.task is None and self._clock.monotonic() >= lane.resume_at)

    def start(self, key: str, write: Callable[[], Awaitable[None]]) -> bool:
        """Begin `write`, unless the lane of `key` is busy or pauses after a failure; whether it was begun."""
        if not self.free(key) or not self._permitted():
            return False
        lane = self._lanes.setdefault(key, _Lane())
        lane.task = asyncio.get_running_loop().create_task(self._run(key, lane, write), name=f"write-{key}")
        return True

    async def idle(self, seconds: float) -> None:
        """Wait until nothing is under way, at most `seconds`."""
        tasks = self._running()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _running(self) -> list[asyncio.Task[None]]:
        return [lane.task for lane in self._lanes.values() if lane.task is not None]

    async def _run(self, key: str, lane: _Lane, write: Callable[[], Awaitable[None]]) -> None:
        try:
            async with self._device_slots if key.partition("/")[0] in _OF_DEVICES else self._slots:
                # It may have waited for its turn too long; there will be another look.
                if self._permitted():
                    await write()
        except FencedError as exc:
            log.info("write given up object=%s cause=%s", key, exc)
        except PeerError as exc:
            self._fail(key, lane, exc, expected=isinstance(exc, UnavailableError))
        except Exception as exc:
            log.exception("write failed object=%s", key)
            self._fail(key, lane, exc, expected=True)
        else:
            # Only lanes in trouble are worth remembering.
            self._lanes.pop(key, None)
        finally:
            lane.task = None

    def _fail(self, key: str, lane: _Lane, exc: Exception, *, expected: bool) -> None:
        if str(exc) != lane.complaint:
            lane.complaint = str(exc)
            log.log(logging.INFO if expected else logging.WARNING, "write failed object=%s cause=%s", key, exc)
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**lane.failures)
        lane.failures = min(lane.failures + 1, 10)
        lane.resume_at = self._clock.monotonic() + pause * (0.5 + self._rng.random() / 2)
