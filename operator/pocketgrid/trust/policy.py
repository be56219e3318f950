"""How much is checked: the arithmetic of rates, windows and samples.

A device's provisional shards form a **window**. When it closes, `m` of its rows are drawn, all alike, and computed by
others; if all agree, the window is final. A liar that gets a share c of its rows wrong keeps c * W wrong rows of a
window of W with probability (1-c)**m; whatever c it chooses, that is at most W / (e*m) on average, since
c * (1-c)**m <= 1/(e*m). With a probability P that the device is a liar, the expected share of wrong rows among final
ones is at most P / (e*m). It is kept below maxErrorRate by m >= P / (e * maxErrorRate).

P may be wrong: a device may have been honest until yesterday. Against that there are the audit floor and BOINC's 1/N
rule, which bound the rate m/W from below by max(floor, 1/N), N being the items confirmed in a row. Over its whole life
a liar with a steady c gets through at most W/m = 1/rate wrong rows on average, however rarely it lies.
"""

from __future__ import annotations

import math

from pocketgrid.model.trust import ComparatorKind, Verification, VerificationMode

SAMPLES_PER_WINDOW = 4
"""A window closes when its rate calls for so many samples. More, and a bold liar keeps less of a window, but what a
device brings stays provisional longer; the number of rows checked stays the same."""

LEAST_SAMPLES = 3
"""Of the smallest window, such as a device's last one, so that a bold liar does not slip through by a lucky guess."""

MOST_FALSE_ALARMS = 0.01
"""Share of items of an honest device that a comparator with a tolerance may refute, at most: the calibration behind the
tolerance aims at a tenth of this and at half of maxErrorRate."""


def false_alarm_rate(spec: Verification) -> float:
    """Share of an honest device's items that disagree with another's; 0 if none can."""
    if spec.comparator.kind is ComparatorKind.EXACT:
        return 0.0
    return min(MOST_FALSE_ALARMS, spec.max_error_rate / 2.0)


def audit_rate(spec: Verification, consecutive: float) -> float:
    """Share of a device's rows to be computed again when it had `consecutive` rows confirmed in a row."""
    if spec.mode is VerificationMode.ADAPTIVE:
        return max(spec.audit_floor, 1.0 / max(1.0, consecutive))
    return spec.audit_floor


def window_items(spec: Verification, consecutive: float) -> int:
    """How many provisional rows of one device close its window."""
    rate = audit_rate(spec, consecutive)
    return math.ceil(SAMPLES_PER_WINDOW / rate) if rate > 0.0 else 1 << 62


def agreements_needed(spec: Verification, liar: float) -> int:
    """Least number of samples that must agree before a window is final; `liar`: probability that its device is one."""
    return max(LEAST_SAMPLES, math.ceil(liar / (math.e * spec.max_error_rate)))


def window_samples(spec: Verification, liar: float, consecutive: float, items: int) -> int:
    """How many of a window's `items` are drawn when it closes.

    In adaptive mode each confirmed item lowers the rate for the next; over a window of n items from N on, 1/N sums to
    sqrt(N**2 + 2n) - N.
    """
    count = max(agreements_needed(spec, liar), math.ceil(items * spec.audit_floor))
    if spec.mode is VerificationMode.ADAPTIVE:
        count = max(count, math.ceil(math.sqrt(consecutive * consecutive + 2.0 * items) - consecutive))
    return min(items, count)
