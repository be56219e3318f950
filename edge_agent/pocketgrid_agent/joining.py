"""How a device gets its first certificate, and another one when it was away for longer than the last one was good for.

The device knows the SHA-256 of the authority's certificate from the join command. It looks at what the gateway shows,
takes the one certificate with that SHA-256 as the only one to trust, and dials anew: from then on gRPC verifies that
the gateway's own certificate is signed by it and bears the name that was dialled. Nothing secret is sent before that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketgrid.errors import PeerError, RefusedError
from pocketgrid_agent.credentials import KEY_FILE, Credentials, save, write_private

if TYPE_CHECKING:
    import ssl

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
CALL_SECONDS = 15.0


class NotReachedError(PeerError):
    """The gateway cannot be reached or cannot answer now; the same call may succeed later."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a join command says.

    Attributes:
        address: of the enrolment port, HOST:PORT.
        token: a secret; empty if only the key is known.
        ca_sha256: of the authority's certificate, hexadecimal.
        server_name: name the gateway's certificate bears; empty: the host.
    """

    address: str
    token: str
    ca_sha256: str
    server_name: str = ""


async def join(folder: Path, device: str, invitation: Invitation, *, node_name: str = "") -> Credentials:
    """Make this device's key, if there is none, and get a certificate for it; both are kept in `folder`.

    Raises:
        NotReachedError: not now.
        RefusedError: the gateway will not have this device, or is not the one that is meant.
        StoreError: the folder cannot be written.
    """
    address, pin, name = invitation.address, invitation.ca_sha256.lower(), invitation.server_name
    authority = await asyncio.to_thread(fetch_authority, address, pin, name)
    key, request = await asyncio.to_thread(key_and_request, folder)
    asked = (device, request, invitation.token, node_name)
    answer = await _enrol(address, authority, name, asked)
    return _keep(folder, answer, Credentials(device, key, b"", b"", request, address, "", name, 0.0, 0.0, 0.0))


async def come_back(folder: Path, held: Credentials) -> Credentials:
    """Another certificate for the key that is held, whether or not the last one is still good.

    Raises:
        NotReachedError, RefusedError, StoreError: as `join`.
    """
    asked = (held.device, held.request_der, "", "")
    answer = await _enrol(held.join_address, held.bundle_pem, held.server_name, asked)
    return _keep(folder, answer, held)


async def renew(folder: Path, held: Credentials, address: str) -> Credentials:
    """The next certificate, by means of the present one, from the gateway at `address`.

    Raises:
        NotReachedError, RefusedError, StoreError: as `join`.
    """
    import grpc

    from pocketgrid.wire.v1 import agent_pb2 as pb
    from pocketgrid.wire.v1 import agent_pb2_grpc as rpc

    credentials = grpc.ssl_channel_credentials(held.bundle_pem, held.key_pem, held.chain_pem)
    async with grpc.aio.secure_channel(address, credentials, options=channel_options(held.server_name)) as channel:
        stub: Any = rpc.DeviceGatewayStub(channel)  # type: ignore[no-untyped-call]
        answer = await _call(stub.Renew(pb.RenewRequest(), timeout=CALL_SECONDS), address)
    return _keep(folder, answer, held)


def fetch_authority(address: str, pin: str, server_name: str) -> bytes:
    """The certificate with the SHA-256 `pin` out of those that a gateway shows; PEM.

    Raises:
        NotReachedError: nobody answers, or not with TLS.
        RefusedError: it shows none such.
    """
    import ssl

    host, port = split_address(address)
    # Nothing is sent over this connection and nothing that comes over it is believed but for its hash.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), CONNECT_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=server_name or host) as encrypted,
        ):
            shown = _shown_certificates(encrypted)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise NotReachedError(f"nobody answers as a gateway at {address}: {reason}") from error
    for der in shown:
        if hashlib.sha256(der).hexdigest() == pin:
            return ssl.DER_cert_to_PEM_cert(der).encode()
    message = (
        f"who answers at {address} does not show the authority with SHA-256 {pin[:16]}...; ask for a new join command, "
        "and if that does not help, somebody listens in between"
    )
    raise RefusedError("WrongAuthority", message, retry=False)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def channel_options(server_name: str) -> list[tuple[str, Any]]:
    """Of a channel for one call."""
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    return [*options, ("grpc.ssl_target_name_override", server_name)] if server_name else options


def _shown_certificates(encrypted: ssl.SSLSocket) -> list[bytes]:
    import ssl

    if hasattr(encrypted, "get_unverified_chain"):
        return list(encrypted.get_unverified_chain())
    # Python 3.11 and 3.12 have it under the covers only.
    chain = encrypted._sslobj.get_unverified_chain()  # type: ignore[attr-defined]  # noqa: SLF001
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ()]


def key_and_request(folder: Path) -> tuple[bytes, bytes]:
    """This device's key (PEM), made if there is none, and a request signed with it (DER). Raises StoreError."""
    # A tenth of a second that only joining devices have to spend.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / KEY_FILE
    try:
        pem = path.read_bytes()
        key = serialization.load_pem_private_key(pem, password=None)
    except (FileNotFoundError, ValueError):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(path, pem)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    # The gateway reads nothing but the key.
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return pem, request.public_bytes(serialization.Encoding.DER)


async def _enrol(address: str, bundle: bytes, server_name: str, asked: tuple[str, bytes, str, str]) -> Any:
    import grpc

    from pocketgrid.wire.v1 import agent_pb2 as pb
    from pocketgrid.wire.v1 import agent_pb2_grpc as rpc

    device, request, token, node_name = asked
    question = pb.EnrolRequest(device_name=device, certificate_request=request, token=token, node_name=node_name)
    credentials = grpc.ssl_channel_credentials(bundle)
    async with grpc.aio.secure_channel(address, credentials, options=channel_options(server_name)) as channel:
        stub: Any = rpc.EnrolmentStub(channel)  # type: ignore[no-untyped-call]
        return await _call(stub.Enrol(question, timeout=CALL_SECONDS), address)


async def _call(call: Any, address: str) -> Any:
    import grpc

    try:
        return await call
    except grpc.aio.AioRpcError as error:
        reason, colon, message = (error.details() or "").partition(": ")
        match error.code():
            case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED if colon:
                raise RefusedError(reason, message, retry=False) from error
            case grpc.StatusCode.INVALID_ARGUMENT if colon:
                raise RefusedError(reason, message, retry=False) from error
            case code:
                raise NotReachedError(f"{address} does not answer: {code.name}: {error.details()}") from error


def _keep(folder: Path, answer: Any, before: Credentials) -> Credentials:
    gateway = answer.gateway_address
    if gateway.startswith(":"):
        gateway = before.join_address.rpartition(":")[0] + gateway
    fresh = replace(
        before,
        chain_pem=answer.certificate_chain,
        bundle_pem=answer.trust_bundle,
        gateway_address=gateway or before.gateway_address,
        issued_at=time.time(),
        valid_s=float(answer.valid_s),
        renew_after_s=float(answer.renew_after_s),
    )
    save(folder, fresh)
    return fresh
