"""Puts checks together and remembers who computes which."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from pocketgrid.clock import Rng
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import Witness
from pocketgrid.trust.draws import shuffle
from pocketgrid.trust.effects import Check, Sample
from pocketgrid.trust.independence import Comparable, may_check
from pocketgrid.trust.questions import Questions
from pocketgrid.trust.traps import Traps
from pocketgrid.trust.waiting import WaitingSamples
from pocketgrid.trust.windows import Window, samples_of

PATIENCE_S = 30.0
"""If something has waited so long, a busy device gets a check that is not full, and one may check more of a window."""

IDLE_PATIENCE_S = 5.0
"""The same where a device has nothing else to do: whoever else could have taken it would have done so by now."""

SPREAD = 4
"""A window's samples go to so many checkers at least, where there are as many; or to each one, where it has fewer."""


@dataclass(slots=True)
class Flight:
    """A check that somebody computes.

    Attributes:
        windows: where each sample belonged when it was drawn, None for traps; empty for a replica.
        origins: who brought each.
    """

    witness: Witness
    check: Check
    windows: dict[Sample, Window | None]
    origins: dict[Sample, Witness]


class CheckDesk:
    """Hands out the checks of one job.

    Args:
        questions: what more voices are wanted about.
        window_of: the window for which an undisputed sample is to be asked, or None.
    """

    def __init__(
        self,
        grid: ShardGrid,
        questions: Questions,
        window_of: Callable[[Sample], Window | None],
        comparable: Comparable,
        rng: Rng,
    ) -> None:
        self.traps = Traps(grid, rng)
        self._grid = grid
        self._questions = questions
        self._comparable = comparable
        self._rng = rng
        self._waiting = WaitingSamples(window_of)
        self._waiting_since: float | None = None
        self._flights: dict[int, Flight] = {}
        self._worth_trying = 0
        self._askers: dict[DeviceName, Witness] = {}
        self._spread: set[DeviceName] = set()
        self._next_number = 0

    # ---- what is to be asked ----

    def wait(self, samples: Iterable[Sample], device: DeviceName, now: float) -> None:
        """Samples of `device` were drawn."""
        self._waiting.add(device, samples)
        self.note_waiting(now)

    def wait_again(self, sample: Sample, window: Window, checker: DeviceName) -> None:
        """A sample was given to `checker` in vain."""
        window.given[checker] -= 1
        self._waiting.add(window.origin.device, [sample])

    def note_waiting(self, now: float) -> None:
        """Something may have begun to wait."""
        if self._waiting_since is None and self._wanted():
            self._waiting_since = now

    # ---- handing out ----

    def replica(self, witness: Witness) -> Check | None:
        """A whole shard that another voice is wanted about."""
        for subject in self._questions.wanting:
            if isinstance(subject, int) and self._questions[subject].admits(witness, self._comparable):
                check = self._number(samples_of(self._grid, subject), replica=True)
                self._questions.ask(subject, check.number, witness)
                self._flights[check.number] = Flight(witness, check, {}, {})
                return check
        return None

    def samples(self, witness: Witness, idle: bool, now: float) -> Check | None:
        """Disputed and waiting items, as many as a shard has; fewer for the idle, or if something has waited long."""
        # What was given out in vain waits again without anybody having said when.
        self.note_waiting(now)
        patience_s = IDLE_PATIENCE_S if idle else PATIENCE_S
        stuck = self._waiting_since is not None and now - self._waiting_since >= patience_s
        partial = idle or stuck
        room = self._grid.per_shard
        if not partial and self._wanted() < max(room, self._worth_trying):
            return None
        # Traps take the place of others, so that a check with some is no larger than one without.
        trapped = self.traps.wanted(room)
        disputes = [
            subject
            for subject in self._questions.wanting
            if isinstance(subject, Sample) and self._questions[subject].admits(witness, self._comparable)
        ][: room - trapped]
        self._askers[witness.device] = witness

        def claim(window: Window) -> bool:
            if not may_check(witness, (window.origin,), self._comparable):
                return False
            if not stuck and window.given[witness.device] >= self._most_of(window):
                return False
            window.given[witness.device] += 1
            return True

        queued = self._waiting.take(room - trapped - len(disputes), claim, self._rng)
        count = len(disputes) + len(queued)
        if not count or not (partial or count >= room - trapped):
            for sample, window in queued.items():
                self.wait_again(sample, window, witness.device)
            # Looking through all that waits is dear; the next one will hardly find more unless more is there.
            self._worth_trying = self._wanted() + room - count
            return None
        windows: dict[Sample, Window | None] = {s: self._questions[s].window for s in disputes}
        windows.update(queued)
        origins = {sample: self._questions[sample].ballot.voters[0] for sample in disputes}
        origins |= {sample: window.origin for sample, window in queued.items()}
        traps = self.traps.draw(
            witness.device,
            min(trapped, self.traps.wanted(count)),
            lambda sample, origin: (
                sample not in windows
                and sample not in self._questions
                and may_check(witness, (origin,), self._comparable)
            ),
        )
        windows.update(dict.fromkeys(traps))
        samples = list(windows)
        shuffle(self._rng, samples)
        check = self._number(samples, replica=False)
        for sample in disputes:
            self._questions.ask(sample, check.number, witness)
        self._flights[check.number] = Flight(witness, check, windows, origins | traps)
        self._worth_trying = 0
        return check

    # ---- what comes of it ----

    def take_back(self, number: int, device: DeviceName | None = None) -> Flight | None:
        """The check with this number is not under way any more; None if it was not, or not at `device`."""
        flight = self._flights.get(number)
        if flight is None or (device is not None and flight.witness.device != device):
            return None
        return self._flights.pop(number)

    def progressed(self, now: float) -> None:
        """A check was answered. Handing one out is no progress: whoever gets it may never answer."""
        self._waiting_since = now if self._wanted() or self._flights else None

    def expel(self, device: DeviceName) -> Sequence[int]:
        """What `device` brought is no measure for others. Returns the numbers of the checks it has."""
        self.traps.forget_device(device)
        self._askers.pop(device, None)
        self._spread.clear()
        for flight in self._flights.values():
            for sample in [s for s, window in flight.windows.items() if window is None]:
                if flight.origins[sample].device == device and sample not in self._questions:
                    del flight.windows[sample]
        return [number for number, flight in self._flights.items() if flight.witness.device == device]

    def _most_of(self, window: Window) -> int:
        """How many of a window's samples one checker may have, so that no one in league with its device decides."""
        device, crowd = window.origin.device, SPREAD
        if device not in self._spread:
            checkers = (w for w in self._askers.values() if may_check(w, (window.origin,), self._comparable))
            crowd = sum(1 for _ in islice(checkers, SPREAD))
            if crowd == SPREAD:
                self._spread.add(device)
        return math.ceil(window.samples / max(1, crowd))

    def _wanted(self) -> int:
        return len(self._waiting) + self._questions.wanting_count

    def _number(self, samples: Sequence[Sample], *, replica: bool) -> Check:
        check = Check(self._next_number, tuple(samples), replica)
        self._next_number += 1
        return check
