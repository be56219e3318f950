"""How fast a device is at a job, learned from the work it has done.

An exponentially weighted mean of seconds per item, with its variance (West 1979, incremental form), weighted by
items so that a shard cut short at the end of the data set does not count as much as a full one. Work is additive in
seconds per item, not in items per second, which is why the mean is kept there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

HALF_LIFE_SECONDS = 20.0
"""Computing time after which half of the weight is new: throttling is felt within a minute."""

PRIOR_SECONDS = 0.5
"""Computing time a self-measured speed counts for: what the device does soon outweighs what it says."""


@dataclass(frozen=True, slots=True)
class SpeedEstimate:
    """Seconds per item of one device at one job.

    Attributes:
        seconds_per_item: weighted mean.
        variance: of seconds per item between shards.
        weight: computing seconds behind the estimate, after forgetting.
    """

    seconds_per_item: float
    variance: float = 0.0
    weight: float = PRIOR_SECONDS

    @classmethod
    def measured(cls, items_per_second: float) -> SpeedEstimate:
        """A first estimate from a device's own measurement, in items per second (> 0)."""
        if not items_per_second > 0:
            raise ValueError(f"not a speed: {items_per_second}")
        return cls(1.0 / items_per_second)

    @classmethod
    def claimed(cls, items_per_second: float) -> SpeedEstimate:
        """What a device says of itself that may say anything, in items per second (> 0): good until it has answered."""
        return replace(cls.measured(items_per_second), weight=0.0)

    @property
    def items_per_second(self) -> float:
        """The mean as a rate."""
        return 1.0 / self.seconds_per_item

    @property
    def deviation(self) -> float:
        """Standard deviation of seconds per item."""
        return math.sqrt(self.variance)

    def observe(self, items: int, seconds: float) -> SpeedEstimate:
        """The estimate after `items` (> 0) took `seconds` (> 0) of computing."""
        if items <= 0 or not seconds > 0:
            return self
        sample = seconds / items
        kept = self.weight * 0.5 ** (seconds / HALF_LIFE_SECONDS)
        share = seconds / (kept + seconds)
        error = sample - self.seconds_per_item
        return SpeedEstimate(
            seconds_per_item=self.seconds_per_item + share * error,
            variance=(1 - share) * (self.variance + share * error * error),
            weight=kept + seconds,
        )
