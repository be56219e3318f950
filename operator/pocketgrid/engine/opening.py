"""From a manifest to a job that can hand out work: admission, the store, recovery.

Runs as a task for each job. Refusals that may heal by themselves (a file that is not there yet) are looked at again
from time to time; all others stand until the user edits the job.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pocketgrid.engine.grid import Grid
from pocketgrid.engine.jobrun import JobRun
from pocketgrid.errors import InvalidSpecError, PocketGridError
from pocketgrid.model.view import Explanation, Stage
from pocketgrid.trust.judge import expect_outputs

if TYPE_CHECKING:
    from pocketgrid.storage.modelstore import ModelStore

log = logging.getLogger(__name__)

STORE_RETRY_S = 2.0


async def open_job(job: JobRun, grid: Grid, models: ModelStore, *, take_over: bool) -> bool:
    """Admit `job` and open its store, however long it takes; False if the job was removed meanwhile."""
    while True:
        # Before the look, not after it: an edit that comes during a slow admission asks for another one.
        job.wake.clear()
        try:
            missing = grid.fleet.missing_classes(job.spec.placement)
            if missing:
                raise InvalidSpecError(
                    "UnknownClass",
                    f"no HardwareClass named {', '.join(missing)}; "
                    f"defined are: {', '.join(sorted(grid.fleet.classes)) or 'none'}",
                    field="spec.placement.hardwareClasses",
                )
            await _admit_and_open(job, models, take_over)
        except InvalidSpecError as exc:
            if job.removed:
                return False
            job.opening = Stage.REFUSED
            job.explanation = Explanation(exc.reason, str(exc), exc.field)
            log.info("refused job=%s reason=%s message=%s", job.spec.key, exc.reason, exc)
            grid.touch()
            await _wait(job, grid.settings.readmission_seconds)
        except (PocketGridError, OSError) as exc:
            job.trouble = Explanation("StoreUnavailable", str(exc))
            log.warning("cannot open job=%s cause=%s", job.spec.key, exc)
            grid.touch()
            await _wait(job, STORE_RETRY_S)
        else:
            if not job.removed:
                job.opening, job.explanation, job.trouble = Stage.ADMITTING, None, None
            return True
        if job.removed:
            return False


async def _wait(job: JobRun, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await job.wake.wait()
    except TimeoutError:
        pass


async def _admit_and_open(job: JobRun, models: ModelStore, take_over: bool) -> None:
    from pocketgrid.engine.admission import admit
    from pocketgrid.storage.results import ResultStore

    if job.executor is None:
        job.executor = ThreadPoolExecutor(1, thread_name_prefix=f"store-{job.spec.name}")
    loop = asyncio.get_running_loop()
    admission = await loop.run_in_executor(job.executor, admit, job.spec, models)
    try:
        store = await loop.run_in_executor(
            job.executor, lambda: ResultStore.open(admission.job, admission.encoder.keys, take_over=take_over)
        )
    except BaseException:
        admission.encoder.close()
        raise
    job.admission, job.store, job.recovered = admission, store, store.recovered
    job.eligibility.clear()  # only now is it known what agents must be able to do
    for note in store.recovered.notes:
        log.warning("recovery job=%s note=%s", job.spec.key, note)
    job.expectations = expect_outputs(admission.job.signature, admission.job.order.outputs)
