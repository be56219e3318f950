"""What a person sees of a local run: a live line per job, and a summary at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from pocketgrid.local.run import LocalOutcome
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.view import DeviceView, JobView, Presence, Stage


class LiveProgress:
    """Progress bars on a console; on one that is no terminal, a line whenever a job's stage changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
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
        self._notes: dict[JobUid, str] = {}

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Stop drawing and leave the last state on screen."""
        self._bars.stop()

    def update(self, jobs: Sequence[JobView], devices: Mapping[DeviceName, DeviceView]) -> None:
        """Draw the state of everything."""
        connected = sum(d.presence is Presence.CONNECTED for d in devices.values())
        for view in jobs:
            task = self._tasks.get(view.uid)
            if task is None:
                task = self._tasks[view.uid] = self._bars.add_task(view.spec.name, total=None, note="")
            self._bars.update(task, total=view.items or None, completed=view.items_done, note=_note(view, connected))
            told = _stage_line(view)
            if not self._console.is_terminal and self._notes.get(view.uid) != told:
                self._console.print(told, highlight=False)
            self._notes[view.uid] = told


def print_summary(console: Console, outcome: LocalOutcome) -> None:
    """Tables of jobs and devices."""
    jobs = Table("job", "state", "items", "failed", "items/s", "output", title="Jobs", title_justify="left")
    for view in outcome.jobs:
        jobs.add_row(
            view.spec.key,
            _state(view),
            f"{view.items_done:,}",
            f"{view.items_failed:,}",
            f"{view.throughput:,.0f}",
            view.spec.output.uri,
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
    if view.trouble is not None:
        return f"[red]{view.trouble.reason}: {view.trouble.message}"
    match view.stage:
        case Stage.RUNNING if view.shards_done:
            return f"{view.throughput:,.0f} items/s on {sum(view.devices.values())} devices"
        case Stage.RUNNING | Stage.ADMITTING:
            return f"waiting for devices ({connected} connected)" if view.obstacle else "starting"
        case _:
            return view.stage.value.lower()


def _state(view: JobView) -> str:
    if view.stage is Stage.COMPLETE:
        return "[green]Complete"
    if view.explanation is not None:
        return f"[red]{view.stage.value}: {view.explanation.message}"
    return view.stage.value


def _stage_line(view: JobView) -> str:
    why = f": {view.explanation.message}" if view.explanation else ""
    return f"{view.spec.key} {view.stage.value}{why}"
