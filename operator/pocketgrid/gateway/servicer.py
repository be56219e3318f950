"""The gRPC service: decodes, asks the engine, encodes; decides nothing."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, assert_never

import grpc
from grpc import aio
from grpc.aio import EOF  # type: ignore[attr-defined]  # grpc-stubs does not know it

from pocketgrid.clock import Clock
from pocketgrid.engine.engine import Engine
from pocketgrid.errors import ProtocolError, RefusedError
from pocketgrid.gateway.convert import read_hello, read_model_report, read_results, read_vitals
from pocketgrid.gateway.session import DeviceSession
from pocketgrid.model.ids import DeviceName, JobUid, ModelDigest
from pocketgrid.settings import GatewaySettings
from pocketgrid.wire.framing import AUTHORIZATION_KEY, MODEL_CHUNK_BYTES, PROTOCOL_VERSION, SESSION_KEY, Reassembler
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid.wire.v1 import agent_pb2_grpc

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 2.0
"""How long a device that is being sent away is given to take the reason and hang up."""

HELLO_BYTES = 16 << 20
"""Largest Hello: several hundred thousand attempts that a device still holds."""

FAULT_PAUSE_SECONDS = 5.0
"""How long a device stays away after a fault of ours, which its next words may bring about again."""


UNAUTHENTICATED = "Unauthenticated"


class Servicer(agent_pb2_grpc.DeviceGatewayServicer):
    """Sessions of all devices.

    Args:
        join_secret: what every device must present.
    """

    def __init__(self, engine: Engine, settings: GatewaySettings, clock: Clock, join_secret: str) -> None:
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._credential = f"Bearer {join_secret}".encode()
        self._sessions: dict[str, DeviceSession] = {}
        self._stopping = False
        self._all_left = asyncio.Event()

    @property
    def sessions(self) -> int:
        """How many devices are attached."""
        return len(self._sessions)

    async def sweep(self) -> None:
        """Close silent links, for ever. One task for all sessions: cheaper than a timer for each."""
        period = self._settings.heartbeat_seconds / 2
        before = self._clock.monotonic()
        while True:
            await asyncio.sleep(period)
            now = self._clock.monotonic()
            # While this process stood still itself, nobody can be blamed for not having been heard.
            late = max(0.0, now - before - 2 * period)
            before = now
            for session in list(self._sessions.values()):
                session.last_heard += late
                if session.held_up:
                    # It is we who do not listen. Its heartbeats wait unread, so it must hear from us unasked.
                    session.last_heard = now
                    if not session.queued:
                        session.send_pulse()
                elif now - session.last_heard > self._settings.silence_seconds:
                    session.drop("Silent")

    async def stop(self, deadline_s: float) -> None:
        """Send all devices away, and whoever comes from now on; returns when they have gone, or at the deadline."""
        self._stopping = True
        for session in list(self._sessions.values()):
            session.close("OperatorStopping", "the operator is stopping", retry=True)
        if self._sessions:
            self._all_left.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._all_left.wait()

    async def Attach(self, request_iterator: Any, context: aio.ServicerContext[Any, Any]) -> None:  # noqa: N802
        """One device's session, from Hello to the end."""
        try:
            session = await self._welcome(context)
        except RefusedError as exc:
            text = str(exc).removeprefix(f"{exc.reason}: ")
            refusal = pb.Refusal(reason=exc.reason, message=text, retry=exc.retry)
            with suppress(aio.BaseError):
                await context.write(pb.GatewayMessage(refusal=refusal))
            if exc.reason == UNAUTHENTICATED:
                # A device refused before its Hello has been read may find the stream closed under its first write,
                # and then looks at the status only.
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)
            return
        except aio.BaseError as exc:
            log.debug("stream broke before Welcome cause=%s", exc)
            return
        if session is None:
            return
        sender = asyncio.create_task(session.send_all(context.write), name=f"send-{session.identity.name}")
        reader = asyncio.create_task(self._read(session, context), name=f"read-{session.identity.name}")
        ending = asyncio.create_task(session.ending.wait(), name=f"end-{session.identity.name}")
        tasks = (sender, reader, ending)
        try:
            # Sender and reader end each other: a link of which one half is dead is dead. Neither needs to notice the
            # end of the session by itself: a write to a device that does not read may take for ever.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if session.ending.is_set() and session.farewell:
                with suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_SECONDS):
                        await asyncio.wait([sender])
                        # A device whose write fails does not see what it was sent, so it is left to hang up itself.
                        await asyncio.wait([reader])
        finally:
            # First of all and without waiting, because whoever cancels this may do so twice.
            self._sessions.pop(session.session_id, None)
            if not self._sessions:
                self._all_left.set()
            session.drop("Closed")
            self._engine.devices.detach(session, session.close_reason)
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, aio.BaseError):
                    log.error("link failed device=%s", session.identity.name, exc_info=outcome)

    async def FetchModel(  # noqa: N802
        self, request: pb.FetchModelRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ModelChunk]:
        """The bytes of a model, from an offset on."""
        metadata = dict(context.invocation_metadata() or ())
        session = self._sessions.get(str(metadata.get(SESSION_KEY, "")))
        if session is None or not self._is_authentic(metadata):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not attached; dial Attach first")
            raise AssertionError("abort returns never")
        model = self._engine.devices.model_for(DeviceName(session.identity.name), ModelDigest(request.sha256))
        if model is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no work order names that model")
            raise AssertionError("abort returns never")
        if request.offset > model.size_bytes:
            message = f"offset {request.offset} is beyond the model's {model.size_bytes} bytes"
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, message)
        loop = asyncio.get_running_loop()
        offset = request.offset
        try:
            with await loop.run_in_executor(None, model.path.open, "rb") as file:
                file.seek(offset)
                while offset < model.size_bytes and not session.ending.is_set():
                    wanted = min(MODEL_CHUNK_BYTES, model.size_bytes - offset)
                    data = await loop.run_in_executor(None, file.read, wanted)
                    if not data:
                        break
                    yield pb.ModelChunk(offset=offset, total_bytes=model.size_bytes, data=data)
                    offset += len(data)
        except OSError as exc:
            log.warning("model unreadable path=%s cause=%s", model.path, exc)
            await context.abort(grpc.StatusCode.NOT_FOUND, f"the operator cannot read the model: {exc.strerror}")
        if session.ending.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the session has ended; dial Attach first")
        if offset < model.size_bytes:
            log.warning("model truncated path=%s size=%d", model.path, offset)
            await context.abort(grpc.StatusCode.NOT_FOUND, "the model's file became shorter since the job was admitted")

    def _is_authentic(self, metadata: dict[Any, Any]) -> bool:
        presented = metadata.get(AUTHORIZATION_KEY, "")
        presented = presented.encode() if isinstance(presented, str) else presented
        return hmac.compare_digest(presented, self._credential)

    async def _welcome(self, context: aio.ServicerContext[Any, Any]) -> DeviceSession | None:
        if not self._is_authentic(dict(context.invocation_metadata() or ())):
            raise RefusedError(UNAUTHENTICATED, "wrong join secret", retry=False)
        reassembler = Reassembler(pb.DeviceMessage, limit_bytes=HELLO_BYTES)
        try:
            async with asyncio.timeout(self._settings.hello_seconds):
                message = None
                while message is None:
                    piece = await context.read()
                    if piece is EOF:
                        return None
                    message = reassembler.feed(piece)
        except TimeoutError:
            raise RefusedError("NoHello", "the stream stayed silent", retry=True) from None
        except ProtocolError as exc:
            raise RefusedError("ProtocolError", str(exc), retry=False) from exc
        if message.WhichOneof("body") != "hello":
            raise RefusedError("ProtocolError", "a stream begins with Hello", retry=False)
        hello = message.hello
        if hello.protocol_version < PROTOCOL_VERSION:
            text = (
                f"the gateway speaks protocol {PROTOCOL_VERSION}, the agent {hello.protocol_version}; update the agent"
            )
            raise RefusedError("UnsupportedVersion", text, retry=False)
        try:
            identity, held = read_hello(hello)
        except ProtocolError as exc:
            raise RefusedError("InvalidName", str(exc), retry=False) from exc
        if self._stopping:
            raise RefusedError("OperatorStopping", "the operator is stopping", retry=True)
        limit, now = self._settings.send_queue_messages, self._clock.monotonic()
        session = DeviceSession(identity, secrets.token_urlsafe(18), limit=limit, now=now)
        welcome = pb.Welcome(
            protocol_version=PROTOCOL_VERSION,
            session_id=session.session_id,
            heartbeat_interval_ms=int(self._settings.heartbeat_seconds * 1000),
            silence_limit_ms=int(self._settings.silence_seconds * 1000),
        )
        session.send(pb.GatewayMessage(welcome=welcome))
        self._sessions[session.session_id] = session
        try:
            self._engine.devices.attach(session, held)
        except BaseException:
            del self._sessions[session.session_id]
            raise
        return session

    async def _read(self, session: DeviceSession, context: aio.ServicerContext[Any, Any]) -> None:
        reassembler = Reassembler(pb.DeviceMessage)
        try:
            while True:
                piece = await context.read()
                if piece is EOF:
                    session.end("Disconnected")
                    return
                if session.ending.is_set():
                    continue
                session.last_heard = self._clock.monotonic()
                message = reassembler.feed(piece)
                if message is not None:
                    await self._handle(session, message)
        except ProtocolError as exc:
            log.warning("protocol error device=%s cause=%s", session.identity.name, exc)
            session.close("ProtocolError", str(exc), retry=True, retry_after_s=FAULT_PAUSE_SECONDS)
        except aio.BaseError as exc:
            session.drop(f"Broken: {exc}")
        except Exception:
            log.exception("failed to handle a message device=%s", session.identity.name)
            text = "the operator failed at a message of this device; its log says why"
            session.close("InternalError", text, retry=True, retry_after_s=FAULT_PAUSE_SECONDS)

    async def _handle(self, session: DeviceSession, message: pb.DeviceMessage) -> None:
        match message.WhichOneof("body"):
            case "results":
                results = message.results
                session.held_up = True
                try:
                    await self._engine.devices.results(session, JobUid(results.job), read_results(results))
                finally:
                    session.held_up = False
            case "heartbeat":
                session.beat = message.heartbeat.sequence
                session.send_pulse()
                self._engine.devices.heartbeat(session, read_vitals(message.heartbeat))
            case "returned":
                self._engine.devices.returned(session, JobUid(message.returned.job), message.returned.tokens)
            case "model_report":
                self._engine.devices.model_status(session, read_model_report(message.model_report))
            case "draining":
                self._engine.devices.draining(session, message.draining.reason)
            case "hello":
                raise ProtocolError("Hello came twice on one stream")
            case "fragment":
                raise ProtocolError("a fragment within a fragment")
            case None:
                # A message of a newer version: silence is the agreed answer.
                return
            case other:
                assert_never(other)
