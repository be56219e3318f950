"""How bytes of a data set become numbers of a model input: what a manifest can declare, in the grid's own words.

Pixels and windows are made on the operator's side and travel as small integers; the arithmetic that most image models
want before them, `Affine`, is done on the device (docs/adr/0008).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PixelMode(StrEnum):
    """Which channels a decoded image has, in this order."""

    RGB = "RGB"
    BGR = "BGR"
    GRAY = "Gray"


class ResizeMode(StrEnum):
    """How an image of one shape comes to have another."""

    STRETCH = "Stretch"
    """To exactly width x height; the aspect ratio is not kept."""
    FIT = "Fit"
    """As large as fits into width x height, in the middle of a filled ground; the aspect ratio is kept."""
    COVER = "Cover"
    """As small as covers width x height, and the middle is cut out; the aspect ratio is kept."""


class Resample(StrEnum):
    """The filter of resizing, as Pillow calls it."""

    NEAREST = "Nearest"
    BILINEAR = "Bilinear"
    BICUBIC = "Bicubic"
    LANCZOS = "Lanczos"


class PixelLayout(StrEnum):
    """Which axis of an item the channels are on."""

    CHW = "CHW"
    HWC = "HWC"


class ImageOrientation(StrEnum):
    """Whether an image is turned as its EXIF entry says before anything else is done to it."""

    EXIF = "Exif"
    AS_STORED = "AsStored"


@dataclass(frozen=True, slots=True)
class Affine:
    """x -> (x * scale - mean) / std in float32, each step rounded.

    Attributes:
        scale, mean, std: one value, or one for each index along `axis` of an item; std is never 0.
        axis: of an item, from 0.
    """

    scale: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    axis: int = 0


@dataclass(frozen=True, slots=True)
class ImageDecode:
    """An encoded image becomes uint8 pixels of one size.

    Attributes:
        width, height: of the result, in pixels.
        shorter_side: for `Cover`: length to which the shorter side is resized before the middle is cut out; 0 for
            no more than what covers the result.
        layout: None to conclude it from the model's input.
        fill: grey level of what the image does not cover, and of what lies behind transparent pixels.
        scale: see `Affine`.
        mean, std: see `Affine`; one value, or one per channel.
    """

    width: int
    height: int
    mode: PixelMode = PixelMode.RGB
    resize: ResizeMode = ResizeMode.STRETCH
    resample: Resample = Resample.BILINEAR
    shorter_side: int = 0
    layout: PixelLayout | None = None
    orientation: ImageOrientation = ImageOrientation.EXIF
    fill: int = 0
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def channels(self) -> int:
        """How many there are."""
        return 1 if self.mode is PixelMode.GRAY else 3

    @property
    def has_arithmetic(self) -> bool:
        """Whether anything is to be done to the pixels' values."""
        return {self.scale, *self.std} != {1.0} or set(self.mean) != {0.0}


@dataclass(frozen=True, slots=True)
class BytesDecode:
    """Bytes of any length become three windows of fixed lengths, one after the other.

    Attributes:
        beginning, middle, end: lengths of the windows in bytes; 0 leaves one out.
        padding: number that stands where there is no byte.
        strip: whether white space before the first and after the last other byte is passed over.
        block_size: how far from either end is looked at, in bytes, before white space is passed over.
        minimum: bytes that the beginning must have before it is padded; an item with fewer fails.
    """

    beginning: int = 0
    middle: int = 0
    end: int = 0
    padding: int = 256
    strip: bool = False
    block_size: int = 4096
    minimum: int = 0

    @property
    def length(self) -> int:
        """Numbers of one item."""
        return self.beginning + self.middle + self.end
