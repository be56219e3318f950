"""The story: six strangers' devices work on a job; one lies from the start, one after it has earned trust."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hack.controlplane import ControlPlane
from hack.datasets import wordnet_glosses
from hack.demo.check import Findings, check_output
from hack.demo.manifests import JOB, NAMESPACE, Embedding, hardware_classes, inference_job
from hack.demo.scenario import JOB_DEADLINE_S, MAX_LENGTH, START_DEADLINE_S, install, kubectl_command
from hack.demo.watch import ObjectWatch
from hack.demo.world import AgentPlan, DemoError, World

TURN_AT = 0.3
"""Share of the rows done at which the second liar may begin, if it has earned trust by then."""

LIAR = Path(__file__).with_name("liar.py")

SHARDING = """\
  sharding:
    itemsPerShard: 10
  verification:
    mode: Adaptive
    comparator:
      cosine:
        minimum: "0.999"
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found."""

    findings: Findings
    liars: int
    liars_caught: int
    honest_caught: int
    redundancy: float
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether no row is wrong and exactly the liars were caught."""
        return self.findings.clean and self.liars_caught == self.liars and not self.honest_caught

    def to_json(self) -> str:
        """The demo's last line."""
        return json.dumps(
            {
                "rows": self.findings.rows,
                "wrong_rows": self.findings.mismatches + self.findings.lost + self.findings.duplicates,
                "liars": self.liars,
                "liars_caught": self.liars_caught,
                "honest_caught": self.honest_caught,
                "redundancy": round(self.redundancy, 3),
                "seconds": round(self.seconds, 1),
            }
        )


def line_up(folder: Path) -> tuple[AgentPlan, ...]:
    """Six devices of six owners; `liar-...` are over an engine that lies once their file in `folder` exists."""
    honest = [AgentPlan(f"phone-{owner}", "phone", owner) for owner in ("alice", "bob", "carol", "dave")]
    liars = [
        AgentPlan(f"liar-{owner}", "phone", owner, (str(LIAR), str(folder / f"liar-{owner}.lies")))
        for owner in ("mallory", "trudy")
    ]
    return (*honest, *liars)


def run_demo(control_plane: ControlPlane, rows: int, folder: Path, console: Console, rng: random.Random) -> Outcome:
    """Play the whole story; everything it makes lies below `folder`.

    Raises:
        DemoError: it could not be played to its end.
    """
    install(control_plane, console)
    embedding = Embedding.installed()
    texts = dict(wordnet_glosses(rows))
    data, output = folder / "glosses.jsonl", folder / "embeddings"
    data.write_text("".join(json.dumps({"synset": k, "gloss": t}) + "\n" for k, t in texts.items()))
    plans = line_up(folder)
    liars = [plan.name for plan in plans if plan.program[0] == str(LIAR)]
    world = World(control_plane, folder, plans)
    try:
        console.print("[bold]Starting the operator and six phones of six owners; two are liars")
        world.start_operator()
        console.print(f"  [red]{liars[0]}[/] lies from the start", highlight=False)
        (folder / f"{liars[0]}.lies").touch()
        world.start_agents()
        kubectl = control_plane.run_kubectl
        kubectl("apply", "-f", "-", stdin=hardware_classes())
        kubectl("apply", "-f", "-", stdin=inference_job(embedding, data, output) + SHARDING)
        started = time.monotonic()
        status = _follow_job(control_plane, world, len(texts), folder / f"{liars[1]}.lies", liars[1], console)
        seconds = time.monotonic() - started
        console.print(f"[bold]Comparing all {len(texts)} rows with bare onnxruntime")
        findings = check_output(output, texts, embedding, MAX_LENGTH, rng, sample=len(texts))
        console.print(kubectl("get", "inferencejobs,edgenodes,nodes", "-A"), highlight=False, soft_wrap=True)
        caught = {name for name in world.agents if _is_distrusted(control_plane, name)}
        return Outcome(
            findings=findings,
            liars=len(liars),
            liars_caught=len(caught & set(liars)),
            honest_caught=len(caught - set(liars)),
            redundancy=float(status.get("verification", {}).get("redundancy", "0")),
            seconds=seconds,
        )
    finally:
        world.stop()


def _follow_job(
    control_plane: ControlPlane, world: World, rows: int, signal: Path, turncoat: str, console: Console
) -> dict[str, Any]:
    columns = (TextColumn(f"[bold]{JOB}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with (
        ObjectWatch(kubectl_command(control_plane), "inferencejob", JOB, NAMESPACE) as job,
        Progress(*columns, TimeElapsedColumn(), console=console) as bar,
    ):
        task = bar.add_task(JOB, total=rows, note="")

        def step() -> bool:
            verification = job.status.get("verification", {})
            note = f"{verification.get('rowsVerified', 0)} verified, {verification.get('redundancy', '1')} x the work"
            bar.update(task, completed=job.done, note=note)
            if job.ended_badly:
                raise DemoError(f"the job ended badly: {json.dumps(job.status.get('conditions'), indent=1)}")
            if not signal.exists() and job.done >= TURN_AT * rows and _trusted_items(control_plane, turncoat) > 0:
                signal.touch()
                console.print(f"  [red]{turncoat}[/] has earned trust, and lies from now on", highlight=False)
            return job.is_true("Complete")

        world.wait_for(lambda: step() or job.done > 0, "the first results", START_DEADLINE_S)
        world.wait_for(step, "the job to complete", JOB_DEADLINE_S)
        if not signal.exists():
            raise DemoError(f"the job was done before {turncoat} could turn; run it with more --rows")
        return job.status


def _trusted_items(control_plane: ControlPlane, device: str) -> int:
    path = "{.status.trust.verifiedItems}"
    return int(control_plane.run_kubectl("get", "edgenode", device, "-o", f"jsonpath={path}") or 0)


def _is_distrusted(control_plane: ControlPlane, device: str) -> bool:
    path = '{.spec.taints[?(@.key=="pocketgrid.dev/distrusted")].key}'
    return bool(control_plane.run_kubectl("get", "node", device, "-o", f"jsonpath={path}"))
