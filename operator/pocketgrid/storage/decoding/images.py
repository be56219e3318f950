"""Encoded images to pixels of one size, with Pillow.

Responsible for what a manifest's ``decode.image`` declares, apart from the arithmetic, which devices do. Images come
from anywhere: only formats are tried whose decoders are made for that (none that run programs, as EPS does), the size
is looked at before anything is decoded, and whatever a decoder raises is the fault of the item.

Every step is Pillow's own, so that results can be compared with plain Pillow code; the rounding of lengths, which
Pillow leaves to callers, is half up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pocketgrid.model.decoding import ImageDecode, ImageOrientation, PixelLayout, PixelMode, Resample, ResizeMode
from pocketgrid.storage.decoding import Content, Fault
from pocketgrid.storage.reasons import ItemReason

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")

LARGEST_PIXELS = 64_000_000
"""Of an image, before and after resizing: 192 MB in memory while it is decoded. Below the size at which Pillow itself
begins to warn."""

LONGEST_MESSAGE = 200

_FILTERS = {
    Resample.NEAREST: Image.Resampling.NEAREST,
    Resample.BILINEAR: Image.Resampling.BILINEAR,
    Resample.BICUBIC: Image.Resampling.BICUBIC,
    Resample.LANCZOS: Image.Resampling.LANCZOS,
}
_DEEP_MODES = ("I", "F")
"""And those whose names begin so: more than 8 bits a channel, which conversion to RGB would cut off, not scale."""


class _RefusedImageError(Exception):
    """An image that could be decoded and is not to be."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.fault: Fault = (reason, what)


@dataclass(frozen=True, slots=True)
class ImageDecoder:
    """See `decoding.Decoder`.

    Attributes:
        declared: what to do.
        item_shape: [channels, height, width] or [height, width, channels] by `layout`, or [height, width] for Gray.
    """

    declared: ImageDecode
    item_shape: tuple[int, ...]
    layout: PixelLayout

    @property
    def dtype(self) -> str:
        """Of pixels."""
        return "uint8"

    def decode(self, content: Content, out: npt.NDArray[Any]) -> Fault | None:
        """See `Decoder.decode`."""
        try:
            with Image.open(BytesIO(content[: len(content)]), formats=_formats()) as image:
                fitted = self._fitted(self._opened(image))
                pixels = np.asarray(fitted if self.declared.mode is PixelMode.GRAY else fitted.convert("RGB"))
        except _RefusedImageError as refused:
            return refused.fault
        except UnidentifiedImageError:
            return ItemReason.INVALID_IMAGE, f"holds no image ({', '.join(FORMATS)} are tried)"
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            return ItemReason.IMAGE_TOO_LARGE, f"holds too large an image: {str(error)[:LONGEST_MESSAGE]}"
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever broken data brings them to
            return ItemReason.INVALID_IMAGE, f"holds a broken image: {str(error)[:LONGEST_MESSAGE]}"
        if pixels.ndim == 3:
            if self.declared.mode is PixelMode.BGR:
                pixels = pixels[:, :, ::-1]
            if self.layout is PixelLayout.CHW:
                pixels = pixels.transpose(2, 0, 1)
        out[...] = pixels.reshape(self.item_shape)
        return None

    def _opened(self, image: Image.Image) -> Image.Image:
        """The image turned; grey, or in the declared mode; opaque."""
        _check_size(*image.size, "has")
        if image.mode.startswith(_DEEP_MODES):
            raise _RefusedImageError(
                ItemReason.UNSUPPORTED_IMAGE,
                f"holds an image with more than 8 bits a channel (mode {image.mode}); convert it to 8 bits",
            )
        if self.declared.orientation is ImageOrientation.EXIF and _exif_orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            ground = Image.new("RGBA", image.size, (*3 * (self.declared.fill,), 255))
            ground.alpha_composite(image.convert("RGBA"))
            image = ground
        # Grey that is to be colour is resized first: three times less work for the same pixels. And a conversion to
        # the mode an image has would copy it.
        wanted = "L" if self.declared.mode is PixelMode.GRAY else "RGB"
        return image if image.mode in ("L", wanted) else image.convert(wanted)

    def _fitted(self, image: Image.Image) -> Image.Image:
        """The image in the declared size."""
        width, height = self.declared.width, self.declared.height
        resample = _FILTERS[self.declared.resample]
        match self.declared.resize:
            case ResizeMode.STRETCH:
                return image.resize((width, height), resample)
            case ResizeMode.FIT:
                inner = self._inner_size(*image.size)
                ground = Image.new(image.mode, (width, height), self._fill(image.mode))
                ground.paste(image.resize(inner, resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
                return ground
            case ResizeMode.COVER:
                outer = self._outer_size(*image.size)
                _check_size(*outer, "is far longer than wide, and would have")
                left, top = (outer[0] - width) // 2, (outer[1] - height) // 2
                return image.resize(outer, resample).crop((left, top, left + width, top + height))
            case _:
                assert_never(self.declared.resize)

    def _inner_size(self, width: int, height: int) -> tuple[int, int]:
        wanted = self.declared
        if width * wanted.height >= height * wanted.width:
            return wanted.width, max(1, _rounded(height * wanted.width, width))
        return max(1, _rounded(width * wanted.height, height)), wanted.height

    def _outer_size(self, width: int, height: int) -> tuple[int, int]:
        wanted = self.declared
        if wanted.shorter_side:
            shorter = min(width, height)
            return _rounded(width * wanted.shorter_side, shorter), _rounded(height * wanted.shorter_side, shorter)
        if width * wanted.height >= height * wanted.width:
            return max(wanted.width, _rounded(width * wanted.height, height)), wanted.height
        return wanted.width, max(wanted.height, _rounded(height * wanted.width, width))

    def _fill(self, mode: str) -> int | tuple[int, int, int]:
        grey = self.declared.fill
        return grey if mode == "L" else (grey, grey, grey)


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(width: int, height: int, has: str) -> None:
    if width * height > LARGEST_PIXELS:
        raise _RefusedImageError(
            ItemReason.IMAGE_TOO_LARGE,
            f"holds an image that {has} {width} x {height} pixels; at most {LARGEST_PIXELS:,} are decoded",
        )


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken entry is as good as none; the pixels may be fine
        return 1


def _rounded(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
