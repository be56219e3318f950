"""What a manifest declares under decode, held against a model's inputs and a data set of images or files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pocketgrid.errors import InvalidSpecError
from pocketgrid.model.decoding import Affine, BytesDecode, ImageDecode, PixelLayout, PixelMode, ResizeMode
from pocketgrid.model.device import AgentFeature
from pocketgrid.model.ids import JobUid, ModelDigest
from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef, TensorBinding, WorkOrder
from pocketgrid.model.tensors import Dim, ModelSignature, TensorSpec
from pocketgrid.storage.encoding import DECODED_AT_ONCE, Encoder, open_encoder
from tests.fakes.pages import encoded

RGB8 = ImageDecode(8, 8)
SCALED = ImageDecode(8, 8, scale=0.5, mean=(1.0, 2.0, 3.0))
WINDOWS = BytesDecode(beginning=6, end=4, strip=True, minimum=2)


def signature(shape: tuple[Dim, ...], dtype: str = "float32", batch: Dim = "N") -> ModelSignature:
    return ModelSignature((TensorSpec("x", dtype, (batch, *shape)),), (), 17, 9, batch if isinstance(batch, int) else 0)


def image(colour: int, size: tuple[int, int] = (8, 8)) -> bytes:
    return encoded(Image.new("RGB", size, (colour, 0, 255)), "PNG")


def table(
    folder: Path, decode: ImageDecode | BytesDecode | None, *contents: bytes | None, column: str = "c"
) -> InputRef:
    columns = {
        "c": pa.array(contents, pa.binary()),
        "text": pa.array(["t"] * len(contents)),
        "number": pa.array([1.0] * len(contents)),
    }
    pq.write_table(pa.table(columns), folder / "data.parquet")
    binding = ColumnBinding(column, "x", decode)
    return InputRef(str(folder / "data.parquet"), InputFormat.PARQUET, columns=(binding,))


def opened(folder: Path, decode: ImageDecode | BytesDecode, model: ModelSignature, *contents: bytes | None) -> Encoder:
    return open_encoder(table(folder, decode, *(contents or (image(1), image(2)))), model)


# ---- what fits ----


@pytest.mark.parametrize(
    ("decode", "shape", "item_shape", "axis"),
    [
        pytest.param(SCALED, (3, 8, 8), (3, 8, 8), 0, id="channels first"),
        pytest.param(SCALED, (8, 8, 3), (8, 8, 3), 2, id="channels last"),
        pytest.param(SCALED, (3, "h", "w"), (3, 8, 8), 0, id="open sides"),
        pytest.param(SCALED, ("h", "w", 3), (8, 8, 3), 2, id="open sides, channels last"),
        pytest.param(
            ImageDecode(8, 8, layout=PixelLayout.HWC, scale=2.0),
            (None, None, None),
            (8, 8, 3),
            2,
            id="all open, stated",
        ),
        pytest.param(ImageDecode(9, 8, mode=PixelMode.GRAY, scale=2.0), (1, 8, None), (1, 8, 9), 0, id="grey"),
        pytest.param(ImageDecode(9, 8, mode=PixelMode.GRAY, scale=2.0), (8, 9), (8, 9), 0, id="grey without an axis"),
    ],
)
def test_the_layout_follows_from_the_model(tmp_path, decode, shape, item_shape, axis) -> None:
    encoder = opened(tmp_path, decode, signature(shape))
    (binding,) = encoder.bindings
    encoder.close()
    assert binding.item_shape == item_shape
    assert binding.affine == Affine((decode.scale,), decode.mean, decode.std, axis)
    assert encoder.bytes_per_item == np.prod(item_shape), "a byte a number on the wire"


@pytest.mark.parametrize(("dtype", "wire"), [("float32", "uint8"), ("uint8", "uint8"), ("int64", "uint8")])
def test_pixels_travel_as_bytes_and_without_arithmetic_as_they_are(tmp_path, dtype, wire) -> None:
    encoder = opened(tmp_path, RGB8, signature((3, 8, 8), dtype), image(7), image(9))
    shard = encoder.encode(0, 2)
    encoder.close()
    assert encoder.bindings == (TensorBinding("x", 0, dtype, item_shape=(3, 8, 8)),)
    assert (shard.inputs[0].dtype, shard.inputs[0].shape) == (wire, (2, 3, 8, 8))
    assert np.frombuffer(shard.inputs[0].data, np.uint8).reshape(2, 3, 64)[:, 0, 0].tolist() == [7, 9]


@pytest.mark.parametrize("dtype", ["int32", "float32", "int64", "uint16"])
def test_windows_suit_whatever_holds_bytes_and_padding(tmp_path, dtype) -> None:
    encoder = opened(tmp_path, WINDOWS, signature((10,), dtype), b"  abc ", b"x")
    shard = encoder.encode(0, 2)
    encoder.close()
    assert shard.inputs[0].shape == (1, 10)
    assert np.frombuffer(shard.inputs[0].data, "<u2").tolist() == [*b"abc ", 256, 256, *b" abc"]
    assert [(f.row, f.reason) for f in shard.failures] == [(1, "TooShort")]


def test_only_arithmetic_asks_something_of_agents(tmp_path) -> None:
    for decode, wanted in ((RGB8, frozenset()), (SCALED, frozenset({AgentFeature.AFFINE_INPUTS}))):
        encoder = opened(tmp_path, decode, signature((3, 8, 8)))
        encoder.close()
        order = WorkOrder(JobUid("job"), ModelDigest("0" * 64), 1, encoder.bindings, ())
        assert order.requires == wanted


def test_a_fixed_batch_of_one_is_no_obstacle(tmp_path) -> None:
    encoder = opened(tmp_path, SCALED, signature((3, 8, "w"), batch=1))
    encoder.close()
    assert encoder.bindings[0].item_shape == (3, 8, 8)


# ---- what is refused, and the remedy ----


@pytest.mark.parametrize(
    ("decode", "shape", "dtype", "field", "words"),
    [
        (RGB8, (3, 224, 224), "float32", ".decode.image", "state width: 224, height: 224"),
        (RGB8, (3, 8, 16), "float32", ".decode.image", "state width: 16"),
        (RGB8, (1, 8, 8), "float32", ".decode.image", "state mode: Gray"),
        (ImageDecode(8, 8, PixelMode.GRAY), (3, 8, 8), "float32", ".decode.image", "state mode: RGB"),
        (ImageDecode(8, 8, PixelMode.GRAY), (8, 9), "float32", ".decode.image", "state width: 9"),
        (ImageDecode(8, 8, layout=PixelLayout.HWC), (3, 8, 8), "float32", ".decode.image", "state layout: CHW"),
        (ImageDecode(8, 8, layout=PixelLayout.CHW), (4, 8, 8), "float32", ".decode.image", "takes 4 channels"),
        (RGB8, (None, None, None), "float32", ".decode.image.layout", "state layout: CHW if they come first, or HWC"),
        (RGB8, ("c", 8, 8), "float32", ".decode.image.layout", "does not say on which axis the channels are"),
        (RGB8, (3, 8, 3), "float32", ".decode.image.layout", "does not say on which axis the channels are"),
        (RGB8, (8, 8), "float32", ".decode.image", "an image has three axes"),
        (RGB8, (192,), "float32", ".decode.image", "an image has three axes"),
        (RGB8, (1, 3, 8, 8), "float32", ".decode.image", "an image has three axes"),
        (RGB8, (3, 8, 8), "int8", ".decode.image", "cannot hold pixels from 0 to 255"),
        (SCALED, (3, 8, 8), "uint8", ".decode.image", "leave out scale, mean and std"),
        (WINDOWS, (11,), "int32", ".decode.bytes", "together are 10 numbers per item; model input 'x' takes [11]"),
        (WINDOWS, (2, 5), "int32", ".decode.bytes", "model input 'x' takes [2,5]"),
        (WINDOWS, (10,), "uint8", ".decode.bytes.padding", "cannot hold bytes and the padding 256"),
    ],
)
def test_what_can_never_fit_is_refused_with_the_remedy(tmp_path, decode, shape, dtype, field, words) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        opened(tmp_path, decode, signature(shape, dtype))
    assert refusal.value.field == f"spec.input.columns[0]{field}"
    assert refusal.value.reason in ("WrongShape", "WrongType")
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("column", "decode", "words"),
    [
        ("text", RGB8, "holds string, and only bytes are decoded"),
        ("number", WINDOWS, "holds float64, and only bytes are decoded; leave decode out for numbers"),
        ("c", None, "say with decode.image or decode.bytes what they become"),
        ("nowhere", RGB8, "there is no column 'nowhere'"),
    ],
)
def test_a_column_that_is_not_to_be_decoded_is_refused(tmp_path, column, decode, words) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        open_encoder(table(tmp_path, decode, image(1), column=column), signature((3, 8, 8)))
    assert words in str(refusal.value)


def test_a_data_set_without_any_image_is_refused_with_what_is_wrong_with_the_first(tmp_path) -> None:
    with pytest.raises(InvalidSpecError) as refusal:
        opened(tmp_path, RGB8, signature((3, 8, 8)), b"junk", None)
    assert refusal.value.reason == "NoUsableRow"
    assert "InvalidImage, row 0: column 'c' holds no image" in str(refusal.value)


# ---- many items ----


def test_items_that_cannot_be_decoded_fail_alone_wherever_a_shard_begins(tmp_path) -> None:
    contents = [image(n) if n % 5 else (b"broken" if n % 2 else None) for n in range(1, 60)]
    encoder = opened(tmp_path, ImageDecode(8, 8, resize=ResizeMode.FIT), signature((3, 8, 8)), *contents)
    good = [n for n in range(1, 60) if n % 5]
    for start, stop in ((0, 59), (3, 40), (7, 8), (4, 5), (20, 20)):
        shard = encoder.encode(start, stop)
        mine = [n for n in good if start < n <= stop]
        assert shard.rows == len(mine)
        assert np.frombuffer(shard.inputs[0].data, np.uint8).reshape(-1, 3, 64)[:, 0, 0].tolist() == mine
        assert [f.row + start + 1 for f in shard.failures] == [n for n in range(start + 1, stop + 1) if n % 5 == 0]
        assert all(f.message.startswith(f"row {f.row + start}: column 'c'") for f in shard.failures)
    encoder.close()


def test_only_a_few_items_are_read_at_a_time(tmp_path, monkeypatch) -> None:
    encoder = opened(tmp_path, RGB8, signature((3, 8, 8)), *(image(n) for n in range(100)))
    data_set = encoder._data_set
    read, asked = data_set.read, []

    def recorded(start: int, stop: int, columns: tuple[str, ...]):
        asked.append(stop - start)
        return read(start, stop, columns)

    monkeypatch.setattr(data_set, "read", recorded)
    assert encoder.encode(0, 100).rows == 100
    encoder.close()
    assert max(asked) <= DECODED_AT_ONCE
    assert sum(asked) == 100
