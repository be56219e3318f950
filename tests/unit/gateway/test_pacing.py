"""How often devices report and how they spread: alone, by the thousand, and when they are given work."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.gateway.convert import read_hello
from pocketgrid.gateway.pacing import Pace, Paces, choose_pace, choose_paces
from pocketgrid.gateway.session import DeviceSession
from pocketgrid.model.ids import JobUid, LeaseId
from pocketgrid.settings import GatewaySettings
from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.unit.gateway.grid import Device, a_grid, a_hello, a_job, until

SETTINGS = GatewaySettings()
USUAL = Pace(SETTINGS.heartbeat_seconds, SETTINGS.silence_seconds, 0.0)


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        pytest.param(0, USUAL, id="none"),
        pytest.param(499, USUAL, id="a-few-come-back-at-once"),
        pytest.param(2000, Pace(2.0, 8.0, 8.0), id="as-often-as-ever"),
        pytest.param(10_000, Pace(10.0, 40.0, 40.0), id="ten-thousand"),
        pytest.param(1_000_000, Pace(15.0, 60.0, 300.0), id="no-less-often-than-agents-allow"),
    ],
)
def test_the_more_devices_the_less_each_reports(devices: int, expected: Pace) -> None:
    assert choose_pace(SETTINGS, devices) == expected


@given(st.integers(0, 15_000), st.integers(0, 15_000))
def test_all_together_report_and_return_no_faster_than_a_gateway_can_take(idle: int, working: int) -> None:
    paces = choose_paces(SETTINGS, idle, working)
    assert idle / paces.idle.heartbeat_s <= SETTINGS.heartbeats_per_second
    assert working / paces.working.heartbeat_s <= SETTINGS.heartbeats_per_second
    assert paces.working.heartbeat_s <= paces.idle.heartbeat_s
    for pace in (paces.idle, paces.working):
        assert pace.silence_s == pytest.approx(4 * pace.heartbeat_s)


def a_session() -> tuple[DeviceSession, Paces]:
    identity, _ = read_hello(a_hello())
    paces = Paces(idle=Pace(10.0, 40.0, 40.0), working=USUAL)
    return DeviceSession(identity, "session", limit=50, now=0.0, paces=paces), paces


async def written(session: DeviceSession) -> list[pb.GatewayMessage]:
    """What is queued now."""
    messages: list[pb.GatewayMessage] = []

    async def write(piece: bytes) -> None:
        messages.append(pb.GatewayMessage.FromString(piece))

    sender = asyncio.ensure_future(session.send_all(write))
    await until(lambda: not session.queued, "all is written")
    sender.cancel()
    await asyncio.gather(sender, return_exceptions=True)
    return messages


async def test_a_device_that_is_given_work_is_asked_for_more_until_it_says_that_it_has_none() -> None:
    session, _ = a_session()
    session.hear_beat(7, busy=False)
    assert [m.pulse for m in await written(session)] == [pb.Pulse(sequence=7)], "nothing has changed"
    session.send_lease(JobUid("job"), LeaseId(1), 10.0, [])
    (asked,) = [m.pulse for m in await written(session) if m.HasField("pulse")]
    assert (asked.heartbeat_interval_ms, asked.silence_limit_ms, asked.reconnect_spread_ms) == (2000, 8000, 0)
    assert session.quickened
    # This one may have been on its way before the lease arrived.
    session.hear_beat(8, busy=False)
    assert session.working
    session.hear_beat(9, busy=True)
    session.hear_beat(10, busy=False)
    assert not session.working
    *_, last = await written(session)
    assert (last.pulse.sequence, last.pulse.heartbeat_interval_ms, last.pulse.silence_limit_ms) == (10, 10_000, 40_000)


async def test_devices_hear_of_a_new_pace_with_their_next_heartbeat() -> None:
    session, paces = a_session()
    paces.idle = Pace(12.0, 48.0, 50.0)
    session.hear_beat(1, busy=False)
    session.hear_beat(2, busy=False)
    first, second = [m.pulse for m in await written(session)]
    assert (first.heartbeat_interval_ms, first.reconnect_spread_ms) == (12_000, 50_000)
    assert second == pb.Pulse(sequence=2)
    assert not session.quickened, "it is heard no less than it was"


async def test_a_session_is_slow_while_idle_and_falls_silent_quickly_once_it_has_work(tmp_path) -> None:
    # Two devices on a gateway that takes no more than four heartbeats a second.
    spec = a_job(tmp_path, items=20, per_shard=10)
    pace = {"heartbeat_seconds": 0.1, "silence_seconds": 0.4, "heartbeats_per_second": 4.0}
    async with (
        a_grid(tmp_path, **pace) as grid,
        Device(grid) as idle,
        Device(grid, hello=a_hello("device-2")) as other,
    ):
        await idle.attach()
        await other.attach()
        sequence = 0

        async def told() -> int:
            nonlocal sequence
            sequence += 1
            await idle.say(heartbeat=pb.Heartbeat(sequence=sequence))
            return int((await idle.hear_of("pulse")).heartbeat_interval_ms)

        # Told with the first heartbeat after the next sweep; each answer is waited for, so this ends.
        async with asyncio.timeout(10):
            while await told() != 500:
                pass
        grid.engine.submit(spec)
        order = await idle.hear_of("work_order")
        assert order.job == spec.uid
        pulses = [m.pulse.heartbeat_interval_ms for m in idle.received if m.HasField("pulse")]
        assert pulses[-1] == 100, "it was asked for more before the order"
        # Neither says anything from here on: with 2 s of silence allowed they would outlast this deadline.
        await until(lambda: grid.gateway.sessions == 0, "both are dropped", 1.5)
