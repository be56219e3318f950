"""Starts and stops the gateway: its two ports, TLS, keepalive, limits.

On one port devices prove themselves with their certificates, and gRPC lets nobody else in; on the other one they get
them.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from grpc import aio

from pocketgrid.clock import Clock
from pocketgrid.engine.engine import Engine
from pocketgrid.errors import PeerError, StoreError
from pocketgrid.gateway.authority import Authority, AuthorityStore, Keyring, load_keyring
from pocketgrid.gateway.cachekeys import CacheKeys
from pocketgrid.gateway.enrolment import REQUEST_BYTES, EnrolmentServicer
from pocketgrid.gateway.filestores import FileAuthority, FileRegister, FileTokens
from pocketgrid.gateway.identity import GatewayIdentity, load_identity
from pocketgrid.gateway.register import Register
from pocketgrid.gateway.registrar import Registrar
from pocketgrid.gateway.servicer import Servicer
from pocketgrid.gateway.tokens import TokenStore, make_token
from pocketgrid.settings import GatewaySettings
from pocketgrid.wire.framing import FRAGMENT_BYTES, KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS, PIECE_BYTES
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid.wire.v1 import agent_pb2_grpc

log = logging.getLogger(__name__)

STOP_SECONDS = 3.0
"""How long open streams are given to end by themselves when the gateway stops."""

PING_TIMEOUT_MS = 20_000
"""How long an HTTP/2 ping may stay unanswered. It is silence that finds a half-open link within seconds; this is for
links that are not listened to at the moment. On a slow line a ping waits behind all that was sent before it, and unlike
the silence rule gRPC's does not look at what else arrives: if it were short, a phone could never receive a large lease.
Without this setting `grpc.keepalive_timeout_ms` has no effect on servers (seen with grpcio 1.85; the limit is 60 s)."""

UNSEEN_SECONDS = 60
"""How long a stream may wait to be looked at; no agent waits for longer."""

STREAMS_AT_ONCE = 64
"""Of one connection; an agent has one, and one for each model it fetches."""


KEYRING_SECONDS = 600.0
"""How often the authority is looked at: another operator may have made the next one."""

INVITATION_SECONDS = 3600.0

ENROLMENT_CONNECTION_MS = 30_000


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a gateway keeps what must outlive it."""

    authority: AuthorityStore
    tokens: TokenStore
    register: Register


@dataclass(frozen=True, slots=True)
class Invitation:
    """All that a device needs to join.

    Attributes:
        address: of the enrolment port, HOST:PORT.
        token: a secret.
        ca_sha256: of the authority's certificate in DER, hexadecimal.
    """

    address: str
    token: str
    ca_sha256: str


class Gateway:
    """A listening gateway. Use as an async context manager.

    Args:
        state_dir: where the gateway's own certificate is kept.
        stores: where all else is kept; None: in the same folder.
        cache_keys: of the models that devices are to keep encrypted; None: they keep them as they are.

    Attributes:
        identity: what it proves itself with, once it listens.
        enrolment_port: where devices join, once it listens.
    """

    identity: GatewayIdentity

    def __init__(
        self,
        engine: Engine,
        settings: GatewaySettings,
        clock: Clock,
        state_dir: Path,
        stores: Stores | None = None,
        cache_keys: CacheKeys | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._state_dir = state_dir
        self._stores = stores or Stores(FileAuthority(state_dir), FileTokens(state_dir), FileRegister(state_dir))
        self._keyring: Keyring
        self._renewing = threading.Lock()
        register = self._stores.register
        self._registrar = Registrar(
            lambda: self._keyring,
            self._stores.tokens,
            register,
            clock,
            trust_domain=settings.trust_domain,
            valid_s=settings.certificate_seconds,
        )
        self._servicer = Servicer(engine, settings, clock, register, self._registrar)
        self._servicer.cache_keys = cache_keys
        register.on_change = self._servicer.record_changed
        self._servers: list[aio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0
        self.enrolment_port = 0

    @property
    def address(self) -> str:
        """``host:port`` to dial."""
        return _join(self._settings.host, self.port)

    @property
    def enrolment_address(self) -> str:
        """``host:port`` to join at."""
        return _join(self._settings.host, self.enrolment_port)

    @property
    def public_enrolment_address(self) -> str:
        """``host:port`` that devices elsewhere are to join at."""
        told = self._settings.advertised_enrolment_address
        return told or _join(self._settings.server_names[0], self.enrolment_port)

    @property
    def sessions(self) -> int:
        """How many devices are attached."""
        return self._servicer.sessions

    @property
    def ignored(self) -> Mapping[str, int]:
        """What devices sent that had no effect, by what it was, of sessions that are over."""
        return self._servicer.ignored

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            StoreError: an address is taken or not ours, or what must be kept cannot be read or written.
            PeerError: it cannot be read or written now.
        """
        self._keyring = await load_keyring(self._stores.authority, self._clock.wall())
        now = dt.datetime.fromtimestamp(self._clock.wall(), dt.UTC)
        self.identity = load_identity(self._state_dir, self._keyring, self._settings.server_names, now)
        try:
            await self._listen()
        except BaseException:
            for server in self._servers:
                await server.stop(None)
            raise
        log.info("listening address=%s enrolment=%s", self.address, self.enrolment_address)
        return self

    async def _listen(self) -> None:
        devices = self._new_server()
        devices.add_generic_rpc_handlers((_handlers(self._servicer),))
        self.port = self._open(devices, self._settings.port, known_only=True)
        told = self._settings.advertised_address or f":{self.port}"
        self._servicer.gateway_address = told
        strangers = self._new_enrolment_server()
        agent_pb2_grpc.add_EnrolmentServicer_to_server(  # type: ignore[no-untyped-call]
            EnrolmentServicer(self._registrar, self._clock, told), strangers
        )
        self.enrolment_port = self._open(strangers, self._settings.enrolment_port, known_only=False)
        await devices.start()
        await strangers.start()
        self._tasks = [
            asyncio.create_task(self._servicer.sweep(), name="gateway-sweep"),
            asyncio.create_task(self._follow_keyring(), name="gateway-keyring"),
        ]

    def _open(self, server: aio.Server, port: int, *, known_only: bool) -> int:
        wanted = _join(self._settings.host, port)
        try:
            return server.add_secure_port(wanted, self._credentials(known_only=known_only))
        except RuntimeError as exc:
            raise StoreError(f"the gateway cannot listen on {wanted}: {exc}; choose another port") from exc

    async def __aexit__(self, *_exc: object) -> None:
        """Tell all devices to come again, stop listening and end all streams."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._servers:
            await self._servicer.stop(STOP_SECONDS)
            await asyncio.gather(*(server.stop(STOP_SECONDS) for server in self._servers))

    async def invite(self, owner: str, *, uses: int = 1, ttl_s: float = INVITATION_SECONDS) -> Invitation:
        """Make a token for devices of `owner`.

        Raises:
            InvalidSpecError: something of it is out of bounds.
            StoreError, PeerError: it cannot be kept.
        """
        made = make_token(owner=owner, now=self._clock.wall(), ttl_s=ttl_s, uses=uses)
        await self._stores.tokens.create(made.token)
        return Invitation(self.enrolment_address, made.text, self.identity.ca_sha256)

    async def _follow_keyring(self) -> None:
        while True:
            await asyncio.sleep(KEYRING_SECONDS)
            with suppress(StoreError, PeerError):
                self._keyring = await load_keyring(self._stores.authority, self._clock.wall())

    def _new_server(self) -> aio.Server:
        server = aio.server(
            options=[
                ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 0),
                # A half-open link is one on which no data flows either.
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
                # Two operators on one port would share its devices at random.
                ("grpc.so_reuseport", 0),
                # Those slightly too large are refused with words (`Inbox`), the others by gRPC's own status.
                ("grpc.max_receive_message_length", 2 * PIECE_BYTES),
                ("grpc.max_concurrent_streams", STREAMS_AT_ONCE),
                # What a device may have sent that is not read yet. gRPC would let it grow to several MB a stream.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", FRAGMENT_BYTES),
                # By default gRPC begins to cancel streams once 1,000 wait for this process to look at them; their
                # devices would wait for long before they try again. Those that have given up are not looked at.
                ("grpc.server.max_pending_requests", self._settings.most_sessions),
                ("grpc.server.max_pending_requests_hard_limit", self._settings.most_sessions),
                ("grpc.server_max_unrequested_time_in_server", UNSEEN_SECONDS),
            ]
        )
        self._servers.append(server)
        return server

    def _new_enrolment_server(self) -> aio.Server:
        server = aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", REQUEST_BYTES),
                ("grpc.max_concurrent_streams", 1),
                # Nobody has more than one question.
                ("grpc.max_connection_age_ms", ENROLMENT_CONNECTION_MS),
                ("grpc.max_connection_age_grace_ms", ENROLMENT_CONNECTION_MS),
            ]
        )
        self._servers.append(server)
        return server

    def _credentials(self, *, known_only: bool) -> grpc.ServerCredentials:
        """Asked at each handshake, on a thread of gRPC: an operator may run for longer than any certificate."""
        told = self._state_of_trust()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal told
            now = dt.datetime.fromtimestamp(self._clock.wall(), dt.UTC)
            with self._renewing:
                try:
                    if not self.identity.fresh(now) or self._signing().sha256 != self.identity.ca_sha256:
                        names = self._settings.server_names
                        self.identity = load_identity(self._state_dir, self._keyring, names, now)
                        log.info("renewed the gateway's certificate until=%s", self.identity.expires_at.isoformat())
                except StoreError:
                    log.exception("cannot renew the gateway's certificate; devices will refuse it once it has run out")
                    return None
                current = self._state_of_trust()
                if current == told:
                    return None
                told = current
                return self._configuration(known_only=known_only)

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(known_only=known_only),
            renewed,  # type: ignore[arg-type]  # None means "as before", which grpc-stubs does not know
            require_client_authentication=known_only,
        )

    def _signing(self) -> Authority:
        return self._keyring.signing(self._clock.wall())

    def _state_of_trust(self) -> tuple[bytes, tuple[Authority, ...]]:
        return self.identity.chain_pem, self._keyring.trusted(self._clock.wall())

    def _configuration(self, *, known_only: bool) -> grpc.ServerCertificateConfiguration:
        roots = self._keyring.bundle(self._clock.wall()) if known_only else None
        pair = (self.identity.key_pem, self.identity.chain_pem)
        return grpc.ssl_server_certificate_configuration([pair], roots)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _handlers(servicer: Servicer) -> grpc.GenericRpcHandler[Any, Any]:
    # As the generated registration does, but sessions serialise their messages themselves, once, and what arrives is
    # weighed before it is parsed.
    service = pb.DESCRIPTOR.services_by_name["DeviceGateway"]
    return grpc.method_handlers_generic_handler(
        service.full_name,
        {
            "Attach": grpc.stream_stream_rpc_method_handler(
                servicer.Attach, request_deserializer=None, response_serializer=_as_bytes
            ),
            "FetchModel": grpc.unary_stream_rpc_method_handler(
                servicer.FetchModel,
                request_deserializer=None,
                response_serializer=pb.ModelChunk.SerializeToString,
            ),
            "Renew": grpc.unary_unary_rpc_method_handler(
                servicer.Renew,
                request_deserializer=pb.RenewRequest.FromString,
                response_serializer=pb.Credentials.SerializeToString,
            ),
            "Check": grpc.unary_unary_rpc_method_handler(
                servicer.Check,
                request_deserializer=pb.CheckRequest.FromString,
                response_serializer=pb.CheckReply.SerializeToString,
            ),
        },
    )


def _as_bytes(message: bytes | pb.GatewayMessage) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
