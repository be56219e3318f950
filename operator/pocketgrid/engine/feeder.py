"""Turns a lease into messages: reads and encodes the shards in a thread and sends them as they become ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pocketgrid.clock import Clock
from pocketgrid.engine.fleet import DeviceRecord
from pocketgrid.engine.history import History
from pocketgrid.engine.jobrun import INPUT_CHANGED, INPUT_UNREADABLE, JobRun
from pocketgrid.engine.links import LeasedShard
from pocketgrid.errors import InputChangedError
from pocketgrid.model import events as ev
from pocketgrid.model.view import Explanation
from pocketgrid.planning.eligibility import may_receive
from pocketgrid.settings import EngineSettings

if TYPE_CHECKING:
    from pocketgrid.storage.encoding import EncodedShard

log = logging.getLogger(__name__)

READ_RETRY_S = 2.0
FIRST_GROUP_SHARDS = 1
"""The first shard of a lease travels alone, so that an idle device begins while the rest is still being read."""

GROUP_SHARDS = 64


class Feeder:
    """Sends leases.

    Args:
        apply: feeds an event to a job's machine and carries out what follows.
    """

    def __init__(
        self,
        settings: EngineSettings,
        clock: Clock,
        apply: Callable[[JobRun, ev.JobEvent], None],
        history: History,
    ) -> None:
        self._history = history
        self._settings = settings
        self._clock = clock
        self._apply = apply
        self._threads = ThreadPoolExecutor(settings.encode_threads, thread_name_prefix="encode")

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def feed(self, job: JobRun, record: DeviceRecord, cut: ev.LeaseCut) -> None:
        """Send all of a lease, or give back to the job what could not be sent."""
        async with record.feeding:
            await self._feed(job, record, cut)

    async def _feed(self, job: JobRun, record: DeviceRecord, cut: ev.LeaseCut) -> None:
        assert job.admission is not None
        assert job.machine is not None
        link = record.link
        rest = list(cut.shards)
        per_message = max(1, int(self._settings.message_bytes / max(job.bytes_per_shard, 1.0)))
        group_size = FIRST_GROUP_SHARDS
        try:
            while rest:
                group = [h for h in rest[:group_size] if h.seq in job.machine.attempts]
                if group:
                    encoded = await job.encode(self._threads, [job.items_of(h.shard) for h in group])
                    if link is None or record.link is not link:
                        break
                    if not may_receive(record.tier, job.spec.placement):
                        job.eligibility.pop(record.name, None)
                        log.warning("withheld job=%s device=%s tier=%s", job.spec.key, record.name, record.tier.name)
                        break
                    self._send(job, record, cut, group, encoded)
                del rest[:group_size]
                group_size = min(per_message, GROUP_SHARDS)
        except Exception as exc:
            # Of any kind: what drivers of remote file systems raise is theirs to choose.
            log.warning("read failed job=%s cause=%s: %s", job.spec.key, type(exc).__name__, exc)
            if isinstance(exc, InputChangedError):
                self._apply(job, ev.JobBroken(INPUT_CHANGED, str(exc)))
            elif job.trouble is None or job.trouble.reason == INPUT_UNREADABLE:
                job.trouble = Explanation(INPUT_UNREADABLE, f"{job.spec.input.text}: {exc}")
            job.paused_until = self._clock.monotonic() + READ_RETRY_S
        else:
            if job.trouble is not None and job.trouble.reason == INPUT_UNREADABLE:
                job.trouble = None
        if rest:
            self._apply(job, ev.AttemptsReturned(record.name, tuple(h.seq for h in rest)))

    def _send(
        self,
        job: JobRun,
        record: DeviceRecord,
        cut: ev.LeaseCut,
        group: Sequence[ev.HandedOut],
        encoded: Sequence[EncodedShard],
    ) -> None:
        assert job.machine is not None
        assert job.tokens is not None
        assert record.link is not None
        ready, sent = [], []
        empty = []
        for handed, shard in zip(group, encoded, strict=True):
            if handed.seq not in job.machine.attempts:
                continue
            if job.machine.check_number(handed.shard) is not None:
                assert job.verification is not None
                job.verification.note_sent(handed.shard, shard.failures)
            else:
                job.in_flight.add(handed.shard)
                if shard.failures:
                    job.unread[handed.shard] = shard.failures
            if shard.rows == 0:
                empty.append(handed)
                continue
            token = job.tokens.mint(handed.seq, handed.shard, record.name)
            ready.append(LeasedShard(job.tokens.wire_index(handed.shard), token, shard.rows, shard.inputs))
            sent.append(handed.seq)
        if ready:
            ttl = max(cut.deadline - self._clock.monotonic(), 0.0)
            self._history.sent(job.uid, record.name, sent)
            record.link.send_lease(job.uid, cut.lease, ttl, ready)
        for handed in empty:
            self._apply(job, ev.ShardEmpty(handed.shard, handed.seq))
