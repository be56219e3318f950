"""What is known of devices from results that others have checked, over all jobs.

**How likely a device lies.** Two hypotheses: it is honest, and then it differs from others in a share r of items (the
comparator's false alarms); or it is a liar that gets an unknown share c of its items wrong, any c as likely as any
other. After a items that were confirmed and f that were refuted the odds of a liar are, by Bayes,

    prior / (1 - prior) * B(f + 1, a + 1) / r**f

with B the beta function, which is the integral of c**f * (1-c)**a over c. An honest device's passes would have the
factor (1-r)**a; r being an upper limit, it is taken as 1, in the device's favour. A pass lowers the suspicion as
1/(a+1), which is the 1/N rule of BOINC's adaptive replication seen from the other side, and a refutation raises it by
about 1/r. Where others who may themselves lie have refuted it, r is at least the chance that they are wrong.

**The prior** is a share of liars by tier, and learns from the fleet: as many devices as `PRIOR_WEIGHT` are imagined
beside those that were caught or have proved themselves. It never falls below a fifth of where it began, since devices
that bide their time look like honest ones. Where one device of an owner was caught, the owner's others are suspect.

**What proved itself is not proved for ever.** Everything decays with a half-life; a device under another engine,
numerics class or model is a stranger again (each history is kept apart), and one that was caught begins at nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.trust import TrustTier, Witness

HALF_LIFE_S = 10 * 86_400.0

PRIOR_LIARS: Mapping[TrustTier, float] = {TrustTier.PUBLIC: 0.1, TrustTier.VETTED: 0.01, TrustTier.OWNED: 0.002}
"""Share of liars among devices of which nothing is known yet."""

PRIOR_WEIGHT = 20.0
LEAST_PRIOR = 0.2
"""The prior never falls below this part of where it began."""

PRIOR_ONCE_CAUGHT = 0.5
OWNER_WEIGHT = 1.0
PROVEN_AFTER = 10
"""Items in a row, as in BOINC, from which a device counts as an honest one of the fleet."""

CAUGHT_AT = 0.99
"""A device is caught when it is a liar with this probability."""

HISTORIES_KEPT = 8
"""Fingerprints of a device whose history is kept; one more, and the one that was not added to for longest goes."""


@dataclass(slots=True)
class History:
    """What is known of one device under one fingerprint, as of `at`.

    Attributes:
        confirmed: items, decayed.
        refuted: items, decayed.
        suspicion: sum of -ln r over the refuted ones, decayed.
        consecutive: items confirmed since the last refutation, decayed: BOINC's N.
        at: wall seconds.
    """

    confirmed: float = 0.0
    refuted: float = 0.0
    suspicion: float = 0.0
    consecutive: float = 0.0
    at: float = 0.0

    def decay(self, now: float) -> None:
        """Bring everything to `now`; a clock that went back changes nothing."""
        if now <= self.at:
            return
        factor = 0.5 ** ((now - self.at) / HALF_LIFE_S)
        self.confirmed *= factor
        self.refuted *= factor
        self.suspicion *= factor
        self.consecutive *= factor
        self.at = now


@dataclass(slots=True)
class Reputation:
    """One device: how often it was caught, and its history under each fingerprint.

    Attributes:
        since: wall seconds when the first of what is known of it happened, or when it was last caught.
        caught_at: wall seconds when it was last caught; 0 if never.
    """

    owner: str = ""
    tier: TrustTier = TrustTier.PUBLIC
    caught: int = 0
    proven: bool = False
    since: float = 0.0
    caught_at: float = 0.0
    histories: dict[str, History] = field(default_factory=dict)


@dataclass(slots=True)
class _Crowd:
    caught: int = 0
    proven: int = 0


class Reputations:
    """What is known of all devices. One for the whole grid; every job's machine adds to it."""

    def __init__(self) -> None:
        self._devices: dict[DeviceName, Reputation] = {}
        self._tiers: dict[TrustTier, _Crowd] = {}
        self._owners: dict[str, _Crowd] = {}

    # ---- asking ----

    def consecutive(self, witness: Witness, model: str, now: float) -> float:
        """Items in a row that `witness` had confirmed with this model, decayed."""
        history = self._find(witness, model)
        if history is None:
            return 0.0
        history.decay(now)
        return history.consecutive

    def verified(self, device: DeviceName, now: float) -> float:
        """Items of `device` that were confirmed under any fingerprint, decayed: for its status."""
        reputation = self._devices.get(device)
        if reputation is None:
            return 0.0
        for history in reputation.histories.values():
            history.decay(now)
        return sum(history.confirmed for history in reputation.histories.values())

    def of(self, device: DeviceName) -> Reputation | None:
        """What is known of `device`, as of when it was last added to; to be read only. None if nothing is."""
        return self._devices.get(device)

    def caught(self, device: DeviceName) -> int:
        """How often `device` was caught."""
        reputation = self._devices.get(device)
        return 0 if reputation is None else reputation.caught

    def prior(self, witness: Witness) -> float:
        """Probability that `witness` is a liar, before its own history under any fingerprint is looked at."""
        start = PRIOR_LIARS[witness.tier]
        fleet = self._tiers.get(witness.tier, _Crowd())
        prior = (PRIOR_WEIGHT * start + fleet.caught) / (PRIOR_WEIGHT + fleet.caught + fleet.proven)
        prior = max(prior, LEAST_PRIOR * start)
        kin = self._owners.get(witness.owner) if witness.owner else None
        mine = 1 if self.caught(witness.device) else 0
        if kin is not None and kin.caught > mine:
            others = kin.caught - mine
            prior = max(prior, (OWNER_WEIGHT * prior + others) / (OWNER_WEIGHT + others + kin.proven))
        return max(prior, PRIOR_ONCE_CAUGHT) if mine else prior

    def liar(self, witness: Witness, model: str, now: float) -> float:
        """Probability that `witness` is a liar. Formula at the head of this module."""
        prior = self.prior(witness)
        history = self._find(witness, model)
        if history is None:
            return prior
        history.decay(now)
        log_odds = (
            math.log(prior / (1.0 - prior))
            + math.lgamma(history.refuted + 1.0)
            + math.lgamma(history.confirmed + 1.0)
            - math.lgamma(history.refuted + history.confirmed + 2.0)
            + history.suspicion
        )
        return _from_log_odds(log_odds)

    # ---- telling ----

    def confirm(self, witness: Witness, model: str, now: float, items: float = 1.0) -> None:
        """Somebody independent got the same as `witness` for `items` items."""
        history = self._history(witness, model, now)
        history.confirmed += items
        history.consecutive += items
        reputation = self._devices[witness.device]
        if not reputation.proven and history.consecutive >= PROVEN_AFTER:
            reputation.proven = True
            self._count(reputation, proven=1)

    def refute(self, witness: Witness, model: str, now: float, false_alarm: float) -> None:
        """Others got something else than `witness` for an item; `false_alarm`: the chance that it was right after all.

        Raises:
            ValueError: `false_alarm` is not above 0 and at most 1.
        """
        if not 0.0 < false_alarm <= 1.0:
            raise ValueError(f"a false alarm has a probability in (0, 1], not {false_alarm}")
        history = self._history(witness, model, now)
        history.refuted += 1.0
        history.suspicion -= math.log(false_alarm)
        history.consecutive = 0.0

    def catch(self, witness: Witness, now: float) -> None:
        """`witness` lied: what it had proved is forgotten, that it was caught is not."""
        reputation = self._reputation(witness)
        reputation.since = reputation.caught_at = now
        if reputation.proven:
            reputation.proven = False
            self._count(reputation, proven=-1)
        if not reputation.caught:
            self._count(reputation, caught=1)
        reputation.caught += 1
        reputation.histories.clear()

    # ---- keeping ----

    def to_dict(self, device: DeviceName) -> dict[str, object]:
        """What `from_dict` reads; small enough for the status of an EdgeNode, numbers rounded to a thousandth."""
        reputation = self._devices.get(device)
        if reputation is None:
            return {}
        return {
            "owner": reputation.owner,
            "tier": reputation.tier.name,
            "caught": reputation.caught,
            "proven": reputation.proven,
            "since": round(reputation.since, 3),
            "caughtAt": round(reputation.caught_at, 3),
            "histories": [
                {
                    "fingerprint": fingerprint,
                    "confirmed": round(history.confirmed, 3),
                    "refuted": round(history.refuted, 3),
                    "suspicion": round(history.suspicion, 3),
                    "consecutive": round(history.consecutive, 3),
                    "at": round(history.at, 3),
                }
                for fingerprint, history in reputation.histories.items()
            ],
        }

    def from_dict(self, device: DeviceName, kept: Mapping[str, object]) -> None:
        """Know of `device` what `to_dict` kept; anything known of it already stays.

        Raises:
            ValueError: this is not what `to_dict` writes.
        """
        if device in self._devices or not kept:
            return
        try:
            reputation = Reputation(
                owner=str(kept["owner"]),
                tier=TrustTier[str(kept["tier"])],
                caught=_natural(kept["caught"]),
                since=_number(kept.get("since", 0.0)),
                caught_at=_number(kept.get("caughtAt", 0.0)),
                histories={str(entry["fingerprint"]): _read_history(entry) for entry in _entries(kept["histories"])},
            )
        except KeyError as error:
            raise ValueError(f"reputation of {device}: unknown or missing {error}") from error
        proven = any(history.consecutive >= PROVEN_AFTER for history in reputation.histories.values())
        reputation.proven = proven or kept.get("proven") is True
        self._devices[device] = reputation
        self._count(reputation, caught=min(1, reputation.caught), proven=int(reputation.proven))

    def forget(self, device: DeviceName) -> None:
        """`device` is gone for good; what it taught about the fleet goes with it, except that it was caught."""
        reputation = self._devices.pop(device, None)
        if reputation is not None and reputation.proven:
            self._count(reputation, proven=-1)

    # ---- inside ----

    def _find(self, witness: Witness, model: str) -> History | None:
        reputation = self._devices.get(witness.device)
        return None if reputation is None else reputation.histories.get(_fingerprint(witness, model))

    def _history(self, witness: Witness, model: str, now: float) -> History:
        reputation = self._reputation(witness)
        reputation.since = reputation.since or now
        histories = reputation.histories
        fingerprint = _fingerprint(witness, model)
        history = histories.get(fingerprint)
        if history is None:
            if len(histories) >= HISTORIES_KEPT:
                del histories[min(histories, key=lambda name: histories[name].at)]
            history = histories[fingerprint] = History(at=now)
        history.decay(now)
        return history

    def _reputation(self, witness: Witness) -> Reputation:
        reputation = self._devices.get(witness.device)
        if reputation is None:
            reputation = self._devices[witness.device] = Reputation(witness.owner, witness.tier)
        elif (reputation.owner, reputation.tier) != (witness.owner, witness.tier):
            self._count(reputation, caught=-min(1, reputation.caught), proven=-int(reputation.proven))
            reputation.owner, reputation.tier = witness.owner, witness.tier
            self._count(reputation, caught=min(1, reputation.caught), proven=int(reputation.proven))
        return reputation

    def _count(self, reputation: Reputation, *, caught: int = 0, proven: int = 0) -> None:
        crowds = [self._tiers.setdefault(reputation.tier, _Crowd())]
        if reputation.owner:
            crowds.append(self._owners.setdefault(reputation.owner, _Crowd()))
        for crowd in crowds:
            crowd.caught += caught
            crowd.proven += proven


def _fingerprint(witness: Witness, model: str) -> str:
    return f"{witness.engine}/{witness.numerics}/{model[:16]}"


def _from_log_odds(log_odds: float) -> float:
    if log_odds >= 0.0:
        return 1.0 / (1.0 + math.exp(-log_odds))
    odds = math.exp(log_odds)
    return odds / (1.0 + odds)


def _entries(kept: object) -> list[Mapping[str, object]]:
    if not isinstance(kept, list) or not all(isinstance(entry, Mapping) for entry in kept):
        raise ValueError("histories of a reputation are a list of mappings")
    return kept


def _read_history(entry: Mapping[str, object]) -> History:
    return History(*(_number(entry[name]) for name in ("confirmed", "refuted", "suspicion", "consecutive", "at")))


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} in a reputation is not a number of at least 0")
    return float(value)


def _natural(value: object) -> int:
    return int(_number(value))
