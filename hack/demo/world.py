"""The processes of the demo: operator and agents, each with its log, none of which outlives us."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.controlplane import ControlPlane
from hack.controlplane.child import Child
from hack.controlplane.errors import last_lines
from hack.joining import invite

SYSTEM_NAMESPACE = "pocketgrid-system"
OPERATOR_STOP_S = 15.0
AGENT_STOP_S = 10.0
POLL_S = 0.05


class DemoError(Exception):
    """The demo could not go on; says what happened and where to look."""


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One device of the demo.

    Attributes:
        program: what Python is to run, and what comes before the agent's own options.
    """

    name: str
    kind: str
    owner: str
    program: tuple[str, ...] = ("-m", "pocketgrid_agent")


AGENTS = (
    AgentPlan("phone-1", "phone", "alice"),
    AgentPlan("phone-2", "phone", "bob"),
    AgentPlan("board-1", "sbc", "alice"),
    AgentPlan("board-2", "sbc", "bob"),
)


class World:
    """Operator and agents around a running API server.

    Args:
        folder: for state and logs.
        plans: the devices.
    """

    def __init__(self, control_plane: ControlPlane, folder: Path, plans: Sequence[AgentPlan]) -> None:
        self._folder = folder
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True)
        self._state = folder / "operator"
        self._port = _free_port()
        context = control_plane.source.context
        extra = ["--context", context] if context else []
        self.operator = self._child(
            "operator",
            [
                "-m", "pocketgrid", "operator",
                "--kubeconfig", str(control_plane.kubeconfig), *extra,
                "--namespace", SYSTEM_NAMESPACE,
                "--gateway-address", f"127.0.0.1:{self._port}", "--enrolment-port", "0",
                "--state-dir", str(self._state),
            ],
            OPERATOR_STOP_S,
        )  # fmt: skip
        self._plans = plans
        self._cluster = ["--kubeconfig", str(control_plane.kubeconfig), *extra, "--namespace", SYSTEM_NAMESPACE]
        self.agents: dict[str, Child] = {}

    def start_operator(self, deadline_s: float = 60.0) -> None:
        """Start the operator and wait until devices can connect."""
        self.operator.start()
        self.wait_for(self._gateway_is_up, "the operator's gateway", deadline_s)

    def start_agents(self) -> None:
        """Start all agents; they join with a token of their owner, and dial in by themselves."""
        for owner in dict.fromkeys(plan.owner for plan in self._plans):
            theirs = [plan for plan in self._plans if plan.owner == owner]
            invitation = invite(owner, len(theirs), self._cluster)
            self.agents.update({plan.name: self._agent(plan, invitation) for plan in theirs})
        for agent in self.agents.values():
            agent.start()

    def kill(self, child: Child) -> int:
        """SIGKILL; returns the process id that is no more."""
        pid = child.pid
        if pid is None:
            raise DemoError(f"{child.name} is not running any more; the end of {child.log}:\n{last_lines(child.log)}")
        os.kill(pid, signal.SIGKILL)
        child.stop()
        return pid

    def stop(self) -> None:
        """End everything in good order."""
        for child in (*self.agents.values(), self.operator):
            child.stop()

    def wait_for(self, condition: Callable[[], bool], what: str, deadline_s: float) -> None:
        """Wait until `condition` holds.

        Raises:
            DemoError: it did not within `deadline_s` seconds, or the operator has ended.
        """
        end = time.monotonic() + deadline_s
        while not condition():
            self.operator.require_running()
            if time.monotonic() > end:
                raise DemoError(
                    f"waited {deadline_s:.0f} s for {what} in vain; the end of {self.operator.log}:\n"
                    f"{last_lines(self.operator.log)}"
                )
            time.sleep(POLL_S)

    def _agent(self, plan: AgentPlan, invitation: Sequence[str]) -> Child:
        return self._child(
            plan.name,
            [
                *plan.program,
                *invitation,
                "--name", plan.name, "--kind", plan.kind,
                "--threads", "1",
                "--state-dir", str(self._folder / plan.name),
                "--cache-dir", str(self._folder / plan.name / "models"),
            ],
            AGENT_STOP_S,
        )  # fmt: skip

    def _child(self, name: str, program: list[str], stop_deadline_s: float) -> Child:
        return Child(
            name,
            [sys.executable, *program],
            log=self._logs / f"{name}.log",
            folder=self._folder,
            stop_deadline_s=stop_deadline_s,
        )

    def _gateway_is_up(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
