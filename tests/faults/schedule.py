"""What goes wrong in one run, and when: drawn from a seed, before anything starts.

The same seed gives the same faults at the same moments to the same victims. Operating systems decide the rest, so a
run is repeated in kind and not to the microsecond; a violation that depends on luck may need `--replay` more than once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

AGENTS = 3
WINDOW_S = 3.0
"""Faults begin within so many seconds after the first commit."""

LONGEST_S = 2.5


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        at: seconds after the first commit.
        kind: a method of the world.
        device: index of the victim, or -1 for operators.
        lasts_s: until it is mended.
        number: whatever else it needs: a rate, an offset, a choice.
        way: ``up``, ``down`` or ``both``, of links.
    """

    at: float
    kind: str
    device: int = -1
    lasts_s: float = 0.0
    number: float = 0.0
    way: str = "both"

    def __str__(self) -> str:
        """In a line."""
        victim = "operator" if self.device < 0 else f"device {self.device}"
        return f"{self.at:5.2f} s {self.kind} {victim} for {self.lasts_s:.2f} s ({self.number:g}, {self.way})"


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run."""

    seed: int
    faults: tuple[Fault, ...]

    @property
    def moves_clocks(self) -> bool:
        """Whether agents need a clock that can be moved."""
        return any(fault.kind == "clock_jumps" for fault in self.faults)


Draw = Callable[[random.Random, float], Fault]

DAY_S = 86_400.0


def _device(kind: str, longest_s: float = LONGEST_S, number: Callable[[random.Random], float] | None = None) -> Draw:
    def draw(rng: random.Random, at: float) -> Fault:
        return Fault(
            at,
            kind,
            rng.randrange(AGENTS),
            rng.uniform(0.05, longest_s),
            number(rng) if number is not None else rng.random(),
            rng.choice(("up", "down", "both")),
        )

    return draw


def _operator(kind: str, longest_s: float = 1.5) -> Draw:
    return lambda rng, at: Fault(at, kind, lasts_s=rng.uniform(0.05, longest_s), number=rng.random())


KINDS: tuple[tuple[float, Draw], ...] = (
    (4, _device("agent_killed", 1.5)),
    (3, _device("agent_stopped")),
    (4, _operator("operator_killed")),
    (3, _operator("operator_stopped", 2.5)),
    (3, _operator("operator_replaced")),
    (3, _operator("operator_disk_full", 3.0)),
    (2, _operator("log_torn", 0.5)),
    (3, _device("link_cut", 0.2)),
    (3, _device("link_stalled")),
    (2, _device("link_half_open", 0.2)),
    (2, _device("link_swallows")),
    (2, _device("link_throttled", number=lambda rng: rng.choice((2e4, 5e4, 5e5)))),
    (2, _device("link_delayed", number=lambda rng: rng.uniform(0.01, 0.3))),
    (1, _device("link_refused")),
    (2, _device("device_twice")),
    (2, _device("agent_disk_full")),
    (2, _device("journal_removed", 0.5)),
    (2, _device("journal_damaged", 0.5)),
    (1, _device("cache_damaged", 0.5)),
    (3, _device("clock_jumps", number=lambda rng: rng.choice((-400, -3, -0.02, 0.02, 30, 200, 4000)) * DAY_S)),
)
"""Faults with their weights."""


def draw_schedule(seed: int) -> Schedule:
    """The faults of one run."""
    rng = random.Random(seed)
    weights = [weight for weight, _ in KINDS]
    faults = []
    for _ in range(rng.randint(3, 8)):
        (draw,) = rng.choices([draw for _, draw in KINDS], weights)
        faults.append(draw(rng, rng.uniform(0.0, WINDOW_S)))
    return Schedule(seed, tuple(sorted(faults, key=lambda fault: fault.at)))
