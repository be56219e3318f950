"""The way to the gateway, step by step, so that a fault is named by the step at which it happens.

Name, port, encryption, certificate, admission, protocol, clock: each is looked at only if the one before is right.
Nothing is attached: the device's own agent may be running meanwhile.
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

from pocketgrid_agent.credentials import Credentials
from pocketgrid_agent.findings import Finding, failure, note, ok, warning
from pocketgrid_agent.joining import channel_options

CONNECT_SECONDS = 5.0
CALL_SECONDS = 10.0

MOST_SKEW_SECONDS = 60.0
"""Certificates are judged by the clock; leases are not. A minute is harmless, and more is a clock that is not set."""

_OFFLINE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


def examine(address: str, held: Credentials) -> Iterator[Finding]:
    """Findings on the way to `address` (host:port) with these credentials."""
    host, _, port_text = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port_text.isdigit() or not 0 < int(port_text) < 65536:
        yield failure("gateway", f"{address!r} is no address", "join anew, or say --gateway HOST:PORT")
        return
    port = int(port_text)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield failure(
            "dns",
            f"{host} has no address: {error.strerror or error}",
            "check the name, and whether this device is online",
        )
        return
    yield ok("dns", f"{host} is {found[0][4][0]}")
    connection, finding = _connect(host, port)
    yield finding
    if connection is None:
        return
    with connection:
        finding = _encrypt(connection, held, held.server_name or host)
    yield finding
    if finding.gravity == "ok":
        yield from _check(address, held)


def _connect(host: str, port: int) -> tuple[socket.socket | None, Finding]:
    try:
        connection = socket.create_connection((host, port), CONNECT_SECONDS)
    except TimeoutError:
        remedy = (
            f"a firewall between here and the gateway swallows port {port}, or the address is wrong; guest and company "
            "networks often let only 80 and 443 through: ask for the gateway on 443, or use another network"
        )
        return None, failure("port", f"no answer from {host}:{port} within {CONNECT_SECONDS:.0f} s", remedy)
    except ConnectionRefusedError:
        remedy = "nothing listens there: check the port, and whether the operator runs"
        return None, failure("port", f"{host} refuses connections to port {port}", remedy)
    except OSError as error:
        remedy = "this device has no way there: is it online?" if error.errno in _OFFLINE else "check the address"
        return None, failure("port", f"{host}:{port} cannot be reached: {error.strerror or error}", remedy)
    return connection, ok("port", f"{host}:{port} is open")


def _encrypt(connection: socket.socket, held: Credentials, name: str) -> Finding:
    check = "tls"
    try:
        context = ssl.create_default_context(cadata=held.bundle_pem.decode())
    except (OSError, ssl.SSLError) as error:
        return failure(check, f"the authorities kept in the state folder are damaged: {error}", "join anew")
    # As gRPC judges: a certificate that is given is trusted, whatever it lacks for the web.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2"])
    connection.settimeout(CONNECT_SECONDS)
    try:
        with context.wrap_socket(connection, server_hostname=name) as encrypted:
            if encrypted.selected_alpn_protocol() != "h2":
                return failure(
                    check, "whoever answers does not speak HTTP/2, so it is not the gateway itself",
                    "a proxy in between must pass TLS through, not end it",
                )  # fmt: skip
            return ok(check, f"{encrypted.version()}, the certificate is good for {name}")
    except ssl.SSLCertVerificationError as error:
        return failure(check, f"the certificate is not accepted: {error.verify_message}", _certificate_remedy(error))
    except (TimeoutError, ConnectionError) as error:
        return failure(
            check, f"the connection ends before it is encrypted: {type(error).__name__}",
            "something in between does not let TLS through; try another network",
        )  # fmt: skip
    except (OSError, ssl.SSLError) as error:
        return failure(
            check, f"whoever answers does not speak TLS: {getattr(error, 'reason', None) or error}",
            "check the port; a sign-in page of a guest network answers like this, too",
        )  # fmt: skip


def _certificate_remedy(error: ssl.SSLCertVerificationError) -> str:
    text = error.verify_message.lower()
    if "expired" in text or "not yet valid" in text:
        return "compare this device's date with the real one first; else the gateway needs a new certificate"
    if "mismatch" in text or "not valid for" in text:
        return "dial a name the certificate bears, or say it with --tls-server-name"
    return "the grid has another authority than when this device joined, so join anew; or somebody listens in between"


def _check(address: str, held: Credentials) -> Iterator[Finding]:
    import grpc

    from pocketgrid.wire import framing
    from pocketgrid.wire.v1 import agent_pb2 as pb
    from pocketgrid.wire.v1 import agent_pb2_grpc as rpc

    options = channel_options(held.server_name)
    credentials = grpc.ssl_channel_credentials(held.bundle_pem, held.key_pem, held.chain_pem)
    asked = time.time()
    with grpc.secure_channel(address, credentials, options) as channel:
        stub: Any = rpc.DeviceGatewayStub(channel)  # type: ignore[no-untyped-call]
        try:
            reply: pb.CheckReply = stub.Check(
                pb.CheckRequest(protocol_version=framing.PROTOCOL_VERSION),
                timeout=CALL_SECONDS,
            )
        except grpc.RpcError as error:
            yield _refusal(error)
            return
    yield ok("admission", "the gateway would let this device in")
    if reply.protocol_version < framing.PROTOCOL_VERSION:
        yield warning(
            "protocol", f"the gateway speaks version {reply.protocol_version}, this agent {framing.PROTOCOL_VERSION}",
            "update the operator, or install the agent of its version",
        )  # fmt: skip
    yield clock_finding(reply.unix_ms / 1000 - (asked + time.time()) / 2)


def clock_finding(skew_s: float) -> Finding:
    """What to make of the gateway's clock being `skew_s` seconds ahead of ours."""
    if abs(skew_s) <= MOST_SKEW_SECONDS:
        return ok("clock", f"{abs(skew_s):.0f} s apart from the gateway's")
    side = "behind" if skew_s > 0 else "ahead of"
    return warning(
        "clock",
        f"this clock is {abs(skew_s):,.0f} s {side} the gateway's; certificates will not be accepted at the wrong time",
        "let the system set its time: `timedatectl set-ntp true`, or Automatic date and time in Android's settings",
    )


def _refusal(error: Any) -> Finding:
    import grpc

    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return failure(
            "admission", f"the gateway does not let this device in: {details}",
            "ask whoever runs the operator; then join anew",
        )  # fmt: skip
    if code is grpc.StatusCode.UNAVAILABLE:
        return failure(
            "admission", f"the gateway hung up: {details}",
            "its certificate does not serve there: a running agent gets another one by itself; else join anew",
        )  # fmt: skip
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return note("admission", "the gateway is too old to be asked; everything up to it works")
    return failure("admission", f"the gateway did not answer: {code.name}: {details}", "look into the operator's log")
