"""A TCP proxy that misbehaves on purpose, for one client or many, told how while it runs.

What it can do, for each direction by itself: delay with jitter, throttle, stall (take in and hold back, as a router
with a full queue does) and swallow (take in and throw away, as a network does that lost the way). For connections:
refuse new ones, keep them waiting for a random time so that they overtake each other, cut with FIN or RST, and leave
one half open: the client keeps a connection to nobody while the server sees it end.

Bytes are never reordered or changed within a connection, because TCP does not do that either: delayed data queues up
behind what was delayed before it. TLS passes through unread; a client must find the name or address it dialled in the
certificate, so the proxy listens on 127.0.0.1, which gateways of tests are certified for.

Chance comes from the generator that is passed in, so a seed repeats its jitter.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

CHUNK_BYTES = 16 << 10
IN_FLIGHT_BYTES = 256 << 10
"""What a direction holds at most; beyond it the proxy reads no more, and the sender's TCP notices."""

DIAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """How one direction behaves.

    Attributes:
        delay_s, jitter_s: each chunk arrives so late, plus up to so much more.
        bytes_per_s: 0 for no limit.
        stalled: nothing arrives, until this changes; then all of it does.
        swallowing: nothing arrives, ever; the sender does not learn of it.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    stalled: bool = False
    swallowing: bool = False


CLEAR = Conditions()


@dataclass
class FaultProxy:
    """Use as an async context manager: `async with FaultProxy(...).serving() as proxy`.

    Attributes:
        target: port to forward to; may be changed, for connections yet to come.
        up, down: conditions from client to server and back; may be replaced at any time.
        accept_delay_s: new connections wait for a random time up to so long before the server hears of them.
        port: where to dial.
        accepted: connections so far.
        carried: bytes that arrived, both ways.
    """

    target: int
    rng: random.Random
    up: Conditions = CLEAR
    down: Conditions = CLEAR
    accept_delay_s: float = 0.0
    port: int = 0
    accepted: int = 0
    carried: int = 0
    _server: asyncio.Server | None = None
    _connections: set[_Connection] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[FaultProxy]:
        """Listen until the end of the block."""
        await self.listen()
        try:
            yield self
        finally:
            await self.close()

    async def listen(self) -> None:
        """Take connections, again on the same port if there was one before."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Take no new connections: whoever dials is refused by the kernel. Existing ones go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def open(self) -> int:
        """Connections whose client still believes in them."""
        return sum(not c.over for c in self._connections)

    def clear(self) -> None:
        """No faults for what comes; connections that were half opened stay so until somebody hangs up."""
        self.up = self.down = CLEAR
        self.accept_delay_s = 0.0

    def cut(self, *, reset: bool) -> int:
        """End all connections on both sides, with RST or with FIN; returns how many there were."""
        victims = [c for c in self._connections if not c.over]
        for connection in victims:
            connection.end(reset=reset)
        return len(victims)

    def half_open(self) -> int:
        """The server sees all connections end, the clients see nothing; returns how many there were."""
        victims = [c for c in self._connections if not c.over]
        for connection in victims:
            connection.abandon()
        return len(victims)

    async def close(self) -> None:
        """End everything."""
        self.refuse()
        for connection in list(self._connections):
            connection.end(reset=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.ensure_future(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, writer)
        self._connections.add(connection)
        try:
            if self.accept_delay_s:
                await asyncio.sleep(self.rng.uniform(0.0, self.accept_delay_s))
            async with asyncio.timeout(DIAL_SECONDS):
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
            connection.server = server_writer
            if connection.over:
                return
            async with asyncio.TaskGroup() as group:
                group.create_task(connection.pass_on(reader, server_writer, lambda: self.up, "up"))
                group.create_task(connection.pass_on(server_reader, writer, lambda: self.down, "down"))
        except (OSError, TimeoutError):
            pass
        finally:
            connection.end(reset=True)
            self._connections.discard(connection)


class _Connection:
    """Two sockets and what is under way between them."""

    def __init__(self, proxy: FaultProxy, client: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = client
        self.server: asyncio.StreamWriter | None = None
        self.over = False
        self._abandoned = False

    def end(self, *, reset: bool) -> None:
        self.over = True
        for writer in (self._client, self.server):
            if writer is not None:
                _hang_up(writer, reset=reset)

    def abandon(self) -> None:
        self._abandoned = True
        if self.server is not None:
            _hang_up(self.server, reset=True)

    async def pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        conditions: Callable[[], Conditions],
        way: str,
    ) -> None:
        flight = _Flight(self._proxy, writer, conditions)
        delivering = asyncio.ensure_future(flight.deliver())
        try:
            while data := await self._read(reader):
                if self._abandoned or conditions().swallowing:
                    continue
                await flight.launch(data)
            if self._abandoned and way == "down":
                # The server hung up, and the client is not to know; it ends when the client does.
                return
            await flight.land()
            await asyncio.wait([delivering])
            if not conditions().swallowing and not self._abandoned and writer.can_write_eof():
                with contextlib.suppress(OSError):
                    writer.write_eof()
            if self._abandoned:
                self.end(reset=True)
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(CHUNK_BYTES)
        except OSError:
            if not self._abandoned:
                # One side was reset, so the other is as well.
                self.end(reset=True)
            return b""


class _Flight:
    """What is under way in one direction."""

    def __init__(self, proxy: FaultProxy, writer: asyncio.StreamWriter, conditions: Callable[[], Conditions]) -> None:
        self._proxy = proxy
        self._writer = writer
        self._conditions = conditions
        self._queue: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._due = 0.0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._landing = False

    async def launch(self, data: bytes) -> None:
        await self._room.wait()
        now = asyncio.get_running_loop().time()
        conditions = self._conditions()
        wait = conditions.delay_s + self._proxy.rng.uniform(0.0, conditions.jitter_s)
        self._due = max(self._due, now + wait)
        self._queue.append((self._due, data))
        self._bytes += len(data)
        if self._bytes >= IN_FLIGHT_BYTES:
            self._room.clear()
        self._changed.set()

    async def land(self) -> None:
        self._landing = True
        self._changed.set()

    async def deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                if self._landing:
                    return
                self._changed.clear()
                await self._changed.wait()
            due, data = self._queue[0]
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            await self._unstalled()
            self._queue.popleft()
            self._bytes -= len(data)
            if self._bytes < IN_FLIGHT_BYTES:
                self._room.set()
            rate = self._conditions().bytes_per_s
            if rate:
                await asyncio.sleep(len(data) / rate)
            if self._conditions().swallowing or self._writer.is_closing():
                continue
            self._writer.write(data)
            self._proxy.carried += len(data)
            with contextlib.suppress(OSError):
                await self._writer.drain()

    async def _unstalled(self) -> None:
        # A stall is ended by replacing the conditions, which nothing announces.
        while True:
            if not self._conditions().stalled:
                return
            await asyncio.sleep(0.01)


def _hang_up(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    if writer.is_closing():
        return
    if reset:
        endpoint: socket.socket = writer.get_extra_info("socket")
        # A linger time of 0 makes the kernel send RST where it would send FIN.
        with contextlib.suppress(OSError):
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
