"""Results from when they are finished until they are settled: in the journal always, in memory while fresh.

Writes are grouped: what finishes within a few milliseconds shares one transaction and then one message, because a
tiny model finishes a thousand shards a second. All use of the journal is in one thread, in the order it was asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pocketgrid.errors import StoreError
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import codec
from pocketgrid_agent.events import Token
from pocketgrid_agent.journal import Entry, Journal

log = logging.getLogger(__name__)

GROUP_SECONDS = 0.010
GROUP_BYTES = 256 << 10
"""A group is written when it is so old or so large, or at once when the last was written longer ago than that or when
no shard is being computed."""

FORGET_SECONDS = 1.0
"""How long results that need not be kept any more stay in the journal of a busy device, unless something else is
written sooner."""

FRESH_BYTES = 32 << 20
"""Bodies kept in memory beside the journal, so that sending need not read them back; the oldest leave first."""


class ResultKeeper:
    """Keeps results.

    Args:
        journal: where they are written; used only by this keeper from now on.
        journaled: told, on the event loop, of tokens whose results are safe, or as safe as this disk allows.
    """

    def __init__(self, journal: Journal, journaled: Callable[[tuple[Token, ...]], None]) -> None:
        self._journal = journal
        self._journaled = journaled
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._entries: list[Entry] = []
        self._copies: list[tuple[Entry, Token]] = []
        self._forget: list[Token] = []
        self._group_bytes = 0
        self._fresh: OrderedDict[Token, bytes] = OrderedDict()
        self._fresh_bytes = 0
        self._only_here: set[Token] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._complained = False
        self._idle = True
        self._written_at = float("-inf")

    def keep(self, entry: Entry) -> None:
        """Write a result soon."""
        self._entries.append(entry)
        self._group_bytes += len(entry.body)
        self._fresh[entry.token] = entry.body
        self._fresh_bytes += len(entry.body)

    def reissue(self, job: str, shard: int, old: Token, new: Token) -> None:
        """Write the result of `old` again, as that of `new`."""
        body = self._fresh.get(old)
        if body is not None:
            self.keep(Entry(job, shard, new, False, codec.reissued(body, new)))
        else:
            self._copies.append((Entry(job, shard, new, False, b""), old))

    def forget(self, tokens: Sequence[Token]) -> None:
        """Remove results soon; doing it late does no harm."""
        self._forget.extend(tokens)
        for token in tokens:
            self._only_here.discard(token)
            self._drop_fresh(token)

    def write_soon(self, *, idle: bool) -> None:
        """Call after the above: write now if `idle` or the group is large, else within `GROUP_SECONDS`."""
        self._idle = idle
        if self._writing is not None or not (self._entries or self._copies or self._forget):
            return
        # A result that comes long after the last one has nobody to share a transaction with.
        alone = asyncio.get_running_loop().time() - self._written_at >= GROUP_SECONDS
        if (self._entries or self._copies) and (idle or alone or self._group_bytes >= GROUP_BYTES):
            self._write()
        else:
            self._write_within(GROUP_SECONDS if idle or self._entries or self._copies else FORGET_SECONDS)

    def _write_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._write)

    async def results(self, job: str, tokens: Sequence[Token]) -> AsyncIterator[pb.Results]:
        """Messages with the results of `tokens`, each of about `GROUP_BYTES` or one result; settled ones are left out.

        A body leaves memory once it was handed out here: if it is needed again, it is read from the journal.
        """
        group = pb.Results(job=job)
        size = 0
        for token in tokens:
            body = await self._body(token)
            if body is None:
                continue
            if size and size + len(body) > GROUP_BYTES:
                yield group
                group, size = pb.Results(job=job), 0
            group.results.add().MergeFromString(body)
            size += len(body)
            if token not in self._only_here:
                self._drop_fresh(token)
        if size:
            yield group

    async def close(self) -> None:
        """Write what is left and close the journal."""
        while self._entries or self._copies or self._forget or self._writing is not None:
            if self._writing is None:
                self._write()
            assert self._writing is not None
            await asyncio.wait([self._writing])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._journal.close)
        self._thread.shutdown()

    async def _body(self, token: Token) -> bytes | None:
        body = self._fresh.get(token)
        if body is not None:
            return body
        loop = asyncio.get_running_loop()
        try:
            bodies = await loop.run_in_executor(self._thread, self._journal.read, [token])
        except StoreError as error:
            log.error("a finished result cannot be read back cause=%s", error)
            return None
        return bodies.get(token)

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        entries, self._entries = self._entries, []
        copies, self._copies = self._copies, []
        forget, self._forget = self._forget, []
        self._group_bytes = 0
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._write_group, entries, copies, forget)
        tokens = tuple(e.token for e in entries) + tuple(entry.token for entry, _ in copies)
        self._writing = asyncio.ensure_future(future)
        self._written_at = asyncio.get_running_loop().time()
        self._writing.add_done_callback(lambda done: self._written(done, entries, tokens))

    def _write_group(self, entries: list[Entry], copies: list[tuple[Entry, Token]], forget: list[Token]) -> None:
        if copies:
            bodies = self._journal.read(old for _, old in copies)
            entries = entries + [
                Entry(e.job, e.shard, e.token, False, codec.reissued(bodies[old], e.token))
                for e, old in copies
                if old in bodies
            ]
        self._journal.write(entries, forget)

    def _written(self, done: asyncio.Future[None], entries: list[Entry], tokens: tuple[Token, ...]) -> None:
        self._writing = None
        error = done.exception()
        if error is None:
            self._complained = False
        else:
            # Undelivered work in memory is worth more than none: send it, and keep it until it is settled.
            self._only_here.update(e.token for e in entries if e.token in self._fresh)
            if not self._complained:
                log.error("results are kept in memory only cause=%s", error)
                self._complained = True
        self._trim()
        if tokens:
            self._journaled(tokens)
        self.write_soon(idle=self._idle)

    def _trim(self) -> None:
        unwritten = {e.token for e in self._entries} | self._only_here
        for token in list(self._fresh):
            if self._fresh_bytes <= FRESH_BYTES:
                return
            if token not in unwritten:
                self._drop_fresh(token)

    def _drop_fresh(self, token: Token) -> None:
        body = self._fresh.pop(token, None)
        if body is not None:
            self._fresh_bytes -= len(body)
