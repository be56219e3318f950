"""Measure a ToleranceProfile: the same items on every device at hand, and how far their results lie apart.

Each device gets a job of its own over the whole data set of the manifest, and nothing else, by the very way that jobs
go: what is compared is what users would have got. Devices of one numerics class must agree in every bit; if they do
not, the classes are wrong and nothing is written. Comparing is for `trust.calibration`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pocketgrid.clock import Clock
from pocketgrid.engine.engine import Engine
from pocketgrid.errors import InvalidSpecError, PocketGridError
from pocketgrid.gateway.server import Gateway
from pocketgrid.local.agents import OWNER, AgentPool, LocalAgents
from pocketgrid.local.run import REFRESH_SECONDS, LocalPlan
from pocketgrid.model.device import device_labels
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.job import JobSpec, OutputFormat, Placement
from pocketgrid.model.numerics import Deviation, ToleranceProfile, numerics_class
from pocketgrid.model.trust import DataClass, Verification
from pocketgrid.model.view import DeviceView, Presence, Stage
from pocketgrid.settings import Settings
from pocketgrid.trust.calibration import IncomparableError, Row, deviation, is_useless

MOST_ITEMS = 10_000
"""More would not make the 99.9th percentile much surer, and must fit into memory for each device."""

HOSTNAME = "kubernetes.io/hostname"

Announce = Callable[[str], None]
"""Told what is going on, for people."""


class CalibrationError(PocketGridError):
    """Nothing can be measured, or what was measured is of no use; the message says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which devices take part.

    Attributes:
        others: devices that join from elsewhere, beside the agents started here.
        wait_s: how long they may take, and how long a whole run may.
    """

    others: int
    wait_s: float


async def calibrate(
    plan: LocalPlan,
    agents: LocalAgents,
    wanted: Wanted,
    settings: Settings,
    clock: Clock,
    scratch: Path,
    announce: Announce,
) -> ToleranceProfile:
    """Run the one job of `plan` on every device and compare.

    Args:
        scratch: an empty folder; gets the results of each device.

    Raises:
        InvalidSpecError: the manifest does not hold exactly one job.
        CalibrationError: too few devices or classes, a job that failed, or results that cannot be compared.
    """
    if len(plan.jobs) != 1:
        raise InvalidSpecError("SeveralJobs", f"holds {len(plan.jobs)} InferenceJobs; calibrate with exactly one")
    (job,) = plan.jobs
    async with (
        Engine(settings.engine, clock, settings.state_dir / "models", nodes_from_facts=True) as engine,
        Gateway(engine, settings.gateway, clock, settings.state_dir / "gateway") as gateway,
        AgentPool(agents, gateway) as pool,
    ):
        engine.set_classes(plan.classes)
        if wanted.others:
            invited = await gateway.invite(OWNER, uses=wanted.others)
            # A state folder of its own, so that a device stays what it is in its own grid.
            announce(
                f"on each of {wanted.others} devices: pocketgrid-agent run --join {invited.address} "
                f"--token {invited.token} --ca-sha256 {invited.ca_sha256} --state-dir calibrate"
            )
        devices = await _gathered(engine, pool, agents.count + wanted.others, wanted.wait_s)
        classes = {name: _class_of(view, plan) for name, view in devices.items()}
        if len(set(classes.values())) < 2:
            raise CalibrationError(
                f"all {len(devices)} devices are of numerics class {next(iter(classes.values()))} and compute the "
                "same bits; let a device of another kind join with --devices"
            )
        for name, numerics in sorted(classes.items()):
            announce(f"{name}: {numerics}")
        runs = await _run_on_each(engine, pool, job, devices, wanted.wait_s, scratch)
    return await asyncio.to_thread(_compare, job, runs, classes)


def _class_of(view: DeviceView, plan: LocalPlan) -> str:
    stated = [plan.classes[name].numerics for name in view.classes if plan.classes[name].numerics]
    return stated[0] if stated else numerics_class(view.identity.facts)


async def _gathered(engine: Engine, pool: AgentPool, count: int, wait_s: float) -> Mapping[DeviceName, DeviceView]:
    revision = 0
    views: Mapping[DeviceName, DeviceView] = {}
    try:
        async with asyncio.timeout(wait_s):
            while True:
                views = {n: v for n, v in engine.device_views().items() if v.presence is Presence.CONNECTED}
                if len(views) >= count:
                    return views
                if pool.all_failed:
                    raise CalibrationError(f"the agents ended again and again: {pool.complaint}")
                revision = await engine.changed(revision, REFRESH_SECONDS)
    except TimeoutError:
        raise CalibrationError(
            f"{len(views)} of {count} devices attached within {wait_s:.0f} s; look at the others' logs"
        ) from None


async def _run_on_each(
    engine: Engine,
    pool: AgentPool,
    job: JobSpec,
    devices: Mapping[DeviceName, DeviceView],
    wait_s: float,
    scratch: Path,
) -> Mapping[DeviceName, Path]:
    runs: dict[DeviceName, tuple[JobSpec, Path]] = {}
    for number, (name, view) in enumerate(sorted(devices.items())):
        folder = scratch / str(number)
        spec = replace(
            job,
            uid=JobUid(str(uuid.uuid4())),
            name=f"calibrate-{number}",
            output=replace(job.output, uri=folder.as_uri(), format=OutputFormat.PARQUET),
            placement=Placement(
                node_selector=((HOSTNAME, device_labels(view.identity)[HOSTNAME]),),
                data_class=DataClass(job.placement.data_class),
            ),
            verification=Verification(),
            budget=None,
        )
        engine.submit(spec)
        runs[name] = (spec, folder)
    revision = 0
    try:
        async with asyncio.timeout(wait_s):
            while True:
                views = [engine.job_view(spec.uid) for spec, _ in runs.values()]
                for view_of_job in views:
                    if view_of_job is None:
                        continue
                    if view_of_job.items > MOST_ITEMS:
                        raise CalibrationError(
                            f"the data set has {view_of_job.items} items; name one of at most {MOST_ITEMS}"
                        )
                    if view_of_job.stage.terminal and view_of_job.stage is not Stage.COMPLETE:
                        why = view_of_job.explanation.message if view_of_job.explanation is not None else "it ended"
                        raise CalibrationError(f"{view_of_job.spec.key}: {why}")
                if all(v is not None and v.stage is Stage.COMPLETE for v in views):
                    return {name: folder for name, (_, folder) in runs.items()}
                if pool.all_failed:
                    raise CalibrationError(f"the agents ended again and again: {pool.complaint}")
                revision = await engine.changed(revision, REFRESH_SECONDS)
    except TimeoutError:
        late = [name for name, (spec, _) in runs.items() if (v := engine.job_view(spec.uid)) and not v.stage.terminal]
        raise CalibrationError(f"{', '.join(late)} did not finish within {wait_s:.0f} s") from None


def _compare(job: JobSpec, runs: Mapping[DeviceName, Path], classes: Mapping[DeviceName, str]) -> ToleranceProfile:
    results = {name: _rows(folder) for name, folder in runs.items()}
    pairs: dict[tuple[str, str], Deviation] = {}
    for a, b in itertools.combinations(sorted(results, key=lambda name: (classes[name], name)), 2):
        try:
            found = deviation(results[a], results[b])
        except IncomparableError as error:
            raise CalibrationError(f"{a} and {b}: {error}") from error
        if classes[a] == classes[b]:
            if not found.identical:
                raise CalibrationError(
                    f"{a} and {b} are both of numerics class {classes[a]} but differ in their bits; give one of them "
                    "a class of its own with a HardwareClass's numericsClass"
                )
            continue
        if is_useless(found):
            raise CalibrationError(
                f"{a} ({classes[a]}) and {b} ({classes[b]}) differ by as much as right answers from wrong ones; "
                "their results cannot be compared for this model"
            )
        pair = (classes[a], classes[b])
        known = pairs.get(pair)
        pairs[pair] = found if known is None else _wider(known, found)
    return ToleranceProfile(job.model.sha256, pairs)


def _wider(one: Deviation, other: Deviation) -> Deviation:
    return Deviation(
        one.items + other.items,
        one.identical and other.identical,
        max(one.absolute, other.absolute),
        max(one.cosine, other.cosine),
    )


def _rows(folder: Path) -> Sequence[Row]:
    """Results in the order of rows. Floating-point columns of a row become one vector."""
    import pyarrow.dataset as ds

    table = ds.dataset(folder, format="parquet").to_table()
    numbers: list[list[np.ndarray[tuple[int], np.dtype[np.float64]]]] = [[] for _ in range(table.num_rows)]
    rest: list[list[object]] = [[] for _ in range(table.num_rows)]
    for column in table.column_names:
        values = table.column(column)
        floating = _is_floating(values.type)
        for row, value in enumerate(values.to_pylist()):
            if floating and value is not None:
                numbers[row].append(np.asarray(_flat(value), np.float64).reshape(-1))
            else:
                rest[row].append(_hashable(value))
    return [
        Row(np.concatenate(parts) if parts else np.zeros(0), tuple(others))
        for parts, others in zip(numbers, rest, strict=True)
    ]


def _is_floating(kind: object) -> bool:
    import pyarrow as pa

    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type  # type: ignore[attr-defined]
    return bool(pa.types.is_floating(kind))


def _flat(value: object) -> list[float]:
    if isinstance(value, list):
        return [number for entry in value for number in _flat(entry)]
    return [math.nan if value is None else float(value)]  # type: ignore[arg-type]


def _hashable(value: object) -> object:
    return tuple(_hashable(entry) for entry in value) if isinstance(value, list) else value
