"""What one way of verifying made of one fleet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of one run.

    Attributes:
        wrong: share of wrong rows in the end.
        redundancy: items computed / items needed.
        caught: share of the liars that were caught; None if the method catches nobody.
        honest_caught: how many honest devices were caught.
        items_to_catch: median of the items that a caught liar had brought since it first lied.
        seconds_to_catch: the same in the time of the simulation, at ten items a second and device.
        upper_bound: on wrong rows, as the status would say; None if the method states none.
    """

    wrong: float
    redundancy: float
    caught: float | None = None
    honest_caught: int = 0
    items_to_catch: float | None = None
    seconds_to_catch: float | None = None
    upper_bound: float | None = None

    def dominated_by(self, other: Outcome) -> bool:
        """Whether `other` is better on both axes."""
        return other.wrong < self.wrong and other.redundancy < self.redundancy
