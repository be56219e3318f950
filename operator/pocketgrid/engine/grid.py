"""What the parts of the engine share: jobs, devices, and the means to set things in motion. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from pocketgrid.clock import Clock
from pocketgrid.engine.fleet import Fleet
from pocketgrid.engine.history import History, Recorder
from pocketgrid.engine.jobrun import JobRun
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.settings import EngineSettings
from pocketgrid.worktimes import WorkTimes

log = logging.getLogger(__name__)


class Grid:
    """Shared state of one engine. Everything happens on one event loop.

    Args:
        nodes_from_facts: there is no cluster: devices stand for themselves.
        recorder: keeps a history, if one is wanted.

    Attributes:
        jobs: all jobs, ended ones included, until they are removed.
        active: those that may still want devices.
        dirty: devices to be looked at in the next turn.
        all_dirty: look at all of them.
        times: where this process's time goes.
    """

    def __init__(
        self, settings: EngineSettings, clock: Clock, *, nodes_from_facts: bool, recorder: Recorder | None = None
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.history = History(recorder)
        self.fleet = Fleet(nodes_from_facts=nodes_from_facts)
        self.jobs: dict[JobUid, JobRun] = {}
        self.active: dict[JobUid, JobRun] = {}
        self.dirty: set[DeviceName] = set()
        self.all_dirty = False
        self.times = WorkTimes()
        self.wake_dispatch = asyncio.Event()
        self.revision = 0
        self._changed = asyncio.Condition()
        self._notify_due = False
        self._tasks: asyncio.TaskGroup | None = None

    async def open(self) -> None:
        """Make it possible to start tasks."""
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()

    async def close(self) -> None:
        """Wait for all tasks to end."""
        assert self._tasks is not None
        await self._tasks.__aexit__(None, None, None)

    def mark(self, name: DeviceName) -> None:
        """Look at a device in the next turn: it may have room for work, or work may be there for it."""
        self.dirty.add(name)
        self.wake_dispatch.set()

    def mark_all(self) -> None:
        """Look at all attached devices in the next turn."""
        self.all_dirty = True
        self.wake_dispatch.set()

    def mark_idle(self, job: JobRun) -> None:
        """Look at the devices that may want shards of `job`, if some are to be had."""
        if job.machine is not None and job.machine.pending:
            self.mark_all()

    def touch(self) -> None:
        """Something that views show has changed."""
        self.revision += 1
        if not self._notify_due:
            self._notify_due = True
            self.spawn(self._notify(), name="engine-notify")

    async def changed(self, since: int, timeout: float) -> int:
        """Wait until something has changed since revision `since`, at most `timeout` seconds; the new revision."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self.revision > since)
        return self.revision

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run `work` as a task of the engine; its failure is logged and harms nobody else."""
        assert self._tasks is not None, "the engine was not started"
        return self._tasks.create_task(_guarded(work, name), name=name)

    async def _notify(self) -> None:
        self._notify_due = False
        async with self._changed:
            self._changed.notify_all()


async def _guarded(work: Coroutine[Any, Any, None], name: str) -> None:
    # One job's or device's bug must not take the others down with it.
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("task failed name=%s", name)
