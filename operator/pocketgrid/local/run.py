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
from pocketgrid.errors import InvalidSpecError, PocketGridError
from pocketgrid.gateway.server import Gateway
from pocketgrid.local.agents import AgentPool, LocalAgents
from pocketgrid.model.device import HardwareClass
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.job import JobSpec
from pocketgrid.model.view import DeviceView, JobView, Stage
from pocketgrid.settings import Settings

REFRESH_SECONDS = 0.25

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
    jobs = []
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
    return LocalPlan(tuple(jobs), classes)


async def run_plan(
    plan: LocalPlan, agents: LocalAgents, settings: Settings, clock: Clock, observe: Observer
) -> LocalOutcome:
    """Carry out `plan` with `agents`; returns when every job has ended.

    Raises:
        PocketGridError: the gateway cannot start, or no agent stays alive.
    """
    async with (
        Engine(settings.engine, clock, settings.state_dir / "models", nodes_from_facts=True) as engine,
        Gateway(engine, settings.gateway, clock, settings.state_dir / "gateway") as gateway,
        # Agents take longest to start, so they go first.
        AgentPool(agents, gateway) as pool,
    ):
        engine.set_classes(plan.classes)
        for spec in plan.jobs:
            engine.submit(spec)
        revision = 0
        while True:
            revision = await engine.changed(revision, REFRESH_SECONDS)
            views = [v for spec in plan.jobs if (v := engine.job_view(spec.uid)) is not None]
            devices = engine.device_views()
            observe(views, devices)
            if all(v.stage.terminal for v in views):
                return LocalOutcome(tuple(views), devices)
            if pool.all_failed:
                raise PocketGridError(
                    f"all {agents.count} agents ended again and again; run with --log-level info to see why"
                )
            # No faster than a person can see; the jobs need the processor more.
            await asyncio.sleep(REFRESH_SECONDS / 5)


def _identity(body: Mapping[str, object]) -> str:
    metadata, spec = body.get("metadata"), body.get("spec")
    name = metadata.get("name", "") if isinstance(metadata, dict) else ""
    namespace = metadata.get("namespace", "default") if isinstance(metadata, dict) else ""
    output = spec.get("output", {}) if isinstance(spec, dict) else {}
    where = output.get("uri", "") if isinstance(output, dict) else ""
    return JobUid(str(uuid.uuid5(uuid.NAMESPACE_URL, f"pocketgrid:{namespace}/{name}@{where}")))
