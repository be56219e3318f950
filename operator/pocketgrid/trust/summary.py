"""Figures about a job's verification, and how wrong its final rows may still be.

**Upper bound on wrong rows.** Final rows are those of windows whose drawn samples all agreed. With n samples drawn
evenly from a population and x found wrong, the share of wrong ones is at most the u with P(Binomial(n, u) <= x) = 5 %,
with 95 % confidence (Clopper and Pearson 1934); without failures that is 1 - 0.05**(1/n), about 3/n, the rule of three.
Devices are sampled at different rates, so n is the effective sample size of the weighted sample (Kish 1965),
(sum of w)**2 / (sum of w**2). Each of a window's m samples weighs W/m: (sum of W)**2 / (sum of W**2/m).

The population is what devices with final rows brought: x are samples of theirs that were found wrong, although the
shards concerned were done again and are not among the final rows. That errs on the safe side. Assumed is that a checker
does not know what it checks and that devices do not agree with those that happen to check them; and the bound is a
statement on the final rows of this job, not on each device's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pocketgrid.model.ids import DeviceName
from pocketgrid.trust.effects import Sample

CONFIDENCE = 0.95

_STEPS = 60
"""Halvings of the interval the bound is looked for in; each adds a binary digit."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What the status of a job says of its verification.

    Attributes:
        rows_verified: final.
        rows_provisional: committed and not final.
        rows_checked: computed again to check them, traps included.
        disagreement_rate: share of first comparisons that differed.
        redundancy: rows computed / rows needed; 1 means that nothing was computed twice.
        upper_bound: on the share of wrong rows among the final ones, with 95 % confidence; 1 while nothing is known.
    """

    rows_verified: int
    rows_provisional: int
    rows_checked: int
    disagreement_rate: float
    redundancy: float
    upper_bound: float


@dataclass(slots=True)
class _Share:
    rows: int = 0
    squares: float = 0.0
    refuted: int = 0


@dataclass(slots=True)
class Tally:
    """Counters of one job.

    Attributes:
        computed: rows of results that arrived for real shards, late ones and copies included.
        checked: rows of answers to checks.
        taken_back: rows that were committed and are to be done again.
        compared: first comparisons of a question.
        disagreed: those of them that differed.
        wrong_final: traps whose answer turned out wrong: rows known to be final and wrong.
    """

    computed: int = 0
    checked: int = 0
    taken_back: int = 0
    compared: int = 0
    disagreed: int = 0
    wrong_final: int = 0
    _shares: dict[DeviceName, _Share] = field(default_factory=dict)

    def tried(self, agrees: Mapping[Sample, tuple[bool, ...]]) -> list[Sample]:
        """A device was tested on items with known answers. Returns those it got wrong."""
        wrong = [sample for sample, same in agrees.items() if not same[0]]
        self.checked += len(agrees)
        self.compared += len(agrees)
        self.disagreed += len(wrong)
        return wrong

    def final(self, device: DeviceName, rows: int, samples: int) -> None:
        """`rows` of `device` are final after `samples` of them agreed."""
        share = self._shares.setdefault(device, _Share())
        share.rows += rows
        share.squares += rows * rows / max(1, samples)

    def refuted(self, device: DeviceName) -> None:
        """A sample of `device` was found wrong."""
        self._shares.setdefault(device, _Share()).refuted += 1

    def summary(self, rows_verified: int, rows_provisional: int) -> Summary:
        """Figures for the status, given what stands."""
        needed = rows_verified + rows_provisional
        return Summary(
            rows_verified=rows_verified,
            rows_provisional=rows_provisional,
            rows_checked=self.checked,
            disagreement_rate=self.disagreed / self.compared if self.compared else 0.0,
            redundancy=max(1.0, (needed + self.checked + self._wasted(needed)) / needed) if needed else 1.0,
            upper_bound=self.upper_bound(),
        )

    def upper_bound(self) -> float:
        """On the share of wrong rows among final ones. Formula at the head of this module."""
        shares = [share for share in self._shares.values() if share.rows]
        if not shares:
            return 1.0
        rows = sum(share.rows for share in shares)
        effective = rows * rows / sum(share.squares for share in shares)
        return clopper_pearson(effective, sum(share.refuted for share in shares))

    def _wasted(self, needed: int) -> int:
        return max(0, self.computed - needed)

    def to_dict(self) -> dict[str, object]:
        """What `from_dict` reads, after a restart; devices are summed up."""
        shares = [share for share in self._shares.values() if share.rows]
        return {
            "computed": self.computed,
            "checked": self.checked,
            "takenBack": self.taken_back,
            "compared": self.compared,
            "disagreed": self.disagreed,
            "wrongFinal": self.wrong_final,
            "rows": sum(share.rows for share in shares),
            "squares": sum(share.squares for share in shares),
            "refuted": sum(share.refuted for share in shares),
        }

    @classmethod
    def from_dict(cls, kept: Mapping[str, object]) -> Tally:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: something is missing or not a number.
        """

        def number(name: str) -> float:
            value = kept.get(name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} of a tally is {value!r}, not a number of at least 0")
            return value

        tally = cls(
            computed=int(number("computed")),
            checked=int(number("checked")),
            taken_back=int(number("takenBack")),
            compared=int(number("compared")),
            disagreed=int(number("disagreed")),
            wrong_final=int(number("wrongFinal")),
        )
        if number("rows"):
            earlier = _Share(int(number("rows")), number("squares"), int(number("refuted")))
            tally._shares[DeviceName("")] = earlier  # no device has this name
        return tally


def clopper_pearson(samples: float, failures: float, confidence: float = CONFIDENCE) -> float:
    """Upper limit, with one-sided `confidence`, of a share of which `failures` were seen in `samples`.

    It is the `confidence` quantile of Beta(failures + 1, samples - failures); `samples` need not be whole.
    """
    if samples <= failures:
        return 1.0
    if failures <= 0:
        return -math.expm1(math.log1p(-confidence) / samples)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _beta_distribution(failures + 1.0, samples - failures, middle) < confidence:
            low = middle
        else:
            high = middle
    return high


def _beta_distribution(a: float, b: float, x: float) -> float:
    """P(X <= x) for X of Beta(a, b): the regularised incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _beta_distribution(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(1_000):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / _away_from_zero(1.0 + term * d, tiny)
        c = _away_from_zero(1.0 + term / c, tiny)
        fraction *= c * d
        if abs(c * d - 1.0) < 1e-12 and step > 1:
            break
    return front * (fraction - 1.0)


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
