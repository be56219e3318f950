"""How a device gets in, or does not."""

import asyncio
import math
from dataclasses import replace

import grpc
import grpc.aio
import pytest

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.view import Presence
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.gateway.grid import DEADLINE_S, Device, a_grid, a_hello, background, until


@pytest.fixture(autouse=True)
def nothing_unforeseen(caplog):
    yield
    errors = [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]
    assert not errors, [r.getMessage() for r in errors]


async def test_welcome_is_the_first_word_and_says_what_the_device_must_keep_to(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        welcome = await device.attach()
        assert welcome.protocol_version == framing.PROTOCOL_VERSION
        assert len(welcome.session_id) >= 24
        assert (welcome.heartbeat_interval_ms, welcome.silence_limit_ms) == (100, 600)
        assert grid.gateway.sessions == 1
        assert grid.engine.device_views()[DeviceName("device-1")].presence is Presence.CONNECTED


async def test_a_gateway_with_another_authority_is_not_believed(tmp_path) -> None:
    async with a_grid(tmp_path / "ours") as ours, a_grid(tmp_path / "theirs") as theirs:
        held = await theirs.credentials("device-1")
        wrong = replace(held, bundle_pem=(await ours.credentials("device-1")).bundle_pem)
        async with Device(theirs, credentials=wrong) as device:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(device.call.read(), DEADLINE_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert theirs.gateway.sessions == 0


async def test_who_stays_silent_is_sent_away(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        message = await device.hear()
        assert (message.refusal.reason, message.refusal.retry) == ("NoHello", True)
        assert await device.hear() is None


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        pytest.param(a_hello(protocol_version=0), "UnsupportedVersion", id="older protocol"),
        pytest.param(a_hello(""), "InvalidName", id="no name"),
        pytest.param(a_hello("Uppercase"), "InvalidName", id="upper case"),
        pytest.param(a_hello("a..b"), "InvalidName", id="empty part of a name"),
        pytest.param(a_hello("a.-b"), "InvalidName", id="part of a name begins with a dash"),
        pytest.param(a_hello("device\n"), "InvalidName", id="line end"),
        pytest.param(a_hello("d" * 254), "InvalidName", id="name too long"),
        pytest.param(a_hello("d" * (1 << 20)), "InvalidName", id="name of a megabyte"),
        pytest.param(a_hello(node_name="../etc"), "InvalidName", id="no name of a Node"),
        pytest.param(a_hello(owner="Ada & Charles"), "InvalidName", id="owner is no label"),
        pytest.param(a_hello(owner="o" * 64), "InvalidName", id="owner too long"),
    ],
)
async def test_a_hello_that_makes_no_sense_is_refused_for_good(tmp_path, hello, reason) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.say(hello=hello)
        message = await device.hear()
        assert (message.refusal.reason, message.refusal.retry) == (reason, False)
        assert len(message.refusal.message) < 500
        assert await device.hear() is None
        assert grid.gateway.sessions == 0


async def test_a_newer_agent_is_answered_in_our_version(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid, a_hello(protocol_version=7)) as device:
        assert (await device.attach()).protocol_version == framing.PROTOCOL_VERSION


async def test_a_stream_begins_with_hello(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.say(heartbeat=pb.Heartbeat(sequence=1))
        assert (await device.hear()).refusal.reason == "ProtocolError"


async def test_hello_comes_once(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()
        await device.say(hello=device.hello)
        refusal = await device.hear_of("refusal")
        assert (refusal.reason, refusal.retry) == ("ProtocolError", True)
        assert refusal.retry_after_ms > 0
        await until(lambda: grid.gateway.sessions == 0, "the session is over")


async def test_an_endless_hello_is_cut_off(tmp_path) -> None:
    async with a_grid(tmp_path, hello_seconds=DEADLINE_S) as grid, Device(grid) as device:
        piece = b"x" * framing.FRAGMENT_BYTES
        sent = 0
        try:
            for index in range(64):
                await device.call.write(pb.DeviceMessage(fragment=pb.Fragment(index=index, total=64, data=piece)))
                sent += len(piece)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        assert sent < 40 << 20, "what was sent beyond the limit is what gRPC had already taken"
        assert grid.gateway.sessions == 0


async def test_absurd_facts_are_cut_to_size(tmp_path) -> None:
    absurd = a_hello(
        boot_id="b" * (1 << 20),
        facts=pb.DeviceFacts(
            kind="mainframe",
            arch="not a label",
            os="o" * 1000,
            cores=2**32 - 1,
            memory_bytes=2**64 - 1,
            simd=[f"feature-{n}" for n in range(5000)],
            providers=["p" * 100_000] * 50,
            model_name="m" * 100_000,
            agent_version="v" * 100_000,
            engine="e" * 100_000,
            opset=2**32 - 1,
        ),
        slots=2**32 - 1,
        credits=pb.Credits(shards=2**32 - 1, bytes=2**64 - 1),
        cached_models=[f"{n:064x}" for n in range(5000)] + ["nonsense"],
        held=[pb.HeldAttempt(job="x" * n, shard=2**64 - 1, token=b"?" * n) for n in range(1000)],
        labels={**{f"key-{n}": "value" for n in range(2000)}, "bad key": "x", "a": "bad value!"},
    )
    async with a_grid(tmp_path) as grid, Device(grid, absurd) as device:
        await device.attach()
        identity = grid.engine.device_views()[DeviceName("device-1")].identity
        facts = identity.facts
        assert (facts.kind.value, facts.arch, facts.os) == ("phone", "unknown", "unknown")
        assert facts.memory_bytes < 2**63
        assert len(facts.simd) == 64
        assert max(map(len, (identity.boot_id, facts.model_name, facts.engine, *facts.providers))) <= 1024
        assert identity.slots == 256
        assert identity.credits.bytes == 256 << 20
        assert len(identity.cached_models) == 1024
        assert len(identity.labels) == 64
        assert "bad key" not in identity.labels


async def test_vitals_that_cannot_be_are_unknown(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()
        beat = pb.Heartbeat(
            sequence=5,
            load1=math.nan,
            battery_percent=-3,
            temperature_celsius=math.inf,
            memory_available_bytes=2**64 - 1,
            network="carrier pigeon",
        )
        await device.say(heartbeat=beat)
        assert (await device.hear_of("pulse")).sequence == 5
        await device.say(heartbeat=pb.Heartbeat(sequence=6, battery_percent=80.0))
        await device.hear_of("pulse")
        await until(lambda: grid.engine.device_views()[DeviceName("device-1")].vitals.battery_percent, "vitals")
        vitals = grid.engine.device_views()[DeviceName("device-1")].vitals
        assert (vitals.load1, vitals.temperature_celsius, vitals.memory_available_bytes) == (None, None, None)


async def test_whoever_attaches_last_is_the_device(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as first, Device(grid) as again:
        await first.attach()
        await again.attach()
        refusal = await first.hear_of("refusal")
        assert (refusal.reason, refusal.retry) == ("Replaced", True)
        assert await first.hear() is None
        await until(lambda: grid.gateway.sessions == 1, "the first session is over")
        await again.say(heartbeat=pb.Heartbeat(sequence=9))
        assert (await again.hear_of("pulse")).sequence == 9
        assert grid.engine.device_views()[DeviceName("device-1")].presence is Presence.CONNECTED
        async with Device(grid, a_hello(boot_id="boot-2")) as restarted:
            await restarted.attach()
            refusal = await again.hear_of("refusal")
            assert (refusal.reason, refusal.retry) == ("Replaced", False)


async def test_messages_of_a_newer_version_are_ignored(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()
        unknown = pb.DeviceMessage.FromString(b"\xa2\x06\x03abc")  # field 100, of which version 1 knows nothing
        await device.call.write(unknown)
        await device.say(heartbeat=pb.Heartbeat(sequence=1))
        assert (await device.hear_of("pulse")).sequence == 1


async def test_a_fault_of_ours_is_logged_and_the_device_comes_back_later(tmp_path, monkeypatch, caplog) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()

        def fault(*_: object) -> None:
            raise KeyError("unforeseen")

        monkeypatch.setattr(grid.engine.devices, "draining", fault)
        await device.say(draining=pb.Draining(reason="Test"))
        refusal = await device.hear_of("refusal")
        assert (refusal.reason, refusal.retry) == ("InternalError", True)
        assert refusal.retry_after_ms >= 1000
        await until(lambda: grid.gateway.sessions == 0, "the session is over")
    assert any(r.exc_info for r in caplog.records if "failed to handle" in r.getMessage())
    caplog.clear()


async def test_hundreds_of_devices_at_once_are_all_welcomed(tmp_path) -> None:
    count = 300
    async with a_grid(tmp_path, hello_seconds=20.0, silence_seconds=30.0) as grid:
        held = [await grid.credentials(f"device-{number}") for number in range(count)]

        async def connect(number: int) -> grpc.aio.Channel:
            mine = held[number]
            credentials = grpc.ssl_channel_credentials(mine.bundle_pem, mine.key_pem, mine.chain_pem)
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.secure_channel(grid.gateway.address, credentials, options=options)
            call = channel.stream_stream(
                "/pocketgrid.wire.v1.DeviceGateway/Attach",
                request_serializer=pb.DeviceMessage.SerializeToString,
                response_deserializer=pb.GatewayMessage.FromString,
            )()
            await call.write(pb.DeviceMessage(hello=a_hello(f"device-{number}")))
            assert (await call.read()).HasField("welcome")
            return channel

        async with asyncio.timeout(DEADLINE_S):
            channels = await asyncio.gather(*(connect(n) for n in range(count)))
        assert grid.gateway.sessions == count
        await asyncio.gather(*(channel.close(None) for channel in channels))
        await until(lambda: grid.gateway.sessions == 0, "all sessions are over")


async def test_stopping_tells_devices_to_come_again(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()
        loop = asyncio.get_running_loop()
        async with background(device.beat()):
            goodbye = asyncio.ensure_future(device.hear_of("refusal"))
            begun = loop.time()
            await grid.gateway.__aexit__(None, None, None)
            assert loop.time() - begun < 1.0, "nobody is waited for who has taken the news and hung up"
            refusal = await goodbye
            assert (refusal.reason, refusal.retry) == ("OperatorStopping", True)
            assert await device.hear() is None
        assert grid.gateway.sessions == 0
        assert grid.engine.device_views()[DeviceName("device-1")].presence is not Presence.CONNECTED
