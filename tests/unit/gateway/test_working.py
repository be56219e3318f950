"""Work over the link: orders, leases, results and models, and what becomes of links that fail."""

import asyncio
import json
from pathlib import Path

import grpc
import grpc.aio
import pytest

from pocketgrid.clock import SystemClock
from pocketgrid.engine.links import LeasedShard
from pocketgrid.errors import StoreError
from pocketgrid.gateway import certificates
from pocketgrid.gateway.convert import read_hello
from pocketgrid.gateway.identity import SERVER_DAYS
from pocketgrid.gateway.pacing import choose_paces
from pocketgrid.gateway.server import Gateway
from pocketgrid.gateway.session import DeviceSession
from pocketgrid.model.ids import DeviceName, JobUid, LeaseId
from pocketgrid.model.tensors import TensorData
from pocketgrid.model.view import Presence, Stage
from pocketgrid.settings import GatewaySettings
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.gateway.grid import (
    DEADLINE_S,
    Device,
    a_grid,
    a_hello,
    a_job,
    background,
    check_output,
    computed,
    until,
)


@pytest.fixture(autouse=True)
def nothing_unforeseen(caplog):
    yield
    errors = [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]
    assert not errors, [r.getMessage() for r in errors]


async def test_a_job_from_order_to_settlement_and_withdrawal(tmp_path) -> None:
    spec = a_job(tmp_path, items=60, per_shard=10)
    async with a_grid(tmp_path) as grid, Device(grid) as device, background(device.beat()):
        grid.engine.submit(spec)
        await device.attach()
        await device.work_until_cancelled()
        assert grid.stage(spec) is Stage.COMPLETE
        kinds = [k for k in device.kinds() if k != "pulse"]
        assert kinds[:3] == ["welcome", "work_order", "lease"]
        assert kinds[-1] == "cancel", "a finished job's order is withdrawn"
        order = next(m.work_order for m in device.received if m.HasField("work_order"))
        assert (order.model_sha256, order.job) == (spec.model.sha256, spec.uid)
        settled = [t for m in device.received if m.HasField("settled") for t in m.settled.committed]
        assert len(settled) == len(set(settled)) == 6
    check_output(spec, 60)


async def test_large_leases_and_results_travel_in_fragments(tmp_path) -> None:
    width = 70_000  # five rows: 1.4 MB in, 1.4 MB out
    spec = a_job(tmp_path, items=20, per_shard=5, width=width)
    async with a_grid(tmp_path, silence_seconds=5.0) as grid, Device(grid) as device:
        grid.engine.submit(spec)
        await device.attach()
        await device.work_until_cancelled()
        assert device.fragments >= 8
        assert device.largest <= framing.FRAGMENT_BYTES + 64
    check_output(spec, 20, width)


async def test_fragments_out_of_order_end_the_stream_and_nothing_else(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as clumsy, Device(grid, a_hello("other")) as other:
        await clumsy.attach()
        await other.attach()
        for index in (0, 2):
            await clumsy.call.write(pb.DeviceMessage(fragment=pb.Fragment(index=index, total=3, data=b"x" * 100)))
        refusal = await clumsy.hear_of("refusal")
        assert (refusal.reason, refusal.retry) == ("ProtocolError", True)
        await until(lambda: grid.gateway.sessions == 1, "the clumsy session is over")
        await other.say(heartbeat=pb.Heartbeat(sequence=1))
        assert (await other.hear_of("pulse")).sequence == 1


def _with(result: pb.ShardResult, **changes: object) -> pb.ShardResult:
    changed = pb.ShardResult()
    changed.CopyFrom(result)
    for name, value in changes.items():
        if name == "outputs":
            del changed.outputs[:]
            changed.outputs.extend(value)
        else:
            setattr(changed, name, value)
    return changed


async def test_results_that_cannot_be_are_refused_one_by_one(tmp_path) -> None:
    spec = a_job(tmp_path, items=100, per_shard=10)
    async with a_grid(tmp_path) as grid, Device(grid) as device, background(device.beat()):
        grid.engine.submit(spec)
        await device.attach()
        await device.ready_for_work()
        leases = [await device.hear_of("lease")]
        while sum(len(lease.shards) for lease in leases) < 8:
            leases.append(await device.hear_of("lease"))
        shards = [s for lease in leases for s in lease.shards][:8]
        good = [computed(s) for s in shards]
        data = good[0].outputs[0].data
        tensors = [
            pb.Tensor(dtype="float32", shape=[2**64 - 1] * 300_000, data=data),
            pb.Tensor(dtype="float32", shape=[10, 4, 2**63], data=data),
            pb.Tensor(dtype="float32", shape=[10, 2**62, 4], data=data),
            pb.Tensor(dtype="complex1024", shape=[10, 4], data=data),
            pb.Tensor(dtype="float32", shape=[10, 4], data=data, row_lengths=[2**32 - 1] * 10),
        ]
        bad = [_with(r, outputs=[t]) for r, t in zip(good, tensors, strict=False)]
        bad.append(_with(good[5], token=b"\xff" * 24))
        bad.append(_with(good[6], shard=2**64 - 1))
        await device.say(results=pb.Results(job=spec.uid, results=bad))
        refused: dict[bytes, str] = {}
        while len(refused) < len(bad):
            settled = await device.hear_of("settled")
            refused |= {r.token: r.reason for r in settled.refused}
        assert sorted(refused.values()) == ["NotLeased"] * 2 + ["WrongOutputs"] * 5
        assert grid.engine.job_view(spec.uid).shards_done == 0
        await device.say(results=pb.Results(job=spec.uid, results=[good[7]]))
        await until(lambda: grid.engine.job_view(spec.uid).shards_done == 1, "the good one is committed")


async def test_results_of_a_job_nobody_knows_may_be_forgotten(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()
        await device.say(results=pb.Results(job="elsewhere", results=[pb.ShardResult(shard=1, token=b"t" * 24)]))
        assert list((await device.hear_of("settled")).superseded) == [b"t" * 24]


async def test_a_flood_of_tiny_results_ends_the_stream(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()
        await device.say(results=pb.Results(job="j", results=[pb.ShardResult()] * 20_000))
        assert (await device.hear_of("refusal")).reason == "ProtocolError"


async def test_a_shard_too_large_for_the_link_says_so_on_the_job(tmp_path) -> None:
    width = 400_000
    spec = a_job(tmp_path, items=60, per_shard=50, width=width)  # 80 MB a shard
    async with a_grid(tmp_path, silence_seconds=10.0) as grid, Device(grid) as device, background(device.beat()):
        grid.engine.submit(spec)
        await device.attach()
        await device.ready_for_work()
        await until(lambda: grid.engine.job_view(spec.uid).trouble, "trouble is shown")
        trouble = grid.engine.job_view(spec.uid).trouble
        assert "spec.sharding.itemsPerShard" in trouble.message
        assert "use smaller shards" in trouble.message
        assert grid.gateway.sessions == 1


# ---- models ----


async def test_a_model_is_fetched_by_whom_it_was_ordered_from_and_resumed_anywhere(tmp_path) -> None:
    spec = a_job(tmp_path)
    model = Path(spec.model.uri.removeprefix("file://")).read_bytes()
    async with a_grid(tmp_path) as grid, Device(grid) as device, Device(grid, a_hello("other")) as other:
        await device.attach()
        await other.attach()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await device.fetch(spec.model.sha256)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, "before the work order"
        grid.engine.submit(spec)
        await device.hear_of("work_order")
        assert await device.fetch(spec.model.sha256) == model
        assert await device.fetch(spec.model.sha256, 17) == model[17:]
        assert await device.fetch(spec.model.sha256, len(model)) == b""
        for digest, offset, session, code in [
            (spec.model.sha256, len(model) + 1, None, grpc.StatusCode.OUT_OF_RANGE),
            (spec.model.sha256, 2**64 - 1, None, grpc.StatusCode.OUT_OF_RANGE),
            ("0" * 64, 0, None, grpc.StatusCode.PERMISSION_DENIED),
            ("../../etc/passwd", 0, None, grpc.StatusCode.PERMISSION_DENIED),
            (spec.model.sha256, 0, "guessed", grpc.StatusCode.UNAUTHENTICATED),
            (spec.model.sha256, 0, "", grpc.StatusCode.UNAUTHENTICATED),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await device.fetch(digest, offset, session=session)
            assert caught.value.code() is code, (digest, offset, session)
        async with Device(grid, a_hello("another")) as another:
            await another.attach()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await another.fetch(spec.model.sha256, session=device.session_id)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, "with somebody else's session"


async def test_a_session_that_is_over_fetches_nothing(tmp_path) -> None:
    spec = a_job(tmp_path)
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        grid.engine.submit(spec)
        await device.attach()
        await device.hear_of("work_order")
        device.call.cancel()
        await until(lambda: grid.gateway.sessions == 0, "the session is over")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await device.fetch(spec.model.sha256)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_model_that_vanished_or_shrank_is_said_to_be_gone(tmp_path) -> None:
    spec = a_job(tmp_path)
    path = Path(spec.model.uri.removeprefix("file://"))
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        grid.engine.submit(spec)
        await device.attach()
        await device.hear_of("work_order")
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(grpc.aio.AioRpcError, match="shorter") as caught:
            await device.fetch(spec.model.sha256)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        path.unlink()
        with pytest.raises(grpc.aio.AioRpcError, match="cannot read") as caught:
            await device.fetch(spec.model.sha256)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# ---- links that fail ----


async def test_a_silent_device_is_dropped_and_its_work_done_elsewhere(tmp_path) -> None:
    spec = a_job(tmp_path, items=100)
    async with a_grid(tmp_path) as grid, Device(grid) as silent:
        grid.engine.submit(spec)
        await silent.attach()
        await silent.ready_for_work()
        await silent.hear_of("lease")
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await until(lambda: grid.gateway.sessions == 0, "the silent device is dropped")
        assert loop.time() - begun < 1.5
        async with Device(grid, a_hello("other")) as other, background(other.beat()):
            await other.attach()
            await other.work_until_cancelled()
        assert grid.engine.device_views()[DeviceName("device-1")].presence is Presence.LOST
    check_output(spec, 100)


async def test_a_device_that_does_not_read_is_dropped_although_a_write_to_it_hangs(tmp_path) -> None:
    width = 250_000
    spec = a_job(tmp_path, items=60, per_shard=1, width=width)  # 1 MB a shard: more than any window takes
    async with a_grid(tmp_path, silence_seconds=2.0) as grid, Device(grid) as stuck:
        grid.engine.submit(spec)
        await stuck.attach()
        await stuck.ready_for_work()
        # From here on it reads no more.
        await until(lambda: grid.gateway.sessions == 0, "the session is over")
        await until(
            lambda: grid.engine.device_views()[DeviceName("device-1")].presence is Presence.LOST, "its leases are free"
        )
        assert not [t for t in asyncio.all_tasks() if t.get_name().startswith(("send-", "read-", "end-"))]


def a_session(limit: int) -> DeviceSession:
    identity, _ = read_hello(a_hello(credits=pb.Credits(shards=8, bytes=1 << 20)))
    return DeviceSession(identity, "session", limit=limit, now=0.0, paces=choose_paces(GatewaySettings(), 1, 0))


async def test_a_session_ends_when_too_many_messages_wait() -> None:
    session = a_session(limit=50)
    for _ in range(50):
        session.send_pulse()
    assert not session.ending.is_set()
    session.send_pulse()
    assert (session.close_reason, session.queued, session.farewell) == ("Stalled", 0, False)


async def test_a_session_ends_when_too_many_bytes_wait() -> None:
    session = a_session(limit=1_000_000)
    data = bytes(framing.FRAGMENT_BYTES)
    sent = 0
    while not session.ending.is_set():
        tensor = TensorData("uint8", (1, len(data)), data)
        session.send_lease(JobUid("job"), LeaseId(1), 1.0, [LeasedShard(sent, b"t", 1, (tensor,))])
        sent += 1
        assert sent < 1000
    assert session.close_reason == "Stalled"
    assert sent * len(data) > framing.MESSAGE_BYTES, "one shard of the largest size must always fit"


async def test_what_was_queued_before_the_end_is_still_sent_but_nothing_after_it() -> None:
    session = a_session(limit=50)
    session.send_cancel(JobUid("job"), ())
    session.close("Deregistered", "gone", retry=False)
    session.send_pulse()
    written: list[bytes] = []

    async def write(piece: bytes) -> None:
        written.append(piece)

    await asyncio.wait_for(session.send_all(write), DEADLINE_S)
    assert [pb.GatewayMessage.FromString(p).WhichOneof("body") for p in written] == ["cancel", "refusal"]


async def test_while_results_wait_for_room_the_device_is_kept_and_others_go_on(tmp_path, monkeypatch) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as full, Device(grid, a_hello("other")) as other:
        room = asyncio.Event()
        whole = grid.engine.devices.results

        async def results(link, uid, outcomes) -> None:
            if link.identity.name == "device-1":
                await room.wait()
            await whole(link, uid, outcomes)

        monkeypatch.setattr(grid.engine.devices, "results", results)
        await full.attach()
        await other.attach()
        some = pb.Results(job="elsewhere", results=[pb.ShardResult(token=b"t" * 24)])
        async with background(other.beat()):
            await full.say(results=some)
            # Twice the silence that costs a link: pulses that nobody asked for tell the device to be patient.
            loop = asyncio.get_running_loop()
            end, pulses = loop.time() + 1.3, 0
            while loop.time() < end:
                await full.hear_of("pulse")
                pulses += 1
            assert pulses > 10
            await other.say(results=some)
            assert list((await other.hear_of("settled")).superseded) == [b"t" * 24]
            room.set()
            assert list((await full.hear_of("settled")).superseded) == [b"t" * 24]


async def test_a_device_that_comes_back_while_its_old_stream_hangs_is_taken_at_once(tmp_path) -> None:
    width = 250_000
    spec = a_job(tmp_path, items=20, per_shard=1, width=width)
    async with a_grid(tmp_path, silence_seconds=30.0) as grid, Device(grid) as old, Device(grid) as new:
        grid.engine.submit(spec)
        await old.attach()
        await old.ready_for_work()
        await old.hear_of("lease")
        # Now the old stream hangs, with leases in it that nobody reads.
        async with background(new.beat()):
            await new.attach()
            await new.work_until_cancelled()
        await until(lambda: grid.gateway.sessions == 1, "the old session is over")
    check_output(spec, 20, width)


async def test_an_operator_that_stood_still_blames_nobody(tmp_path) -> None:
    class Slow(SystemClock):
        jump = 0.0

        def monotonic(self) -> float:
            return super().monotonic() + self.jump

    clock = Slow()
    async with a_grid(tmp_path) as grid, Device(grid) as device, background(device.beat()):
        grid.gateway._servicer._clock = clock
        await device.attach()
        await device.hear_of("pulse")
        clock.jump = 100.0
        for _ in range(20):
            await device.hear_of("pulse")
        assert grid.gateway.sessions == 1


async def test_devices_come_back_to_an_operator_restarted_on_the_same_port(tmp_path) -> None:
    spec = a_job(tmp_path, items=400, per_shard=10)
    held: list[pb.ShardResult] = []
    async with a_grid(tmp_path) as grid:
        port = grid.gateway.port
        grid.engine.submit(spec)
        async with Device(grid) as device, background(device.beat()):
            await device.attach()
            await device.ready_for_work()
            lease = await device.hear_of("lease")
            held = [computed(s) for s in lease.shards]
    async with a_grid(tmp_path, port=port) as grid:
        assert grid.gateway.port == port
        grid.engine.submit(spec)
        hello = a_hello(held=[pb.HeldAttempt(job=spec.uid, shard=r.shard, token=r.token, finished=True) for r in held])
        async with Device(grid, hello) as device, background(device.beat()):
            await device.attach()
            await device.say(results=pb.Results(job=spec.uid, results=held))
            await device.work_until_cancelled()
        settled = {t for m in device.received if m.HasField("settled") for t in m.settled.committed}
        assert {r.token for r in held} <= settled, "what was computed for the predecessor counts"
    check_output(spec, 400)


# ---- the port and its certificates ----


async def test_a_port_in_use_is_named(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        second = Gateway(grid.engine, GatewaySettings(port=grid.gateway.port), SystemClock(), tmp_path / "gateway")
        with pytest.raises(StoreError, match=f"cannot listen on {grid.gateway.address}.*choose another port"):
            await second.__aenter__()


async def test_keys_are_for_their_owner_only_and_stay(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        folder = tmp_path / "gateway"
        assert {p.name for p in folder.iterdir()} == {"authority.json", ".lock", "server.json"}
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {p.stat().st_mode & 0o777 for p in folder.glob("*.json")} == {0o600}
        first = grid.identity
    async with a_grid(tmp_path) as grid:
        assert grid.identity == first
    async with a_grid(tmp_path, server_names=("127.0.0.1", "grid.example")) as grid, Device(grid) as device:
        assert grid.identity.ca_sha256 == first.ca_sha256
        assert grid.identity.chain_pem != first.chain_pem, "it is for other names"
        await device.attach()


async def test_damaged_certificates_are_made_anew_or_named(tmp_path) -> None:
    async with a_grid(tmp_path):
        pass
    folder = tmp_path / "gateway"
    (folder / "server.json").write_text('{"made_at": 1')
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()
    (folder / "server.json").unlink()
    whole = json.loads((folder / "authority.json").read_bytes())
    for key, complaint in [
        (certificates.make_key().decode(), "not that of its certificate"),
        ("no key", "cannot read or make"),
        (17, "cannot be read"),
    ]:
        (folder / "authority.json").write_text(json.dumps({"authorities": [{**whole["authorities"][0], "key": key}]}))
        with pytest.raises(StoreError, match=complaint):
            await Gateway(None, GatewaySettings(), SystemClock(), folder).__aenter__()  # type: ignore[arg-type]
    (folder / "authority.json").write_text('{"authorities": []}')
    with pytest.raises(StoreError, match="no authority is among"):
        await Gateway(None, GatewaySettings(), SystemClock(), folder).__aenter__()  # type: ignore[arg-type]


async def test_an_operator_may_outlive_its_certificate(tmp_path, monkeypatch) -> None:
    class Leaping(SystemClock):
        days = 0.0

        def wall(self) -> float:
            return super().wall() + self.days * 86400

    made = []
    whole = certificates.make_server

    def make(*arguments):
        made.append(whole(*arguments))
        return made[-1]

    monkeypatch.setattr(certificates, "make_server", make)
    async with a_grid(tmp_path) as grid:
        clock = Leaping()
        grid.gateway._clock = clock
        held = await grid.credentials("device-1")
        async with Device(grid, credentials=held) as device:
            await device.attach()
        assert len(made) == 1
        clock.days = SERVER_DAYS - 1
        # A device's clock has not leapt, so it refuses the new certificate as not yet valid: the proof that it got it.
        async with Device(grid, credentials=held) as device:
            with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
                await device.attach()
        assert len(made) == 2


async def test_a_name_no_certificate_can_bear_is_named(tmp_path) -> None:
    settings = GatewaySettings(server_names=("kühlschrank",))
    with pytest.raises(StoreError, match="neither a host name nor an IP address"):
        await Gateway(None, settings, SystemClock(), tmp_path).__aenter__()  # type: ignore[arg-type]
