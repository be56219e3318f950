"""crds/ is what the types say."""

from __future__ import annotations

from pathlib import Path

from hack.gen_crds import KINDS, main

COMMITTED = Path(__file__).resolve().parents[2] / "crds"


def test_generating_the_crds_again_changes_nothing(tmp_path: Path) -> None:
    assert main(tmp_path) == 0
    fresh = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in COMMITTED.glob("*.yaml")}
    assert committed == fresh
    assert len(fresh) == len(KINDS)


def test_generating_removes_the_file_of_a_kind_that_is_gone(tmp_path: Path) -> None:
    stale, foreign = tmp_path / "pocketgrid.dev_oldthings.yaml", tmp_path / "README.md"
    stale.touch()
    foreign.touch()
    main(tmp_path)
    assert not stale.exists()
    assert foreign.exists()
