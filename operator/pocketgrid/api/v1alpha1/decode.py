"""How bytes become numbers of a model input: the part of an InferenceJob that stands under ``decode``.

What each choice does to pixels and bytes is in docs/preprocessing.md. Factors are decimal texts, because the API has no
floating-point numbers.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import Field

from pocketgrid.api.v1alpha1.meta import ApiModel, Boolean, Decimal, Int32, Rule
from pocketgrid.model.decoding import ImageOrientation, PixelLayout, PixelMode, Resample, ResizeMode

SignedDecimal = Annotated[str, Field(max_length=32, pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
Divisor = Annotated[
    Decimal,
    Rule(
        reason="DivisionByZero",
        cel="self.matches('[1-9]')",
        message="must not be zero",
        holds=lambda text: re.search("[1-9]", text) is not None,
    ),
]
Side = Annotated[Int32, Field(ge=1, le=4096)]
Window = Annotated[Int32, Field(ge=0, le=1 << 20)]


def _shorter_side_covers(image: ImageDecode) -> bool:
    side = image.shorter_side
    return side is None or (image.resize is ResizeMode.COVER and side >= image.width and side >= image.height)


def _channels_match(image: ImageDecode) -> bool:
    channels = 1 if image.mode is PixelMode.GRAY else 3
    return len(image.mean) in (0, 1, channels) and len(image.std) in (0, 1, channels)


class ImageDecode(ApiModel):
    """An encoded image (PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, JPEG 2000, PNM) becomes pixels of one size.

    They travel as bytes; (pixel * scale - mean) / std is computed on the device, in float32.
    """

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="ShorterSideDoesNotCover",
            cel="!has(self.shorterSide) || (self.resize == 'Cover' && self.shorterSide >= self.width && "
            "self.shorterSide >= self.height)",
            message="may have shorterSide only with resize Cover, and not below width or height",
            holds=_shorter_side_covers,
        ),
        Rule(
            reason="WrongNumberOfChannels",
            cel="[has(self.mean) ? size(self.mean) : 0, has(self.std) ? size(self.std) : 0].all(n, n <= 1 || "
            "(n == 3 && self.mode != 'Gray'))",
            message="must have one mean and std, or one for each channel of its mode",
            holds=_channels_match,
        ),
    )

    width: Side
    """Width of the result in pixels; what the model's input has."""

    height: Side
    """Height of the result in pixels; what the model's input has."""

    resize: ResizeMode
    """How an image of another shape comes to width x height. Stretch: each side by itself, so that the aspect ratio is
    lost. Fit: the whole image, as large as there is room, in the middle; the rest is filled. Cover: as small as leaves
    no room, and what overlaps is cut off on both sides alike."""

    shorter_side: Side | None = None
    """For Cover: resize so that the shorter side has this length, and cut width x height out of the middle; 256 with
    width and height 224 is usual. Absent: no larger than covers the result."""

    resample: Resample = Resample.BILINEAR
    """Filter of resizing, as Pillow has it: all but Nearest take in every pixel when an image gets smaller."""

    mode: PixelMode = PixelMode.RGB
    """Channels of the result and their order."""

    layout: PixelLayout | None = None
    """Whether the axis of channels comes first (CHW) or last (HWC). Absent: as the model's input says, if it does."""

    orientation: ImageOrientation = ImageOrientation.EXIF
    """Exif: an image is first turned as its EXIF entry says, as viewers do. AsStored: the entry is passed over."""

    fill: Annotated[Int32, Field(ge=0, le=255)] = 0
    """Grey level, from 0 for black to 255 for white, of what the image does not cover with resize Fit, and of what
    lies behind transparent pixels."""

    scale: Decimal | None = None
    """What each pixel, a number from 0 to 255, is multiplied by; such as 0.00392156862745098 for 1/255. Absent: 1."""

    mean: Annotated[tuple[SignedDecimal, ...], Field(max_length=3)] = ()
    """What is then subtracted: one number, or one for each channel. Absent or empty: 0."""

    std: Annotated[tuple[Divisor, ...], Field(max_length=3)] = ()
    """What is then divided by: one number, or one for each channel. Absent or empty: 1."""


def _has_a_window(windows: BytesDecode) -> bool:
    return windows.beginning + windows.middle + windows.end > 0


def _block_holds_windows(windows: BytesDecode) -> bool:
    return windows.block_size >= max(windows.beginning, windows.end)


def _minimum_can_be_met(windows: BytesDecode) -> bool:
    return windows.minimum <= windows.beginning


class BytesDecode(ApiModel):
    """Content of any length becomes windows of fixed length, one number a byte, one window after the other."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="NoWindow",
            cel="self.beginning + self.middle + self.end > 0",
            message="must have at least one of beginning, middle and end",
            holds=_has_a_window,
        ),
        Rule(
            reason="WindowBeyondBlock",
            cel="self.blockSize >= self.beginning && self.blockSize >= self.end",
            message="must have a blockSize that is not below beginning and end",
            holds=_block_holds_windows,
        ),
        Rule(
            reason="MinimumBeyondBeginning",
            cel="self.minimum <= self.beginning",
            message="must have a minimum that is not above beginning",
            holds=_minimum_can_be_met,
        ),
    )

    beginning: Window = 0
    """Bytes from the beginning on, padded behind."""

    middle: Window = 0
    """Bytes around the middle, padded on both sides. White space is never passed over there."""

    end: Window = 0
    """Bytes up to the end, padded in front."""

    padding: Annotated[Int32, Field(ge=0, le=65_535)] = 256
    """Number that stands where there is no byte. Bytes are 0 to 255."""

    strip: Boolean = False
    """Whether white space is passed over before the beginning window and behind the end window."""

    block_size: Annotated[Int32, Field(ge=1, le=1 << 24)] = 4096
    """How many bytes from either end are looked at; white space is looked for, and windows are taken, only there."""

    minimum: Window = 0
    """Items whose beginning window has fewer bytes before it is padded fail, with reason TooShort. 0: none does."""


def _one_kind(decode: Decode) -> bool:
    return (decode.image is None) != (decode.bytes_ is None)


class Decode(ApiModel):
    """How the bytes of a column become numbers. Done by the operator, so devices need no library for it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            reason="ImageOrBytes",
            cel="has(self.image) != has(self.bytes)",
            message="must have exactly one of image and bytes",
            holds=_one_kind,
        ),
    )

    image: ImageDecode | None = None
    """The bytes are an encoded image."""

    bytes_: Annotated[BytesDecode | None, Field(alias="bytes")] = None
    """The bytes are looked at as they are."""
