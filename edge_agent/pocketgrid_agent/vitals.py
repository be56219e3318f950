"""How this machine feels at the moment, as data. Pure; reading it is the `sensors`' business.

What cannot be read is None, never 0: a phone whose battery is hidden from apps must not look empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

LOOPBACK, ETHERNET, WIFI, CELLULAR = "loopback", "ethernet", "wifi", "cellular"


@dataclass(frozen=True, slots=True)
class Vitals:
    """A reading. None means unknown.

    Attributes:
        charging: on external power, whether or not the battery takes it.
        network: ethernet, wifi, cellular or loopback; empty if unknown.
        metered: whether the network is paid for by the byte.
        others_cpu: share of all processors kept busy by anything but this process, 0 to 1.
    """

    load1: float | None = None
    memory_available_bytes: int | None = None
    battery_percent: float | None = None
    charging: bool | None = None
    battery_celsius: float | None = None
    processor_celsius: float | None = None
    network: str = ""
    metered: bool | None = None
    others_cpu: float | None = None

    @property
    def temperature_celsius(self) -> float | None:
        """The hottest of what is known."""
        return max((h for h in (self.battery_celsius, self.processor_celsius) if h is not None), default=None)


def merge(readings: Iterable[Vitals]) -> Vitals:
    """One reading out of several; what an earlier one knows counts, later ones fill the gaps."""
    known: dict[str, object] = {}
    for reading in readings:
        for each in fields(Vitals):
            value = getattr(reading, each.name)
            if value not in (None, ""):
                known.setdefault(each.name, value)
    return Vitals(**known)  # type: ignore[arg-type]  # each value comes out of the field of the same name
