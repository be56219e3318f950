"""Judges a run: replays its histories against the model, then looks at what is on disk.

The first violation counts, for what comes after it may follow from it. A report names the rule, the line, the seed
that makes the run again, and all lines that speak of the same shard or attempt.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pocketgrid.history import read_history
from tests.faults.history_model import HistoryModel, Line, Violation

RELATED_LINES = 60


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run should come to.

    Attributes:
        output: folder of the job's results.
        values: shape (items, width): what the output must hold, row by row; no two rows are alike.
        column: of the output.
    """

    output: Path
    values: np.ndarray
    per_shard: int
    column: str = "y"


@dataclass(frozen=True, slots=True)
class Work:
    """What a run cost.

    Attributes:
        shards: that had to be computed.
        computed: that were, successfully.
        attempts: handed out.
    """

    shards: int
    computed: int
    attempts: int

    @property
    def wasted(self) -> float:
        """Shards computed in vain, as a share of those needed."""
        return (self.computed - self.shards) / self.shards


@dataclass(frozen=True, slots=True)
class Report:
    """The judgement.

    Attributes:
        problem: empty if all is well.
        related: lines of the history that belong to it, in order.
    """

    problem: str
    related: tuple[Line, ...] = ()
    work: Work = Work(0, 0, 0)

    def text(self, seed: int) -> str:
        """For people."""
        if not self.problem:
            return f"seed {seed}: all is well"
        lines = "\n".join(f"  {json.dumps(dict(line))}" for line in self.related)
        return f"seed {seed}: {self.problem}\n{lines}"


def read_histories(files: Iterable[Path]) -> list[Line]:
    """All lines of all processes in the order in which they were written.

    Each gets `source`, the name of its file, and `role` of the process that wrote it.
    """
    keyed: list[tuple[tuple[float, str, int], Line]] = []
    for file in files:
        who: dict[str, Any] = {"role": "operator"}
        for number, entry in enumerate(read_history(file)):
            if entry["kind"] == "process":
                who = {key: entry[key] for key in ("role", "device") if key in entry}
            keyed.append(((entry["t"], file.name, number), {**who, **entry, "source": file.name}))
    return [line for _, line in sorted(keyed, key=lambda pair: pair[0])]


def check_history(lines: Sequence[Line], items: int, per_shard: int) -> tuple[HistoryModel, Violation | None]:
    """Replay; the model as far as it came, and the first violation."""
    model = HistoryModel(items, per_shard)
    try:
        for line in lines:
            model.follow(line)
        model.end(lines[-1] if lines else {"kind": "nothing"})
    except Violation as violation:
        return model, violation
    return model, None


def check_run(histories: Iterable[Path], expected: Expected) -> Report:
    """Judge a run that has come to its end."""
    lines = read_histories(histories)
    model, violation = check_history(lines, len(expected.values), expected.per_shard)
    work = Work(model.shards, len(model.computed), len(model.leases))
    if violation is not None:
        return Report(str(violation), related_lines(lines, violation), work)
    problem = check_output(expected) or _check_log(expected.output, model)
    return Report(problem, work=work)


EVIDENCE = {
    "stores blocked by a full disk": "store blocked",
    "agents that kept results in memory only": "results are kept in memory only",
    "models a full disk did not take": "reason=DiskFull",
    "journals moved aside": "the journal was unreadable",
    "operators fenced off": "taken over job=",
    "torn lines dropped from the log": "ends in a partial line",
    "links dropped for silence, by operators": "reason=Silent",
    "links dropped for silence, by agents": "detached cause=nothing heard",
    "handshakes refused for the time of day": "Tls handshake failed",
    "sessions replaced by a twin": "reason=Replaced",
    "state folders in use": "another agent uses the state folder",
}
"""What log lines show that a fault was felt and not only made."""


def count_evidence(files: Iterable[Path]) -> Counter[str]:
    """How often which fault was felt."""
    found: Counter[str] = Counter()
    for file in files:
        text = file.read_text(errors="replace")
        found.update({name: text.count(sign) for name, sign in EVIDENCE.items()})
    return found


def check_logs(files: Iterable[Path]) -> str:
    """Whether no process stumbled over what it did not foresee; empty if none did."""
    for file in files:
        text = file.read_text(errors="replace")
        if "Traceback (most recent call last)" in text:
            at = text.index("Traceback (most recent call last)")
            return f"unforeseen: {file.name}: {text[at : at + 3000]}"
    return ""


def check_output(expected: Expected) -> str:
    """Whether the output holds each row once, in order, with its own result; empty if so."""
    import pyarrow.dataset as ds

    from pocketgrid.storage.results import verify

    if problems := verify(expected.output.as_uri()):
        return f"output: {problems[0]}"
    table = ds.dataset(expected.output, format="parquet").to_table()
    rows = table["row"].to_pylist()
    if rows != list(range(len(expected.values))):
        missing = sorted(set(range(len(expected.values))) - set(rows))[:5]
        return f"output: {len(rows)} rows instead of {len(expected.values)}; missing {missing}"
    found = np.stack(table[expected.column].to_numpy())
    wrong = np.flatnonzero((found != expected.values).any(axis=1))
    return f"output: rows {wrong[:5].tolist()} hold what is not theirs" if len(wrong) else ""


def related_lines(lines: Sequence[Line], violation: Violation) -> tuple[Line, ...]:
    """What else was written about the shard or attempt at fault, up to the line itself, the latest `RELATED_LINES`."""
    names = {violation.attempt} - {""}
    if violation.shard is not None:
        for line in lines:
            if line["kind"] == "leased":
                names |= {attempt for shard, attempt in line["shards"] if shard == violation.shard}
    found = []
    for line in lines:
        if line is violation.line:
            found.append(line)
            break
        about_all = line["role"] == "operator" and line["kind"] in ("process", "opened", "fenced", "finished")
        if about_all or (names and any(name in json.dumps(dict(line)) for name in names)):
            found.append(line)
    return tuple(found[-RELATED_LINES:])


def _check_log(output: Path, model: HistoryModel) -> str:
    """Whether the log on disk has every commit that was acknowledged, of the same attempt; empty if so."""
    from pocketgrid.storage.logentries import Commit, decode_line

    written: set[tuple[int, int]] = set()
    for segment in sorted((output / "_pocketgrid" / "log").glob("*.log")):
        for line in segment.read_bytes().split(b"\n"):
            entry = decode_line(line)
            if isinstance(entry, Commit):
                written.add((entry.shard, entry.seq))
    for epoch in model.epochs.values():
        for attempt, (shard, device) in epoch.durable.items():
            if (shard, int(attempt, 16)) not in written:
                return f"log: shard {shard} was acknowledged as attempt {attempt} of {device}, which the log lacks"
    return ""
