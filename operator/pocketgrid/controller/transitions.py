"""Which Events a change of a status is worth: one for each turn a user would want to have been told of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pocketgrid.api.v1alpha1.conditions import TRUSTED, ClassReason, DeviceReason, JobCondition, JobReason
from pocketgrid.controller.records import condition
from pocketgrid.model.ids import DeviceName

DEVICE_DISTRUSTED = "DeviceDistrusted"
"""On a job: a device that worked for it is not believed any more."""

MAX_NAMED = 8
"""Devices in one Event."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One Event.

    Attributes:
        reason: CamelCase.
        warning: something is not as it should be.
    """

    reason: str
    message: str
    warning: bool = False


def transitions(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Transition]:
    """The Events for a status that was `old` and is `new`; none if only figures differ."""

    def became(name: JobCondition, status: str) -> str | None:
        """Message of a condition that has turned to `status`, None if it has not."""
        now = condition(new, name)
        if now.get("status") != status or condition(old, name).get("status") == status:
            return None
        return str(now.get("message") or "")

    if became(JobCondition.ACCEPTED, "True") is not None:
        yield Transition("Accepted", "model and data were looked at and can run")
    if (message := became(JobCondition.ACCEPTED, "False")) is not None:
        yield Transition("Refused", message, warning=True)
    # A short job can be over before anybody has written that it began.
    if not _works(old) and (_works(new) or became(JobCondition.COMPLETE, "True") is not None):
        yield Transition("Started", "devices are at work")
    starved = _reason(new, JobCondition.PLACED) == ClassReason.NO_READY_NODES
    if starved and _reason(old, JobCondition.PLACED) != ClassReason.NO_READY_NODES:
        message = str(condition(new, JobCondition.PLACED).get("message") or "")
        yield Transition(ClassReason.NO_READY_NODES, message, warning=True)
    if (message := became(JobCondition.COMPLETE, "True")) is not None:
        yield Transition("Complete", message)
    if (message := became(JobCondition.FAILED, "True")) is not None:
        yield Transition("Failed", message, warning=True)


def device_transitions(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Transition]:
    """The Events for an EdgeNode whose status was `old` and is `new`."""
    before, now = condition(old, TRUSTED), condition(new, TRUSTED)
    if before.get("status") != "False" and now.get("status") == "False":
        yield Transition(DeviceReason.DISTRUSTED, str(now.get("message") or ""), warning=True)
    if before.get("status") == "False" and now.get("status") in ("True", "Unknown"):
        yield Transition("Pardoned", "the taint was removed from its Node; it gets work again and is checked closely")


def accusation(found: Mapping[DeviceName, int]) -> Transition:
    """The Event for a job that has lost trust in devices: how many shards were taken back, by device."""
    named = [f"{device} ({shards} shards taken back)" for device, shards in sorted(found.items())[:MAX_NAMED]]
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return Transition(DEVICE_DISTRUSTED, f"no longer believed: {', '.join(named)}{more}", warning=True)


def _works(status: Mapping[str, Any]) -> bool:
    progressing = condition(status, JobCondition.PROGRESSING)
    reasons = (JobReason.WORKING, JobReason.FINISHING)
    return progressing.get("status") == "True" and progressing.get("reason") in reasons


def _reason(status: Mapping[str, Any], name: JobCondition) -> str:
    found = condition(status, name)
    return str(found.get("reason") or "") if found.get("status") in ("True", "False") else ""
