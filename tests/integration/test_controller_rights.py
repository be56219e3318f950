"""The operator works with the rights below and no others: what an installation has to grant it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hack.controlplane import ControlPlane
from pocketgrid.controller.client import EDGE_NODES, EVENTS, JOBS, LEASES, NODES, Cluster
from pocketgrid.controller.enrolment_stores import (
    EdgeNodeRegister,
    SecretAuthority,
    SecretTokens,
    publish_gateway,
    read_gateway,
)
from pocketgrid.gateway.authority import load_keyring
from pocketgrid.gateway.register import DeviceRecord
from pocketgrid.gateway.tokens import make_token
from pocketgrid.model.ids import DeviceName
from tests.integration.controller_world import World, a_world, eventually, has_condition, ready_condition

pytestmark = pytest.mark.cluster

CLUSTER_RULES = [
    {
        "apiGroups": ["pocketgrid.dev"],
        "resources": ["inferencejobs"],
        "verbs": ["get", "list", "watch", "patch", "delete"],
    },
    {
        "apiGroups": ["pocketgrid.dev"],
        "resources": ["hardwareclasses", "toleranceprofiles"],
        "verbs": ["list", "watch"],
    },
    {"apiGroups": ["pocketgrid.dev"], "resources": ["edgenodes"], "verbs": ["list", "watch", "create", "patch"]},
    {
        "apiGroups": ["pocketgrid.dev"],
        "resources": ["inferencejobs/status", "hardwareclasses/status", "edgenodes/status"],
        "verbs": ["patch"],
    },
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch", "create", "patch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
]
NODE_LEASE_RULES = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "patch"]}]
ELECTION_RULES = [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}]

ENROLMENT_RULES = [{"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["get", "create", "update"]}]
"""Of the gateway, in the operator's own namespace."""


@pytest.fixture
async def world(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(control_plane, tmp_path) as made:
        yield made


def grant(world: World, kind: str, rules: list[dict[str, Any]], namespace: str | None) -> list[dict[str, Any]]:
    metadata = {"name": f"operator-{world.mark}", **({"namespace": namespace} if namespace else {})}
    group = "rbac.authorization.k8s.io"
    account = {"kind": "ServiceAccount", "name": "operator", "namespace": world.namespace}
    return [
        {"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": kind, "name": metadata["name"]},
            "subjects": [account],
        },
    ]


@pytest.fixture
async def humble_kubeconfig(world: World) -> AsyncIterator[Path]:
    """A kubeconfig of a service account with those rights."""
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "operator", "namespace": world.namespace},
    }
    objects = [
        account,
        *grant(world, "ClusterRole", CLUSTER_RULES, None),
        *grant(world, "Role", NODE_LEASE_RULES, "kube-node-lease"),
        *grant(world, "Role", [*ELECTION_RULES, *ENROLMENT_RULES], world.namespace),
    ]
    for body in objects:
        await world.kubectl("create", "--filename=-", stdin=body)
    path = f"/api/v1/namespaces/{world.namespace}/serviceaccounts/operator/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    answer = json.loads(await world.kubectl("create", f"--raw={path}", "--filename=-", stdin=request))
    lines = world.control_plane.kubeconfig.read_text(encoding="utf-8").splitlines()
    told = [f"    token: {answer['status']['token']}" if line.strip().startswith("token:") else line for line in lines]
    file = world.folder / "humble"
    file.write_text("\n".join(told), encoding="utf-8")
    yield file
    for body in objects[1:]:
        where = [f"--namespace={body['metadata']['namespace']}"] if "namespace" in body["metadata"] else []
        await world.kubectl("delete", body["kind"], body["metadata"]["name"], *where)


async def test_everything_works_with_the_least_rights(world: World, humble_kubeconfig: Path) -> None:
    async with world.operator(kubeconfig=humble_kubeconfig) as operator:
        name = world.name("phones")
        selector = {"nodeSelector": {"matchLabels": {"pocketgrid.dev/owner": world.mark}}}
        shown = {"apiVersion": "pocketgrid.dev/v1alpha1", "kind": "HardwareClass", "metadata": {"name": name}}
        await world.kubectl("create", "--filename=-", stdin={**shown, "spec": selector})
        phone = operator.device()
        phone.attach()
        job = world.job(ttlSecondsAfterFinished=3, placement={"hardwareClasses": [name]})
        await world.kubectl("create", "--validate=false", "--filename=-", stdin=job)
        await world.job_with("job", Complete="True")
        await eventually(lambda: world.get(NODES, phone.name), lambda n: ready_condition(n).get("status") == "True")
        await eventually(lambda: world.cluster.get(LEASES, phone.name, "kube-node-lease"), bool)
        await eventually(lambda: world.get(EDGE_NODES, phone.name), lambda e: has_condition(e, "NodeBound", "True"))
        await world.kubectl("wait", f"hardwareclass/{name}", "--for=condition=Ready", "--timeout=10s")
        events, _ = await world.cluster.list(EVENTS)
        assert any(e["reason"] == "Complete" and e["metadata"]["namespace"] == world.namespace for e in events)
        with pytest.raises(AssertionError, match="not found"):
            await eventually(lambda: world.get(JOBS, "job"), lambda _: False, within=8)


async def test_devices_join_with_the_least_rights(world: World, humble_kubeconfig: Path) -> None:
    async with world.operator(kubeconfig=humble_kubeconfig), Cluster.connect(humble_kubeconfig) as humble:
        keyring = await load_keyring(SecretAuthority(humble, world.namespace), time.time())
        made = make_token(owner=world.mark, now=time.time(), ttl_s=60).token
        await SecretTokens(world.cluster, world.namespace).create(made)
        assert await SecretTokens(humble, world.namespace).redeem(made.token_id, "mark", time.time())
        register = EdgeNodeRegister()
        register.serve(humble, lambda _: None)
        await register.enrol(DeviceRecord(DeviceName(world.name("phone")), "ab" * 32, world.mark))
        assert (await world.get(EDGE_NODES, world.name("phone")))["spec"]["keySHA256"] == "ab" * 32
        for _ in range(2):
            await publish_gateway(humble, world.namespace, "grid:7444", keyring.authorities[0].sha256)
        assert await read_gateway(world.cluster, world.namespace) == ("grid:7444", keyring.authorities[0].sha256)


async def test_rights_taken_away_for_a_while_stop_no_job(
    world: World, humble_kubeconfig: Path, caplog: pytest.LogCaptureFixture
) -> None:
    binding = f"operator-{world.mark}"
    async with world.operator(kubeconfig=humble_kubeconfig) as operator:
        caplog.set_level(logging.INFO, "pocketgrid")
        phone = operator.device(items_per_second=300.0)
        phone.attach()
        job = world.job("long", items=30_000)
        await world.kubectl("create", "--validate=false", "--filename=-", stdin=job)
        await world.job_with("long", Progressing="True/Working")
        bound = await world.kubectl("get", "clusterrolebinding", binding, "--output=json")
        (view,) = operator.engine.job_views().values()

        def said() -> list[str]:
            return [r.getMessage() for r in caplog.records if r.name.startswith("pocketgrid")]

        told = ("cannot patch resource", "cannot list resource")
        await world.kubectl("delete", "clusterrolebinding", binding)
        try:
            # Each watch ends some time, and is then refused as well.
            await eventually(
                lambda: asyncio.sleep(0, said()), lambda lines: all(any(t in line for line in lines) for t in told), 40
            )
        finally:
            body = json.loads(bound)
            del body["metadata"]["uid"], body["metadata"]["resourceVersion"]
            await world.kubectl("create", "--filename=-", stdin=body)
        for line in (line for line in said() if any(part in line for part in told)):
            assert "grant the operator's account this right" in line
            assert 'API group "pocketgrid.dev"' in line or 'resource "nodes' in line
        now = operator.engine.job_view(view.uid)
        assert now is not None
        assert now.items_done > view.items_done
        await eventually(lambda: world.get(JOBS, "long"), lambda b: b["status"]["items"]["done"] >= now.items_done, 30)
        await world.kubectl("create", "--validate=false", "--filename=-", stdin=world.job("new", priority=5))
        await world.job_with("new", Complete="True", within=20)
        assert not operator.task.done()
