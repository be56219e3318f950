"""A device proves itself on golden items before it gets its first lease of a job (docs/adr/0013).

Golden items are items of the job itself whose answers are believed: rows that are final, and rows that an Owned device
has brought. A device is given a few of them as it is given any check, so that it cannot tell the test from work, and
must answer all of them as expected. While no golden item can be compared with a device there is nothing to test it on;
it is then let in untested, and what it brings stays provisional like everything a stranger brings.

This finds devices that are broken or lie from the start, before they have cost anybody more than a few items. It finds
nobody who turns later, which is the task of checks. How fast a device is the dispatcher sees from its answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.trust import TrustTier, Witness
from pocketgrid.trust.effects import Sample
from pocketgrid.trust.independence import Comparable, may_check
from pocketgrid.trust.traps import Traps

GOLDEN_ITEMS = 8
"""Of one test. Who answers a quarter of all items wrongly fails with 90 %, who answers all wrongly always."""

REPEAT_S = 60.0
LONGEST_S = 3600.0
"""After a failed test a device is left alone for so long, doubling up to the longest."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The device may get leases.

    Attributes:
        tested: it has proved itself; else there was nothing to test it on.
    """

    tested: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """The device is first to be given these items, each with whose answer it will be compared with."""

    items: Mapping[Sample, Witness]


@dataclass(frozen=True, slots=True)
class Waiting:
    """The device gets nothing before `until`, because it failed so many tests, or one is under way.

    Attributes:
        until: seconds of the clock that `next` is asked with; infinite while a test is under way.
    """

    until: float
    failures: int


@dataclass(slots=True)
class _Record:
    """What is known of one device: as what it was tested, and how that went.

    Attributes:
        asked: items of the trial that is under way; 0 if none is.
    """

    seen_as: tuple[str, str]
    passed: bool = False
    asked: int = 0
    failures: int = 0
    until: float = 0.0


class Probation:
    """Tests of all devices for one job.

    Args:
        golden: items with believed answers; shared with the checks.
        comparable: which numerics classes can be compared.
    """

    def __init__(self, golden: Traps, comparable: Comparable) -> None:
        self._golden = golden
        self._comparable = comparable
        self._records: dict[DeviceName, _Record] = {}

    def committed(self, shard: int, origin: Witness) -> None:
        """A shard was committed. What our own devices bring is golden at once: one of them soon tests all others."""
        if origin.tier is TrustTier.OWNED:
            self._golden.learn(shard, origin)

    def next(self, witness: Witness, now: float) -> Admitted | Trial | Waiting:
        """What is to be done with a device that could get work. A `Trial` must be handed out, or be `withdrawn`."""
        if witness.tier is TrustTier.OWNED:
            # It is what others are measured by.
            return Admitted(tested=True)
        record = self._record(witness)
        if record.passed:
            return Admitted(tested=True)
        if record.asked:
            return Waiting(float("inf"), record.failures)
        if now < record.until:
            return Waiting(record.until, record.failures)
        items = self._golden.draw(
            witness.device, GOLDEN_ITEMS, lambda _, origin: may_check(witness, (origin,), self._comparable)
        )
        if items:
            record.asked = len(items)
            return Trial(items)
        if record.failures:
            # It was found wrong: nothing left to ask it is no reason to believe it.
            return Waiting(now + REPEAT_S, record.failures)
        return Admitted(tested=False)

    def answered(self, witness: Witness, agreed: Sequence[bool], now: float) -> bool:
        """A trial came back; whether the device has passed. An item without an answer counts as answered wrongly."""
        record = self._record(witness)
        if not record.asked:
            # It has changed its engine since, or the test was withdrawn: this says nothing of what it is now.
            return record.passed
        record.passed = len(agreed) >= record.asked and all(agreed)
        record.asked = 0
        if record.passed:
            record.failures = 0
        else:
            record.failures += 1
            record.until = now + min(REPEAT_S * 2.0 ** (record.failures - 1), LONGEST_S)
        return record.passed

    def withdrawn(self, device: DeviceName) -> None:
        """A test was not answered, because the device left or was too slow: it is tested anew when it returns."""
        record = self._records.get(device)
        if record is not None:
            record.asked = 0

    def caught(self, device: DeviceName) -> None:
        """The device was caught lying later: it must prove itself again."""
        record = self._records.get(device)
        if record is not None:
            record.passed = False
            record.asked = 0

    def _record(self, witness: Witness) -> _Record:
        seen_as = (witness.engine, witness.numerics)
        record = self._records.get(witness.device)
        if record is None:
            record = self._records[witness.device] = _Record(seen_as)
        elif record.seen_as != seen_as:
            # Another engine proves nothing by what the old one did, but a failure is not washed off by a restart.
            record.seen_as, record.passed, record.asked = seen_as, False, 0
        return record
