"""Sensors that are programs: Termux:API on Android, NetworkManager on desktops.

A program may be missing, slow, hang for ever, or answer nonsense. So it is asked in a thread of its own, rarely, with a
deadline; reading gives the last answer at once, and nothing once that is too old to be true. Android counts processes
over all apps and ends the owners of too many, hence one at a time and seldom.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketgrid_agent.sensors import (
    LinuxSensor,
    Sensor,
    Sensors,
    credible_charge,
    default_interface,
    plausible_celsius,
)
from pocketgrid_agent.vitals import CELLULAR, WIFI, Vitals

ANSWER_SECONDS = 10.0
"""Deadline of a program. Termux:API hangs for good when its app is not installed."""

BATTERY_SECONDS = 30.0
NETWORK_SECONDS = 60.0
"""Between questions."""

CALM_FACTOR = 4
"""Without work, questions are so much rarer: they would drain the battery they ask for."""

STALE_AFTER = 4
"""An answer that is older than so many periods is not believed any more."""

_ANSWER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that knows something.

    Attributes:
        command: program and arguments.
        period_s: between questions.
        understand: its standard output as vitals; may raise ValueError.
    """

    command: Sequence[str]
    period_s: float
    understand: Callable[[str], Vitals]


class ToolSensor:
    """Asks one tool, in the background.

    Args:
        tool: what to ask.
        now: monotonic seconds.
        deadline_s: after which a program is ended.
    """

    takes_time = True

    def __init__(
        self, tool: Tool, *, now: Callable[[], float] = time.monotonic, deadline_s: float = ANSWER_SECONDS
    ) -> None:
        self._tool = tool
        self._now = now
        self._deadline_s = deadline_s
        self._answer = Vitals()
        self._answered_at = float("-inf")
        self._asked_at = float("-inf")
        self._asking: threading.Thread | None = None

    def read(self, *, calm: bool = False) -> Vitals:
        """The last answer, while it can be believed; asks anew when it is time, without waiting."""
        now = self._now()
        period_s = self._tool.period_s * (CALM_FACTOR if calm else 1)
        if now - self._asked_at >= period_s and (self._asking is None or not self._asking.is_alive()):
            self._asked_at = now
            # A daemon: nobody waits for a phone's battery at the end.
            self._asking = threading.Thread(target=self._ask, name="tool", daemon=True)
            self._asking.start()
        return self._answer if now - self._answered_at <= STALE_AFTER * period_s else Vitals()

    def settle(self, deadline_s: float) -> None:
        """Wait until the question that is being asked has been answered or given up."""
        if self._asking is not None:
            self._asking.join(deadline_s)

    def _ask(self) -> None:
        try:
            said = subprocess.run(
                list(self._tool.command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._deadline_s,
                check=True,
            )
            answer = self._tool.understand(said.stdout[:_ANSWER_BYTES].decode(errors="replace"))
        except (OSError, subprocess.SubprocessError, ValueError):
            return  # the last answer stands until it is stale
        self._answer, self._answered_at = answer, self._now()


def termux_battery(text: str) -> Vitals:
    """What termux-battery-status says. Raises ValueError if that is no JSON object."""
    answer = _json_object(text)
    status, plugged = str(answer.get("status", "")), str(answer.get("plugged", ""))
    charging = None
    if status in ("CHARGING", "FULL") or plugged.startswith("PLUGGED"):
        charging = True
    elif status in ("DISCHARGING", "NOT_CHARGING") or plugged == "UNPLUGGED":
        charging = False
    percent, celsius = _number(answer.get("percentage")), _number(answer.get("temperature"))
    if percent is not None and not 0 <= percent <= 100:
        percent = None
    return Vitals(
        battery_percent=credible_charge(percent, charging),
        charging=charging,
        battery_celsius=None if celsius is None else plausible_celsius(celsius),
    )


def termux_wifi(text: str) -> Vitals:
    """What termux-wifi-connectioninfo says. Raises ValueError if that is no JSON object."""
    answer = _json_object(text)
    state, address = str(answer.get("supplicant_state", "")), str(answer.get("ip", ""))
    if state == "COMPLETED" and address not in ("", "0.0.0.0"):  # noqa: S104  # no address to bind to: "none"
        return Vitals(network=WIFI, metered=False)
    # The grid is reached all the same, or will be: over the only other thing a phone has.
    return Vitals(network=CELLULAR, metered=True) if state else Vitals()


def network_manager(text: str) -> Vitals:
    """What nmcli says of GENERAL.METERED: yes, no, either with "(guessed)", or unknown."""
    word = text.strip().partition(" ")[0]
    return Vitals(metered={"yes": True, "no": False}.get(word))


def all_sensors(*, gateway_is_local: bool, root: Path = Path("/")) -> Sensors:
    """Every sensor this machine has, as far as one can tell without asking."""
    parts: list[Sensor] = []
    for name, period_s, understand in (
        ("termux-battery-status", BATTERY_SECONDS, termux_battery),
        ("termux-wifi-connectioninfo", NETWORK_SECONDS, termux_wifi),
    ):
        command = shutil.which(name)
        if command is not None:
            parts.append(ToolSensor(Tool((command,), period_s, understand)))
    manager, interface = shutil.which("nmcli"), default_interface(root)
    if manager is not None and interface:
        # Knows hotspots for what they are, so it counts more than the kind of the interface.
        command_line = (manager, "-g", "GENERAL.METERED", "device", "show", interface)
        parts.append(ToolSensor(Tool(command_line, NETWORK_SECONDS, network_manager)))
    return Sensors((*parts, LinuxSensor(root)), gateway_is_local)


def _json_object(text: str) -> dict[str, Any]:
    answer: Any = json.loads(text)
    if not isinstance(answer, dict):
        raise ValueError("not an object")
    return answer


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
