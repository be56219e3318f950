"""Where the processor time of a job goes, by stage of a shard's way, over all processes of the grid.

What the engine does not put a name to is counted as its side of the link: event loop, messages, gRPC and TLS. In an
agent the thread that used most is the one that computes; all others are its side of the link and the journal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack.controlplane.child import Child

COMPUTE = "compute"
OPERATOR_LINK = "operator's link"
AGENT_LINK = "agents' link, journal"


@dataclass(frozen=True, slots=True)
class AgentTimes:
    """Processor seconds of agents so far: of the thread of each that used most, and of all others."""

    computing: float
    others: float

    def since(self, before: AgentTimes) -> AgentTimes:
        """What was used between two looks."""
        return AgentTimes(self.computing - before.computing, self.others - before.others)

    @property
    def total(self) -> float:
        """Of all threads."""
        return self.computing + self.others


def agent_times(children: Iterable[Child]) -> AgentTimes:
    """Look at processes of one computing thread each; those that are gone count for nothing."""
    computing = others = 0.0
    for child in children:
        if (pid := child.pid) is not None:
            total, busiest = _process_seconds(pid), max(_thread_seconds(pid), default=0.0)
            computing += busiest
            others += total - busiest
    return AgentTimes(computing, others)


def break_down(first: Mapping[str, Any], last: Mapping[str, Any], agents: AgentTimes, items: int) -> dict[str, float]:
    """Microseconds of processor time per item, by stage, in the order of a shard's way.

    Args:
        first, last: the operator's marks, as `operator_process` writes them.
        agents: used meanwhile.
        items: done meanwhile.
    """
    work = {kind: last["work"][kind] - first["work"][kind] for kind in last["work"]}
    unnamed = last["cpu_s"] - first["cpu_s"] - sum(work.values())
    order = ["read", "encode", "judge", "commit", "seal"]
    seconds = {kind: work[kind] for kind in order[:2]}
    seconds[OPERATOR_LINK] = max(unnamed, 0.0)
    seconds[AGENT_LINK] = agents.others
    seconds[COMPUTE] = agents.computing
    seconds |= {kind: work[kind] for kind in order[2:]}
    return {stage: 1e6 * spent / items for stage, spent in seconds.items()}


def _process_seconds(pid: int) -> float:
    # Behind the command's closing parenthesis: fields 14 and 15 of proc(5) are the 12th and 13th.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _thread_seconds(pid: int) -> list[float]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:  # ended meanwhile
            continue
        found.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return found
