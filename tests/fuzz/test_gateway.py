"""Whatever a device sends, in whatever order: the gateway goes on, an honest device finishes, its results are right.

Wrong values in the right shape are not in here: to tell them from right ones is verification's task.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb
from tests.fuzz.gateway_world import Honest, Hostile, a_world, hello
from tests.fuzz.profiles import examples
from tests.fuzz.protobufs import damaged, messages
from tests.unit.gateway.grid import a_hello, computed

pytestmark = pytest.mark.timeout(120)

Step = Callable[[Hostile], Sequence[bytes]]
"""What the hostile device says next, given what it was told."""

WORDS = st.sampled_from(["hostile", "uid-job", "float32", "int64", "sbc", "linux", "Reason"])


def wire(**body: Any) -> bytes:
    return pb.DeviceMessage(**body).SerializeToString()


def _report(hostile: Hostile, speed: float, state: int) -> list[bytes]:
    return [
        wire(
            model_report=pb.ModelReport(
                job=o.job, model_sha256=o.model_sha256, state=state, items_per_second=speed, reason="x\ny"
            )
        )
        for o in hostile.orders[:1]
    ]


def _result(hostile: Hostile, which: int, change: str) -> list[bytes]:
    """An answer to a shard it was leased, with something wrong about it; or nothing, if it was leased none."""
    if not hostile.shards:
        return []
    job, shard = hostile.shards[which % len(hostile.shards)]
    other = hostile.shards[(which + 1) % len(hostile.shards)][1]
    result = computed(shard)
    results = [result]
    match change:
        case "twice":
            results = [result, result]
        case "forged":
            result.token = bytes(24)
        case "truncated token":
            result.token = shard.token[:10]
        case "token of another" if other.index != shard.index:
            result.token = other.token
        case "shard beyond the end":
            result.shard = 2**64 - 1
        case "job of another":
            job = "another"
        case "dtype":
            result.outputs[0].dtype = "float64"
        case "rows":
            result.outputs[0].shape[0] += 1
        case "rank":
            result.outputs[0].shape.append(1)
        case "short data":
            result.outputs[0].data = result.outputs[0].data[:-1]
        case "outputs":
            result.outputs.append(result.outputs[0])
        case "no outputs":
            del result.outputs[:]
        case "ragged":
            result.outputs[0].row_lengths.append(7)
        case "failed row beyond the end":
            result.failures.append(pb.ItemFailure(row=4_000_000))
        case "its own fault":
            del result.outputs[:]
            result.failure.CopyFrom(pb.ShardFailure(cause=pb.ShardFailure.CAUSE_NODE, reason="\x1b", message="\n" * 9))
        case "absurd time":
            result.compute_us = 2**64 - 1
        case "given back":
            return [wire(returned=pb.Returned(job=job, tokens=[shard.token, other.token, b"?"], reason="a b"))]
    return [wire(results=pb.Results(job=job, results=results))]


CHANGES = st.sampled_from([
    "none", "twice", "forged", "truncated token", "token of another", "shard beyond the end", "job of another", "dtype",
    "rows", "rank", "short data", "outputs", "no outputs", "ragged", "failed row beyond the end", "its own fault",
    "absurd time", "given back",
])  # fmt: skip


def steps() -> st.SearchStrategy[Step]:
    device = pb.DeviceMessage.DESCRIPTOR
    anything = messages(device, WORDS).map(lambda m: m.SerializeToString())
    said = st.one_of(
        anything,
        damaged(anything),
        damaged(st.just(hello("hostile"))),
        st.builds(lambda n: wire(hello=a_hello(n)), st.sampled_from(["hostile", "Hostile", ""])),
        st.binary(max_size=60),
    ).map(lambda data: lambda _: [data])
    in_pieces = st.builds(
        lambda data, total, cut: (
            lambda _: [
                wire(fragment=pb.Fragment(index=i, total=total, data=data[i * cut : (i + 1) * cut]))
                for i in range(total)
            ]
        ),
        anything,
        st.integers(1, 4),
        st.integers(1, 200),
    )
    speeds = st.sampled_from([float("nan"), -1.0, 0.0, 1e-300, 1.0, 1e12])
    return st.one_of(
        said,
        in_pieces,
        st.builds(lambda s, v: lambda h: _report(h, v, s), st.integers(0, 3), speeds),
        st.builds(lambda w, c: lambda h: _result(h, w, c), st.integers(0, 20), CHANGES),
        st.builds(lambda w, c: lambda h: _result(h, w, c), st.integers(0, 20), CHANGES),
    )


async def _play(introduces_itself: bool, gets_ready: bool, before: Sequence[Step], beside: Sequence[Step]) -> None:
    async with a_world() as world:
        hostile = Hostile()
        async with world.attached(hostile.wire) as stream:
            if introduces_itself:
                hostile.wire.say(hello("hostile"))
                # So that it has something to be hostile about.
                for _ in range(400):
                    if hostile.orders or stream.done():
                        break
                    await asyncio.sleep(0.002)
                if gets_ready:
                    hostile.wire.say(*_report(hostile, 1000.0, pb.ModelReport.STATE_READY))
                    for _ in range(200):
                        if hostile.shards or stream.done():
                            break
                        await asyncio.sleep(0.002)
            for step in before:
                hostile.wire.say(*step(hostile))
                await world.breathe()
            honest = Honest()
            async with world.attached(honest.wire):
                honest.wire.say(hello("honest"))
                for step in beside:
                    hostile.wire.say(*step(hostile))
                    await world.breathe()
                # Whatever it still holds must go elsewhere once it has gone.
                hostile.wire.hang_up()
                await world.job_complete()
            assert not honest.refusals, honest.refusals


@examples(60)
@given(
    introduces_itself=st.integers(0, 5).map(bool),
    gets_ready=st.integers(0, 3).map(bool),
    before=st.lists(steps(), max_size=8),
    beside=st.lists(steps(), max_size=8),
)
def test_whatever_a_device_says_the_others_go_on(introduces_itself, gets_ready, before, beside) -> None:
    asyncio.run(_play(introduces_itself, gets_ready, before, beside))


@examples(300)
@given(st.data())
def test_weighing_never_fails_and_bounds_what_parsing_takes(data) -> None:
    anything = messages(pb.DeviceMessage.DESCRIPTOR).map(lambda m: m.SerializeToString())
    piece = data.draw(st.one_of(anything, damaged(anything), st.binary(max_size=200)))
    weight = framing.weigh_parts(pb.DeviceMessage, piece)
    assert 0 <= weight <= 6 * len(piece)
    try:
        message = pb.DeviceMessage.FromString(piece)
    except Exception:
        return
    assert _parts(message) <= weight


def _parts(message: Any) -> int:
    """How many messages and repeated entries are in a message, counted the slow way."""
    count = 0
    for field, value in message.ListFields():
        many = field.is_repeated
        if field.message_type is None:
            count += len(value) if many and field.type in (field.TYPE_STRING, field.TYPE_BYTES) else 0
        elif field.message_type.GetOptions().map_entry:
            count += len(value)
        else:
            for each in value if many else [value]:
                count += 1 + _parts(each)
    return count
