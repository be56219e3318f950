"""How far apart honest results of two devices lie, and whether that tells them from wrong ones.

Both devices compute the same items. Per item, two distances are taken: the largest difference of two values, and 1 -
cosine of the whole result. Twice the 99.9th percentile is the tolerance; with fewer than a thousand items that is twice
the largest.

A tolerance is worth something only if wrong results lie beyond it. Three runs that are known to be bad are held
against it: the answer of the next item, the mean of all answers, and zeros. If half of the rows of any of them would
pass, a liar could live within the tolerance, and the distance is given up for this pair: it is then infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketgrid.model.numerics import Deviation

PERCENTILE = 99.9
SAFETY = 2.0
PASSING_SHARE = 0.5
"""A liar that is caught at every second row it is asked is caught within a few."""

MOST_DISTANCE = 1.0
"""Cosine distance beyond which vectors have nothing in common; a tolerance that large says nothing."""

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One item's result.

    Attributes:
        numbers: all floating-point values, as float64, shape (n,).
        rest: everything else, such as labels; must be equal.
    """

    numbers: Values
    rest: tuple[object, ...] = ()


class IncomparableError(ValueError):
    """Two runs cannot be compared at all; the message says why."""


def deviation(one: Sequence[Row], other: Sequence[Row]) -> Deviation:
    """What to expect between honest devices of two classes, from one run on each.

    Args:
        one, other: results for the same items in the same order.

    Raises:
        IncomparableError: there are none, or they differ in number, in shape or in what is no floating-point number.
    """
    if not one or len(one) != len(other):
        raise IncomparableError(f"{len(one)} results cannot be compared with {len(other)}")
    for number, (a, b) in enumerate(zip(one, other, strict=True)):
        if a.rest != b.rest or a.numbers.shape != b.numbers.shape:
            raise IncomparableError(
                f"item {number} differs in labels, whole numbers or shape, which no tolerance covers; ask for the "
                "scores themselves, without Argmax"
            )
        if not (np.isfinite(a.numbers).all() and np.isfinite(b.numbers).all()):
            raise IncomparableError(f"item {number} has values that are not finite")
    if all(_bits(a) == _bits(b) for a, b in zip(one, other, strict=True)):
        return Deviation(len(one), identical=True, absolute=0.0, cosine=0.0)
    bad = _known_bad(one)
    tolerances = []
    for distance in (largest_difference, cosine_distance):
        honest = [distance(a.numbers, b.numbers) for a, b in zip(one, other, strict=True)]
        tolerance = SAFETY * float(np.percentile(honest, PERCENTILE, method="higher"))
        wrong = [[distance(a.numbers, b) for a, b in zip(one, run, strict=True)] for run in bad]
        tolerances.append(tolerance if all(_lies_beyond(tolerance, run) for run in wrong) else math.inf)
    absolute, cosine = tolerances
    return Deviation(len(one), False, absolute, cosine if cosine < MOST_DISTANCE else math.inf)


def is_useless(measured: Deviation) -> bool:
    """Whether honest results overlap with wrong ones by every distance."""
    return not measured.identical and math.isinf(measured.absolute) and math.isinf(measured.cosine)


def largest_difference(a: Values, b: Values) -> float:
    """Of two values at the same place; infinite if the shapes differ."""
    if a.shape != b.shape:
        return math.inf
    return float(np.max(np.abs(a - b), initial=0.0))


def cosine_distance(a: Values, b: Values) -> float:
    """1 - cosine; 0 between two zero vectors, infinite where there is no angle."""
    if a.shape != b.shape:
        return math.inf
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    if length == 0.0:
        return 0.0 if not a.any() and not b.any() else math.inf
    return max(0.0, 1.0 - float(a @ b) / length)


def _known_bad(rows: Sequence[Row]) -> list[list[Values]]:
    numbers = [row.numbers for row in rows]
    runs = [numbers[1:] + numbers[:1]] if len(numbers) > 1 else []
    if len({values.shape for values in numbers}) == 1:
        mean = np.mean(numbers, axis=0)
        runs.append([mean] * len(numbers))
    runs.append([np.zeros_like(values) for values in numbers])
    return runs


def _lies_beyond(tolerance: float, run: Sequence[float]) -> bool:
    return sum(distance <= tolerance for distance in run) < PASSING_SHARE * len(run)


def _bits(row: Row) -> bytes:
    return row.numbers.tobytes()
