"""The engine: one object that owns all jobs and devices, on one event loop.

Everything that happens (a device's message, a Node's change, a commit) becomes an event for a job's machine; whatever
the machine answers is carried out. Deciding is left to the pure rooms, slow work to threads. Its parts: `lifecycle`
runs jobs, `attendance` takes in what devices bring, `dispatcher` hands out work, `feeder` sends it, `writer` makes
results durable; `grid` is what they share.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pocketgrid.clock import Clock
from pocketgrid.engine.attendance import Attendance
from pocketgrid.engine.dispatcher import FEW, Dispatcher
from pocketgrid.engine.earnings import Earnings
from pocketgrid.engine.feeder import Feeder
from pocketgrid.engine.fleet import TAINTED, DeviceRecord
from pocketgrid.engine.grid import Grid
from pocketgrid.engine.history import Recorder
from pocketgrid.engine.jobrun import JobRun
from pocketgrid.engine.lifecycle import Lifecycle
from pocketgrid.engine.views import view_device, view_job
from pocketgrid.model import events as ev
from pocketgrid.model.device import HardwareClass, NodeView
from pocketgrid.model.ids import DeviceName, JobUid
from pocketgrid.model.job import JobSpec
from pocketgrid.model.numerics import ToleranceProfile
from pocketgrid.model.trust import TrustTier
from pocketgrid.model.view import DeviceView, JobView, Presence, Stage
from pocketgrid.settings import EngineSettings
from pocketgrid.worktimes import Work

log = logging.getLogger(__name__)


class Engine:
    """All jobs and devices. Use as an async context manager; every method belongs on its loop.

    Args:
        nodes_from_facts: there is no cluster, so devices stand for themselves.
        take_over: whoever else may still hold a job's store has lost the leader election.
        recorder: keeps a history of leases, results and commits, if one is wanted.
        verifier_seed: of the draws of checks; secret and fresh unless given.

    Attributes:
        devices: for the gateway: where everything that devices bring goes.
    """

    def __init__(
        self,
        settings: EngineSettings,
        clock: Clock,
        model_dir: Path,
        *,
        nodes_from_facts: bool,
        take_over: bool = False,
        recorder: Recorder | None = None,
        verifier_seed: int | None = None,
    ) -> None:
        self._grid = Grid(settings, clock, nodes_from_facts=nodes_from_facts, recorder=recorder)
        self._lifecycle = Lifecycle(
            self._grid,
            model_dir,
            take_over=take_over,
            on_started=self._job_started,
            verifier_seed=secrets.randbits(64) if verifier_seed is None else verifier_seed,
        )
        self._verifier = self._lifecycle.verifier
        self._feeder = Feeder(settings, clock, self._lifecycle.apply, self._grid.history)
        self._dispatcher = Dispatcher(self._grid, self._start_feeding, self._verifier.next_check)
        self.devices = Attendance(
            self._grid,
            self._lifecycle,
            jobs_listed=nodes_from_facts,
            model_reported=self._dispatcher.model_reported,
        )
        self._earnings = Earnings()
        self._main: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start the clockwork."""
        await self._grid.open()
        self._main = [
            self._grid.spawn(self._tick(), name="engine-tick"),
            self._grid.spawn(self._dispatch(), name="engine-dispatch"),
        ]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop handing out work, write what has arrived, release the stores."""
        for task in self._main:
            task.cancel()
        for record in self._grid.fleet.devices.values():
            if record.link is not None:
                record.link.close("OperatorStopping", "the operator is stopping", retry=True)
        for job in self._grid.jobs.values():
            job.opening = Stage.REMOVED
            job.wake.set()
            if job.writer is not None:
                job.writer.close()
        await self._grid.close()
        self._feeder.close()
        self.devices.close()
        self._lifecycle.close()
        for job in self._grid.jobs.values():
            if job.executor is not None:
                job.executor.shutdown(wait=True)

    def jobs_listed(self) -> None:
        """All jobs there are have been submitted; results for others may now be refused."""
        self.devices.jobs_listed()

    # ---- jobs ----

    def submit(self, spec: JobSpec) -> None:
        """Take in a job, or a change of its mutable fields. Idempotent."""
        job = self._grid.jobs.get(spec.uid)
        if job is None:
            job = self._grid.jobs[spec.uid] = self._grid.active[spec.uid] = JobRun(spec, self._grid.times)
            job.started = self._grid.clock.wall()
            job.tasks.append(self._grid.spawn(self._lifecycle.run_job(job), name=f"job-{spec.key}"))
        elif job.spec != spec:
            self._change(job, spec)
        self._grid.touch()

    async def remove(self, uid: JobUid) -> None:
        """Stop all work of a job and release its output, which stays as it is. Returns when that is done."""
        job = self._grid.jobs.get(uid)
        if job is None:
            return
        job.opening = Stage.REMOVED
        job.wake.set()
        if job.machine is not None:
            self._lifecycle.apply(job, ev.JobRemoved())
        else:
            self._lifecycle.cancel_everywhere(job)
            if job.writer is not None:
                job.writer.close()
        if job.tasks:
            await asyncio.wait(job.tasks)
        if self._grid.jobs.get(uid) is job:
            # Not if it has come again while two of us waited for its end.
            self._earnings.removed(self._grid.jobs.pop(uid))
            self._grid.active.pop(uid, None)
            self.devices.job_ended(uid)
        self._grid.touch()

    def job_views(self) -> Mapping[JobUid, JobView]:
        """All jobs, as they are now."""
        return {uid: self._view(job) for uid, job in self._grid.jobs.items()}

    def job_view(self, uid: JobUid) -> JobView | None:
        """One job, as it is now."""
        job = self._grid.jobs.get(uid)
        return self._view(job) if job is not None else None

    def _view(self, job: JobRun) -> JobView:
        return view_job(job, self._grid, self._dispatcher, self._verifier)

    def _change(self, job: JobRun, spec: JobSpec) -> None:
        placement_changed = job.spec.placement != spec.placement
        suspend_changed = job.spec.suspend != spec.suspend
        job.spec = spec
        job.wake.set()
        if job.machine is not None:
            job.machine.limits = spec.limits
            if suspend_changed:
                self._lifecycle.apply(job, ev.SuspendChanged(spec.suspend))
        elif spec.suspend and suspend_changed:
            self._lifecycle.cancel_everywhere(job)
        if placement_changed:
            self._reconsider(job)
        self._grid.mark_all()

    # ---- the cluster ----

    def set_node(self, node: NodeView) -> None:
        """A Node appeared or changed. Its devices are believed or not as its taint says."""
        fleet = self._grid.fleet
        before = fleet.nodes.get(node.name)
        if not fleet.set_node(node):
            return
        was_distrusted = before is not None and before.uid == node.uid and before.distrusted
        if node.distrusted:
            for record in list(fleet.records_on(node.name)):
                if not record.distrusted:
                    self._verifier.distrust(record.name, TAINTED)
        elif was_distrusted:
            for name in [name for name, known in fleet.distrusted.items() if known.node == node.name]:
                self._verifier.pardon(name)
        self._node_changed(node.name)

    def remove_node(self, name: DeviceName, *, deregister: bool) -> None:
        """A Node is gone. With `deregister`, its device stays out until its agent is started anew."""
        if not self._grid.fleet.remove_node(name):
            return
        for record in list(self._grid.fleet.records_on(name)):
            if deregister:
                self._grid.fleet.deregistered[record.name] = record.identity.boot_id
                if record.link is not None:
                    message = f"Node {name} was deleted; restart the agent to join again"
                    record.link.close("Deregistered", message, retry=False)
        self._node_changed(name)

    def forbid_boot(self, name: DeviceName, boot_id: str) -> None:
        """A predecessor of this operator has already deregistered that start of the device's agent."""
        self._grid.fleet.deregistered.setdefault(name, boot_id)

    def deregistered_boot(self, name: DeviceName) -> str:
        """Which start of the device's agent may not come back; empty if none."""
        return self._grid.fleet.deregistered.get(name, "")

    def set_tier(self, name: DeviceName, tier: TrustTier) -> None:
        """Whose a device is, attached or not. What it may no longer have is taken back at once."""
        if self._grid.fleet.set_tier(name, tier):
            log.info("tier device=%s tier=%s", name, tier.name.title())
            self._judge_anew(self._grid.fleet.devices[name])
            self._grid.touch()

    def set_profiles(self, profiles: Sequence[ToleranceProfile]) -> None:
        """All tolerance profiles there are. What they allow to be compared is looked up anew for each check."""
        self._grid.fleet.profiles = tuple(profiles)
        self._grid.mark_all()

    def set_classes(self, classes: Mapping[str, HardwareClass]) -> None:
        """All hardware classes there are."""
        if self._grid.fleet.set_classes(classes):
            for job in self._grid.active.values():
                job.wake.set()
                self._reconsider(job)
            self._grid.mark_all()
            self._grid.touch()

    def distrust(self, name: DeviceName, reason: str, node: str = "") -> None:
        """A predecessor of this operator, or somebody else, found that nothing of a device is to be believed.

        Args:
            node: the Node it is on, if it has a kubelet.
        """
        self._verifier.distrust(name, reason, node=node)

    def distrusted(self) -> Mapping[DeviceName, str]:
        """Why devices are distrusted, attached or not."""
        return {name: known.reason for name, known in self._grid.fleet.distrusted.items()}

    def restore_trust(self, name: DeviceName, kept: Mapping[str, object]) -> None:
        """What a predecessor of this operator knew of a device, as `Reputations.from_dict` reads it.

        Raises:
            ValueError: it cannot be read.
        """
        self._verifier.reputations.from_dict(name, kept)

    def pardon(self, name: DeviceName) -> None:
        """Somebody looked at a device that was caught with wrong results, and lets it work again."""
        self._verifier.pardon(name)

    def device_views(self) -> Mapping[DeviceName, DeviceView]:
        """All devices that have attached since the engine started, as they are now."""
        jobs = {str(uid): job for uid, job in self._grid.active.items()}
        fleet, known = self._grid.fleet, self._verifier.reputations
        earned = self._earnings.views(self._grid.jobs.values())
        return {name: view_device(r, fleet, jobs, known, earned.get(name)) for name, r in fleet.devices.items()}

    def work_times(self) -> Mapping[Work, float]:
        """Processor seconds spent so far, of all jobs, by kind of work."""
        return self._grid.times.seconds()

    async def changed(self, since: int, timeout: float) -> int:
        """Wait until something has changed since revision `since`, at most `timeout` seconds; the new revision."""
        return await self._grid.changed(since, timeout)

    def _node_changed(self, name: DeviceName) -> None:
        for record in self._grid.fleet.records_on(name):
            self._judge_anew(record)
        self._grid.touch()

    def _judge_anew(self, record: DeviceRecord) -> None:
        for job in self._grid.active.values():
            job.eligibility.pop(record.name, None)
            self._evict_if_barred(job, record)
        self._grid.mark(record.name)

    def _reconsider(self, job: JobRun) -> None:
        job.eligibility.clear()
        for record in self._grid.fleet.devices.values():
            self._evict_if_barred(job, record)

    def _evict_if_barred(self, job: JobRun, record: DeviceRecord) -> None:
        verdict = job.eligibility[record.name] = self._grid.fleet.judge(record, job.spec.placement, job.requires)
        if not verdict.evicts:
            return
        order = record.orders.pop(job.uid, None)
        held = job.machine is not None and record.name in job.machine.by_device
        if held:
            log.info("evict job=%s device=%s reasons=%s", job.spec.key, record.name, ", ".join(verdict.reasons))
            self._lifecycle.apply(job, ev.DeviceGone(record.name))
        if record.link is not None and (held or order is not None):
            record.link.send_cancel(job.uid, ())

    # ---- pacing ----

    async def _job_started(self, job: JobRun) -> None:
        await self.devices.job_started(job)

    def _start_feeding(self, job: JobRun, record: DeviceRecord, cut: ev.LeaseCut) -> None:
        self._grid.spawn(self._feeder.feed(job, record, cut), name=f"feed-{record.name}")

    async def _dispatch(self) -> None:
        while True:
            await self._grid.wake_dispatch.wait()
            self._grid.wake_dispatch.clear()
            names, self._grid.dirty = self._grid.dirty, set()
            everyone, self._grid.all_dirty = self._grid.all_dirty, False
            if everyone or len(names) > FEW:
                with _survived("round"):
                    self._dispatcher.serve_all(None if everyone else names)
                continue
            for name in names:
                record = self._grid.fleet.devices.get(name)
                if record is not None:
                    with _survived(f"device={name}"):
                        self._dispatcher.serve(record)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._grid.settings.tick_seconds)
            with _survived("tick"):
                self.devices.tick(self._grid.clock.monotonic())
                self._dispatcher.refresh_speeds()
            for job in list(self._grid.active.values()):
                with _survived(f"job={job.spec.key}"):
                    self._lifecycle.look_at_deadlines(job)
                    self._verifier.collect_lost(job)
                    self._dispatcher.relieve_job(job)
                    self._dispatcher.check_job(job)
                    self._settle_last(job)
            with _survived("round"):
                self._dispatcher.serve_needy()

    def _settle_last(self, job: JobRun) -> None:
        if job.verification is None or job.stage is not Stage.RUNNING:
            return
        devices = self._grid.fleet.devices.values()
        present = (r for r in devices if r.presence is Presence.CONNECTED and r.wants_work)
        self._verifier.settle_last(job, (r for r in present if self._dispatcher.eligible(job, r)))


@contextmanager
def _survived(what: str) -> Iterator[None]:
    """The clockwork goes on whatever one job or device makes it stumble over."""
    try:
        yield
    except Exception:
        log.exception("turn failed %s", what)
