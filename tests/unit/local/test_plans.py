"""What a manifest file may ask for, and what a person is shown."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pocketgrid.clock import ManualClock, SystemClock
from pocketgrid.errors import InvalidSpecError, PocketGridError
from pocketgrid.local import agents as agents_module
from pocketgrid.local import run as run_module
from pocketgrid.local.agents import LocalAgents
from pocketgrid.local.progress import LiveProgress
from pocketgrid.local.run import read_plan, run_plan
from pocketgrid.model.job import InputFormat, InputRef, JobSpec, ModelRef, OutputFormat, OutputRef
from pocketgrid.model.view import Explanation, JobView, Stage
from pocketgrid.settings import Settings
from tests.fakes.models import write_affine_model, write_npy

JOB = """
apiVersion: pocketgrid.dev/v1alpha1
kind: InferenceJob
metadata: {{name: {name}}}
spec:
  {more}
  model: {{uri: model.onnx, sha256: {sha256}}}
  input: {{uri: data.npy, format: NPY, columns: [{{column: data, input: x}}]}}
  output: {{uri: {output}}}
"""


def a_manifest(folder: Path, *jobs: dict[str, str]) -> Path:
    sha256 = write_affine_model(folder / "model.onnx")
    write_npy(folder / "data.npy", 100)
    path = folder / "job.yaml"
    defaults = {"name": "job", "output": "out", "more": "priority: 0", "sha256": sha256}
    path.write_text("---\n".join(JOB.format(**{**defaults, **job}) for job in jobs))
    return path


def test_identity_follows_from_name_and_output_so_that_a_second_run_goes_on(tmp_path) -> None:
    path = a_manifest(tmp_path, {}, {"name": "other", "output": "elsewhere"})
    first, again = read_plan(path, 1.0), read_plan(path, 2.0)
    assert [j.uid for j in first.jobs] == [j.uid for j in again.jobs]
    assert len({j.uid for j in first.jobs}) == 2
    assert first.jobs[0].output.uri == f"file://{tmp_path}/out"


@pytest.mark.parametrize(
    ("jobs", "reason", "words"),
    [
        pytest.param([{}, {"output": "else"}], "DuplicateJob", "two jobs are called default/job", id="same name"),
        pytest.param(
            [{}, {"name": "b", "output": "out/"}], "OutputInUse", "default/job and default/b", id="same output"
        ),
        pytest.param([{"more": "suspend: true"}], "Suspended", "set suspend to false", id="suspended"),
    ],
)
def test_plans_that_cannot_end_well_are_refused(tmp_path, jobs, reason, words) -> None:
    with pytest.raises(InvalidSpecError, match=words) as caught:
        read_plan(a_manifest(tmp_path, *jobs), 0.0)
    assert caught.value.reason == reason


def a_view(**changes) -> JobView:
    spec = JobSpec(
        uid="uid",
        namespace="default",
        name="job",
        model=ModelRef("file:///m", "0" * 64),
        input=InputRef("file:///i", InputFormat.NPY),
        output=OutputRef("file:///o", OutputFormat.PARQUET),
    )
    return replace(JobView(spec, Stage.RUNNING, items=1000), **changes)


def test_without_a_terminal_there_is_a_line_for_each_change_and_one_now_and_then() -> None:
    text, clock = io.StringIO(), ManualClock()
    with LiveProgress(Console(file=text, width=60), clock) as progress:
        for done in range(0, 400, 10):
            progress.update([a_view(items_done=done, shards_done=done)], {})
            clock.advance(1.0)
        full = Explanation("StorageFailed", "writing /a/very/long/path/that/does/not/fit/into/sixty/columns failed")
        progress.update([a_view(trouble=full)], {})
        progress.update([a_view(stage=Stage.COMPLETE)], {})
    lines = text.getvalue().splitlines()
    assert lines[0] == "default/job Running"
    assert lines[1] == "default/job Running: 100 of 1,000 items, 0 items/s on 0 devices"
    assert len(lines) == 6
    assert lines[-2] == f"default/job Running: StorageFailed: {full.message}"
    assert lines[-1] == "default/job Complete"


def test_brackets_in_messages_are_shown_as_they_are() -> None:
    text = io.StringIO()
    console = Console(file=text, width=200, force_terminal=True)
    with LiveProgress(console, ManualClock()) as progress:
        progress.update([a_view(trouble=Explanation("InputUnreadable", "[/red] row [b]7"))], {})
    assert "[/red] row [b]7" in text.getvalue()


async def test_a_job_that_none_of_the_agents_may_do_is_not_waited_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run_module, "STUCK_SECONDS", 0.2)
    path = a_manifest(tmp_path, {"more": "placement: {nodeSelector: {colour: blue}}"})
    plan = read_plan(path, 0.0)
    settings = Settings(state_dir=tmp_path / "state")
    pool = LocalAgents(count=1, threads=1, folder=tmp_path / "agents")
    with pytest.raises(PocketGridError, match="none of the agents here can go on: default/job: no ready device"):
        await run_plan(plan, pool, settings, SystemClock(), lambda *_: None)


async def test_agents_that_die_again_and_again_are_given_up_with_their_last_words(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(agents_module, "RESTART_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(agents_module, "RESTARTS", 1)
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "local-1").write_text("a file where the agent's folder should be")
    plan = read_plan(a_manifest(tmp_path, {}), 0.0)
    settings = Settings(state_dir=tmp_path / "state")
    pool = LocalAgents(count=1, threads=1, folder=folder)
    with pytest.raises(PocketGridError, match=r"1 agents? ended again and again: .*local-1"):
        await run_plan(plan, pool, settings, SystemClock(), lambda *_: None)
