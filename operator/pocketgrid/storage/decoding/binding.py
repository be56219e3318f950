"""Whether what a manifest declares under ``decode`` makes what a model's input takes.

Responsible for refusing what can never fit, with the field to blame and what to write instead, and for concluding the
layout of pixels where the manifest leaves it to the model.
"""

from __future__ import annotations

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.decoding import Affine, BytesDecode, ImageDecode, PixelLayout, PixelMode
from pocketgrid.model.tensors import Dim, TensorSpec
from pocketgrid.storage.casting import wire_dtype
from pocketgrid.storage.datasets.base import BINARY, ColumnInfo
from pocketgrid.storage.decoding import Decoder, make_decoder
from pocketgrid.storage.reasons import Refusal


def bind_decoder(
    column: ColumnInfo, decode: ImageDecode | BytesDecode, spec: TensorSpec, field: str
) -> tuple[Decoder, Affine | None]:
    """What makes items for the model input `spec` out of `column`, and the arithmetic left to the device.

    Raises:
        InvalidSpecError: WrongType or WrongShape, blaming `field` or what is below it.
    """
    if column.dtype != BINARY:
        raise InvalidSpecError(
            Refusal.WRONG_TYPE,
            f"column {column.name!r} holds {column.note or column.text}, and only bytes are decoded; leave decode out "
            "for numbers",
            field=field,
        )
    if isinstance(decode, BytesDecode):
        decoder = make_decoder(decode, (decode.length,), PixelLayout.CHW)
        _check_windows(decode, decoder.dtype, spec, f"{field}.decode.bytes")
        return decoder, None
    return _bind_image(decode, spec, f"{field}.decode.image")


def _check_windows(decode: BytesDecode, dtype: str, spec: TensorSpec, field: str) -> None:
    item = spec.item_shape
    if len(item) != 1 or (isinstance(item[0], int) and item[0] != decode.length):
        raise InvalidSpecError(
            Refusal.WRONG_SHAPE,
            f"beginning, middle and end together are {decode.length} numbers per item; model input {spec.name!r} takes "
            f"{_shape_text(item)}",
            field=field,
        )
    if wire_dtype(dtype, spec.dtype) is None:
        raise InvalidSpecError(
            Refusal.WRONG_TYPE,
            f"model input {spec.name!r} takes {spec.dtype}, which cannot hold bytes and the padding {decode.padding}",
            field=f"{field}.padding",
        )


def _bind_image(decode: ImageDecode, spec: TensorSpec, field: str) -> tuple[Decoder, Affine | None]:
    if wire_dtype("uint8", spec.dtype) is None:
        raise InvalidSpecError(
            Refusal.WRONG_TYPE,
            f"model input {spec.name!r} takes {spec.dtype}, which cannot hold pixels from 0 to 255",
            field=field,
        )
    if decode.has_arithmetic and not spec.dtype.startswith("float"):
        raise InvalidSpecError(
            Refusal.WRONG_TYPE,
            f"model input {spec.name!r} takes {spec.dtype}, which has no fractions; leave out scale, mean and std",
            field=field,
        )
    item = spec.item_shape
    if len(item) == 2 and decode.mode is PixelMode.GRAY:
        layout = PixelLayout.CHW
        shape: tuple[int, ...] = (decode.height, decode.width)
    elif len(item) == 3:
        layout = decode.layout or _concluded_layout(decode, spec, field)
        shape = _shape(decode, layout)
    else:
        raise InvalidSpecError(
            Refusal.WRONG_SHAPE,
            f"model input {spec.name!r} takes {_shape_text(item)} per item, and an image has three axes: [channels, "
            "height, width] or [height, width, channels]",
            field=field,
        )
    if not _fits(shape, item):
        raise InvalidSpecError(
            Refusal.WRONG_SHAPE,
            f"the declared image is {_shape_text(shape)}{_of(layout, shape)}, and model input {spec.name!r} takes "
            f"{_shape_text(item)} per item; {_remedy(decode, layout, item)}",
            field=field,
        )
    affine = None
    if decode.has_arithmetic:
        affine = Affine((decode.scale,), decode.mean, decode.std, axis=0 if layout is PixelLayout.CHW else 2)
    return make_decoder(decode, shape, layout), affine


def _concluded_layout(decode: ImageDecode, spec: TensorSpec, field: str) -> PixelLayout:
    first, _, last = spec.item_shape
    # Channels are told from sides by their number; a side of 3 pixels is too rare to be thought of.
    first_may, last_may = first in (1, 3), last in (1, 3)
    if first_may != last_may:
        return PixelLayout.CHW if first_may else PixelLayout.HWC
    raise InvalidSpecError(
        Refusal.WRONG_SHAPE,
        f"model input {spec.name!r} takes {_shape_text(spec.item_shape)} per item, which does not say on which axis "
        "the channels are; state layout: CHW if they come first, or HWC",
        field=f"{field}.layout",
    )


def _shape(decode: ImageDecode, layout: PixelLayout) -> tuple[int, ...]:
    if layout is PixelLayout.CHW:
        return decode.channels, decode.height, decode.width
    return decode.height, decode.width, decode.channels


def _fits(shape: tuple[int, ...], item: tuple[Dim, ...]) -> bool:
    return all(not isinstance(want, int) or want == have for have, want in zip(shape, item, strict=True))


def _remedy(decode: ImageDecode, layout: PixelLayout, item: tuple[Dim, ...]) -> str:
    """What to write so that it fits."""
    if len(item) == 2:
        height, width, channels = item[0], item[1], None
    elif _fits(_shape(decode, _other(layout)), item):
        return f"state layout: {_other(layout)}"
    elif layout is PixelLayout.CHW:
        channels, height, width = item
    else:
        height, width, channels = item
    wrong = []
    if isinstance(channels, int) and channels != decode.channels:
        if channels not in (1, 3):
            return f"a model that takes {channels} channels cannot be fed with images"
        wrong.append("mode: Gray" if channels == 1 else "mode: RGB (or BGR)")
    for name, want, have in (("width", width, decode.width), ("height", height, decode.height)):
        if isinstance(want, int) and want != have:
            wrong.append(f"{name}: {want}")
    return f"state {', '.join(wrong)}"


def _other(layout: PixelLayout) -> PixelLayout:
    return PixelLayout.HWC if layout is PixelLayout.CHW else PixelLayout.CHW


def _of(layout: PixelLayout, shape: tuple[int, ...]) -> str:
    return f" ({layout})" if len(shape) == 3 else ""


def _shape_text(shape: tuple[Dim, ...]) -> str:
    return "[" + ",".join("?" if d is None else str(d) for d in shape) + "]"
