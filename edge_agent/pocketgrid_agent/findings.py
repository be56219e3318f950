"""What a look at a machine can find: how bad it is, what it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum


class Gravity(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Cannot be seen from here, or worth knowing."""
    WARNING = "warning"
    """The agent works, and less well or less long than it could."""
    FAILURE = "failure"
    """The agent cannot work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: its name, for programs.
        message: what was found.
        remedy: what to do; empty if nothing.
    """

    gravity: Gravity
    check: str
    message: str
    remedy: str = ""


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(Gravity.OK, check, message)


def note(check: str, message: str, remedy: str = "") -> Finding:
    """Worth knowing."""
    return Finding(Gravity.NOTE, check, message, remedy)


def warning(check: str, message: str, remedy: str) -> Finding:
    """Could be better."""
    return Finding(Gravity.WARNING, check, message, remedy)


def failure(check: str, message: str, remedy: str) -> Finding:
    """Keeps the agent from working."""
    return Finding(Gravity.FAILURE, check, message, remedy)


def as_table(findings: Sequence[Finding]) -> str:
    """For people: one line each, and below it what to do."""
    width = max((len(f.check) for f in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.gravity.value:<8} {finding.check:<{width}}  {finding.message}")
        lines.extend(f"{'':<8} {'':<{width}}    -> {step}" for step in finding.remedy.splitlines())
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """For programs."""
    return [{**asdict(finding), "gravity": finding.gravity.value} for finding in findings]
