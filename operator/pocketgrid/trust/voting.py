"""Which of several answers to one question is right.

Audits weigh voices by credibility (Sarmenta 2002, "Sabotage-tolerance mechanisms for volunteer computing systems"):
if device i is honest with odds o_i, a group of agreeing devices is right with a probability proportional to the product
of o_i over the group, and all are wrong with one proportional to 1. Liars are assumed to agree with each other, the
worst case. Quorums count heads, as BOINC does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.trust import Witness

SETTLING_ODDS = 500.0
"""A dispute is over when a group is right with these odds: three voices ahead."""

MOST_ODDS = 19.0
"""No voice weighs more: 95 % honest. What a device proved does not tell whether it is of a league that waits, and one
of a tenth of the devices would otherwise settle one dispute in a hundred its way."""

MOST_VOICES = 15
"""Answers to one audited item, the canonical one included, before it is given up."""

QUORUM_ESCALATIONS = 5
"""Replicas beyond the quorum before a shard is given up."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The group that is believed.

    Attributes:
        right: positions of its voters in the ballot.
        odds: that they are right.
    """

    right: frozenset[int]
    odds: float


@dataclass(slots=True)
class Ballot:
    """Answers to one question, the canonical one first, and which of them agree.

    Attributes:
        voters: in the order of answering.
        matches: for each voter, positions of those that agree with it, itself among them.
        struck: positions of voters that have lost their voice.
    """

    voters: list[Witness]
    matches: list[set[int]] = field(default_factory=lambda: [{0}])
    struck: set[int] = field(default_factory=set)

    @property
    def voices(self) -> int:
        """How many voters count."""
        return len(self.voters) - len(self.struck)

    def add(self, voter: Witness, agrees: Sequence[bool]) -> None:
        """One more answer, and with which of the earlier ones it agrees.

        Raises:
            ValueError: `agrees` does not speak of each earlier answer.
        """
        position = len(self.voters)
        if len(agrees) != position:
            raise ValueError(f"{len(agrees)} comparisons with {position} earlier answers")
        same = {other for other, agreed in enumerate(agrees) if agreed}
        for other in same:
            self.matches[other].add(position)
        self.voters.append(voter)
        self.matches.append(same | {position})

    def strike(self, device: DeviceName) -> bool:
        """`device` is not listened to any more; False if it has not voted."""
        lost = {at for at, voter in enumerate(self.voters) if voter.device == device} - self.struck
        self.struck |= lost
        return bool(lost)

    def groups(self) -> list[frozenset[int]]:
        """Groups of voters that count and agree, each once, the earliest first."""
        return list(
            dict.fromkeys(
                frozenset(same - self.struck) for at, same in enumerate(self.matches) if at not in self.struck
            )
        )


def weigh(ballot: Ballot, odds: Sequence[float]) -> Outcome | None:
    """The likeliest group and the odds that it is right; None if nobody has a voice.

    odds: of each voter to be honest, by position; those outside [1, `MOST_ODDS`] count as the nearest within.
    """
    groups = ballot.groups()
    if not groups:
        return None
    weights = [_weight(group, odds) for group in groups]
    best = max(range(len(groups)), key=lambda at: weights[at])
    against = 1.0 + sum(weight for at, weight in enumerate(weights) if at != best)
    return Outcome(groups[best], weights[best] / against)


def odds_against(ballot: Ballot, voter: int, outcome: Outcome, odds: Sequence[float]) -> float:
    """How much likelier the others answer as they did if `voter`, a position that `outcome` calls wrong, is wrong.

    Its own voice is left out: what it is worth is known from elsewhere, and would be counted twice.
    """
    others = [group - {voter} for group in ballot.groups() if group != outcome.right]
    return _weight(outcome.right, odds) / (1.0 + sum(_weight(group, odds) for group in others if group))


def count_heads(ballot: Ballot, least: int, odds: Sequence[float]) -> Outcome | None:
    """The group with the most voters, if there are `least` of them and no other group has as many."""
    groups = sorted(ballot.groups(), key=len, reverse=True)
    if not groups or len(groups[0]) < least or (len(groups) > 1 and len(groups[1]) == len(groups[0])):
        return None
    weighed = weigh(ballot, odds)
    agreed = weighed is not None and weighed.right == groups[0]
    return Outcome(groups[0], weighed.odds if weighed is not None and agreed else 1.0)


def resolve(ballot: Ballot, quorum: int, odds: Sequence[float]) -> Outcome | None:
    """The group to be believed, or None if more voices are needed.

    quorum: 0 for an audit: all who answered agree, or the odds are clear. Otherwise more than half of the quorum must
        agree, and no other group may be as large.
    """
    if quorum:
        return count_heads(ballot, quorum // 2 + 1, odds)
    outcome = weigh(ballot, odds)
    if outcome is None or outcome.odds >= SETTLING_ODDS:
        return outcome
    return outcome if len(outcome.right) == ballot.voices > 1 else None


def is_spent(ballot: Ballot, quorum: int) -> bool:
    """Whether nobody else is to be asked, although nothing was resolved."""
    return len(ballot.voters) >= (quorum + QUORUM_ESCALATIONS if quorum else MOST_VOICES)


def _weight(group: frozenset[int], odds: Sequence[float]) -> float:
    return math.prod(min(MOST_ODDS, max(1.0, odds[at])) for at in group)
