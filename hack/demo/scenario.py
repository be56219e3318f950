"""The story: a job runs while an agent is killed, the operator is killed and comes back, and a Node is cordoned."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hack.controlplane import ControlPlane
from hack.datasets import wordnet_glosses
from hack.demo.check import Findings, check_output
from hack.demo.manifests import JOB, NAMESPACE, Embedding, hardware_classes, inference_job
from hack.demo.watch import ObjectWatch
from hack.demo.world import AGENTS, SYSTEM_NAMESPACE, DemoError, World

CRDS = Path(__file__).resolve().parents[2] / "crds"
MAX_LENGTH = 128
JOB_DEADLINE_S = 900.0
START_DEADLINE_S = 120.0
KILL_AGENT_AT, KILL_OPERATOR_AT, CORDON_AT = 0.15, 0.35, 0.6
"""Shares of the rows done at which each blow falls."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found."""

    findings: Findings
    agents_killed: int
    operator_restarts: int
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, doubled or wrong."""
        return self.findings.clean

    def to_json(self) -> str:
        """The demo's last line."""
        return json.dumps(
            {
                "rows": self.findings.rows,
                "lost": self.findings.lost,
                "duplicates": self.findings.duplicates,
                "mismatches": self.findings.mismatches,
                "agents": len(AGENTS),
                "agents_killed": self.agents_killed,
                "operator_restarts": self.operator_restarts,
                "seconds": round(self.seconds, 1),
                "items_per_second": round(self.findings.rows / self.seconds, 1),
            }
        )


@dataclass(slots=True)
class Blow:
    """Something bad that happens when a share of the rows is done."""

    at: float
    title: str
    strike: Callable[[], None]


def run_demo(control_plane: ControlPlane, rows: int, folder: Path, console: Console, rng: random.Random) -> Outcome:
    """Play the whole story; everything it makes lies below `folder`.

    Raises:
        DemoError: it could not be played to its end.
    """
    kubectl = control_plane.run_kubectl
    install(control_plane, console)
    embedding = Embedding.installed()
    texts = dict(wordnet_glosses(rows))
    data, output = folder / "glosses.jsonl", folder / "embeddings"
    data.write_text("".join(json.dumps({"synset": k, "gloss": t}) + "\n" for k, t in texts.items()))
    world = World(control_plane, folder, AGENTS)
    try:
        console.print("[bold]Starting the operator and four agents: two phones, two boards, of two owners")
        world.start_operator()
        world.start_agents()
        kubectl("apply", "-f", "-", stdin=hardware_classes())
        kubectl("apply", "-f", "-", stdin=inference_job(embedding, data, output))
        started = time.monotonic()
        blows = _blows(control_plane, world, console)
        _follow_job(control_plane, world, len(texts), blows, console)
        seconds = time.monotonic() - started
        console.print(f"[bold]Comparing {min(300, rows)} rows of {len(texts)} with bare onnxruntime")
        findings = check_output(output, texts, embedding, MAX_LENGTH, rng)
        shown = kubectl("get", "inferencejobs,edgenodes,hardwareclasses,nodes", "-A")
        console.print(shown, highlight=False, soft_wrap=True)
        return Outcome(findings, agents_killed=1, operator_restarts=1, seconds=seconds)
    finally:
        world.stop()


def install(control_plane: ControlPlane, console: Console) -> None:
    """Make what every demonstration needs: our kinds, and two namespaces."""
    kubectl = control_plane.run_kubectl
    console.print("[bold]Installing CustomResourceDefinitions")
    # An API server older than 1.25 knows no CEL rules, and kubectl refuses to send it fields it does not know.
    kubectl("apply", "-f", str(CRDS), "--validate=false")
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CRDS))
    for namespace in (SYSTEM_NAMESPACE, NAMESPACE):
        kubectl("apply", "-f", "-", stdin=f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n")


def kubectl_command(control_plane: ControlPlane) -> list[str]:
    """The command kubectl with the options that name the cluster."""
    command = [str(control_plane.kubectl), "--kubeconfig", str(control_plane.kubeconfig)]
    if control_plane.source.context:
        command += ["--context", control_plane.source.context]
    return command


def _blows(control_plane: ControlPlane, world: World, console: Console) -> list[Blow]:
    def kill_agent() -> None:
        pid = world.kill(world.agents["phone-2"])
        console.print(f"  [red]SIGKILL[/] agent phone-2 (process {pid})", highlight=False)

    def kill_operator() -> None:
        pid = world.kill(world.operator)
        console.print(f"  [red]SIGKILL[/] operator (process {pid}); starting it again", highlight=False)
        world.start_operator()

    def cordon() -> None:
        said = control_plane.run_kubectl("cordon", "board-2")
        console.print(f"  [yellow]kubectl cordon[/] board-2: {said.strip()}", highlight=False)

    return [
        Blow(KILL_AGENT_AT, "kill an agent", kill_agent),
        Blow(KILL_OPERATOR_AT, "kill the operator", kill_operator),
        Blow(CORDON_AT, "cordon a Node", cordon),
    ]


def _follow_job(control_plane: ControlPlane, world: World, rows: int, blows: Iterable[Blow], console: Console) -> None:
    waiting = list(blows)
    columns = (TextColumn(f"[bold]{JOB}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with (
        ObjectWatch(kubectl_command(control_plane), "inferencejob", JOB, NAMESPACE) as job,
        Progress(*columns, TimeElapsedColumn(), console=console) as bar,
    ):
        task = bar.add_task(JOB, total=rows, note="")

        def step() -> bool:
            bar.update(task, completed=job.done, note=_note(job))
            if job.ended_badly:
                raise DemoError(f"the job ended badly: {json.dumps(job.status.get('conditions'), indent=1)}")
            if waiting and job.done >= waiting[0].at * rows:
                waiting.pop(0).strike()
            return job.is_true("Complete")

        world.wait_for(lambda: step() or job.done > 0, "the first results", START_DEADLINE_S)
        world.wait_for(step, "the job to complete", JOB_DEADLINE_S)
    if waiting:
        raise DemoError(f"the job was done before it was time to {waiting[0].title}; run it with more --rows")


def _note(job: ObjectWatch) -> str:
    stalled = job.condition("Stalled")
    if stalled.get("status") == "True":
        return f"[red]{stalled.get('reason')}: {stalled.get('message')}"
    rate = job.status.get("throughput", {}).get("itemsPerSecond", "0")
    devices = sum(int(c.get("devices", 0)) for c in job.status.get("placement", {}).get("classes", []))
    return f"{float(rate):.0f} items/s on {devices} devices"
