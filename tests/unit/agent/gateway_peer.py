"""The other end of the link, for tests of the agent: a real gRPC server that says what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid.wire.v1 import agent_pb2_grpc as rpc
from pocketgrid_agent import credentials

DEADLINE_S = 20.0


async def until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition, or fail naming it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Certificates:
    """A self-signed certificate for 127.0.0.1."""

    certificate: bytes
    key: bytes


def make_certificates() -> Certificates:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test gateway")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Certificates(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


@dataclass
class Stream:
    """One attached agent."""

    hello: pb.Hello
    context: Any
    ended: bool = False
    received: list[pb.DeviceMessage] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def of(self, body: str) -> list[Any]:
        return [getattr(m, body) for m in self.received if m.HasField(body)]

    def results(self) -> list[pb.ShardResult]:
        return [result for message in self.of("results") for result in message.results]

    async def send(self, **body: Any) -> None:
        async with self.lock:  # concurrent writes lose messages
            for piece in framing.split(pb.GatewayMessage(**body)):
                await self.context.write(piece)


class GatewayPeer(rpc.DeviceGatewayServicer):
    """Welcomes agents, answers heartbeats, serves models; everything else is up to the test.

    Attributes:
        refusal: sent instead of Welcome if set.
        refuse_by_status: refuse by a status, before Hello was read; empty: do not.
        settle: settle each result as committed at once.
        fetches: (digest, offset) of each FetchModel.
        cut_fetch_after: break each fetch after so many chunks, then forget this wish.
        pause_fetch_after: send nothing more of a fetch after so many chunks; 0: send all.
    """

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.streams: list[Stream] = []
        self.models: dict[str, bytes] = {}
        self.refusal: pb.Refusal | None = None
        self.refuse_by_status = ""
        self.settle = True
        self.fetches: list[tuple[str, int]] = []
        self.cut_fetch_after = 0
        self.pause_fetch_after = 0
        self.heartbeat_ms = 200
        self.silence_ms = 8000
        self.on_results: Callable[[pb.Results], None] | None = None
        self.port = 0

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[GatewayPeer]:
        server = grpc.aio.server(
            options=[
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        rpc.add_DeviceGatewayServicer_to_server(self, server)
        own = (self.certificates.key, self.certificates.certificate)
        proven = grpc.ssl_server_credentials([own], self.certificates.certificate, require_client_auth=True)
        self.port = server.add_secure_port(f"127.0.0.1:{port}", proven)
        assert self.port
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)

    def add_model(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.models[digest] = data
        return digest

    async def Attach(self, _: Any, context: Any) -> None:  # noqa: N802
        assert "x509_common_name" in context.auth_context()
        if self.refuse_by_status:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, self.refuse_by_status)
        reassembler = framing.Reassembler(pb.DeviceMessage)
        stream: Stream | None = None
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                whole = reassembler.feed(message)
                if whole is None:
                    continue
                if stream is None:
                    assert whole.HasField("hello"), whole
                    if self.refusal is not None:
                        await context.write(pb.GatewayMessage(refusal=self.refusal))
                        return
                    stream = Stream(whole.hello, context)
                    await stream.send(
                        welcome=pb.Welcome(
                            protocol_version=framing.PROTOCOL_VERSION,
                            session_id=f"session-{len(self.streams)}",
                            heartbeat_interval_ms=self.heartbeat_ms,
                            silence_limit_ms=self.silence_ms,
                        )
                    )
                    self.streams.append(stream)
                    continue
                stream.received.append(whole)
                await self._answer(stream, whole)
        finally:
            if stream is not None:
                stream.ended = True

    async def _answer(self, stream: Stream, message: pb.DeviceMessage) -> None:
        if message.HasField("heartbeat"):
            await stream.send(pulse=pb.Pulse(sequence=message.heartbeat.sequence))
        if message.HasField("results"):
            results = message.results
            if self.on_results is not None:
                self.on_results(results)
            if self.settle:
                await stream.send(settled=pb.Settled(job=results.job, committed=[r.token for r in results.results]))

    async def FetchModel(self, request: pb.FetchModelRequest, context: Any) -> None:  # noqa: N802
        assert "pocketgrid-session" in dict(context.invocation_metadata())
        self.fetches.append((request.sha256, request.offset))
        data = self.models.get(request.sha256)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        for chunks, offset in enumerate(range(request.offset, len(data), framing.MODEL_CHUNK_BYTES)):
            if self.cut_fetch_after and chunks == self.cut_fetch_after:
                self.cut_fetch_after = 0
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")
            if self.pause_fetch_after and chunks == self.pause_fetch_after:
                await asyncio.Event().wait()  # until the agent hangs up
            await context.write(
                pb.ModelChunk(
                    offset=offset,
                    total_bytes=len(data),
                    data=data[offset : offset + framing.MODEL_CHUNK_BYTES],
                )
            )


def join_by_hand(certificates: Certificates, home: Path, device: str, port: int) -> credentials.Credentials:
    """Put credentials into a home's state folder: the peer's own certificate, which it believes from anybody."""
    folder = home / ".local/state/pocketgrid-agent"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    held = credentials.Credentials(
        device=device,
        key_pem=certificates.key,
        chain_pem=certificates.certificate,
        bundle_pem=certificates.certificate,
        request_der=b"none",
        join_address=f"127.0.0.1:{port}",
        gateway_address=f"127.0.0.1:{port}",
        server_name="",
        issued_at=time.time(),
        valid_s=86400.0,
        renew_after_s=80000.0,
    )
    credentials.write_private(folder / credentials.KEY_FILE, held.key_pem)
    credentials.save(folder, held)
    return held


def tensor(values: np.ndarray, lengths: list[int] | None = None) -> pb.Tensor:
    return pb.Tensor(dtype=values.dtype.name, shape=values.shape, data=values.tobytes(), row_lengths=lengths or ())


def array(message: pb.Tensor) -> np.ndarray:
    return np.frombuffer(message.data, message.dtype).reshape(tuple(message.shape))


@dataclass
class AgentProcess:
    """A real agent, as a subprocess with a home of its own.

    Attributes:
        wrapper: a command that runs the command after it.
    """

    peer: GatewayPeer
    home: Path
    port: int = 0
    extra: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> AgentProcess:
        self.home.mkdir(parents=True, exist_ok=True)
        join_by_hand(self.peer.certificates, self.home, "test-device", self.port or self.peer.port)
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "PYTHONWARNINGS": "error"}
        self.log = (self.home / "log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            *self.wrapper,
            sys.executable,
            *("-m", "pocketgrid_agent", "--name", "test-device", "--threads", "1", *self.extra),
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def text(self) -> str:
        return (self.home / "log").read_text()

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        self.log.close()

    async def ended(self, deadline_s: float = DEADLINE_S) -> int:
        assert self.process is not None
        async with asyncio.timeout(deadline_s):
            return await self.process.wait()

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)


class CuttableProxy:
    """Forwards TCP to a port until told to go silent, as a network does that lost the way to one side."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.silent = False
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[CuttableProxy]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in self._writers:
                writer.close()
            for writer in self._writers:
                with contextlib.suppress(Exception):
                    await writer.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.ensure_future(self._forward(source, sink))
            self._tasks.add(task)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if self.silent:
                    continue  # swallowed: neither side learns of it
                sink.write(data)
                await sink.drain()
            if not self.silent:
                sink.close()
