"""Windows of bytes: the rules one by one, and Magika's own features over any content."""

import json
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from magika import Magika
from magika.types import Seekable

from pocketgrid.model.decoding import BytesDecode
from pocketgrid.storage.decoding.windows import WindowDecoder


def windows_of(content: bytes, declared: BytesDecode) -> list[int]:
    made = WindowDecoder(declared)
    out = np.zeros(made.item_shape, made.dtype)
    assert made.decode(content, out) is None
    return out.tolist()


def test_short_content_is_padded_behind_the_beginning_around_the_middle_and_before_the_end() -> None:
    declared = BytesDecode(beginning=4, middle=4, end=4, padding=256)
    assert windows_of(b"ab", declared) == [97, 98, 256, 256, 256, 97, 98, 256, 256, 256, 97, 98]
    assert windows_of(b"", declared) == [256] * 12


def test_long_content_is_cut() -> None:
    declared = BytesDecode(beginning=2, middle=3, end=2, padding=0)
    assert bytes(windows_of(b"abcdefghi", declared)) == b"abdefhi"
    assert bytes(windows_of(b"abcdefgh", declared)) == b"abcdegh"


def test_white_space_is_passed_over_at_the_ends_only_and_only_in_the_block() -> None:
    declared = BytesDecode(beginning=3, middle=1, end=3, strip=True, block_size=6, padding=46)
    assert bytes(windows_of(b" \n\tab cd\r\x0b\x0c", declared)) == b"ab   cd"
    assert bytes(windows_of(b"      a      ", declared)) == b"...a..."
    kept = BytesDecode(beginning=3, end=3, block_size=6, padding=46)
    assert bytes(windows_of(b" a b ", kept)) == b" a  b "


def test_an_item_below_the_minimum_fails() -> None:
    made = WindowDecoder(BytesDecode(beginning=8, strip=True, minimum=3))
    out = np.zeros(made.item_shape, made.dtype)
    assert made.decode(b"  ab  "[:4], out) == (
        "TooShort", "has 2 bytes after white space, and at least 3 are needed"
    )  # fmt: skip
    assert made.decode(b"  abc", out) is None


@pytest.mark.parametrize(("padding", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65_535, "uint16")])
def test_windows_travel_in_the_narrowest_dtype(padding, dtype) -> None:
    made = WindowDecoder(BytesDecode(beginning=2, padding=padding))
    assert made.dtype == dtype
    assert windows_of(b"", BytesDecode(beginning=2, padding=padding)) == [padding] * 2


class Recorded(bytes):
    """Content that knows which parts of it were asked for."""

    asked: list[tuple[int, int]]

    def __getitem__(self, part):
        self.asked.append(part.indices(len(self))[:2])
        return super().__getitem__(part)


def test_only_the_blocks_of_long_content_are_looked_at() -> None:
    content = Recorded(b"x" * 10_000_000)
    content.asked = []
    windows_of(content, BytesDecode(beginning=1024, middle=512, end=1024, block_size=4096))
    assert sum(stop - start for start, stop in content.asked) == 4096 + 512 + 4096


_BYTES = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([b" ", b"\n", b"\t", b"a", b"\0", b"\xff", b" " * 30, b"ab" * 20])).map(b"".join),
)


@settings(max_examples=120, deadline=None)
@given(_BYTES, st.integers(1, 20), st.integers(1, 20), st.integers(21, 50))
def test_they_are_magikas_features(content, beginning, end, block) -> None:
    own = Magika._extract_features_from_seekable(Seekable(BytesIO(content)), beginning, 0, end, 256, block, False)
    declared = BytesDecode(beginning=beginning, end=end, padding=256, strip=True, block_size=block)
    assert windows_of(content, declared) == [*own.beg, *own.end], json.dumps(content.hex())
