"""What the README tells people to type exists, and what it shows is accepted."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pocketgrid.api.convert import to_job_spec
from pocketgrid.model.trust import VerificationMode

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/benchmarks.md", "edge_agent/README.md"]
README = (ROOT / "README.md").read_text()


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def shell_lines() -> list[str]:
    lines = []
    for page in ("README.md", "CONTRIBUTING.md"):
        for block in blocks("sh", page):
            lines += [line.split("#")[0].strip() for line in block.splitlines() if line.split("#")[0].strip()]
    return lines


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [line.split()[1] for line in shell_lines() if line.startswith("make ")]
    assert {"demo", "test"} <= set(named)
    assert set(named) <= targets


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("pocketgrid ")])
def test_every_command_and_option_exists(line: str) -> None:
    words = line.split()
    helped = subprocess.run(
        [sys.executable, "-m", "pocketgrid", *itertools.takewhile(str.isalpha, words[1:3]), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin", "TERM": "dumb"},
        check=True,
    )
    for option in [w for w in words if w.startswith("--")]:
        assert option in helped.stdout


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert [line for line in script.splitlines() if line.startswith("make")] == ["make test"]


def test_the_job_shown_is_a_valid_job() -> None:
    text, verification = blocks("yaml")
    body = yaml.safe_load(text)
    body["metadata"]["uid"] = "0"
    spec = to_job_spec(body)
    assert spec.placement.hardware_classes == ("phones", "boards")
    body["spec"] |= yaml.safe_load(verification)["spec"]
    assert to_job_spec(body).verification.mode is VerificationMode.ADAPTIVE


def test_the_demos_last_line_has_the_keys_shown() -> None:
    from hack.demo.check import Findings
    from hack.demo.scenario import Outcome

    shown = re.findall(r'"(\w+)":', blocks("json")[0])
    said = re.findall(r'"(\w+)":', Outcome(Findings(1, 0, 0, 0), 1, 1, 1.0).to_json())
    assert shown == said


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
