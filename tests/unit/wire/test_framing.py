"""Cutting and reassembling messages."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketgrid.errors import InternalError, ProtocolError
from pocketgrid.wire import framing
from pocketgrid.wire.v1 import agent_pb2 as pb


def results_of(size: int) -> pb.DeviceMessage:
    tensor = pb.Tensor(dtype="uint8", shape=[size], data=bytes(i & 0xFF for i in range(256)) * (size // 256))
    return pb.DeviceMessage(results=pb.Results(job="j", results=[pb.ShardResult(shard=7, outputs=[tensor])]))


def piece(index: int, total: int, data: bytes = b"x") -> pb.GatewayMessage:
    return pb.GatewayMessage(fragment=pb.Fragment(index=index, total=total, data=data))


def test_small_messages_come_back_as_the_same_object() -> None:
    for message in (results_of(4096), pb.DeviceMessage(heartbeat=pb.Heartbeat(sequence=1))):
        (only,) = framing.split(message)
        assert only is message


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3 << 20), min_size=1, max_size=4),
    fragment_bytes=st.integers(64 << 10, framing.FRAGMENT_BYTES),
)
def test_what_is_split_comes_together_again(sizes: list[int], fragment_bytes: int) -> None:
    sent = [results_of(size) for size in sizes]
    reassembler = framing.Reassembler(pb.DeviceMessage)
    received = []
    for message in sent:
        for part in framing.split(message, fragment_bytes=fragment_bytes):
            assert part.ByteSize() <= framing.FRAGMENT_BYTES + 64
            # Through the wire, so that nothing is shared by reference.
            whole = reassembler.feed(pb.DeviceMessage.FromString(part.SerializeToString()))
            if whole is not None:
                received.append(whole)
    assert received == sent
    assert reassembler.pending_bytes == 0


def test_a_message_larger_than_the_protocol_carries_is_our_own_fault() -> None:
    with pytest.raises(InternalError, match="use smaller shards"):
        framing.split(results_of(framing.MESSAGE_BYTES + 256))


def test_fragments_are_not_cut_again() -> None:
    with pytest.raises(InternalError):
        framing.split(piece(0, 2))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([piece(1, 2)], "where piece 0 was due"),
        ([piece(0, 3), piece(2, 3)], "where piece 1 was due"),
        ([piece(0, 3), piece(0, 3)], "where piece 1 was due"),
        ([piece(0, 3), piece(1, 2)], "are mixed"),
        ([piece(0, 2), pb.GatewayMessage(pulse=pb.Pulse(sequence=1))], "between pieces 0 and 1"),
        ([piece(0, 1)], "in 1 pieces"),
        ([piece(0, framing.MAX_FRAGMENTS + 1)], "pieces; allowed"),
        ([piece(0, 2, b"")], "piece of 0 bytes"),
        ([piece(0, 2, b"x" * (framing.FRAGMENT_BYTES + 1))], "allowed are 1 to"),
        ([piece(0, 2, b"\xff\xff"), piece(1, 2, b"\xff")], "no message"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_broken_sequences_are_refused(messages: list[pb.GatewayMessage], complaint: str) -> None:
    reassembler = framing.Reassembler(pb.GatewayMessage)
    with pytest.raises(ProtocolError, match=complaint):
        deque(map(reassembler.feed, messages), maxlen=0)


def test_pieces_that_add_up_to_a_piece_are_refused() -> None:
    inner = piece(0, 2, b"y" * 100).SerializeToString()
    reassembler = framing.Reassembler(pb.GatewayMessage)
    assert reassembler.feed(piece(0, 2, inner[:50])) is None
    with pytest.raises(ProtocolError, match="another piece"):
        reassembler.feed(piece(1, 2, inner[50:]))


def test_memory_is_bounded() -> None:
    reassembler = framing.Reassembler(pb.GatewayMessage, limit_bytes=3 * framing.FRAGMENT_BYTES)
    block = b"x" * framing.FRAGMENT_BYTES
    for index in range(3):
        assert reassembler.feed(piece(index, 8, block)) is None
    with pytest.raises(ProtocolError, match="more than"):
        reassembler.feed(piece(3, 8, block))
    assert reassembler.pending_bytes == 3 * framing.FRAGMENT_BYTES


def test_messages_of_a_newer_version_pass_through_for_their_reader_to_ignore() -> None:
    unknown = pb.GatewayMessage.FromString(b"\xa2\x06\x01x")  # field 100
    assert framing.Reassembler(pb.GatewayMessage).feed(unknown) is unknown


@pytest.mark.parametrize("size", [0, 4096, (256 << 10) - 20, 256 << 10, 768 << 10, 5 << 20])
def test_serialised_pieces_are_those_of_split(size: int) -> None:
    message = results_of(size)
    assert framing.serialise(message) == [piece.SerializeToString() for piece in framing.split(message)]


def test_what_arrives_is_weighed_before_it_is_parsed() -> None:
    reassembler = framing.Reassembler(pb.DeviceMessage)
    *most, last = framing.serialise(pb.DeviceMessage(returned=pb.Returned(tokens=[b""] * 300_000)))
    for serialised in most:
        assert reassembler.take(serialised) is None
    with pytest.raises(ProtocolError, match="in more than 262144 parts"):
        reassembler.take(last)
    reassembler = framing.Reassembler(pb.DeviceMessage)
    for serialised in framing.serialise(results_of(3 << 20)):
        whole = reassembler.take(serialised)
    assert whole == results_of(3 << 20)
    assert reassembler.weight < 100, "a tensor is one field however large it is"
    with pytest.raises(ProtocolError, match="travel in fragments"):
        reassembler.take(bytes(framing.PIECE_BYTES + 1))


@pytest.mark.parametrize(
    ("oldest", "newest", "agreed"),
    [(0, 1, 1), (1, 1, 1), (1, 9, 1), (0, 9, 1), (0, 0, None), (2, 9, None), (5, 1, None)],
)
def test_the_newest_version_both_speak_is_spoken(oldest: int, newest: int, agreed: int | None) -> None:
    assert framing.agree_on_version(oldest, newest) == agreed
