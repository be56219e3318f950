"""The proxy does what it says, or the faults it makes prove nothing."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from tests.faults.proxy import CLEAR, Conditions, FaultProxy

pytestmark = pytest.mark.timeout(30)


class Echo:
    """A server that says back what it hears, and remembers how its connections ended."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = b""
        self.order: list[bytes] = []
        self.endings: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Echo"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ending = "cancelled"
        try:
            while data := await reader.read(65536):
                self.heard += data
                self.order.append(data)
                writer.write(data)
                await writer.drain()
            ending = "fin"
        except ConnectionError:
            ending = "rst"
        finally:
            self.endings.append(ending)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    async with Echo().serving() as server:
        yield server


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(echo.port, random.Random(7)).serving() as made:
        yield made


@contextlib.asynccontextmanager
async def dialled(proxy: FaultProxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def until(condition, deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)


async def test_everything_arrives_in_order(echo, proxy) -> None:
    sent = random.Random(1).randbytes(3 << 20)
    proxy.up = Conditions(delay_s=0.001, jitter_s=0.002)
    async with dialled(proxy) as (reader, writer):
        writing = asyncio.ensure_future(_send(writer, sent))
        assert await reader.readexactly(len(sent)) == sent
        await writing
    assert proxy.carried == 2 * len(sent)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_an_end_passes_through(echo, proxy) -> None:
    async with dialled(proxy) as (reader, writer):
        writer.write(b"last words")
        writer.write_eof()
        assert await reader.read(-1) == b"last words"
    await until(lambda: echo.endings == ["fin"])


async def test_delay_is_per_direction(echo, proxy) -> None:
    loop = asyncio.get_running_loop()
    async with dialled(proxy) as (reader, writer):
        for way in ("up", "down"):
            setattr(proxy, way, Conditions(delay_s=0.15))
            begun = loop.time()
            writer.write(b"x")
            if way == "up":
                await until(lambda: echo.heard.endswith(b"x"))
                assert loop.time() - begun >= 0.15
            await reader.readexactly(1)
            assert loop.time() - begun >= 0.15
            proxy.clear()


async def test_a_stall_holds_back_and_then_lets_go(echo, proxy) -> None:
    async with dialled(proxy) as (reader, writer):
        proxy.up = Conditions(stalled=True)
        writer.write(b"held")
        await writer.drain()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        assert echo.heard == b""
        proxy.up = CLEAR
        assert await asyncio.wait_for(reader.readexactly(4), 5) == b"held"


async def test_a_stalled_direction_pushes_back(echo, proxy) -> None:
    proxy.up = Conditions(stalled=True)
    async with dialled(proxy) as (_, writer):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_send(writer, bytes(32 << 20)), 0.5)
        writer.transport.abort()


async def test_what_is_swallowed_never_comes(echo, proxy) -> None:
    async with dialled(proxy) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        proxy.up = Conditions(swallowing=True)
        writer.write(b"b")
        await writer.drain()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        proxy.clear()
        writer.write(b"c")
        assert await asyncio.wait_for(reader.readexactly(1), 5) == b"c"


async def test_throttling_keeps_to_its_rate(echo, proxy) -> None:
    proxy.up = Conditions(bytes_per_s=200_000)
    loop = asyncio.get_running_loop()
    async with dialled(proxy) as (reader, writer):
        begun = loop.time()
        writer.write(bytes(60_000))
        await reader.readexactly(60_000)
        assert 0.3 <= loop.time() - begun < 3.0


@pytest.mark.parametrize(("reset", "ending"), [(False, "fin"), (True, "rst")])
async def test_a_cut_reaches_both_sides(echo, proxy, reset, ending) -> None:
    async with dialled(proxy) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        assert proxy.cut(reset=reset) == 1
        if reset:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(1), 5)
        else:
            assert await asyncio.wait_for(reader.read(1), 5) == b""
        await until(lambda: echo.endings == [ending])
        assert proxy.open == 0


async def test_half_open_means_that_only_the_server_knows(echo, proxy) -> None:
    async with dialled(proxy) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        assert proxy.half_open() == 1
        await until(lambda: echo.endings == ["rst"])
        writer.write(b"is anybody there?")
        await writer.drain()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
    async with dialled(proxy) as (reader, writer):
        writer.write(b"y")
        assert await asyncio.wait_for(reader.readexactly(1), 5) == b"y"


async def test_refusing_and_listening_again(echo, proxy) -> None:
    port = proxy.port
    async with dialled(proxy) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
    await proxy.listen()
    assert proxy.port == port
    async with dialled(proxy) as (reader, writer):
        writer.write(b"z")
        assert await reader.readexactly(1) == b"z"


async def test_connections_overtake_each_other(echo, proxy) -> None:
    proxy.accept_delay_s = 0.3
    async with contextlib.AsyncExitStack() as stack:
        names = [b"%02d" % number for number in range(12)]
        for name in names:
            _, writer = await stack.enter_async_context(dialled(proxy))
            writer.write(name)
        await until(lambda: len(echo.order) == len(names))
    assert sorted(echo.order) == names
    assert echo.order != names


async def test_a_target_can_move(echo, proxy) -> None:
    async with Echo().serving() as other:
        async with dialled(proxy) as (reader, writer):
            proxy.target = other.port
            writer.write(b"old")
            assert await reader.readexactly(3) == b"old"
            async with dialled(proxy) as (reader2, writer2):
                writer2.write(b"new")
                assert await reader2.readexactly(3) == b"new"
        assert (echo.heard, other.heard) == (b"old", b"new")


async def test_a_dead_target_ends_the_client(proxy) -> None:
    proxy.target = 1
    async with dialled(proxy) as (reader, _):
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 5)
