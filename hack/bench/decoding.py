"""What decoding costs one core of the operator, and what arithmetic costs a device: `python -m hack.bench.decoding`.

Apart from the other measurements, because it needs no grid: processor time of one thread over encoded images in
memory, which other work on the machine hardly disturbs. The photograph is scikit-learn's china.jpg, enlarged; the page
is print drawn with Pillow.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pocketgrid.model.decoding import BytesDecode, ImageDecode, PixelLayout, Resample, ResizeMode
from pocketgrid.model.job import ColumnBinding, InputFormat, InputRef
from pocketgrid.model.tensors import ModelSignature, TensorSpec
from pocketgrid.storage.decoding import Decoder
from pocketgrid.storage.decoding.images import ImageDecoder
from pocketgrid.storage.decoding.windows import WindowDecoder
from pocketgrid.storage.encoding import open_encoder
from pocketgrid_agent import affine
from pocketgrid_agent.events import Affine

SECONDS = 0.5
"""Processor time of one round."""

ROUNDS = 3
"""The median of so many is told."""

SHAPE = (3, 224, 224)
PAGE = (620, 877)


def _photograph(width: int, height: int) -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg")).resize((width, height), Image.Resampling.LANCZOS)


def _page() -> Image.Image:
    image = Image.new("L", PAGE, 255)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(18)
    for top in range(40, PAGE[1] - 60, 27):
        draw.text((50, top), "every page of this book is read by one of them " * 2, font=font, fill=20)
    return image


def _encoded(image: Image.Image, file_format: str, **options: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _images() -> Iterator[tuple[str, bytes]]:
    yield "page, 620 x 877, PNG", _encoded(_page(), "PNG")
    yield "page, 620 x 877, JPEG", _encoded(_page(), "JPEG", quality=85)
    for width, height in ((640, 480), (1920, 1080), (4032, 3024)):
        photograph = _photograph(width, height)
        for file_format in ("JPEG", "WEBP", "PNG") if width == 1920 else ("JPEG",):
            size = f"{width} x {height}"
            yield f"photograph, {size}, {file_format}", _encoded(photograph, file_format)


def _per_second(work: Callable[[], object]) -> float:
    """How often a second `work` can be done by one core, as the median of `ROUNDS`."""
    work()
    rates = []
    for _ in range(ROUNDS):
        done, started = 0, time.thread_time()
        while (spent := time.thread_time() - started) < SECONDS:
            work()
            done += 1
        rates.append(done / spent)
    return sorted(rates)[ROUNDS // 2]


def _decoding(decoder: Decoder, content: bytes) -> float:
    out = np.zeros(decoder.item_shape, decoder.dtype)
    assert decoder.decode(content, out) is None
    return _per_second(lambda: decoder.decode(content, out))


def _peak_of_photographs(photograph: bytes) -> float:
    """Peak memory in MB of a process of two threads that each encode a shard of 48 files of `photograph`."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(48):
            (Path(folder) / f"{number:02}.jpg").write_bytes(photograph)
        line = [sys.executable, "-c", "from hack.bench import decoding; decoding.encode_folder()", folder]
        done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=300)
    return float(done.stdout)


def encode_folder() -> None:
    """What the process of `_peak_of_photographs` does."""
    image = ImageDecode(224, 224, resize=ResizeMode.COVER, shorter_side=256)
    binding = ColumnBinding("bytes", "x", image)
    files = InputRef(f"{Path(sys.argv[1]).as_uri()}/", InputFormat.FILES, columns=(binding,))
    encoder = open_encoder(files, ModelSignature((TensorSpec("x", "float32", ("n", *SHAPE)),), (), 17, 9))
    threads = [threading.Thread(target=encoder.encode, args=(0, encoder.items)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak) / 1024)


def main() -> None:
    """Print a table."""
    print(f"| {'from':34} | {'to 3 x 224 x 224, items/s and core':>34} |")
    for name, content in _images():
        rates = []
        for resample in (Resample.BILINEAR, Resample.LANCZOS):
            declared = ImageDecode(224, 224, resize=ResizeMode.COVER, shorter_side=256, resample=resample)
            rates.append(_decoding(ImageDecoder(declared, SHAPE, PixelLayout.CHW), content))
        print(f"| {f'{name}, {len(content) / 1024:,.0f} KiB':34} | bilinear {rates[0]:,.0f}, Lanczos {rates[1]:,.0f} |")
    windows = WindowDecoder(BytesDecode(beginning=1024, end=1024, strip=True, minimum=8))
    print(f"| {'file of 1 MiB, two windows of 1024':34} | {_decoding(windows, bytes(range(256)) * 4096):,.0f} |")
    told = Affine(0, (0.00392156862745098,), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = np.zeros((8, *SHAPE), np.uint8)
    print(f"| {'arithmetic on the device':34} | {8 * _per_second(lambda: affine.apply(told, pixels)):,.0f} |")
    large = _encoded(_photograph(4032, 3024), "JPEG", quality=92)
    print(
        f"peak memory of two threads, each with 48 photographs of 12 megapixels: {_peak_of_photographs(large):.0f} MB"
    )


if __name__ == "__main__":
    main()
