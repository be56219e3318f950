"""kopf's handlers: each hands an object to the intake or the node keeper, and is done.

kopf brings watching, finalizers and retries. It keeps no state worth the name here: what it compares objects by is
their generation, because a copy of the whole spec, which it would keep in an annotation, may be larger than
annotations can be; and every handler may run again for an object it has seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import kopf

from pocketgrid.api.v1alpha1.edge_node import EdgeNode
from pocketgrid.api.v1alpha1.hardware_class import HardwareClass
from pocketgrid.api.v1alpha1.inference_job import InferenceJob
from pocketgrid.api.v1alpha1.meta import GROUP, VERSION
from pocketgrid.api.v1alpha1.tolerance_profile import ToleranceProfile
from pocketgrid.controller.client import Cluster
from pocketgrid.controller.intake import Intake
from pocketgrid.controller.nodes import NodeKeeper

FINALIZER = f"{GROUP}/job"

WATCH_S = 10
"""How long the API server keeps one watch, whole seconds; kopf then goes on from where it was. The server says a word
two seconds before (a bookmark), so silence is never longer than this on a link that works."""

SILENCE_S = 12.0
"""A watch on which nothing has come for so long is half open; kopf then connects anew and misses nothing."""

LOGIN_PAUSE_S = 2.0
"""Between two logins, if the API server does not accept the first."""

REMOVAL_S = 30.0
"""How long a job's last commits may take before its deletion is looked at again."""


class GenerationStorage(kopf.AnnotationsDiffBaseStorage):
    """What kopf compares objects by: the generation, which grows with every change of the spec."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        """Keep the generation and nothing else."""
        essence = {"metadata": {"generation": body.metadata.get("generation", 0)}}
        return cast("kopf.BodyEssence", essence)


def build_settings() -> kopf.OperatorSettings:
    """How kopf behaves beside an engine that must not notice it."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events tell of turns in a job's status, which the publisher sees.
    settings.persistence.finalizer = FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP, v1=False)
    settings.persistence.diffbase_storage = GenerationStorage(prefix=GROUP, key="last-handled-generation", v1=False)
    # All kinds are there before it starts; looking out for new ones would take rights to read all of them.
    settings.scanning.disabled = True
    settings.watching.server_timeout = WATCH_S
    settings.watching.inactivity_timeout = SILENCE_S
    settings.watching.connect_timeout = 3.0
    settings.networking.request_timeout = 10.0
    settings.networking.error_backoffs = (0.5, 1, 2, 4)
    settings.queueing.exit_timeout = 1.0
    settings.execution.default_backoff = 2.0
    # Its last resort is to kill the process, jobs and all, some time after a stop it thinks has hung.
    settings.process.ultimate_exiting_timeout = None
    return settings


def build_registry(
    cluster: Cluster, intake: Intake, nodes: NodeKeeper, listed: Callable[[], None]
) -> kopf.OperatorRegistry:
    """All handlers, in a registry of their own.

    Args:
        listed: called for each object that comes from a list: kopf lists when it begins and when a watch has expired,
            and a list does not tell what was deleted before it.
    """
    registry = kopf.OperatorRegistry()
    jobs = (GROUP, VERSION, InferenceJob.resource.plural)
    classes = (GROUP, VERSION, HardwareClass.resource.plural)
    edge_nodes = (GROUP, VERSION, EdgeNode.resource.plural)
    profiles = (GROUP, VERSION, ToleranceProfile.resource.plural)
    logins = 0

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        nonlocal logins
        logins += 1
        if logins > 1:
            # What was refused may be refused again: a token can be replaced, but not at any moment.
            await asyncio.sleep(LOGIN_PAUSE_S)
        return await cluster.kopf_login()

    @kopf.on.resume(*jobs, registry=registry)
    @kopf.on.create(*jobs, registry=registry)
    @kopf.on.update(*jobs, registry=registry)
    async def take_job(body: kopf.Body, patch: kopf.Patch, **_: Any) -> None:
        for key, value in intake.take_job(body).items():
            patch.metadata.annotations[key] = value

    @kopf.on.delete(*jobs, registry=registry)
    async def delete_job(uid: str, **_: Any) -> None:
        try:
            async with asyncio.timeout(REMOVAL_S):
                await intake.drop_job(uid)
        except TimeoutError as exc:
            raise kopf.TemporaryError("the job's last commits are still being written", delay=2) from exc

    @kopf.on.event(*jobs, registry=registry)
    async def see_job(event: Mapping[str, Any], body: kopf.Body, uid: str, **_: Any) -> None:
        if event["type"] is None:
            listed()
        if event["type"] == "DELETED":
            await intake.drop_job(uid)
        else:
            intake.saw_job(body)

    @kopf.on.event(*classes, registry=registry)
    async def see_class(event: Mapping[str, Any], body: kopf.Body, name: str, uid: str, **_: Any) -> None:
        if event["type"] is None:
            listed()
        if event["type"] == "DELETED":
            intake.drop_class(name, uid)
        else:
            intake.take_class(body)

    @kopf.on.event(*profiles, registry=registry)
    async def see_profile(event: Mapping[str, Any], body: kopf.Body, name: str, uid: str, **_: Any) -> None:
        if event["type"] is None:
            listed()
        if event["type"] == "DELETED":
            intake.drop_profile(name, uid)
        else:
            intake.take_profile(body)

    @kopf.on.event(*edge_nodes, registry=registry)
    async def see_edge_node(event: Mapping[str, Any], body: kopf.Body, name: str, uid: str, **_: Any) -> None:
        if event["type"] is None:
            listed()
        if event["type"] == "DELETED":
            intake.drop_edge_node(name, uid)
        else:
            intake.take_edge_node(body)

    @kopf.on.event("", "v1", "nodes", registry=registry)
    async def see_node(event: Mapping[str, Any], body: kopf.Body, **_: Any) -> None:
        if event["type"] is None:
            listed()
        if event["type"] == "DELETED":
            nodes.gone(body)
        else:
            nodes.seen(body)

    return registry
