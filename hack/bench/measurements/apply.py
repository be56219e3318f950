"""How long from `kubectl apply` to the first result that cannot be lost any more, on a real API server?

Everything else is running already: the API server, the operator and two agents that have the model in their cache. The
time of kubectl itself, a process that starts, discovers the API and sends one object, is part of the figure.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hack.bench import workloads
from hack.bench.errors import BenchError
from hack.bench.figures import Definition, Figure
from hack.bench.grid import committed_shards
from hack.bench.measurements.base import AGENTS, Conditions, Measurement, median
from hack.controlplane import ControlPlane, ensure
from hack.controlplane.child import Child
from hack.controlplane.errors import last_lines
from hack.joining import invite

CRDS = Path(__file__).parents[3] / "crds"
NAMESPACE = "pocketgrid-system"
ROWS = 256
POLL_S = 0.005
DEADLINE_S = 120.0
STOP_S = 10.0
RUNS_PER_ROUND = 3

APPLY = Definition(
    name="apply_to_first_commit_seconds",
    unit="s",
    goal=2.0,
    at_least=False,
    meaning="`kubectl apply` of a MiniLM job to its first committed shard; API server, operator and two agents are up",
    origin="no slower than `pocketgrid run`, which starts its processes first",
)


def _run(conditions: Conditions) -> Sequence[Figure]:
    workload = workloads.embedding(conditions.folder / "rows", ROWS)
    say = conditions.progress.say
    say("starting an API server, the operator and two agents")
    totals, kubectls = [], []
    with ControlPlane(ensure()) as control_plane, _running(control_plane, conditions.folder) as operator:
        _apply_once(control_plane, operator, workload, conditions.folder, 0)
        for number in range(1, RUNS_PER_ROUND * conditions.rounds + 1):
            total, kubectl = _apply_once(control_plane, operator, workload, conditions.folder, number)
            totals.append(total)
            kubectls.append(kubectl)
            say(f"apply {number}/{RUNS_PER_ROUND * conditions.rounds}: {total:.2f} s, of which kubectl {kubectl:.2f} s")
    return (Figure(APPLY, tuple(totals), {"kubectl_seconds": median(kubectls)}),)


@contextmanager
def _running(control_plane: ControlPlane, folder: Path) -> Iterator[Child]:
    """An operator and agents around the API server; gives the operator."""
    kubectl = control_plane.run_kubectl
    # An API server older than 1.25 knows no CEL rules, and kubectl refuses to send it fields it does not know.
    kubectl("apply", "-f", str(CRDS), "--validate=false")
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CRDS))
    kubectl("apply", "-f", "-", stdin=f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n")
    address = f"127.0.0.1:{_free_port()}"
    state = folder / "operator"
    context = ["--context", control_plane.source.context] if control_plane.source.context else []
    where = ["--namespace", NAMESPACE]
    operator = _child(
        "operator",
        folder,
        [
            "pocketgrid", "operator", "--kubeconfig", str(control_plane.kubeconfig), *context,
            *where, "--gateway-address", address, "--enrolment-port", "0", "--state-dir", str(state),
            "--log-level", "warning",
        ],
    )  # fmt: skip
    children = [operator]
    operator.start()
    try:
        _wait_for_listener(address, operator)
        invitation = invite("bench", AGENTS, ["--kubeconfig", str(control_plane.kubeconfig), *context, *where])
        for number in range(1, AGENTS + 1):
            name = f"bench-{number}"
            agent = _child(
                name,
                folder,
                [
                    "pocketgrid_agent", *invitation, "--name", name, "--threads", "1",
                    "--state-dir", str(folder / name), "--cache-dir", str(folder / "models"),
                ],
            )  # fmt: skip
            children.append(agent)
            agent.start()
        yield operator
    finally:
        for child in reversed(children):
            child.stop()


def _apply_once(
    control_plane: ControlPlane, operator: Child, workload: workloads.Workload, folder: Path, number: int
) -> tuple[float, float]:
    """Seconds from before kubectl starts to the first commit, and to kubectl's end."""
    name = f"bench-{number}"
    output = folder / f"output-{number}"
    document = json.dumps(workload.document(output, name=name))
    started = time.monotonic()
    control_plane.run_kubectl("apply", "--validate=false", "-f", "-", stdin=document)
    applied = time.monotonic()
    # kubectl takes less than the quickest first commit can, so nothing is missed by looking only now.
    while not committed_shards(output):
        operator.require_running()
        if time.monotonic() - started > DEADLINE_S:
            said = control_plane.run_kubectl("get", "inferencejob", name, "-o", "yaml")
            raise BenchError(f"job {name} committed nothing:\n{said}\n{last_lines(operator.log)}")
        time.sleep(POLL_S)
    committed = time.monotonic()
    # With the next job this one would share the agents.
    control_plane.run_kubectl("wait", "--for=condition=Complete", "--timeout=60s", f"inferencejob/{name}")
    return committed - started, applied - started


def _child(name: str, folder: Path, module: list[str]) -> Child:
    command = [sys.executable, "-m", *module]
    return Child(name, command, log=folder / f"{name}.log", folder=folder, stop_deadline_s=STOP_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_listener(address: str, operator: Child) -> None:
    host, _, port = address.rpartition(":")
    end = time.monotonic() + DEADLINE_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        operator.require_running()
        if time.monotonic() > end:
            raise BenchError(f"the operator does not listen; the end of its log:\n{last_lines(operator.log)}")
        time.sleep(POLL_S)


MEASUREMENT = Measurement("apply", (APPLY,), _run)
