"""How a device stands in one job: its reputation, read as the job's user wants to be sure."""

from __future__ import annotations

from pocketgrid.model.trust import Verification, VerificationMode, Witness
from pocketgrid.trust.policy import agreements_needed, false_alarm_rate, window_items, window_samples
from pocketgrid.trust.reputation import CAUGHT_AT, Reputations
from pocketgrid.trust.voting import Ballot

SUSPECT_AT = 0.5
"""Who is a liar with this probability is not asked about others."""


class Standing:
    """The reputations of all devices for one job.

    Args:
        model: digest of the job's model.
    """

    def __init__(self, spec: Verification, reputations: Reputations, model: str) -> None:
        self._spec = spec
        self._reputations = reputations
        self._model = model

    def may_check(self, witness: Witness, now: float) -> bool:
        """Whether it is worth asking `witness` about others."""
        return self._reputations.liar(witness, self._model, now) < SUSPECT_AT

    def window(self, witness: Witness, now: float) -> int:
        """How many provisional rows of `witness` close its window."""
        return window_items(self._spec, self._reputations.consecutive(witness, self._model, now))

    def samples(self, witness: Witness, items: int, now: float) -> int:
        """How many of a window's `items` are drawn."""
        consecutive = self._reputations.consecutive(witness, self._model, now)
        return window_samples(self._spec, self._liar(witness, now), consecutive, items)

    def agreements(self, witness: Witness, now: float) -> int:
        """How many of a window's samples must have agreed."""
        return agreements_needed(self._spec, self._liar(witness, now))

    def odds(self, ballot: Ballot, now: float) -> list[float]:
        """Odds of each voter to be honest, by position."""
        liars = [self._reputations.liar(voter, self._model, now) for voter in ballot.voters]
        return [(1.0 - liar) / liar if liar > 0.0 else float("inf") for liar in liars]

    def confirm(self, witness: Witness, now: float) -> None:
        """Somebody independent got the same as `witness` for an item."""
        self._reputations.confirm(witness, self._model, now)

    def refute(self, witness: Witness, odds: float, now: float) -> bool:
        """`witness` was wrong about an item, with these odds. True if that convicts it; its trust is reset then."""
        false_alarm = max(false_alarm_rate(self._spec), 1.0 / max(odds, 1.0))
        self._reputations.refute(witness, self._model, now, false_alarm)
        if self._reputations.liar(witness, self._model, now) < CAUGHT_AT:
            return False
        self._reputations.catch(witness, now)
        return True

    def _liar(self, witness: Witness, now: float) -> float:
        liar = self._reputations.liar(witness, self._model, now)
        # Audits give no credit for the past; only what speaks against a device counts.
        adaptive = self._spec.mode is VerificationMode.ADAPTIVE
        return liar if adaptive else max(liar, self._reputations.prior(witness))
