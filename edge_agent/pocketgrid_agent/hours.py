"""Hours of the week in which a device may work. Pure: the local time is an argument.

A window is written ``22:00-06:00`` or ``Mon-Fri 22:00-06:00`` or ``Sat,Sun 00:00-24:00``. It belongs to the day on
which it begins: ``Fri 22:00-06:00`` ends on Saturday morning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MINUTES = 24 * 60

_WINDOW = re.compile(r"(?:(?P<days>[A-Za-z,\-]+)\s+)?(?P<start>\d{1,2}:\d{2})-(?P<stop>\d{1,2}:\d{2})")


@dataclass(frozen=True, slots=True)
class LocalTime:
    """A moment of the week where the device is.

    Attributes:
        weekday: 0 is Monday.
        minute: of the day, 0 to 1439.
    """

    weekday: int
    minute: int


@dataclass(frozen=True, slots=True)
class Window:
    """Some hours on some days.

    Attributes:
        days: on which it begins; 0 is Monday.
        start: minute of the day, included.
        stop: minute of the day, excluded, up to 1440; not later than `start` means the next day.
    """

    days: frozenset[int]
    start: int
    stop: int

    def __str__(self) -> str:
        days = "" if len(self.days) == len(DAYS) else ",".join(DAYS[day] for day in sorted(self.days)) + " "
        return f"{days}{_clock(self.start)}-{_clock(self.stop)}"

    def holds(self, local: LocalTime) -> bool:
        """Whether `local` is within."""
        if self.start < self.stop:
            return local.weekday in self.days and self.start <= local.minute < self.stop
        yesterday = (local.weekday - 1) % len(DAYS)
        late = local.weekday in self.days and local.minute >= self.start
        return late or (yesterday in self.days and local.minute < self.stop)


def is_open(windows: Iterable[Window], local: LocalTime) -> bool:
    """Whether any of `windows` holds `local`."""
    return any(window.holds(local) for window in windows)


def parse_window(text: str) -> Window:
    """Read one window.

    Raises:
        ValueError: it is none; the message says how one is written.
    """
    match = _WINDOW.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} are no hours such as 22:00-06:00, Mon-Fri 18:00-24:00 or Sat,Sun 00:00-24:00")
    start, stop = _minute(match["start"], text), _minute(match["stop"], text)
    if start == DAY_MINUTES:
        raise ValueError(f"{text!r} begins at 24:00; write 00:00 of the next day")
    return Window(_days(match["days"], text), start, stop)


def _minute(clock: str, text: str) -> int:
    hours, minutes = (int(part) for part in clock.split(":"))
    minute = hours * 60 + minutes
    if minutes > 59 or minute > DAY_MINUTES:
        raise ValueError(f"{text!r}: {clock} is no time of day from 00:00 to 24:00")
    return minute


def _days(names: str | None, text: str) -> frozenset[int]:
    if names is None:
        return frozenset(range(len(DAYS)))
    days: set[int] = set()
    for part in names.split(","):
        first, dash, last = part.partition("-")
        begin = _day(first, text)
        end = _day(last, text) if dash else begin
        # Fri-Mon goes over the end of the week.
        days.update((begin + step) % len(DAYS) for step in range((end - begin) % len(DAYS) + 1))
    return frozenset(days)


def _day(name: str, text: str) -> int:
    try:
        return DAYS.index(name.strip().capitalize())
    except ValueError:
        raise ValueError(f"{text!r}: {name!r} is no day; days are {', '.join(DAYS)}") from None


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
