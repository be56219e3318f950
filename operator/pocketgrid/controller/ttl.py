"""When a finished job's object is to be deleted. Its output is not touched, then or ever."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pocketgrid.controller.records import finished


def expires_at(status: Mapping[str, Any], ttl: int | None) -> float | None:
    """When a job's object may go, in seconds since the Unix epoch; None if never, or not known yet.

    Counted from what the object itself says of its end, so that it holds over restarts of the operator.
    """
    end = finished(status)
    if ttl is None or not end:
        return None
    moment = status.get("completionTime") or end.get("lastTransitionTime")
    try:
        return datetime.fromisoformat(str(moment)).timestamp() + ttl
    except ValueError:
        return None
