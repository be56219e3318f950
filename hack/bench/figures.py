"""What a measurement says: a value with its spread, held against a goal. Pure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Definition:
    """What is measured, and what is aimed at.

    Attributes:
        name: as in the JSON line and in `--only`.
        unit: of value, goal and spread.
        goal: at least or at most this, as `at_least` says.
        meaning: one sentence for readers of the table.
        origin: where the goal comes from.
    """

    name: str
    unit: str
    goal: float
    at_least: bool
    meaning: str
    origin: str

    def is_met_by(self, value: float) -> bool:
        """Whether `value` is as good as the goal."""
        return value >= self.goal if self.at_least else value <= self.goal


@dataclass(frozen=True, slots=True)
class Figure:
    """One definition, measured.

    Attributes:
        values: one per round; at least one, all finite.
        baseline: what else was measured in the same rounds, for comparison; medians by name.
        stages: microseconds of processor time per item by stage of a shard's way, medians; empty if not looked at.
    """

    definition: Definition
    values: tuple[float, ...]
    baseline: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no measurement.

        Raises:
            ValueError: there are no values, or one is not a number.
        """
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"{self.definition.name}: {self.values} are no measured values")

    @property
    def value(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest over the rounds."""
        return min(self.values), max(self.values)

    @property
    def met(self) -> bool:
        """Whether the median is as good as the goal."""
        return self.definition.is_met_by(self.value)

    def to_json(self) -> str:
        """The one line that is printed."""
        stages = {name: rounded(value) for name, value in self.stages.items()}
        return json.dumps(
            {
                "name": self.definition.name,
                "value": rounded(self.value),
                "unit": self.definition.unit,
                "goal": self.definition.goal,
                "met": self.met,
                "spread": [rounded(value) for value in self.spread],
                "baseline": {name: rounded(value) for name, value in self.baseline.items()},
                **({"stages": stages} if stages else {}),
            }
        )


def rounded(value: float) -> float | int:
    """`value` to four significant digits, whole numbers as such: more would claim what was not measured."""
    if value == 0:
        return 0
    shortened = round(value, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value))))
    return int(shortened) if float(shortened).is_integer() else shortened
