"""Conditions, on their way into a status: what each says, and since when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pocketgrid.controller.readings import cut_bytes, rfc3339
from pocketgrid.model.view import Explanation

Truth = Literal["True", "False", "Unknown"]

MAX_MESSAGE_BYTES = 1024
"""Of one condition. Eight conditions, the list of classes and the completed shards together stay below the
32 KiB that a status may have."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one condition says now."""

    type: str
    status: Truth
    reason: str
    message: str


def write_conditions(
    claims: Iterable[Claim], old: Mapping[str, Any], generation: int, now: datetime
) -> list[dict[str, Any]]:
    """Conditions with their times: a condition whose status did not change keeps its transition time."""
    before = {entry["type"]: entry for entry in old.get("conditions", [])}
    written = rfc3339(now)
    out = []
    for claim in claims:
        earlier = before.get(claim.type, {})
        unchanged = earlier.get("status") == claim.status and "lastTransitionTime" in earlier
        out.append(
            {
                "type": str(claim.type),
                "status": claim.status,
                "reason": str(claim.reason),
                "message": cut_bytes(claim.message, MAX_MESSAGE_BYTES),
                "lastTransitionTime": earlier["lastTransitionTime"] if unchanged else written,
                "observedGeneration": generation,
            }
        )
    return out


def sentence(explanation: Explanation) -> str:
    """An explanation in words, beginning with the field it is about."""
    # Never empty: see `readings.present`.
    message = explanation.message or explanation.reason
    if explanation.field and not message.startswith(explanation.field):
        return f"{explanation.field}: {message}"
    return message
