"""Runs kopf beside the engine, on the same loop, and starts it again when it falls.

`kopf.operator` is not used: it believes that every task begun after it is its own, and cancels them all when it ends;
here that would be the engine and the gateway. `kopf.spawn_tasks` gives its tasks, which are waited for and cancelled
as such. It also takes over SIGINT and SIGTERM; they are taken back and stop the whole operator.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import kopf

from pocketgrid.errors import PeerError

log = logging.getLogger(__name__)

RESTART_S = 2.0
STOP_S = 10.0

WATCHER = "watcher for "
"""How kopf names the tasks that watch a kind."""


async def watch(
    required: Callable[[], Awaitable[None]],
    build_registry: Callable[[], kopf.OperatorRegistry],
    build_settings: Callable[[], kopf.OperatorSettings],
    restarted: Callable[[], None],
    stop: asyncio.Event,
    ready: asyncio.Event,
) -> None:
    """Watch until cancelled.

    Args:
        required: raises PeerError unless all kinds are served; asked before each start, because kopf passes over a kind
            that it does not find, for good.
        build_registry: makes the handlers, anew for each start.
        build_settings: makes the settings, anew for each start.
        restarted: called after each start but the first: something may have been missed.
        stop: set when the process is asked to end by a signal.
        ready: set when watching has begun.
    """
    # What it does for each object is worth a line when debugging it, not in production.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It complains of every attempt of every request; what is worth a line is that all of them have failed, below.
    logging.getLogger(kopf.__name__ + "._cogs.clients").setLevel(logging.CRITICAL)
    complaints: set[str] = set()
    while True:
        await _served(required)
        started = asyncio.Event()
        tasks = await kopf.spawn_tasks(
            registry=build_registry(),
            settings=build_settings(),
            clusterwide=True,
            standalone=True,
            ready_flag=started,
        )
        _take_back_signals(stop)
        try:
            waiting = asyncio.create_task(started.wait(), name="kopf-started")
            done, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            if waiting in done:
                if ready.is_set():
                    log.info("watching again")
                    restarted()
                complaints.clear()
                ready.set()
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            for task in done - {waiting}:
                cause = None if task.cancelled() else task.exception()
                if cause is not None and (complaint := _complaint(cause)) not in complaints:
                    complaints.add(complaint)
                    log.warning("watching ended, is tried again until it works cause=%s", complaint)
        finally:
            await _end(tasks)
        await asyncio.sleep(RESTART_S)


async def _served(required: Callable[[], Awaitable[None]]) -> None:
    complaint = ""
    while True:
        try:
            await required()
            return
        except PeerError as exc:
            if str(exc) != complaint:
                complaint = str(exc)
                log.warning(
                    "cannot watch yet, jobs go on cause=%s; if it is not there, apply the CustomResourceDefinitions",
                    exc,
                )
        await asyncio.sleep(RESTART_S)


def _complaint(cause: BaseException) -> str:
    """One line that names what was asked for; kopf's errors carry the API server's whole answer."""
    text = str(cause.args[0]) if cause.args and isinstance(cause.args[0], str) else str(cause)
    match getattr(cause, "status", None):
        case 403:
            remedy = "; grant the operator's account this right with a ClusterRole"
        case 404:
            remedy = "; apply the CustomResourceDefinitions"
        case _:
            remedy = ""
    return f"{type(cause).__name__}: {text}{remedy}"


async def _end(tasks: object) -> None:
    pending = list(tasks)  # type: ignore[call-overload]  # kopf returns a Collection it goes on filling
    await _cancel(pending)
    # When one of kopf's watchers fails, the others go on without it, for nobody. A watcher ends what it has begun, so
    # it must be asked to before that is taken away from under it.
    left = _left_over()
    await _cancel([task for task in left if task.get_name().startswith(WATCHER)])
    await _cancel(_left_over())


def _left_over() -> list[asyncio.Task[object]]:
    """Tasks of kopf's that have outlived it: nothing else on this loop runs its code."""
    folder = str(Path(kopf.__file__).parent)
    return [
        task
        for task in asyncio.all_tasks()
        if (code := getattr(task.get_coro(), "cr_code", None)) is not None and code.co_filename.startswith(folder)
    ]


async def _cancel(tasks: Collection[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=STOP_S)


def _take_back_signals(stop: asyncio.Event) -> None:
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
