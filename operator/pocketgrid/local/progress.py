"""What a person sees of a local run: a live line per job, and a summary at the end."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from pocketgrid.clock import Clock
from pocketgrid.local.run import LocalOutcome
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.view import DeviceView, JobView, Presence, Stage

REPORT_SECONDS = 10.0
"""Where there is no terminal, how often a running job says how far it is."""


class LiveProgress:
    """Progress bars on a console; on one that is no terminal, a line when a job's state changes and now and then."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._logging_to: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[JobUid, TaskID] = {}
        self._told: dict[JobUid, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        """Begin to draw. Log lines go above the bars from now on, not through them."""
        self._bars.start()
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is not sys.stderr:
                self._logging_to.append((handler, handler.setStream(sys.stderr)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Stop drawing and leave the last state on screen."""
        self._bars.stop()
        for handler, stream in self._logging_to:
            handler.setStream(stream)
        self._logging_to.clear()

    def update(self, jobs: Sequence[JobView], devices: Mapping[DeviceName, DeviceView]) -> None:
        """Draw the state of everything."""
        connected = sum(d.presence is Presence.CONNECTED for d in devices.values())
        for view in jobs:
            task = self._tasks.get(view.uid)
            if task is None:
                task = self._tasks[view.uid] = self._bars.add_task(view.spec.name, total=None, note="")
            self._bars.update(task, total=view.items or None, completed=view.items_done, note=_note(view, connected))
            if not self._console.is_terminal:
                self._report(view, connected)

    def _report(self, view: JobView, connected: int) -> None:
        line, now = _stage_line(view), self._clock.monotonic()
        before, at = self._told.get(view.uid, ("", now))
        if line != before:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif now - at >= REPORT_SECONDS and not view.stage.terminal:
            how_far = f"{view.items_done:,} of {view.items:,} items, {_plain_note(view, connected)}"
            self._console.print(f"{line}: {how_far}", highlight=False, markup=False, soft_wrap=True)
        else:
            return
        self._told[view.uid] = (line, now)


def print_summary(console: Console, outcome: LocalOutcome) -> None:
    """Tables of jobs and devices."""
    jobs = Table("job", "state", "items", "failed", "in vain", "items/s", "output", title="Jobs", title_justify="left")
    for view in outcome.jobs:
        jobs.add_row(
            view.spec.key,
            _state(view),
            f"{view.items_done:,}",
            f"{view.items_failed:,}",
            # Shards of which a second result came: what failing and slow devices cost.
            f"{view.duplicates:,}",
            f"{view.throughput:,.0f}",
            escape(view.spec.output.uri),
        )
    console.print(jobs)
    devices = Table("device", "kind", "engine", "items", title="Devices", title_justify="left")
    for name, device in sorted(outcome.devices.items()):
        facts = device.identity.facts
        devices.add_row(str(name), f"{facts.kind.value} {facts.arch}", facts.engine, f"{device.items_done:,}")
    console.print(devices)


def summary_json(outcome: LocalOutcome) -> str:
    """One line of JSON on what became of the jobs, for scripts."""
    return json.dumps(
        {
            "jobs": [
                {
                    "job": view.spec.key,
                    "state": view.stage.value,
                    "reason": view.explanation.reason if view.explanation else "",
                    "message": view.explanation.message if view.explanation else "",
                    "items": view.items,
                    "done": view.items_done,
                    "failed": view.items_failed,
                    "attempts": {
                        "lost": view.attempts_lost,
                        "copies": view.copies,
                        "duplicates": view.duplicates,
                    },
                    "seconds": round(view.finished - view.started, 3) if view.finished else None,
                    "itemsPerSecond": round(view.throughput, 3),
                    "manifest": view.manifest_uri,
                }
                for view in outcome.jobs
            ],
            "devices": {str(n): d.items_done for n, d in sorted(outcome.devices.items())},
        }
    )


def _note(view: JobView, connected: int) -> str:
    text = escape(_plain_note(view, connected))
    return f"[red]{text}" if view.trouble is not None else text


def _plain_note(view: JobView, connected: int) -> str:
    if view.trouble is not None:
        return f"{view.trouble.reason}: {view.trouble.message}"
    match view.stage:
        case Stage.RUNNING | Stage.ADMITTING if view.obstacle is not None:
            return f"waiting: {view.obstacle.message}" if connected else "waiting for the agents to start"
        case Stage.RUNNING if view.shards_done:
            devices = sum(view.devices.values())
            return f"{view.throughput:,.0f} items/s on {devices} device{'' if devices == 1 else 's'}"
        case Stage.RUNNING | Stage.ADMITTING:
            return "starting"
        case _:
            return view.stage.value.lower()


def _state(view: JobView) -> str:
    if view.stage is Stage.COMPLETE:
        return "[green]Complete"
    if view.explanation is not None:
        return f"[red]{view.stage.value}: {escape(view.explanation.message)}"
    return view.stage.value


def _stage_line(view: JobView) -> str:
    why = view.explanation or view.trouble
    return f"{view.spec.key} {view.stage.value}" + (f": {why.reason}: {why.message}" if why else "")
