"""One job's way to the disk: results queue up while the last group is being fsynced, then go together.

Group commit needs no timer. The slower the disk, the larger the groups. All calls to the store happen on one thread,
which is the store's own condition.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from pocketgrid.errors import InputChangedError, StaleEpochError, StoreError
from pocketgrid.worktimes import Work, WorkTimes

if TYPE_CHECKING:
    from pocketgrid.model.ids import ShardIndex
    from pocketgrid.storage.results import Committed, Manifest, ResultStore, ShardCommit

log = logging.getLogger(__name__)

_T = TypeVar("_T")

GROUP_SHARDS = 512
GROUP_BYTES = 32 << 20
RETRY_FIRST_S = 0.2
RETRY_LAST_S = 5.0


class CommitWriter:
    """Feeds one `ResultStore`.

    Args:
        store: opened on `executor`'s thread.
        executor: has exactly one thread.
        on_committed: called on the loop with what has become durable, before the next group starts.
        on_reopened: called with shards whose stored results turned out to be damaged and must be done again, and with
            the number of failed rows among those that are still committed.
        on_trouble: called with the error while the store cannot be written, and with None when it can again.
        queue_bytes: results waiting beyond which `room` is False.
        times: added to.
    """

    def __init__(
        self,
        store: ResultStore,
        executor: ThreadPoolExecutor,
        *,
        on_committed: Callable[[Sequence[ShardCommit], Committed], None],
        on_reopened: Callable[[Sequence[ShardIndex], int], None],
        on_trouble: Callable[[StoreError | None], None],
        queue_bytes: int,
        times: WorkTimes,
    ) -> None:
        self._store = store
        self._executor = executor
        self._on_committed = on_committed
        self._on_reopened = on_reopened
        self._on_trouble = on_trouble
        self._limit = queue_bytes
        self._times = times
        self._queue: deque[tuple[ShardCommit, int]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._steps: deque[tuple[Callable[[ResultStore], Any], asyncio.Future[Any]]] = deque()
        self._finish: asyncio.Future[Manifest | None] | None = None
        self._closing = False
        self._ended = False

    def put(self, commit: ShardCommit, size: int) -> None:
        """Queue one result of `size` bytes. Never refuses: callers wait for `room` before they take in more.

        After the end of `run` it is dropped: nothing was acknowledged, so whoever made it still has it.
        """
        if self._ended:
            return
        self._queue.append((commit, size))
        self._queued_bytes += size
        if self._queued_bytes >= self._limit:
            self._room.clear()
        self._wake.set()

    async def wait_for_room(self) -> None:
        """Return when results may be taken in again."""
        await self._room.wait()

    async def perform(self, step: Callable[[ResultStore], _T]) -> _T | None:
        """Have something else done to the store, after what is queued now; None if the writer ends before.

        While the store cannot be written it is tried again, so doing it twice must be harmless.
        """
        if self._ended:
            return None
        done: asyncio.Future[_T | None] = asyncio.get_running_loop().create_future()
        self._steps.append((step, done))
        self._wake.set()
        return await done

    async def finish(self) -> Manifest | None:
        """Write the last parts and the manifest, after all that is queued.

        Returns:
            None if shards had to be reopened instead; finish again once they are committed. None also if the writer
            ended before it could be done.

        Raises:
            StaleEpochError: another operator has taken over.
        """
        if self._ended:
            return None
        if self._finish is None or self._finish.done():
            self._finish = asyncio.get_running_loop().create_future()
        self._wake.set()
        return await asyncio.shield(self._finish)

    def close(self) -> None:
        """Let `run` end after what is queued; the store is closed on its thread."""
        self._closing = True
        self._room.set()
        self._wake.set()

    async def run(self) -> None:
        """Write until closed.

        Raises:
            StaleEpochError: another operator has taken over; nothing unacknowledged was written.
            StoreError: the store cannot be written, and `close` was called.
            InvalidSpecError: the data set is not what it was.
            InputChangedError: the same, found out while reading it.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                if self._queue:
                    await self._commit_group(loop)
                if self._steps:
                    await self._take_step(loop)
                elif self._queue:
                    continue
                elif self._finish is not None and not self._finish.done():
                    manifest = await self._persist(loop, self._store_finish)
                    await self._tell_reopened(loop)
                    self._answer(manifest)
                elif self._closing:
                    return
                else:
                    self._wake.clear()
                    await self._wake.wait()
        except StaleEpochError as exc:
            if self._finish is not None and not self._finish.done():
                self._finish.set_exception(exc)
                self._finish.exception()  # retrieved here, in case nobody waits for it any more
            raise
        finally:
            self._ended = True
            self._queue.clear()
            # Nobody may wait for what will not come: neither a device's reader nor whoever asked for the manifest.
            self._room.set()
            self._answer(None)
            while self._steps:
                _, done = self._steps.popleft()
                if not done.done():
                    done.set_result(None)
            await loop.run_in_executor(self._executor, self._store.close)

    async def plan(self, per_shard: int, *, verify: bool) -> None:
        """Fix the cut, and whether results are verified, however long the disk takes to have room for it.

        Raises:
            StaleEpochError: another operator has taken over.
            StoreError: the store cannot be written, and `close` was called.
        """
        await self._persist(asyncio.get_running_loop(), lambda: self._store.plan(per_shard, verify=verify))

    async def _commit_group(self, loop: asyncio.AbstractEventLoop) -> None:
        group: list[ShardCommit] = []
        size = 0
        while self._queue and len(group) < GROUP_SHARDS and size < GROUP_BYTES:
            commit, nbytes = self._queue.popleft()
            group.append(commit)
            size += nbytes
        committed = await self._persist(loop, lambda: self._store_commit(group))
        self._queued_bytes -= size
        if self._queued_bytes < self._limit:
            self._room.set()
        self._on_committed(group, committed)
        await self._seal(loop)

    async def _take_step(self, loop: asyncio.AbstractEventLoop) -> None:
        step, done = self._steps[0]
        result = await self._persist(loop, lambda: step(self._store))
        self._steps.popleft()
        if not done.done():
            done.set_result(result)
        await self._seal(loop)

    async def _seal(self, loop: asyncio.AbstractEventLoop) -> None:
        # Between groups, so that no acknowledgement waits for more than the writing of one part.
        if self._store.has_ready_part and await self._persist(loop, self._store_seal) == 0:
            await self._tell_reopened(loop)

    def _store_commit(self, group: Sequence[ShardCommit]) -> Committed:
        with self._times.measure(Work.COMMIT):
            return self._store.commit(group)

    def _store_seal(self) -> int:
        with self._times.measure(Work.SEAL):
            return self._store.seal()

    def _store_finish(self) -> Manifest | None:
        try:
            return self._store.finish()
        except StoreError:
            if self._store.has_reopened:
                return None
            raise

    async def _tell_reopened(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._store.has_reopened:
            shards = await loop.run_in_executor(self._executor, self._store.take_reopened)
            self._on_reopened(shards, self._store.rows_failed)
            # Whoever asked for the manifest did so before this was known.
            self._answer(None)

    def _answer(self, manifest: Manifest | None) -> None:
        if self._finish is not None and not self._finish.done():
            self._finish.set_result(manifest)

    async def _persist(self, loop: asyncio.AbstractEventLoop, step: Callable[[], _T]) -> _T:
        delay = RETRY_FIRST_S
        while True:
            if self._ended:
                raise StoreError("the store was closed before it could be written")
            try:
                result = await loop.run_in_executor(self._executor, step)
            except (StaleEpochError, InputChangedError):
                raise
            except StoreError as exc:
                log.warning("store blocked cause=%s retry_s=%.1f", exc, delay)
                self._on_trouble(exc)
                if self._closing:
                    raise
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_LAST_S)
            else:
                self._on_trouble(None)
                return result
