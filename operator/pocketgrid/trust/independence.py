"""Who may vouch for whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pocketgrid.model.trust import TrustTier, Witness

Comparable = Callable[[str, str], bool]
"""Whether results of two numerics classes can be compared under the job's comparator."""


def same_class_only(one: str, other: str) -> bool:
    """The rule where no tolerance profile was measured: the same class only, and an unknown one with an unknown one."""
    return one == other


def is_independent(one: Witness, other: Witness) -> bool:
    """Whether two devices are unlikely to have agreed beforehand what to answer.

    Of one's own devices any two are: they share an owner by definition, and mostly a network.
    """
    if one.device == other.device:
        return False
    if one.tier is TrustTier.OWNED and other.tier is TrustTier.OWNED:
        return True
    if one.owner == other.owner:
        return False
    return not (one.network and one.network == other.network)


def may_check(checker: Witness, others: Iterable[Witness], comparable: Comparable) -> bool:
    """Whether `checker` may compute what all of `others` have computed, and be compared with them."""
    return all(is_independent(checker, other) and comparable(checker.numerics, other.numerics) for other in others)


def nobody_may(to_do: str, others: Iterable[Witness], count: int) -> str:
    """Why none of `count` devices may do something about what `others` computed."""
    names = ", ".join(other.device for other in others)
    return (
        f"nobody may {to_do}: each of {count} devices is suspect, shares an owner or network prefix with {names}, "
        "or is of another numerics class without a tolerance profile"
    )
