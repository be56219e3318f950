"""Things that must never come into the tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator/__init__.py").exists()
    assert not (ROOT / "operator/operator.py").exists()
    script = "import operator; assert operator.itemgetter(0)([7]) == 7"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=30)


def test_no_registry_host_and_no_home_folder_is_named() -> None:
    # Put together here, so that this file does not name what it looks for.
    hosts = [
        r"pypi\." + "org",
        "files.pythonhosted" + r"\.org",
        r"registry\." + "npmjs",
        r"(deb|security)\.debian\." + "org",
    ]
    forbidden = re.compile("|".join([*hosts, "/ro" + "ot/", "/wo" + "rk/"]))
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found = forbidden.search(text)
        assert found is None, f"{path.relative_to(ROOT)} names {found.group()}"


def test_no_module_has_grown_a_second_idea() -> None:
    for path in tracked():
        if path.suffix == ".py" and "tests" not in path.parts and "_pb2" not in path.name:
            lines = len(path.read_text().splitlines())
            assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines; look for the second idea"


@pytest.mark.parametrize("entry", ["operator/pocketgrid/__main__.py", "edge_agent/pocketgrid_agent/__init__.py"])
def test_telemetry_is_off_before_anything_else_is_imported(entry: str) -> None:
    source = (ROOT / entry).read_text()
    first_import = re.search(r"^(from (?!__future__)|import (?!os\b))", source, re.MULTILINE)
    switch = source.index("ORT_DISABLE_TELEMETRY")
    assert first_import is None or switch < first_import.start()
