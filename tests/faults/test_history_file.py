"""A history survives what it is there to explain: kills, full disks, restarts."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from pocketgrid.errors import StoreError
from pocketgrid.history import HistoryFile, read_history

WRITER = """
import sys
from pathlib import Path
from pocketgrid.history import HistoryFile
history = HistoryFile(Path(sys.argv[1]), {"role": "test"})
number = 0
while True:
    number += 1
    history.record("step", {"number": number, "padding": "x" * (number % 3000)})
    print(number, flush=True)
"""


def test_a_killed_process_has_told_all_it_did(tmp_path) -> None:
    path = tmp_path / "deep" / "history.jsonl"
    for round_ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
            said = 0
            while said < 200:
                said = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
            said = int(rest[-1]) if rest and rest[-1].isdigit() and len(rest[-1]) >= len(str(said)) else said
        runs = []
        for entry in read_history(path):
            if entry["kind"] == "process":
                runs.append([])
            else:
                runs[-1].append(entry["number"])
        assert len(runs) == round_ + 1
        assert runs[-1] == list(range(1, len(runs[-1]) + 1))
        assert len(runs[-1]) >= said


def test_lines_are_numbered_and_timed(tmp_path) -> None:
    path = tmp_path / "history.jsonl"
    before = time.monotonic()
    history = HistoryFile(path, {"role": "operator"})
    history.record("leased", {"job": "j", "shards": [[1, "0000000100000001"]]})
    history.close()
    first, second = read_history(path)
    assert (first["kind"], first["role"], first["pid"], first["n"]) == ("process", "operator", os.getpid(), 1)
    assert (second["kind"], second["n"], second["shards"]) == ("leased", 2, [[1, "0000000100000001"]])
    assert before <= first["t"] <= second["t"] <= time.monotonic()
    assert abs(second["at"] - time.time()) < 60


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"n":1,"kind":"whole"}\n{"n":2,"kind":"tor')
    history = HistoryFile(path, {"role": "test"})
    history.close()
    assert [entry["kind"] for entry in read_history(path)] == ["whole", "process"]


def test_a_full_disk_leaves_a_counted_gap(tmp_path, caplog) -> None:
    path = tmp_path / "history.jsonl"
    history = HistoryFile(path, {"role": "test"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # In the middle of the next line.
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
        for number in range(5):
            history.record("lost", {"number": number})
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        history.record("kept", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
        history.close()
    _, gap, kept = read_history(path)
    assert (gap["kind"], gap["lost"], kept["kind"]) == ("gap", 5, "kept")
    assert caplog.text.count("history not written") == 1


def test_a_folder_is_no_history(tmp_path) -> None:
    with pytest.raises(StoreError, match=r"cannot write the history .*; name another file"):
        HistoryFile(tmp_path, {})


def test_every_line_is_one_object(tmp_path) -> None:
    path = tmp_path / "history.jsonl"
    history = HistoryFile(path, {"role": "test"})
    history.record("odd", {"text": "line\nbreak \u2028 and nul \0"})
    history.close()
    assert all(isinstance(json.loads(line), dict) for line in path.read_bytes().splitlines())
