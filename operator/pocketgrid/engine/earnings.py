"""What devices have earned since this engine started, and what is held for them, over all its jobs.

For showing only: what counts are the commit logs, which `pocketgrid ledger` adds up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pocketgrid.engine.jobrun import JobRun
from pocketgrid.model.view import EarningsView


class Earnings:
    """Adds up what jobs owe to devices."""

    def __init__(self) -> None:
        self._of_removed: Counter[str] = Counter()

    def removed(self, job: JobRun) -> None:
        """A job is about to be forgotten; what it paid is not."""
        self._of_removed.update(_since_start(job))

    def views(self, jobs: Iterable[JobRun]) -> dict[str, EarningsView]:
        """By device; O(devices) for each of `jobs` that pays."""
        earned, held = Counter(self._of_removed), Counter[str]()
        for job in jobs:
            earned.update(_since_start(job))
            if job.verification is not None and job.store is not None and not job.stage.terminal:
                held.update({device: micro for device, (_, micro) in job.store.pay_by_device().items()})
        return {device: EarningsView(max(0, earned[device]), held[device]) for device in {*earned, *held}}


def _since_start(job: JobRun) -> dict[str, int]:
    if job.verification is None or job.store is None:
        return {}
    before = job.verification.paid_before
    return {device: micro - before.get(device, 0) for device, (micro, _) in job.store.pay_by_device().items()}
