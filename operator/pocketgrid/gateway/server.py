"""Starts and stops the gateway: port, TLS, keepalive, limits."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import grpc
from grpc import aio

from pocketgrid.clock import Clock
from pocketgrid.engine.engine import Engine
from pocketgrid.errors import StoreError
from pocketgrid.gateway.cachekeys import CacheKeys
from pocketgrid.gateway.identity import GatewayIdentity, load_identity
from pocketgrid.gateway.servicer import Servicer
from pocketgrid.settings import GatewaySettings
from pocketgrid.wire.framing import FRAGMENT_BYTES, KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS, PIECE_BYTES
from pocketgrid.wire.v1 import agent_pb2 as pb

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


class Gateway:
    """A listening gateway. Use as an async context manager.

    Args:
        cache_keys: of the models that devices are to keep encrypted; None: they keep them as they are.
        state_dir: where certificates and the join secret are kept.
    """

    def __init__(
        self,
        engine: Engine,
        settings: GatewaySettings,
        clock: Clock,
        state_dir: Path,
        cache_keys: CacheKeys | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._state_dir = state_dir
        self.identity: GatewayIdentity = load_identity(
            state_dir, settings.server_names, dt.datetime.fromtimestamp(clock.wall(), dt.UTC)
        )
        self._servicer = Servicer(engine, settings, clock, self.identity.join_secret)
        self._servicer.cache_keys = cache_keys
        self._server: aio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def address(self) -> str:
        """``host:port`` to dial."""
        return _join(self._settings.host, self.port)

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
            StoreError: the address is taken or not ours.
        """
        self._server = aio.server(
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
        self._server.add_generic_rpc_handlers((_handlers(self._servicer),))
        wanted = _join(self._settings.host, self._settings.port)
        try:
            self.port = self._server.add_secure_port(wanted, self._credentials())
        except RuntimeError as exc:
            raise StoreError(f"the gateway cannot listen on {wanted}: {exc}; choose another port") from exc
        await self._server.start()
        self._sweeper = asyncio.create_task(self._servicer.sweep(), name="gateway-sweep")
        log.info("listening address=%s", self.address)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Tell all devices to come again, stop listening and end all streams."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        if self._server is not None:
            await self._servicer.stop(STOP_SECONDS)
            await self._server.stop(STOP_SECONDS)

    def _credentials(self) -> grpc.ServerCredentials:
        """Asked at each handshake, on a thread of gRPC, because an operator may run for longer than a certificate."""
        current = self.identity

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal current
            now = dt.datetime.fromtimestamp(self._clock.wall(), dt.UTC)
            if current.fresh(now):
                return None
            try:
                current = load_identity(self._state_dir, self._settings.server_names, now)
            except StoreError:
                log.exception("cannot renew the gateway's certificate; devices will refuse it once it has run out")
                return None
            log.info("renewed the gateway's certificate until=%s", current.expires_at.isoformat())
            return _configuration(current)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(current),
            renewed,  # type: ignore[arg-type]  # None means "as before", which grpc-stubs does not know
        )


def _configuration(identity: GatewayIdentity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key_pem, identity.certificate_pem)])


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
            "Check": grpc.unary_unary_rpc_method_handler(
                servicer.Check,
                request_deserializer=pb.CheckRequest.FromString,
                response_serializer=pb.CheckReply.SerializeToString,
            ),
        },
    )


def _as_bytes(message: bytes | pb.GatewayMessage) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
