"""Any message of a protobuf type, drawn from its descriptor; and bytes that once were one."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

NUMBERS = (0, 1, 2, 3, 7, 10, 255, 256, 4096, 2**31 - 1, 2**31, 2**32 - 1)
LARGE = (2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 100.0, 5e-324, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "UPPER", "a" * 300, "../../etc/passwd", "new\nline", "\x1b[2J", "ünïcödé", "\u202e", "\x00", "0" * 64)
MOST_REPEATED = 4

_UNSIGNED = {FieldDescriptor.TYPE_UINT32: 2**32 - 1, FieldDescriptor.TYPE_UINT64: 2**64 - 1}


def messages(descriptor: Descriptor, words: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Message]:
    """Messages with any of their fields set to anything.

    Args:
        words: texts that mean something to the other side, drawn beside those that mean nothing.
    """
    texts = st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    return _message(descriptor, texts if words is None else st.one_of(words, texts))


def _message(descriptor: Descriptor, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Message]:
    fields = {f.name: _field(f, texts) for f in descriptor.fields if not f.GetOptions().deprecated}
    kind = GetMessageClass(descriptor)
    if descriptor.GetOptions().map_entry:
        raise AssertionError("map entries are drawn by their field")
    in_oneof = [f.name for o in descriptor.oneofs for f in o.fields if len(o.fields) > 1]
    if in_oneof:
        return st.sampled_from(in_oneof).flatmap(lambda name: fields[name].map(lambda value: kind(**{name: value})))
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: kind(**values))


def _field(field: FieldDescriptor, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        key, value = (_single(inner.fields_by_name[n], texts) for n in ("key", "value"))
        return st.dictionaries(key, value, max_size=MOST_REPEATED)
    single = _single(field, texts)
    return st.lists(single, max_size=MOST_REPEATED) if field.is_repeated else single


def _single(field: FieldDescriptor, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            return _message(field.message_type, texts)
        case FieldDescriptor.TYPE_STRING:
            return texts
        case FieldDescriptor.TYPE_BYTES:
            return st.one_of(st.binary(max_size=40), st.sampled_from([b"t" * 24, bytes(100)]))
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_FLOAT:
            return st.one_of(st.sampled_from(FLOATS), st.floats(width=32))
        case FieldDescriptor.TYPE_DOUBLE:
            return st.one_of(st.sampled_from(FLOATS), st.floats())
        case FieldDescriptor.TYPE_ENUM:
            return st.one_of(st.sampled_from([v.number for v in field.enum_type.values]), st.sampled_from([99, -1]))
        case FieldDescriptor.TYPE_UINT32 | FieldDescriptor.TYPE_UINT64:
            largest = _UNSIGNED[field.type]
            usual = [n for n in (*NUMBERS, *LARGE) if n <= largest]
            return st.one_of(st.sampled_from(usual), st.integers(0, largest))
        case FieldDescriptor.TYPE_SINT32 | FieldDescriptor.TYPE_INT32:
            return st.one_of(st.sampled_from([-3, -2, -1, 0, 1, 2]), st.integers(-(2**31), 2**31 - 1))
        case other:
            raise AssertionError(f"{field.full_name}: type {other} is new here")


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with some of them changed, cut out, doubled or put elsewhere."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        until = draw(st.integers(at, min(len(data), at + 16)))
        match draw(st.sampled_from(["flip", "set", "cut", "double", "insert", "truncate"])):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                data[at] = draw(st.sampled_from([0x00, 0x7F, 0x80, 0xFF]))
            case "cut":
                del data[at:until]
            case "double":
                data[at:at] = data[at:until]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=6))
            case _:
                del data[at:]
    return bytes(data)
