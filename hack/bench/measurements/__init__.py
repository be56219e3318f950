"""One module per measurement, and the list of all.

A new measurement is a module with a `MEASUREMENT`, and its name in `ALL`. Several figures may come out of the same
runs: what is measured together is comparable.
"""

from hack.bench.measurements import (
    agent_footprint,
    agent_loss,
    apply,
    connections,
    embedding,
    mlp,
    peers,
    planner,
    recovery,
    start,
)
from hack.bench.measurements.base import Conditions, Measurement

__all__ = ["ALL", "Conditions", "Measurement"]

ALL: tuple[Measurement, ...] = (
    embedding.MEASUREMENT,
    mlp.FIXED,
    mlp.AUTOMATIC,
    peers.FIXED,
    peers.AUTOMATIC,
    start.MEASUREMENT,
    apply.MEASUREMENT,
    agent_loss.MEASUREMENT,
    recovery.SILENT,
    recovery.RESTARTED,
    agent_footprint.MEASUREMENT,
    planner.MEASUREMENT,
    connections.MEASUREMENT,
)
