"""Images to pixels: every choice against plain Pillow and numpy, and whatever is no image as the fault of its item."""

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from pocketgrid.model.decoding import ImageDecode, ImageOrientation, PixelLayout, PixelMode, Resample, ResizeMode
from pocketgrid.storage.decoding import images
from pocketgrid.storage.decoding.images import ImageDecoder
from tests.fakes.pages import encoded

PILLOW = {
    Resample.NEAREST: Image.Resampling.NEAREST,
    Resample.BILINEAR: Image.Resampling.BILINEAR,
    Resample.BICUBIC: Image.Resampling.BICUBIC,
    Resample.LANCZOS: Image.Resampling.LANCZOS,
}


def picture(width: int = 60, height: int = 40, seed: int = 1) -> Image.Image:
    """Colours of which no two neighbours are alike, with a shape that is not symmetric."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    ImageDraw.Draw(image).rectangle((0, 0, width // 3, height // 4), fill=(250, 10, 10))
    return image


def decoder(declared: ImageDecode, layout: PixelLayout = PixelLayout.HWC) -> ImageDecoder:
    shape = (declared.height, declared.width)
    channels = (declared.channels,)
    return ImageDecoder(declared, channels + shape if layout is PixelLayout.CHW else shape + channels, layout)


def pixels_of(content: bytes, declared: ImageDecode, layout: PixelLayout = PixelLayout.HWC) -> np.ndarray:
    made = decoder(declared, layout)
    out = np.zeros(made.item_shape, made.dtype)
    assert made.decode(content, out) is None
    return out


def fault_of(content: bytes, declared: ImageDecode | None = None) -> tuple[str, str]:
    made = decoder(declared or ImageDecode(8, 8))
    fault = made.decode(content, np.zeros(made.item_shape, made.dtype))
    assert fault is not None
    return fault


# ---- shapes ----


@pytest.mark.parametrize("resample", Resample)
@pytest.mark.parametrize("size", [(60, 40), (40, 60), (20, 20), (21, 97)])
def test_stretch_is_pillows_resize(size, resample) -> None:
    image = picture(*size)
    found = pixels_of(encoded(image, "PNG"), ImageDecode(30, 20, resize=ResizeMode.STRETCH, resample=resample))
    np.testing.assert_array_equal(found, np.asarray(image.resize((30, 20), PILLOW[resample])))


@pytest.mark.parametrize(
    ("size", "inner"),
    [((60, 40), (30, 20)), ((60, 20), (30, 10)), ((20, 60), (7, 20)), ((500, 1), (30, 1)), ((1, 500), (1, 20))],
)
def test_fit_keeps_the_whole_image_in_the_middle_of_a_filled_ground(size, inner) -> None:
    image = picture(*size)
    found = pixels_of(encoded(image, "PNG"), ImageDecode(30, 20, resize=ResizeMode.FIT, fill=77))
    expected = np.full((20, 30, 3), 77, np.uint8)
    left, top = (30 - inner[0]) // 2, (20 - inner[1]) // 2
    resized = np.asarray(image.resize(inner, Image.Resampling.BILINEAR))
    expected[top : top + inner[1], left : left + inner[0]] = resized
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("size", "outer"),
    [((60, 40), (30, 20)), ((60, 20), (60, 20)), ((20, 60), (30, 90)), ((100, 99), (30, 30)), ((99, 66), (30, 20))],
)
def test_cover_cuts_the_middle_out_of_the_smallest_that_covers(size, outer) -> None:
    image = picture(*size)
    found = pixels_of(encoded(image, "PNG"), ImageDecode(30, 20, resize=ResizeMode.COVER))
    left, top = (outer[0] - 30) // 2, (outer[1] - 20) // 2
    resized = np.asarray(image.resize(outer, Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, resized[top : top + 20, left : left + 30])


def test_a_shorter_side_is_the_usual_resize_and_centre_crop() -> None:
    image = picture(120, 81)
    declared = ImageDecode(24, 24, resize=ResizeMode.COVER, shorter_side=27, resample=Resample.BICUBIC)
    resized = image.resize((40, 27), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels_of(encoded(image, "PNG"), declared), np.asarray(resized)[1:25, 8:32])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.sampled_from(ResizeMode),
    st.booleans(),
)  # fmt: skip
def test_every_image_comes_to_the_declared_size_and_one_colour_stays_one_colour(
    w, h, width, height, resize, side
) -> None:
    shorter = max(width, height) if side and resize is ResizeMode.COVER else 0
    declared = ImageDecode(width, height, resize=resize, shorter_side=shorter, fill=90)
    found = pixels_of(encoded(Image.new("RGB", (w, h), (90, 90, 90)), "PNG"), declared)
    assert found.shape == (height, width, 3)
    assert (found == 90).all()


# ---- channels ----


@pytest.mark.parametrize("layout", PixelLayout)
def test_channels_come_in_the_declared_order_and_place(layout) -> None:
    image = picture(30, 20)
    rgb = np.asarray(image)
    content = encoded(image, "PNG")
    for mode, expected in (
        (PixelMode.RGB, rgb),
        (PixelMode.BGR, rgb[:, :, ::-1]),
        (PixelMode.GRAY, np.asarray(image.convert("L"))[:, :, None]),
    ):
        found = pixels_of(content, ImageDecode(30, 20, mode=mode), layout)
        wanted = expected.transpose(2, 0, 1) if layout is PixelLayout.CHW else expected
        np.testing.assert_array_equal(found, wanted)


def test_grey_without_an_axis_for_it() -> None:
    image = picture(30, 20)
    made = ImageDecoder(ImageDecode(30, 20, mode=PixelMode.GRAY), (20, 30), PixelLayout.CHW)
    out = np.zeros((20, 30), np.uint8)
    assert made.decode(encoded(image, "PNG"), out) is None
    np.testing.assert_array_equal(out, np.asarray(image.convert("L")))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "RGB"])
def test_images_of_other_modes_become_rgb(mode) -> None:
    image = picture(30, 20).convert(mode)
    content = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(pixels_of(content, ImageDecode(30, 20)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("fill", [0, 200, 255])
def test_the_fill_lies_behind_transparent_pixels(fill) -> None:
    image = picture(30, 20).convert("RGBA")
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:, :10] = 0
    image.putalpha(Image.fromarray(alpha))
    found = pixels_of(encoded(image, "PNG"), ImageDecode(30, 20, fill=fill))
    assert (found[:, :10] == fill).all()
    np.testing.assert_array_equal(found[:, 10:], np.asarray(picture(30, 20))[:, 10:])


def test_a_colour_that_stands_for_transparency_is_filled_too() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 10, 10])
    found = pixels_of(encoded(image, "PNG", transparency=1), ImageDecode(4, 4, fill=33))
    assert (found == 33).all()


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_every_format_is_decoded_as_pillow_does(file_format) -> None:
    content = encoded(picture(30, 20), file_format)
    expected = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(pixels_of(content, ImageDecode(30, 20)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_entry_is_heeded_or_not_as_declared(orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture(30, 20), "PNG", exif=exif.tobytes())
    turned = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))))
    height, width = turned.shape[:2]
    np.testing.assert_array_equal(pixels_of(content, ImageDecode(width, height)), turned)
    as_stored = ImageDecode(30, 20, orientation=ImageOrientation.AS_STORED)
    np.testing.assert_array_equal(pixels_of(content, as_stored), np.asarray(picture(30, 20)))


# ---- what cannot be decoded ----


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_image_is_the_fault_of_its_item(file_format, share) -> None:
    content = encoded(picture(90, 90), file_format)
    reason, what = fault_of(content[: int(len(content) * share)])
    assert reason == "InvalidImage"
    assert what.startswith("holds ")


@pytest.mark.parametrize("content", [b"", b"\0", b"no image at all", b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9, b"\x89PNG\r\n"])
def test_what_is_no_image_is_the_fault_of_its_item(content) -> None:
    assert fault_of(content)[0] == "InvalidImage"


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_no_damage_of_an_image_raises(file_format, data) -> None:
    content = bytearray(encoded(picture(40, 30), file_format))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    made = decoder(ImageDecode(8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fault = made.decode(bytes(content), np.zeros(made.item_shape, made.dtype))
    assert fault is None or fault[0] in ("InvalidImage", "ImageTooLarge", "UnsupportedImage")


def test_the_first_of_several_images_in_a_file_is_taken() -> None:
    first, second = picture(30, 20), picture(30, 20, seed=2)
    for file_format in ("GIF", "TIFF", "WEBP"):
        content = encoded(first, file_format, save_all=True, append_images=[second])
        expected = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(pixels_of(content, ImageDecode(30, 20)), expected)


def claiming(width: int, height: int) -> bytes:
    """A small PNG whose header promises more."""
    content = encoded(Image.new("1", (8, 8)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize("side", [9_000, 12_000, 15_000, 2_000_000])
def test_an_image_that_is_too_large_is_not_decoded(side) -> None:
    """Beyond 89 million pixels Pillow warns, and beyond twice as many it refuses; users are told alike."""
    reason, what = fault_of(claiming(side, side))
    assert reason == "ImageTooLarge"
    if side == 9_000:
        assert what == "holds an image that has 9000 x 9000 pixels; at most 64,000,000 are decoded"


def test_a_long_strip_does_not_grow_beyond_measure() -> None:
    declared = ImageDecode(224, 224, resize=ResizeMode.COVER, shorter_side=256)
    reason, what = fault_of(encoded(Image.new("L", (60_000, 2)), "PNG"), declared)
    assert reason == "ImageTooLarge"
    assert "7680000 x 256" in what


def test_deep_pixels_are_refused_and_not_cut_off() -> None:
    deep = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)
    reason, what = fault_of(encoded(deep, "PNG"))
    assert reason == "UnsupportedImage"
    assert "convert it to 8 bits" in what


def test_only_formats_without_programs_are_tried() -> None:
    """EPS starts Ghostscript, for example."""
    assert {"EPS", "PDF", "WMF"}.isdisjoint(images.FORMATS)
    assert set(images._formats()) == set(images.FORMATS), "this build of Pillow has all of them"
