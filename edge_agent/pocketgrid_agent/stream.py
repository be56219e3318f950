"""One stream to the gateway, from dialling to its end: say Hello, be welcomed, send, listen, notice silence.

One task writes to a stream and nobody else does, because concurrent writes of grpc.aio lose messages without an
error. A device counts as attached once it has received Welcome, not once a write succeeded: under load a server drops
streams whose first write looked fine.

Silence is noticed twice over: HTTP/2 pings find a dead connection, unanswered heartbeats find a live connection to a
gateway that no longer listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from pocketgrid.errors import PeerError, ProtocolError, RefusedError
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid.wire.v1 import agent_pb2_grpc as rpc
from pocketgrid_agent.credentials import Credentials
from pocketgrid_agent.events import Token

WELCOME_SECONDS = 10.0
"""From dialling to Welcome; afterwards the try counts as failed."""

LONGEST_SILENCE_SECONDS = 9.0
"""A gateway may ask for less, not for more: a half-open link must not hide for longer."""

SILENT_BEATS = 4.0
"""Except from a gateway with so many idle devices that it wants to hear rarely of each: so many heartbeats may then go
unanswered, the last of them included."""

SHORTEST_HEARTBEAT_SECONDS, LONGEST_HEARTBEAT_SECONDS, LONGEST_SPREAD_SECONDS = 0.05, 15.0, 600.0
"""What a gateway may ask for."""

SHORTEST_SILENCE_SECONDS = 0.5
"""Or the stream would be given up before anybody can have said anything, and dialled again without end."""

LONGEST_POSTPONEMENT_SECONDS = 3600.0
"""A gateway may ask for more; a device that stays away for weeks because of one wrong number serves nobody."""

LONGEST_SESSION_ID = 256

CHUNK_SECONDS = 30.0
"""Between two chunks of a model."""

MOST_QUEUED = 4096
"""Messages waiting to be sent. Beyond it the stream is closed: the gateway does not read, and after dialling again
everything that matters is said anew."""

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.keepalive_time_ms", framing.KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", framing.KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", framing.PIECE_BYTES),
    # Without it a new channel inherits the old one's connection backoff, and a quick retry is anything but.
    ("grpc.use_local_subchannel_pool", 1),
)

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in grpc-stubs

_REFUSING_CODES = {
    grpc.StatusCode.UNAUTHENTICATED: "Unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "PermissionDenied",
}

# Anything else, UNAUTHENTICATED included, is the stream's trouble: its session may just have ended.
_REFUSED_FETCHES = {
    grpc.StatusCode.NOT_FOUND: "ModelNotFound",
    grpc.StatusCode.PERMISSION_DENIED: "ModelNotFound",
    grpc.StatusCode.FAILED_PRECONDITION: "ModelNotFound",
    grpc.StatusCode.OUT_OF_RANGE: "ModelSourceBroken",
    grpc.StatusCode.INVALID_ARGUMENT: "ModelSourceBroken",
    grpc.StatusCode.UNIMPLEMENTED: "ModelSourceBroken",
}


class LinkDownError(PeerError):
    """The stream is gone or silent; dialling again may help."""


class CrowdedError(LinkDownError):
    """There is a gateway, and it has no time for this device."""


class PostponedError(RefusedError):
    """The gateway refused, and may have said when to ask again."""

    def __init__(self, refusal: pb.Refusal) -> None:
        super().__init__(refusal.reason, refusal.message, retry=refusal.retry)
        self.retry_after_s = min(refusal.retry_after_ms / 1000, LONGEST_POSTPONEMENT_SECONDS)


class Owner(Protocol):
    """Whoever speaks through a link."""

    async def hello(self) -> pb.Hello:
        """What to say first."""
        ...

    async def heartbeat(self, sequence: int) -> pb.Heartbeat:
        """How this device feels."""
        ...

    def results(self, job: str, tokens: Sequence[Token]) -> AsyncIterator[pb.Results]:
        """Messages with these results, as far as they still need to be said."""
        ...

    def welcomed(self, welcome: pb.Welcome) -> None:
        """The stream is open."""
        ...

    def received(self, message: pb.GatewayMessage) -> None:
        """A whole message came that is not the link's own business."""
        ...

    def lost(self, reason: str) -> None:
        """A stream that was welcomed is gone."""
        ...


class CredentialSource(Protocol):
    """Whoever knows what to dial, and with what."""

    @property
    def current(self) -> Credentials:
        """The newest credentials."""
        ...

    @property
    def address(self) -> str:
        """HOST:PORT of the gateway."""
        ...

    def dialled(self, *, successfully: bool) -> None:
        """A stream was welcomed, or could not be opened."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to dial, and how to prove who is dialling."""

    source: CredentialSource

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.source.address

    @property
    def is_local(self) -> bool:
        """Whether the gateway is on this machine."""
        host = self.address.rpartition(":")[0].strip("[]")
        return host == "localhost" or host == "::1" or host.startswith("127.")

    def channel(self) -> grpc.aio.Channel:
        """A new connection, with the credentials of this moment."""
        held = self.source.current
        options = [*CHANNEL_OPTIONS]
        if held.server_name:
            options.append(("grpc.ssl_target_name_override", held.server_name))
        credentials = grpc.ssl_channel_credentials(held.bundle_pem, held.key_pem, held.chain_pem)
        return grpc.aio.secure_channel(self.address, credentials, options=options)


class Stream:
    """One stream, from dialling to its end."""

    def __init__(self, channel: grpc.aio.Channel, owner: Owner) -> None:
        self._owner = owner
        # The generated stub is untyped, and typed stubs would have to be generated by a tool Termux lacks.
        self._stub: Any = rpc.DeviceGatewayStub(channel)  # type: ignore[no-untyped-call]
        self._call: Any = None
        self._incoming = framing.Reassembler(pb.GatewayMessage)
        self._control: deque[pb.DeviceMessage] = deque()
        self._results: deque[tuple[str, tuple[Token, ...]]] = deque()
        self._heartbeat: pb.DeviceMessage | None = None
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._paced = asyncio.Event()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._served: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_heard = 0.0
        self._session_id = ""
        self._heartbeat_s = 1.0
        self._silence_s = LONGEST_SILENCE_SECONDS
        self.answered = 0
        """Sequence number of the last heartbeat that was answered."""
        self.spread_s = 0.0
        """Over how long a time this device and others spread, should they all lose their streams."""
        self.ending = "the stream ended"

    # ---- life ----

    async def open(self, patience_s: float = WELCOME_SECONDS) -> pb.Welcome:
        """Say Hello and wait for Welcome. Raises LinkDownError, RefusedError, ProtocolError."""
        hello = pb.DeviceMessage(hello=await self._owner.hello())
        try:
            async with asyncio.timeout(patience_s):
                self._call = self._stub.Attach()
                for piece in framing.split(hello):
                    await self._write(piece)
                message = await self._read()
        except TimeoutError as error:
            raise CrowdedError(f"no Welcome within {patience_s:.0f} s") from error
        match message.WhichOneof("body"):
            case "welcome":
                welcome = message.welcome
            case "refusal":
                raise PostponedError(message.refusal)
            case other:
                raise ProtocolError(f"the gateway's first message was {other}, not Welcome")
        if not framing.OLDEST_PROTOCOL_VERSION <= welcome.protocol_version <= framing.PROTOCOL_VERSION:
            raise ProtocolError(
                f"the gateway speaks version {welcome.protocol_version}, this agent "
                f"{framing.OLDEST_PROTOCOL_VERSION} to {framing.PROTOCOL_VERSION}; update the older of the two"
            )
        name = welcome.session_id
        if len(name) > LONGEST_SESSION_ID or not (name.isascii() and name.isprintable()):
            raise ProtocolError("the gateway's session id cannot be sent back to it")
        self._session_id = name
        self._pace(welcome)
        self._last_heard = asyncio.get_running_loop().time()
        return welcome

    async def serve(self) -> None:
        """Carry messages until the stream ends. Raises LinkDownError, RefusedError, ProtocolError."""
        parts: list[Awaitable[None]] = [self._listen(), self._speak(), self._beat()]
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            await asyncio.wait([*tasks, self._ended], return_when=asyncio.FIRST_COMPLETED)
            for each in (self._ended, *tasks):
                if each.done():
                    each.result()
        except PeerError as error:
            self.ending = str(error)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._served.set_result(None)

    def end(self, error: PeerError) -> None:
        """Make `serve` raise `error`."""
        if not self._ended.done():
            self._ended.set_exception(error)

    def cancel(self) -> None:
        """Drop the call."""
        if self._call is not None:
            self._call.cancel()
        if self._ended.done():
            self._ended.exception()  # retrieved, or asyncio complains that nobody looked
        else:
            self._ended.cancel()

    # ---- sending ----

    def put(self, message: pb.DeviceMessage) -> None:
        """Queue a message ahead of results."""
        self._control.append(message)
        self._wake()

    def put_results(self, job: str, tokens: Iterable[Token]) -> None:
        """Queue results; their bodies are asked of the owner when it is their turn."""
        self._results.append((job, tuple(tokens)))
        self._wake()

    def _wake(self) -> None:
        if len(self._control) + len(self._results) > MOST_QUEUED:
            self.end(LinkDownError(f"the gateway left {MOST_QUEUED} messages unread"))
        self._idle.clear()
        self._something.set()

    async def flushed(self) -> None:
        """Wait until everything queued has been written."""
        if self._control or self._results or self._something.is_set():
            await self._idle.wait()

    async def finish(self) -> None:
        """Tell the gateway that nothing more will come, and wait until it ends the stream."""
        with contextlib.suppress(asyncio.InvalidStateError):
            await self._call.done_writing()
        await asyncio.wait([self._served])

    async def _speak(self) -> None:
        while True:
            await self._something.wait()
            while await self._speak_once():
                pass
            self._something.clear()
            self._idle.set()

    async def _speak_once(self) -> bool:
        if self._heartbeat is not None:
            message, self._heartbeat = self._heartbeat, None
            await self._write(message)
        elif self._control:
            await self._write_whole(self._control.popleft())
        elif self._results:
            job, tokens = self._results.popleft()
            async for results in self._owner.results(job, tokens):
                await self._write_whole(pb.DeviceMessage(results=results))
                if self._heartbeat is not None or self._control:
                    await self._speak_urgent()
        else:
            return False
        return True

    async def _speak_urgent(self) -> None:
        """What must not wait behind a long row of results on a slow line."""
        if self._heartbeat is not None:
            message, self._heartbeat = self._heartbeat, None
            await self._write(message)
        while self._control:
            await self._write_whole(self._control.popleft())

    async def _write_whole(self, message: pb.DeviceMessage) -> None:
        for piece in framing.split(message):
            await self._write(piece)

    async def _write(self, message: pb.DeviceMessage) -> None:
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise await self._why(error) from error

    async def _beat(self) -> None:
        """Report as often as the gateway wants; raise once nothing has arrived for too long.

        Each heartbeat is answered, so silence is trouble.
        """
        loop = asyncio.get_running_loop()
        sequence, last = 0, float("-inf")
        while True:
            now = loop.time()
            quiet_s = now - self._last_heard
            if quiet_s >= self._silence_s:
                raise LinkDownError(f"nothing heard for {quiet_s:.1f} s")
            if now >= last + self._heartbeat_s:
                sequence, last = sequence + 1, now
                heartbeat = await self._owner.heartbeat(sequence)
                # At most one waits: of two unsent heartbeats the newer says it all.
                self._heartbeat = pb.DeviceMessage(heartbeat=heartbeat)
                self._wake()
            self._paced.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(last + self._heartbeat_s, self._last_heard + self._silence_s)):
                    await self._paced.wait()

    def _answer(self, pulse: pb.Pulse) -> None:
        """The gateway has heard of us, and may want to hear more often or less."""
        self.answered = pulse.sequence
        if pulse.heartbeat_interval_ms:
            self._pace(pulse)
            self._paced.set()

    def _pace(self, wanted: pb.Welcome | pb.Pulse) -> None:
        heartbeat_s = (wanted.heartbeat_interval_ms or 2000) / 1000
        silence_s = (wanted.silence_limit_ms or 10_000) / 1000
        self._heartbeat_s = min(max(SHORTEST_HEARTBEAT_SECONDS, heartbeat_s), LONGEST_HEARTBEAT_SECONDS)
        silence_s = max(SHORTEST_SILENCE_SECONDS, silence_s)
        self._silence_s = min(silence_s, max(LONGEST_SILENCE_SECONDS, SILENT_BEATS * self._heartbeat_s))
        self.spread_s = min(wanted.reconnect_spread_ms / 1000, LONGEST_SPREAD_SECONDS)

    # ---- listening ----

    async def _listen(self) -> None:
        while True:
            message = await self._read()
            match message.WhichOneof("body"):
                case "refusal":
                    raise PostponedError(message.refusal)
                case "pulse":
                    self._answer(message.pulse)
                case "welcome" | None:
                    pass
                case _:
                    self._owner.received(message)

    async def _read(self) -> pb.GatewayMessage:
        while True:
            try:
                message = await self._call.read()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
                raise await self._why(error) from error
            if message is _EOF:
                raise await self._why(None)
            self._last_heard = asyncio.get_running_loop().time()
            whole = self._incoming.feed(message)
            if whole is not None:
                return whole

    async def _why(self, error: BaseException | None) -> PeerError:
        """Why the call ended, in our own words."""
        if isinstance(error, grpc.aio.AioRpcError):
            return _translated(error.code(), error.details())
        try:
            async with asyncio.timeout(1.0):  # the status follows the end of the stream, usually at once
                code, details = await self._call.code(), await self._call.details()
        except (TimeoutError, asyncio.CancelledError):
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return LinkDownError("the stream broke")
        return _translated(code, details)

    # ---- models ----

    async def fetch_model(self, digest: str, offset: int) -> AsyncGenerator[pb.ModelChunk, None]:
        """The bytes of a model from `offset` on. Raises LinkDownError, RefusedError."""
        call = self._stub.FetchModel(
            pb.FetchModelRequest(sha256=digest, offset=offset),
            metadata=((framing.SESSION_KEY, self._session_id),),
        )
        try:
            while True:
                async with asyncio.timeout(CHUNK_SECONDS):
                    chunk = await call.read()
                if chunk is _EOF:
                    return
                yield chunk
        except TimeoutError as error:
            raise LinkDownError(f"no chunk of model {digest} for {CHUNK_SECONDS:.0f} s") from error
        except grpc.aio.AioRpcError as error:
            reason = _REFUSED_FETCHES.get(error.code())
            if reason is not None:
                raise RefusedError(reason, error.details() or "", retry=False) from error
            raise LinkDownError(f"fetching model {digest}: {error.details()}") from error
        finally:
            call.cancel()


def _translated(code: grpc.StatusCode | None, details: str | None) -> PeerError:
    reason = _REFUSING_CODES.get(code) if code is not None else None
    if reason is not None:
        said, colon, message = (details or "").partition(": ")
        if colon and said.isalnum():
            return RefusedError(said, message, retry=False)
        return RefusedError(reason, details or "the gateway does not accept this device", retry=False)
    if code is grpc.StatusCode.OK:
        return LinkDownError("the gateway closed the stream")
    # The same code also stands for a message that is too large, which says nothing of how busy anybody is.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" not in (details or ""):
        return CrowdedError(f"the gateway has too much to do: {details or 'no details'}")
    return LinkDownError(f"{code.name if code else 'UNKNOWN'}: {details or 'no details'}{_about_clocks(details or '')}")


def _about_clocks(details: str) -> str:
    """What to do if a certificate was refused for its dates alone, in OpenSSL's words; otherwise nothing."""
    if "certificate is not yet valid" not in details and "certificate has expired" not in details:
        return ""
    said = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"; compare this device's clock, which says {said}, with the gateway's, and set the one that is wrong"
