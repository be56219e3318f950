"""What the agent knows of its engine without loading it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pocketgrid_agent import engine_facts
from pocketgrid_agent.engine_facts import UNKNOWN, EngineError, EngineFacts, ask_engine, known_facts
from pocketgrid_agent.runtime import OnnxRuntime

FACTS = EngineFacts("onnxruntime 9.9.9", ("CPUExecutionProvider",), 30)


def test_the_engine_is_asked_in_another_process_and_says_what_it_says_here() -> None:
    engine = OnnxRuntime(threads=1, spin=False)
    assert ask_engine() == EngineFacts(engine.description, engine.providers, engine.opset)


def test_the_engine_is_asked_once_until_its_package_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask() -> EngineFacts:
        asked.append(1)
        return FACTS

    monkeypatch.setattr(engine_facts, "ask_engine", ask)
    monkeypatch.setattr(engine_facts, "_identity", lambda: "one build")
    assert known_facts(tmp_path) == known_facts(tmp_path) == FACTS
    assert len(asked) == 1
    monkeypatch.setattr(engine_facts, "_identity", lambda: "another build")
    assert known_facts(tmp_path) == FACTS
    assert len(asked) == 2


@pytest.mark.parametrize("kept", ["", "null", "[]", '{"of": "build"}', '{"of": "build", "facts": {"description": 1}}'])
def test_a_damaged_note_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    (tmp_path / "engine.json").write_text(kept)
    monkeypatch.setattr(engine_facts, "ask_engine", lambda: FACTS)
    monkeypatch.setattr(engine_facts, "_identity", lambda: "build")
    assert known_facts(tmp_path) == FACTS
    assert json.loads((tmp_path / "engine.json").read_text())["facts"]["opset"] == 30


def test_an_engine_that_does_not_answer_is_unknown_and_asked_again_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> EngineFacts:
        raise EngineError("loading it ended with signal 9")

    monkeypatch.setattr(engine_facts, "ask_engine", fails)
    assert known_facts(tmp_path) == UNKNOWN
    assert not (tmp_path / "engine.json").exists()
    monkeypatch.setattr(engine_facts, "_identity", lambda: "")
    assert known_facts(tmp_path) == UNKNOWN


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("import os; os.kill(os.getpid(), 4)", "signal 4"),
        ("raise ImportError('libc++_shared.so not found')", "libc..?_shared.so not found"),
        ("print('nonsense')", "nonsense"),
        ("import sys; sys.exit(3)", "no reason given"),
    ],
)
def test_how_an_engine_fails_is_told(monkeypatch: pytest.MonkeyPatch, program: str, complaint: str) -> None:
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **options: real([sys.executable, "-c", program], **options))
    with pytest.raises(EngineError, match=complaint):
        ask_engine()
