"""`pocketgrid run` as a person uses it: as a process, with real agents, interrupted and killed."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow.dataset as ds
import pytest

from pocketgrid.storage.results import verify
from tests.contract.test_link import slow_job
from tests.unit.local.test_plans import a_manifest

pytestmark = pytest.mark.timeout(90)
DEADLINE_S = 30.0

SLOW = """
apiVersion: pocketgrid.dev/v1alpha1
kind: InferenceJob
metadata: {{name: {name}}}
spec:
  model: {{uri: model-512.onnx, sha256: {sha256}}}
  input: {{uri: slow.npy, format: NPY, columns: [{{column: data, input: x}}]}}
  output: {{uri: {output}}}
  sharding: {{itemsPerShard: 25}}
"""

MISSPELT = """
apiVersion: pocketgrid.dev/v1alpha1
kind: InferenceJob
metadata: {name: job}
spec:
  model: {uri: model.onnx, sha256: 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef}
  input: {uri: data.npy, format: NPY, columns: [{column: data, input: x}]}
  output: {uri: out}
  placement: {maxnodes: 3}
"""


def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.01)


def command(folder: Path, manifest: Path, *options: str) -> list[str]:
    state = ["--state-dir", str(folder / "state")]
    return [sys.executable, "-m", "pocketgrid", "run", str(manifest), *state, *options]


def agents_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(folder / "state/local/agents/models") in line:
            found.append(process)
    return found


@contextmanager
def running(folder: Path, manifest: Path, *options: str, **streams: object) -> Iterator[subprocess.Popen[str]]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    with subprocess.Popen(command(folder, manifest, *options), text=True, **streams) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            until(lambda: not agents_of(folder), "no agent is left, whatever happened")


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    spec, _ = slow_job(tmp_path, items=2000, per_shard=25, loops=40)
    path = tmp_path / "slow.yaml"
    path.write_text(SLOW.format(name="slow", sha256=spec.model.sha256, output="out-slow"))
    return path


def committed(folder: Path, name: str = "out-slow") -> int:
    """Bytes of results that are on disk, which grow with each shard."""
    return sum(p.stat().st_size for p in (folder / name / "_pocketgrid").glob("staging/*") if p.exists())


def check_slow(folder: Path, name: str = "out-slow") -> None:
    assert verify(f"file://{folder}/{name}") == []
    table = ds.dataset(folder / name, format="parquet").to_table()
    assert table["row"].to_pylist() == list(range(2000))
    found = np.array(table["y"].to_pylist(), np.float32)
    np.testing.assert_array_equal(found, np.load(folder / "slow.npy") * 2 + 1)


def test_a_run_ends_with_its_output_and_one_line_of_json_and_a_second_has_nothing_to_do(tmp_path) -> None:
    manifest = a_manifest(tmp_path, {})
    for _ in range(2):
        done = subprocess.run(
            command(tmp_path, manifest, "--json", "--agents", "1"),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        (job,) = json.loads(line)["jobs"]
        assert (job["state"], job["items"], job["done"], job["failed"]) == ("Complete", 100, 100, 0)
        assert not [line for line in done.stderr.splitlines() if not line.startswith("default/job ")], done.stderr
        assert verify(f"file://{tmp_path}/out") == []
        assert not agents_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(None, "cannot be read", id="missing"),
        pytest.param("kind: [", "job.yaml:1", id="no YAML"),
        pytest.param("apiVersion: v1\nkind: Pod\n", "kind 'Pod' cannot be run from a file", id="other kind"),
        pytest.param(MISSPELT, "did you mean maxNodes", id="misspelt field"),
    ],
)
def test_a_wrong_manifest_is_refused_at_once(tmp_path, text, words) -> None:
    manifest = tmp_path / "job.yaml"
    if text is not None:
        manifest.write_text(text)
    done = subprocess.run(command(tmp_path, manifest), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "state").exists(), "nothing was started"


def test_a_job_that_is_refused_says_why_and_ends_with_status_two(tmp_path) -> None:
    manifest = a_manifest(tmp_path, {"sha256": "f" * 64})
    options = ("--json", "--agents", "1")
    done = subprocess.run(
        command(tmp_path, manifest, *options), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 2
    (job,) = json.loads(done.stdout)["jobs"]
    assert (job["state"], job["reason"]) == ("Refused", "DigestMismatch")
    assert "default/job Refused: DigestMismatch: spec.model.sha256" in done.stderr
    assert not agents_of(tmp_path)


def test_an_interrupted_run_leaves_nothing_behind_and_is_resumed(tmp_path, slow) -> None:
    with running(tmp_path, slow, "--agents", "1") as process:
        until(lambda: committed(tmp_path) > 400_000, "some shards are committed")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert "run the same file again to go on where it stopped" in process.stderr.read()
        assert not agents_of(tmp_path)
    assert not (tmp_path / "out-slow/_manifest.json").exists(), "it was over before it was interrupted"
    before = committed(tmp_path)
    assert before > 0
    with running(tmp_path, slow, "--agents", "1", "--json", "--log-level", "info") as process:
        output, log = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
    started = next(line for line in log.splitlines() if " started job=" in line)
    assert int(started.split(" done=")[1].split()[0]) > 5, "work of the first run counts"
    assert json.loads(output)["devices"]["local-1"] < 2000
    check_slow(tmp_path)


def test_a_run_that_is_asked_to_end_before_anything_has_started_ends(tmp_path, slow) -> None:
    with running(tmp_path, slow, "--agents", "2") as process:
        until(lambda: agents_of(tmp_path), "an agent is being started")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 130


def test_a_killed_run_takes_its_agents_along_and_is_resumed(tmp_path, slow) -> None:
    with running(tmp_path, slow, "--agents", "2") as process:
        until(lambda: committed(tmp_path) > 100_000, "some shards are committed")
        assert len(agents_of(tmp_path)) == 2
        process.kill()
        process.wait()
        until(lambda: not agents_of(tmp_path), "the kernel ends the agents", 5.0)
    done = subprocess.run(command(tmp_path, slow), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    check_slow(tmp_path)


def test_an_agent_that_dies_is_started_again(tmp_path, slow) -> None:
    with running(tmp_path, slow, "--agents", "1") as process:
        until(lambda: committed(tmp_path) > 100_000, "some shards are committed")
        (agent,) = agents_of(tmp_path)
        agent.kill()
        _, log = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, log
    assert "agent ended name=local-1 status=-9 again=True" in log
    check_slow(tmp_path)


def test_two_runs_at_the_same_time_do_not_disturb_each_other(tmp_path, slow) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(slow.read_text().replace("out-slow", "out-other"))
    with running(tmp_path, slow, "--agents", "1") as first:
        until(lambda: committed(tmp_path) > 0, "the first is at work")
        first.send_signal(signal.SIGSTOP)  # or it may be done before the second has started
        with running(tmp_path, other, "--agents", "1", "--json") as second:
            until(lambda: len(agents_of(tmp_path)) == 2, "the second has an agent of its own")
            first.send_signal(signal.SIGCONT)
            output, log = second.communicate(timeout=DEADLINE_S)
            assert second.returncode == 0, log
            assert list(json.loads(output)["devices"]) == ["local-2"]
            first.communicate(timeout=DEADLINE_S)
            assert first.returncode == 0
    check_slow(tmp_path)
    check_slow(tmp_path, "out-other")


def test_a_terminal_shows_a_bar_and_a_summary(tmp_path) -> None:
    manifest = a_manifest(tmp_path, {})
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    with running(tmp_path, manifest, "--agents", "1", stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            while True:
                try:
                    piece = terminal.read(4096)
                except OSError:  # the other end has closed
                    break
                if not piece:
                    break
                shown += piece
        assert process.wait(DEADLINE_S) == 0
    text = shown.decode()
    assert "━" in text
    assert "100/100" in text
    assert "Complete" in text
    assert "local-1" in text


def test_help_names_every_option_with_its_default() -> None:
    help_command = [sys.executable, "-m", "pocketgrid", "run", "--help"]
    done = subprocess.run(help_command, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    for word in ("manifest", "--agents", "--threads", "--state-dir", "--json", "--log-level", "default: 2"):
        assert word in done.stdout
