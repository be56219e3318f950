"""How quantities are written in options and files: bytes, limits, shares, seconds, hours, labels. Pure.

Each function is a `type` of argparse: it takes text and raises ArgumentTypeError, with a message that says what would
have been right.
"""

from __future__ import annotations

import argparse
import math
import re
from enum import Enum

from pocketgrid_agent.hours import Window, parse_window

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}


class Off(Enum):
    """Said instead of a limit: the rule does not apply."""

    OFF = "off"


def parse_bytes(text: str) -> int:
    """A Kubernetes quantity such as ``512Mi`` or ``2G`` in bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]?|[KMGT]i)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity of bytes such as 512Mi or 2Gi")
    return int(float(match[1]) * _UNITS[match[2]])


def quantity(text: str) -> int:
    """A quantity of bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def bytes_or_off(text: str) -> int | Off:
    """A quantity of bytes, or ``off``."""
    return Off.OFF if text == Off.OFF.value else quantity(text)


def limit_or_off(text: str) -> float | Off:
    """A finite number that is not negative, or ``off``."""
    return Off.OFF if text == Off.OFF.value else _number(text, "a number, or off")


def seconds(text: str) -> float:
    """A number of seconds, not negative."""
    return _number(text, "a number of seconds")


def share(text: str) -> float:
    """A share above 0, at most 1."""
    number = _number(text, "a share such as 0.5")
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and up to 1")
    return number


def positive(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def hours(text: str) -> Window:
    """Hours of the week."""
    try:
        return parse_window(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def label(text: str) -> tuple[str, str]:
    """KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number
