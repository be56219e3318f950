"""Limits of the link, and cutting messages that are larger than one of them.

Both ends share this module, so that neither can send what the other refuses. gRPC refuses messages above 4 MiB by
default, and one message of many MiB would hold up heartbeats behind it; so a large message travels as several
`Fragment`s which follow each other without another message between them. The sender therefore hands all pieces of
one message to the stream before the next message; there is one sender per stream anyway.

What arrives is weighed before it is parsed, because a protobuf of two-byte messages takes forty times its size in
memory: see `weigh_parts`.

Not here: what the messages mean, and how a stream is opened or kept alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError

from pocketgrid.errors import InternalError, ProtocolError
from pocketgrid.wire.v1 import agent_pb2 as pb

PROTOCOL_VERSION = 1
"""Newest version this side speaks: what `Hello.protocol_version` says."""

OLDEST_PROTOCOL_VERSION = 1
"""Oldest version this side still speaks."""

FRAGMENT_BYTES = 256 << 10
"""Largest message that travels whole, and largest `Fragment.data`. Only what has arrived whole shows that the other
side is alive: on a line of 1 Mbit/s a piece of 1 MiB takes longer than any silence that is forgiven, this one 2 s."""

PIECE_BYTES = FRAGMENT_BYTES + (1 << 10)
"""Largest message on the wire: a fragment and what surrounds its data."""

MESSAGE_BYTES = 64 << 20
"""Largest message that travels at all."""

MESSAGE_WEIGHT = 1 << 20
"""Heaviest message that is parsed, as `weigh_parts` weighs: about 260,000 failed items, held attempts or tokens."""

MODEL_CHUNK_BYTES = 256 << 10
"""Largest `ModelChunk.data`."""

MAX_FRAGMENTS = -(-MESSAGE_BYTES // FRAGMENT_BYTES) * 4
"""Most pieces one message may come in; a sender on a slow line may cut finer than it must."""

KEEPALIVE_TIME_MS = 5_000
KEEPALIVE_TIMEOUT_MS = 4_000
"""HTTP/2 pings of the channel's side. They keep NAT mappings open and end dead connections; what finds a half-open link
within 10 s on both sides is the silence limit of the session, because a ping waits behind data that is already on its
way, and gRPC's servers go by a ping time-out of their own. The gateway must allow pings this frequent
(`grpc.http2.min_recv_ping_interval_without_data_ms`), or gRPC closes the connection with "too many pings"."""

SESSION_KEY = "pocketgrid-session"
"""Metadata of FetchModel: `Welcome.session_id`."""

_PART_WEIGHT = 4

MessageT = TypeVar("MessageT", pb.DeviceMessage, pb.GatewayMessage)

# Of fields that hold bytes, as they precede them on the wire.
_FRAGMENT_TAG = bytes([pb.GatewayMessage.FRAGMENT_FIELD_NUMBER << 3 | 2])
_DATA_TAG = bytes([pb.Fragment.DATA_FIELD_NUMBER << 3 | 2])

# What grows with tensors, models or fleets. Asking a message for its size costs about as much as serialising it,
# so the many small messages that can never be too large are not asked.
_MAY_BE_LARGE = frozenset(
    {"hello", "results", "lease", "work_order", "returned", "revoke", "settled", "cancel", "fragment"}
)


def split(message: MessageT, *, fragment_bytes: int = FRAGMENT_BYTES) -> list[MessageT]:
    """Cut a message into what the link carries.

    Args:
        message: not itself a fragment.
        fragment_bytes: largest piece, at most `FRAGMENT_BYTES` and at least 64 KiB.

    Returns:
        The message itself, unchanged, if it is small enough; otherwise its fragments, in order.

    Raises:
        InternalError: it is larger than `MESSAGE_BYTES`, or is a fragment.
    """
    body = message.WhichOneof("body")
    if body not in _MAY_BE_LARGE:
        return [message]
    if body == "fragment":
        raise InternalError("a fragment was about to be cut into fragments; cut the whole message once")
    size = message.ByteSize()
    if size <= fragment_bytes:
        return [message]
    if size > MESSAGE_BYTES:
        raise InternalError(
            f"a {body} message of {size} bytes exceeds the {MESSAGE_BYTES} bytes this protocol carries; "
            "use smaller shards"
        )
    if not MESSAGE_BYTES // MAX_FRAGMENTS <= fragment_bytes <= FRAGMENT_BYTES:
        raise InternalError(f"fragments of {fragment_bytes} bytes are outside what the other side accepts")
    serialised = memoryview(message.SerializeToString())
    total = -(-len(serialised) // fragment_bytes)
    kind = type(message)
    return [
        kind(
            fragment=pb.Fragment(
                index=index,
                total=total,
                data=bytes(serialised[index * fragment_bytes : (index + 1) * fragment_bytes]),
            )
        )
        for index in range(total)
    ]


def serialise(message: MessageT) -> list[bytes]:
    """Cut a message as `split` does, into serialised pieces.

    For senders on a hot path: the message is serialised once, and not once to learn its size and once more to send it.

    Raises:
        InternalError: as `split`.
    """
    whole = message.SerializeToString()
    if len(whole) <= FRAGMENT_BYTES or message.WhichOneof("body") not in _MAY_BE_LARGE:
        return [whole]
    if message.HasField("fragment") or len(whole) > MESSAGE_BYTES:
        return [piece.SerializeToString() for piece in split(message)]  # says what is wrong
    # Written by hand, because a shard's inputs would be copied four times more on their way through messages.
    body = memoryview(whole)
    total = -(-len(whole) // FRAGMENT_BYTES)
    pieces = []
    for index in range(total):
        data = body[index * FRAGMENT_BYTES : (index + 1) * FRAGMENT_BYTES]
        counted = pb.Fragment(index=index, total=total).SerializeToString()
        head = _DATA_TAG + _encode_varint(len(data))
        size = _encode_varint(len(counted) + len(head) + len(data))
        pieces.append(b"".join((_FRAGMENT_TAG, size, counted, head, data)))
    return pieces


def agree_on_version(oldest: int, newest: int) -> int | None:
    """The newest version both sides speak, given the other side's oldest and newest; None if there is none."""
    version = min(newest, PROTOCOL_VERSION)
    return version if version >= max(oldest, OLDEST_PROTOCOL_VERSION) else None


def weigh_parts(kind: type[MessageT], serialised: bytes, *, limit: int = MESSAGE_WEIGHT) -> int:
    """What parsing a message would cost, found without parsing it.

    Each field weighs 1, each message within the message and each entry of a repeated text another 4, repeated numbers a
    quarter of their bytes. Takes about half a microsecond a field, and no memory. Bytes that are no message weigh
    something as well; what they are is found out when they are parsed.

    Raises:
        ProtocolError: more than `limit`.
    """
    weight = 0
    position, end, table = 0, len(serialised), _table(kind.DESCRIPTOR)
    outer: list[tuple[int, _Table]] = []
    # Written out rather than clear: this looks at every field of every message.
    while True:
        if weight > limit:
            raise ProtocolError(f"a message of {len(serialised)} bytes in more than {limit // _PART_WEIGHT} parts")
        while position >= end:
            if not outer:
                return weight
            end, table = outer.pop()
        key = serialised[position]
        position += 1
        if key > 0x7F:
            key, position = _varint(serialised, position - 1)
        weight += 1
        wire_type = key & 7
        if wire_type == 2:
            length = serialised[position] if position < end else 0
            position += 1
            if length > 0x7F:
                length, position = _varint(serialised, position - 1)
            within = table.get(key >> 3)
            if within is not None:
                if within is _PACKED:
                    weight += length >> 2
                else:
                    weight += _PART_WEIGHT
                    if within and length:
                        outer.append((end, table))
                        end, table = min(position + length, end), within
                        length = 0
            position += length
        elif wire_type == 0:
            while position < end and serialised[position] > 0x7F:
                position += 1
            position += 1
        elif wire_type == 1:
            position += 8
        elif wire_type == 5:
            position += 4


_Table = Mapping[int, Any]
"""By field number: the table of the message there, `_PACKED` for repeated numbers, an empty one for repeated texts."""

_PACKED: _Table = {-1: None}
_TABLES: dict[str, _Table] = {}


def _table(descriptor: Any) -> _Table:
    known = _TABLES.get(descriptor.full_name)
    if known is not None:
        return known
    table: dict[int, _Table] = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            table[field.number] = _table(field.message_type)
        elif field.is_repeated:
            table[field.number] = {} if field.type in (field.TYPE_STRING, field.TYPE_BYTES) else _PACKED
    _TABLES[descriptor.full_name] = table
    return table


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, position


class Reassembler(Generic[MessageT]):
    """Puts the messages of one stream together again. One per stream and direction; not thread-safe.

    Holds at most `limit_bytes` of one unfinished message. After a ProtocolError the stream must be closed: what
    follows cannot be understood.
    """

    def __init__(self, kind: type[MessageT], *, limit_bytes: int = MESSAGE_BYTES) -> None:
        self._kind: type[MessageT] = kind
        self._limit_bytes = limit_bytes
        self._pieces: list[bytes] = []
        self._total = 0
        self._size = 0
        self.weight = 0
        """Of what arrived last, as `weigh_parts` weighs; of a message in pieces, of the last piece's whole message."""

    @property
    def pending_bytes(self) -> int:
        """Bytes of an unfinished message held at the moment."""
        return self._size

    @property
    def announced_bytes(self) -> int:
        """Most bytes the unfinished message may come to; 0 if there is none."""
        return min(self._total * FRAGMENT_BYTES, self._limit_bytes)

    def take(self, piece: bytes) -> MessageT | None:
        """As `feed`, of what arrived as it came from the wire: weighed first and then parsed.

        Raises:
            ProtocolError: as `feed`; or it is too large, too heavy or unreadable.
        """
        if len(piece) > PIECE_BYTES:
            raise ProtocolError(
                f"a message of {len(piece)} bytes; those of more than {FRAGMENT_BYTES} travel in fragments"
            )
        self.weight = weigh_parts(self._kind, piece)
        try:
            message = self._kind.FromString(piece)
        except DecodeError as error:
            raise ProtocolError(f"{len(piece)} bytes that are no message") from error
        return self.feed(message)

    def feed(self, message: MessageT) -> MessageT | None:
        """Take what arrived next.

        Returns:
            A whole message, or None if it was a piece and more are to come.

        Raises:
            ProtocolError: pieces out of order, mixed with other messages, too large, too heavy or unreadable.
        """
        if message.WhichOneof("body") != "fragment":
            if self._pieces:
                raise ProtocolError(
                    f"a whole message arrived between pieces {len(self._pieces) - 1} and {len(self._pieces)} "
                    f"of {self._total} of another"
                )
            return message
        fragment = message.fragment
        data = fragment.data
        self._check(fragment.index, fragment.total, len(data))
        self._total = fragment.total
        self._pieces.append(data)
        self._size += len(data)
        if len(self._pieces) < self._total:
            return None
        serialised = b"".join(self._pieces)
        self._pieces, self._total, self._size = [], 0, 0
        self.weight = weigh_parts(self._kind, serialised)
        try:
            whole = self._kind.FromString(serialised)
        except DecodeError as error:
            raise ProtocolError(f"pieces add up to {len(serialised)} bytes that are no message") from error
        if whole.WhichOneof("body") == "fragment":
            raise ProtocolError("pieces add up to another piece")
        return whole

    def _check(self, index: int, total: int, size: int) -> None:
        if not 0 < size <= FRAGMENT_BYTES:
            raise ProtocolError(f"a piece of {size} bytes; allowed are 1 to {FRAGMENT_BYTES}")
        if not 2 <= total <= MAX_FRAGMENTS:
            raise ProtocolError(f"a message in {total} pieces; allowed are 2 to {MAX_FRAGMENTS}")
        if self._pieces and total != self._total:
            raise ProtocolError(f"pieces of a message in {self._total} and of one in {total} are mixed")
        if index != len(self._pieces):
            raise ProtocolError(f"piece {index} of {total} arrived where piece {len(self._pieces)} was due")
        if self._size + size > self._limit_bytes:
            raise ProtocolError(f"a message of more than {self._limit_bytes} bytes")
