"""The agent's tie to its gateway: one stream at a time, and another one whenever it ends.

What is lost with a stream is only what can be said again: Hello lists what this device holds, results come from the
journal, work orders come from the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence

from pocketgrid.errors import PeerError, RefusedError
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent.backoff import Backoff
from pocketgrid_agent.events import Token
from pocketgrid_agent.stream import CrowdedError, LinkDownError, Owner, PostponedError, Stream, Target

log = logging.getLogger(__name__)

STEADY_SECONDS = 1.0
"""A stream that lived for so long was one; waits before the next dial begin anew."""

AFTER_DRAIN_SECONDS = 1.0
"""Before dialling a gateway again that has asked to be left."""


class AskedError(PeerError):
    """We closed the stream ourselves."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Link:
    """Keeps one stream to the gateway, for as long as `run` runs."""

    def __init__(self, target: Target, owner: Owner, backoff: Backoff) -> None:
        self._target = target
        self._owner = owner
        self._backoff = backoff
        self._stream: Stream | None = None
        self._attached = asyncio.Event()
        self._closing = False

    async def run(self) -> None:
        """Dial until cancelled or closed.

        Raises:
            RefusedError: the gateway will not have this device, now or later.
        """
        last_complaint = ""
        while True:
            wait, crowded, asked_for = 0.0, False, False
            try:
                await self._one_session()
                complaint = "the stream ended"
            except RefusedError as error:
                if not error.retry:
                    raise
                complaint, wait = str(error), error.retry_after_s if isinstance(error, PostponedError) else 0.0
            except AskedError as asked:
                complaint, wait, asked_for = f"closed on purpose: {asked.reason}", AFTER_DRAIN_SECONDS, True
            except CrowdedError as error:
                complaint, crowded = str(error), True
            except PeerError as error:
                complaint = str(error)
            if self._closing:
                return
            if not asked_for:
                wait = max(wait, self._backoff.next(crowded=crowded))
            # Said once, not at every try: a gateway may be away for days.
            level = logging.DEBUG if complaint == last_complaint else logging.WARNING
            log.log(level, "not attached gateway=%s retry_s=%.2f cause=%s", self._target.address, wait, complaint)
            last_complaint = complaint
            await asyncio.sleep(wait)

    async def _one_session(self) -> None:
        channel = self._target.channel()
        stream = Stream(channel, self._owner)
        try:
            try:
                welcome = await stream.open(self._backoff.patience_s)
            except LinkDownError as error:
                self._target.source.dialled(successfully=isinstance(error, CrowdedError))
                raise
            self._target.source.dialled(successfully=True)
            self._stream = stream
            self._attached.set()
            since = asyncio.get_running_loop().time()
            self._owner.welcomed(welcome)
            try:
                await stream.serve()
            finally:
                if asyncio.get_running_loop().time() - since >= STEADY_SECONDS:
                    # A gateway that welcomes and throws out at once would be dialled without end.
                    self._backoff.reset(stream.spread_s)
                self._stream = None
                self._attached.clear()
                self._owner.lost(stream.ending)
        finally:
            stream.cancel()
            # Calls are gone already; a grace period would only wait for a dead peer.
            await channel.close(None)

    @property
    def answered(self) -> int:
        """How many heartbeats of the present stream were answered; 0 without one."""
        return self._stream.answered if self._stream is not None else 0

    def send(self, message: pb.DeviceMessage) -> None:
        """Send soon, before any results that wait. Without a stream the message is dropped: Hello will say it."""
        if self._stream is not None:
            self._stream.put(message)

    def send_results(self, job: str, tokens: Sequence[Token]) -> None:
        """Send these results when it is their turn; their bodies are asked for only then."""
        if self._stream is not None:
            self._stream.put_results(job, tokens)

    def disconnect(self, reason: str) -> None:
        """Close the stream and dial again."""
        if self._stream is not None:
            self._stream.end(AskedError(reason))

    async def flush(self, deadline_s: float) -> None:
        """Wait until everything given to `send` has been written, or the deadline, or the stream's end."""
        stream = self._stream
        if stream is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stream.flushed(), deadline_s)

    async def close(self, deadline_s: float) -> None:
        """Write what waits, end the stream in good order and dial no more; `run` ends then or at the deadline."""
        self._closing = True
        stream = self._stream
        if stream is not None:
            with contextlib.suppress(TimeoutError, PeerError):
                async with asyncio.timeout(deadline_s):
                    await stream.flushed()
                    await stream.finish()

    async def attached(self) -> None:
        """Wait for a welcomed stream."""
        await self._attached.wait()

    async def fetch_model(self, digest: str, offset: int) -> AsyncGenerator[pb.ModelChunk, None]:
        """The bytes of a model from `offset` on.

        Raises:
            LinkDownError: not now; try again once attached.
            RefusedError: the gateway does not give this model.
        """
        stream = self._stream
        if stream is None:
            raise LinkDownError("not attached")
        async for chunk in stream.fetch_model(digest, offset):
            yield chunk
