"""Run the jobs of a manifest on this machine and return what became of them.

Each job's identity follows from its name and its output folder, so running the same file again after a crash or a
Ctrl-C goes on where it stopped: the commit log knows.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.api.convert import resolve_uris, to_hardware_class, to_job_spec
from pocketgrid.api.manifest import load_manifest
from pocketgrid.clock import Clock
from pocketgrid.engine.engine import Engine
from pocketgrid.engine.history import Recorder
from pocketgrid.errors import InvalidSpecError, PocketGridError
from pocketgrid.gateway.server import Gateway
from pocketgrid.local.agents import AgentPool, LocalAgents
from pocketgrid.model.device import HardwareClass
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.job import JobSpec
from pocketgrid.model.view import DeviceView, JobView, Stage
from pocketgrid.settings import Settings

REFRESH_SECONDS = 0.25

STUCK_SECONDS = 10.0
"""An obstacle that has stood for so long stays: here, neither devices nor classes change while a job runs."""

Observer = Callable[[Sequence[JobView], Mapping[DeviceName, DeviceView]], None]
"""Called whenever something has changed, and at least every `REFRESH_SECONDS`."""


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """What a manifest file asks for."""

    jobs: tuple[JobSpec, ...]
    classes: Mapping[str, HardwareClass]


@dataclass(frozen=True, slots=True)
class LocalOutcome:
    """What became of it."""

    jobs: tuple[JobView, ...]
    devices: Mapping[DeviceName, DeviceView]

    @property
    def succeeded(self) -> bool:
        """Whether every job is complete."""
        return all(j.stage is Stage.COMPLETE for j in self.jobs)


def read_plan(path: Path, now: float) -> LocalPlan:
    """Read a manifest file; relative paths in it are relative to its folder.

    Raises:
        InvalidSpecError: it cannot be read, or asks for something impossible.
    """
    jobs: list[JobSpec] = []
    classes: dict[str, HardwareClass] = {}
    base = path.resolve().parent
    for body in load_manifest(path):
        if body["kind"] == "HardwareClass":
            hardware_class = to_hardware_class(body)
            classes[hardware_class.name] = hardware_class
        else:
            jobs.append(to_job_spec(body, base=base, uid=_identity(resolve_uris(body, base)), created=now))
    if not jobs:
        raise InvalidSpecError("NoJob", f"{path}: holds no InferenceJob; add one")
    _check_apart(path, jobs)
    return LocalPlan(tuple(jobs), classes)


async def run_plan(
    plan: LocalPlan,
    agents: LocalAgents,
    settings: Settings,
    clock: Clock,
    observe: Observer,
    recorder: Recorder | None = None,
) -> LocalOutcome:
    """Carry out `plan` with `agents`; returns when every job has ended.

    Raises:
        PocketGridError: the gateway cannot start, no agent stays alive, or none of them can do a job.
    """
    async with (
        Engine(
            settings.engine, clock, settings.state_dir / "models", nodes_from_facts=True, recorder=recorder
        ) as engine,
        Gateway(engine, settings.gateway, clock, settings.state_dir / "gateway") as gateway,
        # Their processes begin to start here, and look at no file of the jobs until they are asked to.
        AgentPool(agents, gateway) as pool,
    ):
        engine.set_classes(plan.classes)
        for spec in plan.jobs:
            engine.submit(spec)
        revision = 0
        moving = clock.monotonic()
        while True:
            revision = await engine.changed(revision, REFRESH_SECONDS)
            views = [v for spec in plan.jobs if (v := engine.job_view(spec.uid)) is not None]
            devices = engine.device_views()
            observe(views, devices)
            waiting = [v for v in views if not v.stage.terminal]
            if not waiting:
                return LocalOutcome(tuple(views), devices)
            if pool.all_failed:
                raise PocketGridError(f"all {agents.count} agents ended again and again: {pool.complaint}")
            if gateway.sessions + len(pool.failed) < agents.count or not all(v.obstacle for v in waiting):
                moving = clock.monotonic()
            elif clock.monotonic() - moving > STUCK_SECONDS:
                reasons = "; ".join(f"{v.spec.key}: {v.obstacle.message}" for v in waiting if v.obstacle)
                raise PocketGridError(f"none of the agents here can go on: {reasons}")
            # No faster than a person can see; the jobs need the processor more.
            await asyncio.sleep(REFRESH_SECONDS / 2)


def _check_apart(path: Path, jobs: Sequence[JobSpec]) -> None:
    keys: set[str] = set()
    outputs: dict[str, str] = {}
    for job in jobs:
        if job.suspend:
            text = f"{path}: {job.key} is suspended and would never end; set suspend to false to run it here"
            raise InvalidSpecError("Suspended", text, field="spec.suspend")
        if job.key in keys:
            text = f"{path}: two jobs are called {job.key}; give each a name of its own"
            raise InvalidSpecError("DuplicateJob", text, field="metadata.name")
        other = outputs.get(job.output.uri.rstrip("/"))
        if other is not None:
            text = f"{path}: {other} and {job.key} would write into the same folder {job.output.uri}"
            raise InvalidSpecError("OutputInUse", text, field="spec.output.uri")
        keys.add(job.key)
        outputs[job.output.uri.rstrip("/")] = job.key


def _identity(body: Mapping[str, object]) -> str:
    metadata, spec = body.get("metadata"), body.get("spec")
    name = metadata.get("name", "") if isinstance(metadata, dict) else ""
    namespace = metadata.get("namespace", "default") if isinstance(metadata, dict) else ""
    output = spec.get("output", {}) if isinstance(spec, dict) else {}
    where = output.get("uri", "") if isinstance(output, dict) else ""
    return JobUid(str(uuid.uuid5(uuid.NAMESPACE_URL, f"pocketgrid:{namespace}/{name}@{where}")))
