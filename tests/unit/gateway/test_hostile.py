"""What devices must not send: each case ends the session with a word, or is ignored and counted; others go on."""

import asyncio
import math

import grpc
import grpc.aio
import pytest

from pocketgrid.gateway.inbox import MESSAGE_COST
from pocketgrid.model.ids import DeviceName
from pocketgrid.settings import GatewaySettings
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.gateway.grid import DEADLINE_S, Device, a_grid, a_hello, a_job, background, computed, until
from tests.unit.gateway.raw import RawDevice, beside_an_honest_device, fragment, in_pieces, length_delimited

LARGEST = framing.FRAGMENT_BYTES


@pytest.fixture(autouse=True)
def nothing_unforeseen(caplog):
    yield
    errors = [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]
    assert not errors, [r.getMessage() for r in errors]


def said(**body: object) -> bytes:
    return pb.DeviceMessage(**body).SerializeToString()


def results(*some: pb.ShardResult, job: str = "uid-job") -> bytes:
    return said(results=pb.Results(job=job, results=some))


def many(number: int, inner: int, count: int) -> bytes:
    """A message of `count` empty messages: two bytes each on the wire, eighty in memory."""
    return length_delimited(number, bytes([inner << 3 | 2, 0]) * count)


ENDING = {
    "no protobuf": ([b"\xff\xff\xff\xff"], "are no message"),
    "a truncated message": ([results(pb.ShardResult(token=b"t" * 24))[:-3]], "are no message"),
    "text that is no UTF-8": ([length_delimited(3, length_delimited(1, b"\xff\xfe"))], "are no message"),
    "whole although too large": (
        [length_delimited(3, length_delimited(2, bytes(LARGEST + 2000)))],
        "travel in fragments",
    ),
    "half a million empty results": (in_pieces(many(3, 2, 500_000)), "in more than"),
    "half a million returned tokens": (in_pieces(many(4, 2, 500_000)), "in more than"),
    "a million failed items": (
        in_pieces(length_delimited(3, length_delimited(2, b"\x2a\x00" * 500_000))),
        "in more than",
    ),
    "too many results": ([results(*[pb.ShardResult()] * 17_000)], "17000 results in one message"),
    "a token of a kilobyte": ([results(pb.ShardResult(token=bytes(1024)))], "a token of 1024 bytes"),
    "a returned token of a kilobyte": ([said(returned=pb.Returned(job="j", tokens=[bytes(1024)]))], "a token of"),
    "a job's name of a kilobyte": ([results(job="j" * 1024)], "a job's UID of 1024"),
    "a report on such a job": ([said(model_report=pb.ModelReport(job="j" * 1024))], "a job's UID of 1024"),
    "Hello again": ([said(hello=a_hello("hostile"))], "Hello came twice"),
    "pieces out of order": ([fragment(0, 3), fragment(2, 3)], "piece 2 of 3 arrived where piece 1 was due"),
    "a piece that comes twice": ([fragment(0, 3), fragment(0, 3)], "piece 0 of 3 arrived where piece 1 was due"),
    "a message between pieces": ([fragment(0, 3), said(heartbeat=pb.Heartbeat(sequence=1))], "between pieces"),
    "pieces of two messages": ([fragment(0, 3), fragment(1, 4)], "are mixed"),
    "too many pieces": ([fragment(0, 100_000)], "a message in 100000 pieces"),
    "one piece": ([fragment(0, 1)], "a message in 1 pieces"),
    "an empty piece": ([fragment(0, 2, b"")], "a piece of 0 bytes"),
    "pieces of nonsense": ([fragment(0, 2, b"\xff" * 9), fragment(1, 2, b"\xff" * 9)], "are no message"),
    "pieces of a piece": ([fragment(0, 2, fragment(0, 2)), fragment(1, 2, b"\x00" * 0 + b"\x7a\x00")], "piece"),
}


@pytest.mark.parametrize("case", ENDING, ids=lambda name: name.replace(" ", "-"))
async def test_what_ends_a_session_does_so_with_a_word(tmp_path, case) -> None:
    pieces, word = ENDING[case]
    async with beside_an_honest_device(tmp_path) as (grid, hostile):
        await hostile.write(*pieces)
        refusal = await hostile.ending()
        assert refusal is not None, hostile.kinds()
        assert (refusal.reason, refusal.retry) == ("ProtocolError", True)
        assert refusal.retry_after_ms > 0
        assert word in refusal.message
        assert len(refusal.message) < 300
        await until(lambda: grid.gateway.sessions == 0, "the session is over")


IGNORED = {
    "a message of a newer version": (b"\xa2\x06\x03abc", "unknown"),
    "nothing at all": (b"", "unknown"),
    "work given back of a job nobody knows": (said(returned=pb.Returned(job="other", tokens=[b"t"])), "returned"),
    "a report on a job nobody knows": (
        said(model_report=pb.ModelReport(job="other", state=pb.ModelReport.STATE_READY, items_per_second=1e9)),
        "model_report",
    ),
    "a report on another model": (
        said(model_report=pb.ModelReport(job="uid-job", model_sha256="0" * 64, state=pb.ModelReport.STATE_READY)),
        "model_report",
    ),
}


@pytest.mark.parametrize("case", IGNORED, ids=lambda name: name.replace(" ", "-"))
async def test_what_means_nothing_is_ignored_and_counted(tmp_path, case) -> None:
    message, sort = IGNORED[case]
    async with beside_an_honest_device(tmp_path) as (grid, hostile):
        await hostile.hear_of("work_order")
        await hostile.write(message, message, said(heartbeat=pb.Heartbeat(sequence=7)))
        while (await hostile.hear_of("pulse")).sequence != 7:
            pass
        assert not grid.engine._grid.fleet.devices[DeviceName("hostile")].speeds
    assert grid.gateway.ignored == {sort: 2}


async def test_words_of_a_device_write_no_lines_of_their_own(tmp_path, caplog) -> None:
    evil = "evil\nERROR forged line\x1b[2J\u202e\r"
    facts = pb.DeviceFacts(kind="sbc", arch="arm64", os="linux", model_name=evil, engine=evil, agent_version=evil)
    hello = a_hello("hostile", boot_id=evil, facts=facts)
    async with beside_an_honest_device(tmp_path, hello=hello) as (grid, hostile):
        order = await hostile.hear_of("work_order")
        failed = pb.ModelReport.STATE_FAILED
        report = pb.ModelReport(job=order.job, model_sha256=order.model_sha256, state=failed, reason=evil, message=evil)
        await hostile.write(said(model_report=report), said(draining=pb.Draining(reason=evil)))
        record = grid.engine._grid.fleet.devices[DeviceName("hostile")]
        await until(lambda: record.draining, "draining")
        identity = record.identity
        texts = [identity.boot_id, identity.facts.model_name, identity.facts.engine, identity.facts.agent_version]
        texts += [o.message for o in record.orders.values()]
        assert all(t.isprintable() for t in texts), texts
        assert "Unspecified" in str(record.orders)
    assert not [r.getMessage() for r in caplog.records if not r.getMessage().isprintable()]


async def test_labels_that_kubernetes_acts_upon_are_not_a_devices_to_set(tmp_path) -> None:
    labels = {
        "node-role.kubernetes.io/control-plane": "",
        "node.kubernetes.io/exclude-from-external-load-balancers": "true",
        "k8s.io/x": "y",
        "topology.kubernetes.io/zone": "kitchen",
        "example.org/room": "kitchen",
        "../../etc/passwd": "x",
    }
    async with a_grid(tmp_path) as grid, Device(grid, a_hello(labels=labels)) as device:
        await device.attach()
        identity = grid.engine.device_views()[DeviceName("device-1")].identity
        assert set(identity.labels) == {"topology.kubernetes.io/zone", "example.org/room"}


@pytest.mark.parametrize("size", [3 * LARGEST, 32 * LARGEST])
async def test_what_grpc_itself_refuses_ends_the_stream_with_a_status(tmp_path, size) -> None:
    async with beside_an_honest_device(tmp_path) as (grid, hostile):
        await hostile.write(bytes(size))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(hostile.hear_of("refusal"), DEADLINE_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: grid.gateway.sessions == 0, "the session is over")


@pytest.mark.parametrize("oldest", [0, 1], ids=["says nothing of older ones", "still speaks ours"])
async def test_a_newer_agent_that_speaks_our_version_is_welcome(tmp_path, oldest) -> None:
    hello = a_hello(protocol_version=9, oldest_protocol_version=oldest)
    async with a_grid(tmp_path) as grid, Device(grid, hello) as device:
        assert (await device.attach()).protocol_version == framing.PROTOCOL_VERSION


@pytest.mark.parametrize(
    ("newest", "oldest", "remedy", "retry"),
    [(0, 0, "update the agent", False), (9, 8, "update the operator", True), (2**32 - 1, 2**32 - 1, "update", True)],
)
async def test_versions_without_a_common_one_are_both_named(tmp_path, newest, oldest, remedy, retry) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.say(hello=a_hello(protocol_version=newest, oldest_protocol_version=oldest))
        refusal = (await device.hear()).refusal
        assert (refusal.reason, refusal.retry) == ("UnsupportedVersion", retry)
        assert f"versions {framing.OLDEST_PROTOCOL_VERSION} to {framing.PROTOCOL_VERSION}" in refusal.message
        assert f"to {newest}" in refusal.message
        assert remedy in refusal.message
        assert (refusal.retry_after_ms >= 10_000) is retry


@pytest.mark.parametrize("speed", [math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 1e-300, 1e300, 1e12, 1e9], ids=str)
async def test_a_speed_that_cannot_be_starves_nobody(tmp_path, speed) -> None:
    async with beside_an_honest_device(tmp_path, stays=True, items=1000) as (grid, liar):
        order = await liar.hear_of("work_order")
        ready = pb.ModelReport.STATE_READY
        report = pb.ModelReport(
            job=order.job, model_sha256=order.model_sha256, state=ready, items_per_second=speed, micro_batch=2**32 - 1
        )
        await liar.write(said(model_report=report), said(model_report=report))
        # It takes what it is given and never answers, while it says that it is well.
        await liar.hear_of("lease")
        estimate = next(iter(grid.engine._grid.fleet.devices[DeviceName("hostile")].speeds.values()))
        assert 0 < estimate.items_per_second < math.inf


async def test_computing_times_that_cannot_be_are_not_believed(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device, background(device.beat()):
        spec = a_job(tmp_path, items=400, per_shard=10)
        grid.engine.submit(spec)
        await device.attach()
        await device.ready_for_work()
        lease = await device.hear_of("lease")
        result = computed(lease.shards[0])
        result.compute_us = 2**64 - 1
        await device.say(results=pb.Results(job=spec.uid, results=[result]))
        await until(lambda: grid.engine.job_view(spec.uid).shards_done == 1, "it is committed")
        estimate = next(iter(grid.engine._grid.fleet.devices[DeviceName("device-1")].speeds.values()))
        assert estimate.seconds_per_item < DEADLINE_S


async def test_work_that_is_always_given_back_is_not_handed_out_in_a_circle(tmp_path) -> None:
    async with beside_an_honest_device(tmp_path) as (_, unwilling):
        await unwilling.ready_for_work()
        leases = 0
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.0
        while loop.time() < end:
            try:
                async with asyncio.timeout(end - loop.time()):
                    lease = await unwilling.hear_of("lease")
            except TimeoutError:
                break
            leases += len(lease.shards)
            tokens = [s.token for s in lease.shards]
            await unwilling.say(returned=pb.Returned(job=lease.job, tokens=tokens, reason="Whim"))
        assert leases < 60, "it was left alone for a while after each time"


async def test_a_flood_is_read_slowly_and_others_do_not_notice(tmp_path) -> None:
    limits = {"receive_rate": 20_000.0, "receive_burst": 20_000.0}
    async with beside_an_honest_device(tmp_path, **limits) as (grid, flood):
        beat = said(heartbeat=pb.Heartbeat(sequence=1))
        cost = MESSAGE_COST + framing.weigh_parts(pb.DeviceMessage, beat)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        writing = asyncio.ensure_future(flood.write(*[beat] * 20_000))
        pulses = 0
        while loop.time() < begun + 1.0:
            await flood.hear_of("pulse")
            pulses += 1
        elapsed = loop.time() - begun
        # Unasked pulses say that the gateway is still there although it does not listen.
        unasked = elapsed / (GatewaySettings().heartbeat_seconds / 100)
        assert pulses <= (limits["receive_burst"] + limits["receive_rate"] * elapsed) / cost + unasked
        assert grid.gateway.sessions == 1, "slowed down, not sent away"
        async with Device(grid, a_hello("other")) as other:
            begun = loop.time()
            await other.attach()
            await other.say(heartbeat=pb.Heartbeat(sequence=3))
            assert (await other.hear_of("pulse")).sequence == 3
            assert loop.time() - begun < 2.0
        writing.cancel()
        flood.call.cancel()
        await until(lambda: grid.gateway.sessions == 0, "the session is over")
    assert grid.gateway.ignored["slowed"] > 0


async def test_a_message_that_is_never_finished_is_not_waited_for(tmp_path) -> None:
    async with beside_an_honest_device(tmp_path) as (grid, hostile):
        await hostile.write(fragment(0, framing.MESSAGE_BYTES // LARGEST, bytes(LARGEST)))
        room = grid.gateway._servicer._room
        await until(lambda: room.free_bytes < GatewaySettings().assembly_bytes, "room is reserved")
        await until(lambda: grid.gateway.sessions == 0, "silence ends it")
        assert room.free_bytes == GatewaySettings().assembly_bytes


async def test_large_messages_wait_for_room_and_too_many_are_sent_away(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pocketgrid.gateway.inbox.MOST_WAITING", 1)
    limits = {"assembly_bytes": framing.MESSAGE_BYTES, "silence_seconds": 3.0}
    async with beside_an_honest_device(tmp_path, **limits) as (grid, first):
        waiting, refused = RawDevice(grid, a_hello("second")), RawDevice(grid, a_hello("third"))
        async with waiting, refused:
            await waiting.attach()
            await refused.attach()
            room = grid.gateway._servicer._room
            await first.write(fragment(0, framing.MESSAGE_BYTES // LARGEST, bytes(LARGEST)))
            await until(lambda: room.free_bytes == 0, "the first has taken all")
            body = results(pb.ShardResult(token=b"t" * 24, outputs=[pb.Tensor(data=bytes(LARGEST))]), job="other")
            await waiting.write(fragment(0, 2, body[:LARGEST]))
            await until(lambda: room._waiting, "the second waits")
            await refused.write(fragment(0, 2, body[:LARGEST]))
            refusal = await refused.ending()
            assert refusal is not None
            assert (refusal.reason, refusal.retry) == ("Overloaded", True)
            # Once the first has gone, the second is listened to.
            first.call.cancel()
            await waiting.write(fragment(1, 2, body[LARGEST:]))
            assert list((await waiting.hear_of("settled")).superseded) == [b"t" * 24]
            await until(lambda: room.free_bytes == framing.MESSAGE_BYTES, "all room is given back")
        await until(lambda: grid.gateway.sessions == 0, "they are gone")


async def test_a_gateway_takes_only_so_many_devices(tmp_path) -> None:
    async with a_grid(tmp_path, most_sessions=1) as grid, Device(grid) as first, Device(grid, a_hello("b")) as second:
        await first.attach()
        await second.say(hello=second.hello)
        refusal = (await second.hear()).refusal
        assert (refusal.reason, refusal.retry) == ("Full", True)


async def test_a_device_that_makes_us_talk_and_does_not_listen_is_dropped_before_it_costs_memory(tmp_path) -> None:
    async with beside_an_honest_device(tmp_path, silence_seconds=30.0) as (grid, deaf):
        echo = results(*[pb.ShardResult(token=bytes([n & 255]) * 64) for n in range(3000)], job="other")
        writing = asyncio.ensure_future(deaf.write(*[echo] * 2000))
        (session,) = grid.gateway._servicer._sessions.values()
        worst = 0
        loop = asyncio.get_running_loop()
        end = loop.time() + 3.0
        while grid.gateway.sessions and loop.time() < end:
            worst = max(worst, session._queued_bytes)
            await asyncio.sleep(0.01)
        assert 0 < worst <= session._limit_bytes
        writing.cancel()
        deaf.call.cancel()
        await until(lambda: grid.gateway.sessions == 0, "the session is over")


async def test_only_so_many_models_are_fetched_at_once(tmp_path) -> None:
    async with beside_an_honest_device(tmp_path) as (_, greedy):
        order = await greedy.hear_of("work_order")
        metadata = ((framing.SESSION_KEY, greedy.session_id),)
        fetch = greedy.channel.unary_stream("/pocketgrid.wire.v1.DeviceGateway/FetchModel")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fetch(b"\xff\xff", metadata=metadata).read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        request = pb.FetchModelRequest(sha256=order.model_sha256).SerializeToString()
        for _ in range(30):  # those that are through count no more
            assert await fetch(request, metadata=metadata).read()


async def test_a_stream_of_nonsense_before_hello_is_refused(tmp_path, caplog) -> None:
    async with a_grid(tmp_path) as grid, RawDevice(grid) as device:
        await device.write(b"\xff\xff\xff")
        refusal = await device.ending()
        assert refusal is not None
        assert (refusal.reason, refusal.retry) == ("ProtocolError", False)
        assert grid.gateway.sessions == 0
