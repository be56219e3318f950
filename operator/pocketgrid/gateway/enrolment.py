"""The gRPC service on the enrolment port: decodes, asks the registrar, encodes. Nothing else is served there.

Whoever can reach the port may call it, so calls are small, short and throttled (`throttle`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from grpc import aio

from pocketgrid.clock import Clock
from pocketgrid.errors import PeerError, RefusedError, StoreError
from pocketgrid.gateway.convert import is_name
from pocketgrid.gateway.registrar import THROTTLED, Credentials, Registrar
from pocketgrid.gateway.throttle import address_of
from pocketgrid.model.ids import DeviceName
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid.wire.v1 import agent_pb2_grpc

log = logging.getLogger(__name__)

CALL_SECONDS = 10.0
"""An API server that does not answer keeps a caller waiting for so long at most."""

REQUEST_BYTES = 16 << 10
"""Largest request; a real one has less than 1 KiB."""

CALLS_AT_ONCE = 256
"""Enrolments under way; more are told to come again."""

REFUSALS_TOLD_SECONDS = 1.0
"""Between two lines in the log about devices that were not enrolled."""


class EnrolmentServicer(agent_pb2_grpc.EnrolmentServicer):
    """Answers strangers.

    Args:
        gateway_address: what enrolled devices are to dial, HOST:PORT or :PORT.
    """

    def __init__(self, registrar: Registrar, clock: Clock, gateway_address: str) -> None:
        self._registrar = registrar
        self._clock = clock
        self._gateway_address = gateway_address
        self._under_way = 0
        self._refusal_due = 0.0

    async def Enrol(  # noqa: N802
        self, request: pb.EnrolRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.Credentials:
        """A certificate, or a status that says why not."""
        if self._under_way >= CALLS_AT_ONCE:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Busy: many devices join at once; come again")
        if not is_name(request.device_name) or (request.node_name and not is_name(request.node_name)):
            message = f"InvalidName: {request.device_name[:80]!r} or its node name is no DNS-1123 subdomain"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        self._under_way += 1
        try:
            async with asyncio.timeout(CALL_SECONDS):
                credentials = await self._registrar.enrol(
                    DeviceName(request.device_name),
                    request.certificate_request,
                    request.token,
                    request.node_name,
                    address_of(context.peer()),
                )
        except RefusedError as exc:
            self._tell(request.device_name, exc, context.peer())
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if exc.reason == THROTTLED else grpc.StatusCode.PERMISSION_DENIED
            if exc.retry and exc.reason != THROTTLED:
                code = grpc.StatusCode.UNAVAILABLE
            await context.abort(code, str(exc))
            raise
        except (PeerError, StoreError, TimeoutError) as exc:
            # What the store says names paths and addresses of ours.
            log.warning("cannot enrol now device=%s cause=%s", request.device_name, str(exc) or type(exc).__name__)
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "NotNow: the operator cannot enrol devices now; come again"
            )
            raise
        finally:
            self._under_way -= 1
        return write_credentials(credentials, self._gateway_address)

    def _tell(self, device: str, error: RefusedError, peer: str) -> None:
        now = self._clock.monotonic()
        level = logging.INFO if now >= self._refusal_due else logging.DEBUG
        if level == logging.INFO:
            self._refusal_due = now + REFUSALS_TOLD_SECONDS
        log.log(level, "not enrolled device=%s cause=%s peer=%s", device, error, peer)


def write_credentials(credentials: Credentials, gateway_address: str) -> pb.Credentials:
    """What a device is given, on either port."""
    return pb.Credentials(
        certificate_chain=credentials.chain_pem,
        trust_bundle=credentials.bundle_pem,
        gateway_address=gateway_address,
        valid_s=int(credentials.valid_s),
        renew_after_s=int(credentials.renew_after_s),
    )
