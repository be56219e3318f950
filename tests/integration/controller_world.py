"""A controller with a real engine against the real API server, and the means to look at both from outside."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hack.controlplane import ControlPlane, ControlPlaneError
from pocketgrid.clock import SystemClock
from pocketgrid.controller.client import CLASSES, EDGE_NODES, JOBS, NODES, PROFILES, Cluster, Endpoint, NotFoundError
from pocketgrid.controller.run import run_controller
from pocketgrid.engine.engine import Engine
from pocketgrid.errors import PeerError
from pocketgrid.model.device import DeviceKind
from pocketgrid.settings import EngineSettings
from tests.fakes.devices import FakeDevice, identity
from tests.fakes.models import write_affine_model, write_npy

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = EngineSettings(tick_seconds=0.05, reconnect_grace_seconds=0.2, readmission_seconds=0.2)
PATIENCE_S = 20.0
"""For what has no promised time."""


async def eventually(
    probe: Callable[[], Awaitable[Any]], until: Callable[[Any], Any], within: float = PATIENCE_S
) -> tuple[Any, float]:
    """Ask until the answer is right; the answer, and how many seconds it took."""
    began = time.monotonic()
    last: Any = None
    while time.monotonic() - began < within:
        try:
            last = await probe()
            if until(last):
                return last, time.monotonic() - began
        except NotFoundError as error:
            last = error
        await asyncio.sleep(0.03)
    raise AssertionError(f"not within {within} s; last seen: {last}")


@dataclass
class World:
    """One test's corner of the cluster. Everything in it is named after the test."""

    control_plane: ControlPlane
    cluster: Cluster
    folder: Path
    mark: str = field(default_factory=lambda: f"t{secrets.token_hex(3)}")

    @property
    def namespace(self) -> str:
        return f"pg-{self.mark}"

    def name(self, what: str) -> str:
        return f"{what}-{self.mark}"

    async def kubectl(self, *arguments: str, stdin: Any = None) -> str:
        text = "" if stdin is None else json.dumps(stdin)
        return await asyncio.to_thread(self.control_plane.run_kubectl, *arguments, stdin=text)

    @asynccontextmanager
    async def operator(self, **changes: Any) -> AsyncIterator[Operator]:
        clock = changes.get("clock") or SystemClock()
        async with Engine(SETTINGS, clock, self.folder / "models", nodes_from_facts=False) as engine:
            operator = Operator(self, engine)
            arguments: dict[str, Any] = {
                "kubeconfig": self.control_plane.kubeconfig,
                "namespace": self.namespace,
                "stop": operator.stop,
                "ready": operator.ready,
                **changes,
            }
            operator.task = asyncio.create_task(run_controller(engine, **arguments))
            try:
                await operator.until_ready()
                yield operator
            finally:
                for device in operator.devices:
                    await device.stop()
                operator.stop.set()
                await asyncio.wait({operator.task}, timeout=PATIENCE_S)
                assert operator.task.done(), "the controller does not stop"
                if not operator.failure_expected:
                    operator.task.result()

    def job(self, name: str = "job", *, items: int = 60, per_shard: int = 10, **spec: Any) -> dict[str, Any]:
        """An InferenceJob over data and a model that are there."""
        data, model = self.folder / f"{name}.npy", self.folder / "model.onnx"
        write_npy(data, items)
        sha256 = write_affine_model(model)
        body = {
            "model": {"uri": f"file://{model}", "sha256": sha256},
            "input": {"uri": f"file://{data}", "format": "NPY", "columns": [{"column": "data", "input": "x"}]},
            "output": {"uri": f"file://{self.folder}/out-{name}"},
            "sharding": {"itemsPerShard": per_shard, "leaseSeconds": 1},
            "placement": {"nodeSelector": {"pocketgrid.dev/owner": self.mark}},
        }
        return {
            "apiVersion": "pocketgrid.dev/v1alpha1",
            "kind": "InferenceJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {**body, **spec},
        }

    async def get(self, endpoint: Endpoint, name: str) -> dict[str, Any]:
        return await self.cluster.get(endpoint, name, self.namespace if endpoint.namespaced else "")

    async def job_with(self, name: str, within: float = PATIENCE_S, **conditions: str) -> dict[str, Any]:
        """The job, once its conditions are these: ``Complete="True"`` or ``Accepted="False/ImmutableField"``."""

        def holds(body: dict[str, Any]) -> bool:
            return all(has_condition(body, kind, wanted) for kind, wanted in conditions.items())

        return (await eventually(lambda: self.get(JOBS, name), holds, within))[0]

    async def clean_up(self) -> None:
        """Remove what bears this test's mark. The cluster may be somebody's own, with Nodes they need."""
        for endpoint in (JOBS, CLASSES, PROFILES, EDGE_NODES, NODES):
            for body in (await self.cluster.list(endpoint))[0]:
                metadata = body["metadata"]
                if self.mark in metadata["name"] or metadata.get("namespace") == self.namespace:
                    await self._remove(endpoint, body)

    async def _remove(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        metadata = body["metadata"]
        resource = endpoint.plural if "v1alpha1" not in endpoint.prefix else f"{endpoint.plural}.pocketgrid.dev"
        where = [f"--namespace={metadata['namespace']}"] if endpoint.namespaced else []
        try:
            if metadata.get("finalizers"):
                patch = '--patch={"metadata":{"finalizers":null}}'
                await self.kubectl("patch", resource, metadata["name"], *where, "--type=merge", patch)
            await self.cluster.delete(endpoint, metadata["name"], metadata.get("namespace", ""), uid=metadata["uid"])
        except (PeerError, ControlPlaneError):
            pass


class Operator:
    """A running controller and its engine."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.world = world
        self.engine = engine
        self.stop, self.ready = asyncio.Event(), asyncio.Event()
        self.devices: list[FakeDevice] = []
        self.failure_expected = False
        self.task: asyncio.Task[None]

    async def until_ready(self, within: float = PATIENCE_S) -> None:
        waiting = asyncio.create_task(self.ready.wait())
        done, _ = await asyncio.wait({waiting, self.task}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.task in done:
            self.task.result()
        assert waiting in done, "the controller does not get ready"

    def device(self, name: str = "phone", **changes: Any) -> FakeDevice:
        """A device of this test, not attached yet; `changes` are to its identity."""
        speed = changes.pop("items_per_second", 2_000.0)
        device = FakeDevice(self.engine, self.world.name(name), items_per_second=speed)
        base = identity(device.name, owner=self.world.mark, kind=DeviceKind.PHONE)
        device.identity = replace(base, **changes)
        self.devices.append(device)
        return device


def has_condition(body: dict[str, Any], kind: str, wanted: str) -> bool:
    """Whether a condition is ``status`` or ``status/reason``."""
    status, _, reason = wanted.partition("/")
    return any(
        c["type"] == kind and c["status"] == status and reason in ("", c["reason"])
        for c in (body.get("status") or {}).get("conditions", ())
    )


def ready_condition(body: dict[str, Any]) -> dict[str, Any]:
    return next((c for c in body.get("status", {}).get("conditions", ()) if c["type"] == "Ready"), {})


@asynccontextmanager
async def a_world(control_plane: ControlPlane, folder: Path) -> AsyncIterator[World]:
    async with Cluster.connect(control_plane.kubeconfig) as cluster:
        world = World(control_plane, cluster, folder)
        await world.kubectl("apply", f"--filename={ROOT / 'crds'}", "--validate=false")
        await world.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        await world.kubectl("create", "namespace", world.namespace)
        for endpoint in (JOBS, CLASSES, PROFILES, EDGE_NODES):
            # Established is not yet served.
            await eventually(lambda e=endpoint: cluster.list(e), lambda _: True)
        try:
            yield world
        finally:
            await world.clean_up()
