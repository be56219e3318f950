"""The gRPC service: decodes, asks the engine, encodes; decides nothing."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, assert_never

import grpc
from grpc import aio

from pocketgrid.clock import Clock
from pocketgrid.engine.engine import Engine
from pocketgrid.errors import PeerError, ProtocolError, RefusedError
from pocketgrid.gateway.cachekeys import CacheKeys
from pocketgrid.gateway.convert import (
    read_hello,
    read_job,
    read_model_report,
    read_reason,
    read_restraint,
    read_results,
    read_tokens,
    read_vitals,
)
from pocketgrid.gateway.enrolment import write_credentials
from pocketgrid.gateway.fetching import stream_model
from pocketgrid.gateway.inbox import AssemblyRoom, Inbox
from pocketgrid.gateway.pacing import choose_paces
from pocketgrid.gateway.register import NOT_ENROLLED, REVOKED, DeviceRecord, Register, admit
from pocketgrid.gateway.registrar import Registrar, device_of
from pocketgrid.gateway.session import DeviceSession
from pocketgrid.gateway.throttle import network_of
from pocketgrid.model.device import DeviceIdentity
from pocketgrid.model.ids import DeviceName
from pocketgrid.settings import GatewaySettings
from pocketgrid.wire.framing import (
    OLDEST_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
    SESSION_KEY,
    agree_on_version,
)
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid.wire.v1 import agent_pb2_grpc

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 2.0
"""How long a device that is being sent away is given to take the reason and hang up."""

HELLO_BYTES = 16 << 20
"""Largest Hello: several hundred thousand attempts that a device still holds."""

FAULT_PAUSE_SECONDS = 5.0
"""How long a device stays away after a fault of ours, which its next words may bring about again."""


UNSUPPORTED_VERSION = "UnsupportedVersion"

REFUSALS_TOLD_SECONDS = 1.0
"""Between two lines in the log about devices that were not let in."""

VERSION_PAUSE_SECONDS = 60.0
"""Before an agent that is too new asks again: somebody has to update the operator meanwhile."""


class Servicer(agent_pb2_grpc.DeviceGatewayServicer):
    """Sessions of all devices.

    Args:
        register: who is let in, and as what.
        registrar: makes the certificates that devices ask for when theirs grow old.
    """

    def __init__(
        self, engine: Engine, settings: GatewaySettings, clock: Clock, register: Register, registrar: Registrar
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._register = register
        self._registrar = registrar
        self.gateway_address = ""
        """What devices are told to dial from now on."""
        self._sessions: dict[str, DeviceSession] = {}
        self._admitted: dict[DeviceName, tuple[DeviceRecord, DeviceSession]] = {}
        self.cache_keys: CacheKeys | None = None
        """Of the models that devices are to keep encrypted; None: they keep them as they are."""
        self._paces = choose_paces(settings, 0, 0)
        self._stopping = False
        self._all_left = asyncio.Event()
        self._room = AssemblyRoom(settings.assembly_bytes)
        self._refusal_due = 0.0
        self.ignored: Counter[str] = Counter()
        """What devices sent that was understood and had no effect, by what it was, of sessions that are over."""

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
            working = sum(session.working for session in self._sessions.values())
            wanted = choose_paces(self._settings, len(self._sessions) - working, working)
            self._paces.idle, self._paces.working = wanted.idle, wanted.working
            for session in list(self._sessions.values()):
                session.last_heard += late
                if session.quickened:
                    session.quickened = False
                    session.last_heard = now
                if session.held_up:
                    # It is we who do not listen. Its heartbeats wait unread, so it must hear from us unasked.
                    session.last_heard = now
                    if not session.queued:
                        session.send_pulse()
                elif now - session.last_heard > session.pace.silence_s:
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
            session, inbox = await self._welcome(context)
        except RefusedError as exc:
            text = _without_reason(exc)
            pause_ms = int(VERSION_PAUSE_SECONDS * 1000) if exc.retry and exc.reason == UNSUPPORTED_VERSION else 0
            refusal = pb.Refusal(reason=exc.reason, message=text, retry=exc.retry, retry_after_ms=pause_ms)
            self._tell_refusal(exc.reason, text, context.peer())
            with suppress(aio.BaseError):
                await context.write(pb.GatewayMessage(refusal=refusal))
            if exc.reason in (NOT_ENROLLED, REVOKED):
                # A device refused before its Hello has been read may find the stream closed under its first write,
                # and then looks at the status only.
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(exc))
            return
        except aio.BaseError as exc:
            log.debug("stream broke before Welcome cause=%s", exc)
            return
        if session is None:
            return
        sender = asyncio.create_task(session.send_all(context.write), name=f"send-{session.identity.name}")
        reader = asyncio.create_task(self._read(session, inbox), name=f"read-{session.identity.name}")
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
            if self._admitted.get(session.identity.name, (None, None))[1] is session:
                del self._admitted[session.identity.name]
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
        self, request: bytes, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ModelChunk]:
        """The bytes of a model, from an offset on."""
        metadata = dict(context.invocation_metadata() or ())
        session = self._sessions.get(str(metadata.get(SESSION_KEY, "")))
        record = await self._admit(context)
        # Who has overheard the name of another device's session is still himself.
        if session is None or session.identity.name != record.name:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not attached; dial Attach first")
            raise AssertionError("abort returns never")
        async for chunk in stream_model(self._engine, session, request, context):
            yield chunk

    async def Check(  # noqa: N802
        self, request: pb.CheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.CheckReply:
        """Whether a device would be let in."""
        await self._admit(context)
        return pb.CheckReply(protocol_version=PROTOCOL_VERSION, unix_ms=int(self._clock.wall() * 1000))

    async def Renew(  # noqa: N802
        self, request: pb.RenewRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.Credentials:
        """A new certificate for the key of this connection."""
        record = await self._admit(context)
        (presented,) = _auth(context)["x509_pem_cert"]
        return write_credentials(self._registrar.renew(record, presented), self.gateway_address)

    def record_changed(self, device: DeviceName) -> None:
        """What is known of a device has changed: end its session if it may not go on, or not as what it was."""
        record, session = self._admitted.get(device, (None, None))
        if record is None or session is None:
            return
        try:
            now = admit(self._register.find(device), record.key_sha256)
        except RefusedError as exc:
            log.info("device shut out device=%s reason=%s", device, exc.reason)
            session.close(exc.reason, exc.message, retry=False)
            return
        if now != record:
            session.close("Changed", "an administrator has changed what this device is; attach anew", retry=True)

    async def _admit(self, context: aio.ServicerContext[Any, Any]) -> DeviceRecord:
        """The record of whoever is at the other end of a connection, or the end of the call."""
        try:
            return self._record(context)
        except RefusedError as exc:
            self._tell_refusal(exc.reason, exc.message, context.peer())
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(exc))
            raise

    def _record(self, context: aio.ServicerContext[Any, Any]) -> DeviceRecord:
        found = _auth(context)
        (uri,) = found.get("peer_spiffe_id") or [b""]
        (key_sha256,) = found.get("x509_common_name") or [b""]
        device = device_of(uri.decode(), self._settings.trust_domain)
        return admit(self._register.find(device), key_sha256.decode())

    def _tell_refusal(self, reason: str, text: str, peer: str) -> None:
        # Whoever knocks a thousand times a second must not fill the log.
        now = self._clock.monotonic()
        level = logging.INFO if now >= self._refusal_due else logging.DEBUG
        if level == logging.INFO:
            self._refusal_due = now + REFUSALS_TOLD_SECONDS
        log.log(level, "refused reason=%s cause=%s peer=%s", reason, text, peer)

    async def _welcome(self, context: aio.ServicerContext[Any, Any]) -> tuple[DeviceSession | None, Inbox]:
        self._record(context)
        first = Inbox(context.read, self._room, self._settings, self._clock, limit_bytes=HELLO_BYTES)
        inbox = Inbox(context.read, self._room, self._settings, self._clock)
        try:
            async with asyncio.timeout(self._settings.hello_seconds):
                message = await first.next()
        except TimeoutError:
            raise RefusedError("NoHello", "the stream stayed silent", retry=True) from None
        except ProtocolError as exc:
            raise RefusedError("ProtocolError", str(exc), retry=False) from exc
        finally:
            first.close()
        if message is None:
            return None, inbox
        if message.WhichOneof("body") != "hello":
            raise RefusedError("ProtocolError", "a stream begins with Hello", retry=False)
        hello = message.hello
        version = agree_on_version(hello.oldest_protocol_version, hello.protocol_version)
        if version is None:
            raise _version_refusal(hello)
        try:
            said, held = read_hello(hello)
        except ProtocolError as exc:
            raise RefusedError("InvalidName", str(exc), retry=False) from exc
        # Anew, because a good while may have passed; and nothing waits between this and the session's beginning.
        record = self._record(context)
        identity = _as_enrolled(said, record, context.peer())
        if self._stopping:
            raise RefusedError("OperatorStopping", "the operator is stopping", retry=True)
        if len(self._sessions) >= self._settings.most_sessions:
            text = f"{len(self._sessions)} devices are attached, which is all this gateway takes"
            raise RefusedError("Full", text, retry=True)
        limit, now = self._settings.send_queue_messages, self._clock.monotonic()
        session = DeviceSession(
            identity,
            secrets.token_urlsafe(18),
            limit=limit,
            now=now,
            paces=self._paces,
            cache_keys=self.cache_keys,
        )
        welcome = pb.Welcome(
            protocol_version=version,
            session_id=session.session_id,
            heartbeat_interval_ms=round(session.pace.heartbeat_s * 1000),
            silence_limit_ms=round(session.pace.silence_s * 1000),
            reconnect_spread_ms=round(session.pace.spread_s * 1000),
        )
        session.send(pb.GatewayMessage(welcome=welcome))
        self._sessions[session.session_id] = session
        try:
            self._engine.devices.attach(session, held)
        except BaseException:
            del self._sessions[session.session_id]
            raise
        self._admitted[identity.name] = (record, session)
        return session, inbox

    async def _read(self, session: DeviceSession, inbox: Inbox) -> None:
        inbox.on_heard = lambda: session.heard(self._clock.monotonic())
        inbox.on_held = session.hold
        try:
            try:
                while not session.ending.is_set():
                    message = await inbox.next()
                    if message is None:
                        session.end("Disconnected")
                        return
                    if not session.ending.is_set():
                        await self._handle(session, message)
            except PeerError as exc:
                reason = exc.reason if isinstance(exc, RefusedError) else "ProtocolError"
                log.warning("session ended device=%s reason=%s cause=%s", session.identity.name, reason, exc)
                session.close(reason, _without_reason(exc), retry=True, retry_after_s=FAULT_PAUSE_SECONDS)
            except aio.BaseError:
                raise
            except Exception:
                log.exception("failed to handle a message device=%s", session.identity.name)
                text = "the operator failed at a message of this device; its log says why"
                session.close("InternalError", text, retry=True, retry_after_s=FAULT_PAUSE_SECONDS)
            # A device in the middle of its writes sees the reason only if they do not fail.
            await inbox.drain()
        except aio.BaseError as exc:
            session.drop(f"Broken: {exc}")
        finally:
            inbox.close()
            self._note(session, inbox)

    def _note(self, session: DeviceSession, inbox: Inbox) -> None:
        self.ignored.update(session.ignored)
        if inbox.slowed:
            self.ignored["slowed"] += inbox.slowed
        if session.ignored or inbox.slowed:
            log.warning(
                "device sent what it should not device=%s slowed=%d ignored=%s",
                session.identity.name,
                inbox.slowed,
                dict(session.ignored),
            )

    async def _handle(self, session: DeviceSession, message: pb.DeviceMessage) -> None:
        match message.WhichOneof("body"):
            case "results":
                results = message.results
                session.hold(True)
                try:
                    await self._engine.devices.results(session, read_job(results.job), read_results(results))
                finally:
                    session.hold(False)
            case "heartbeat":
                beat = message.heartbeat
                busy = bool(beat.queued_shards or beat.running_shards or beat.unacknowledged_results)
                session.hear_beat(beat.sequence, busy=busy)
                self._engine.devices.heartbeat(session, read_vitals(beat))
            case "returned":
                back = message.returned
                if not self._engine.devices.returned(session, read_job(back.job), read_tokens(back.tokens)):
                    session.ignored["returned"] += 1
            case "model_report":
                if not self._engine.devices.model_status(session, read_model_report(message.model_report)):
                    session.ignored["model_report"] += 1
            case "restraint":
                self._engine.devices.restrained(session, read_restraint(message.restraint))
            case "draining":
                self._engine.devices.draining(session, read_reason(message.draining.reason))
            case "hello":
                raise ProtocolError("Hello came twice on one stream")
            case "fragment":
                raise ProtocolError("a fragment within a fragment")
            case None:
                # A message of a newer version: silence is the agreed answer.
                session.ignored["unknown"] += 1
            case other:
                assert_never(other)


def _without_reason(exc: PeerError) -> str:
    return exc.message if isinstance(exc, RefusedError) else str(exc)


def _auth(context: aio.ServicerContext[Any, Any]) -> dict[str, list[bytes]]:
    return {str(key): list(values) for key, values in context.auth_context().items()}


def _as_enrolled(said: DeviceIdentity, record: DeviceRecord, peer: str) -> DeviceIdentity:
    """What a device is: what it says of itself, except where the grid knows better.

    Raises:
        RefusedError: it says that it is another one, somebody else's, or on another Node.
    """
    told = (
        ("WrongName", "called", said.name, record.name),
        ("WrongOwner", "of owner", said.owner or record.owner, record.owner),
        ("WrongNode", "on Node", said.node_name or record.node_name, record.node_name),
    )
    for reason, what, claimed, enrolled in told:
        if claimed != enrolled:
            message = f"the device says it is {what} {claimed!r}, and was enrolled as {what} {enrolled!r}; join anew"
            raise RefusedError(reason, message, retry=False)
    return replace(
        said,
        owner=record.owner,
        node_name=record.node_name,
        hardware_class=record.hardware_class,
        network_prefix=network_of(peer),
    )


def _version_refusal(hello: pb.Hello) -> RefusedError:
    too_new = hello.oldest_protocol_version > PROTOCOL_VERSION
    remedy = "update the operator, or install an older agent" if too_new else "update the agent"
    return RefusedError(
        UNSUPPORTED_VERSION,
        f"the gateway speaks protocol versions {OLDEST_PROTOCOL_VERSION} to {PROTOCOL_VERSION}, the agent "
        f"{hello.oldest_protocol_version or OLDEST_PROTOCOL_VERSION} to {hello.protocol_version}; {remedy}",
        retry=too_new,
    )
