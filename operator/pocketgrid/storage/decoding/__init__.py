"""Bytes of one item to numbers of one shape, on the operator's side: `images` and `windows`.

Devices have no library for it, and what leaves here is a fraction of what came in. A decoder knows nothing of data sets
and models; what fits together is checked by `binding` before any row is read.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Protocol

import numpy.typing as npt

from pocketgrid.model.decoding import BytesDecode, ImageDecode, PixelLayout

Fault = tuple[str, str]
"""CamelCase reason, and what is wrong as the end of a sentence about the column."""


class Content(Sized, Protocol):
    """Bytes of one item, in memory or read where they are asked for; `bytes` is one."""

    def __getitem__(self, part: slice, /) -> bytes:
        """The bytes from start to stop; steps are not asked for."""
        ...


class Decoder(Protocol):
    """Turns items into numbers; immutable, and safe in several threads.

    Attributes:
        dtype: numpy name of the numbers.
        item_shape: of one item.
    """

    @property
    def dtype(self) -> str: ...  # noqa: D102

    @property
    def item_shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def decode(self, content: Content, out: npt.NDArray[Any]) -> Fault | None:
        """Write the numbers of one item into `out`, of shape `item_shape`; or say why it has none."""
        ...


def make_decoder(decode: ImageDecode | BytesDecode, item_shape: tuple[int, ...], layout: PixelLayout) -> Decoder:
    """What carries out `decode`.

    Args:
        decode: what the manifest declares.
        item_shape: as the model takes it; as many elements as the declaration makes.
        layout: for images: which axis the channels are on.
    """
    if isinstance(decode, ImageDecode):
        from pocketgrid.storage.decoding.images import ImageDecoder

        return ImageDecoder(decode, item_shape, layout)
    from pocketgrid.storage.decoding.windows import WindowDecoder

    return WindowDecoder(decode)
