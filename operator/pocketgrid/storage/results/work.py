"""Who computed an output: the manifest's `work`.

Responsible for adding up and for the bound on the table of devices. A manifest must stay readable when a hundred
thousand phones took part, so the devices with most items are listed and the rest are summed up by class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pocketgrid.storage.logentries import Share, Worker

MAX_LISTED = 1000
"""Lines of each table; what is beyond is summed up."""

OTHERS = "(others)"
"""Name of the group that sums up what does not fit into a table of classes or engines."""


class Tally(NamedTuple):
    """What somebody did: shards whose result was accepted, their rows with and without a result, computing time."""

    shards: int
    rows: int
    failed: int
    compute_us: int


@dataclass(frozen=True, slots=True)
class DeviceWork:
    """What one device did. A device that changed its class or engine in mid-job has several lines.

    Attributes:
        classes: its hardware classes, sorted and joined by commas; empty if it belongs to none.
        engine: inference engine and version.
        shards, rows, failed, compute_us: see `Tally`.
    """

    device: str
    classes: str
    engine: str
    shards: int
    rows: int
    failed: int
    compute_us: int

    @property
    def key(self) -> tuple[str, str, str]:
        """What no two lines share."""
        return self.device, self.classes, self.engine


@dataclass(frozen=True, slots=True)
class GroupWork:
    """What the devices of one class, or with one engine, did.

    Attributes:
        name: the classes, joined by commas, or the engine; empty if there is none.
        devices: how many lines of devices this sums up.
        shards, rows, failed, compute_us: see `Tally`.
    """

    name: str
    devices: int
    shards: int
    rows: int
    failed: int
    compute_us: int


@dataclass(frozen=True, slots=True)
class Work:
    """Who computed an output. `engines`, `classes`, and the two tables of devices together, each add up to the whole.

    Attributes:
        engines: by engine.
        classes: by hardware class; a device of two classes counts under both names joined, so that nothing counts
            twice.
        devices: by device, those with most items, at most `MAX_LISTED`; in the order of their names.
        other_devices: the devices that are not listed, by class.
    """

    engines: tuple[GroupWork, ...] = ()
    classes: tuple[GroupWork, ...] = ()
    devices: tuple[DeviceWork, ...] = ()
    other_devices: tuple[GroupWork, ...] = ()


def summarize_work(work: Mapping[Worker, Share], *, most: int = MAX_LISTED) -> Work:
    """The tables for what each worker did."""
    lines: dict[tuple[str, str, str], list[Tally]] = {}
    for worker, share in work.items():
        # Owners are not for whoever reads the output; a device of two owners is one line.
        lines.setdefault((worker.device, worker.classes, worker.engine), []).append(Tally(*share[1:]))
    devices = [DeviceWork(*line, *_sum(tallies)) for line, tallies in lines.items()]
    ranked = sorted(devices, key=lambda d: (-d.rows - d.failed, d.key))
    return Work(
        engines=_grouped(devices, lambda d: d.engine, most),
        classes=_grouped(devices, lambda d: d.classes, most),
        devices=tuple(sorted(ranked[:most], key=lambda d: d.key)),
        other_devices=_grouped(ranked[most:], lambda d: d.classes, most),
    )


def total_of(lines: Iterable[DeviceWork | GroupWork]) -> Tally:
    """All lines of a table together."""
    return _sum(_tally(line) for line in lines)


def _grouped(devices: Iterable[DeviceWork], name: Callable[[DeviceWork], str], most: int) -> tuple[GroupWork, ...]:
    groups: dict[str, list[Tally]] = {}
    for device in devices:
        groups.setdefault(name(device), []).append(_tally(device))
    made = [GroupWork(n, len(tallies), *_sum(tallies)) for n, tallies in groups.items()]
    if len(made) > most:
        made.sort(key=lambda g: (-g.rows - g.failed, g.name))
        rest = made[most - 1 :]
        made[most - 1 :] = [GroupWork(OTHERS, sum(g.devices for g in rest), *total_of(rest))]
    return tuple(sorted(made, key=lambda g: g.name))


def _tally(line: DeviceWork | GroupWork) -> Tally:
    return Tally(line.shards, line.rows, line.failed, line.compute_us)


def _sum(tallies: Iterable[Tally]) -> Tally:
    return Tally(*(sum(column) for column in zip(Tally(0, 0, 0, 0), *tallies, strict=True)))
