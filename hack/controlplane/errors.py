"""The one error of this package.

A control plane that cannot be had stops the demo or a whole test run, so the person in front of it must be
able to act without reading code: each error names the thing, the reason and the remedy, and the constructor
asks for all three.
"""

from __future__ import annotations

from pathlib import Path

LAST_LINES = 20


class ControlPlaneError(Exception):
    """Something about the control plane failed; `str()` gives the thing, the reason and the remedy."""

    def __init__(self, thing: str, *, reason: str, remedy: str) -> None:
        super().__init__(f"{thing}: {reason}\n  To mend it: {remedy}")
        self.thing = thing
        self.reason = reason
        self.remedy = remedy


def last_lines(log: Path, count: int = LAST_LINES) -> str:
    """Quote the end of a log, indented; says so when there is no log or it is empty."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"    (no log: {error})"
    return "\n".join(f"    {line}" for line in lines[-count:]) or "    (the log is empty)"
