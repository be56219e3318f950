"""How numbers, times and texts are written into a status, so that its schema takes them whatever they are.

What a device states, or a division by no time comes to, must not keep the rest of a status from being written.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pocketgrid.api.v1alpha1.inference_job_status import MAX_COMPLETED_TEXT
from pocketgrid.model.money import write_money
from pocketgrid.model.ranges import TRUNCATED

MAX_RATE = 1e15
"""Items per second, or any other reading; what is larger was measured over no time, or not at all."""

MAX_MONEY = 10**15 - 1
"""Micro-units that the schema has room for."""


def present(**members: Any) -> dict[str, Any]:
    """A mapping without what is not known.

    Empty text counts as unknown: kube-apiserver 1.20, when built with a newer Go than it was made for, takes
    it for null and refuses the whole status.
    """
    return {name: value for name, value in members.items() if value is not None and value != ""}


def rate_text(items_per_second: float) -> str:
    """Three digits are worth showing; what is measured in thousands needs no fraction."""
    rate = min(max(0.0, items_per_second), MAX_RATE)
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def moment_of(seconds: float) -> str | None:
    """A time in seconds since the Unix epoch; None for 0, which means that it has not come."""
    return rfc3339(datetime.fromtimestamp(seconds, UTC)) if seconds else None


def rfc3339(moment: datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def finite(reading: float | None) -> float | None:
    """A reading, or None if it is none that a sensor can give."""
    return reading if reading is not None and abs(reading) < MAX_RATE else None


def within(value: int, limit: int) -> int:
    """The nearest number from 0 to `limit`."""
    return min(limit, max(0, value))


def cut(text: str, characters: int) -> str:
    """At most so many characters."""
    return text[:characters]


def cut_bytes(text: str, limit: int) -> str:
    """At most so many bytes of UTF-8; what is cut ends in dots."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: limit - 3].decode(errors="ignore") + "..."


def cut_list(text: str) -> str:
    """A text of shard numbers that fits the schema, cut after a whole entry if it must be."""
    if len(text) <= MAX_COMPLETED_TEXT:
        return text
    return text[: MAX_COMPLETED_TEXT - len(TRUNCATED) + 1].rpartition(",")[0] + TRUNCATED


def money_text(micro: int) -> str:
    """A sum in micro-units."""
    return write_money(within(micro, MAX_MONEY))
