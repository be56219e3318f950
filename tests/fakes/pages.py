"""Pages of print as a scanner would deliver them, and lines of text, drawn with Pillow's own font."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SENTENCE = (
    "the grid hands out work to devices that come and go and every page of this book is read by one of them while "
    "others wait for their turn"
)
WORDS = SENTENCE.split()


def page(seed: int, size: tuple[int, int] = (620, 877)) -> Image.Image:
    """An upright page, grey on white; the same for the same seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", size, 255)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(int(rng.integers(14, 26)))
    top = 40
    while top < size[1] - 60:
        line = ""
        while draw.textlength(line, font=font) < size[0] - 160:
            line += f"{rng.choice(WORDS)} "
        draw.text((50, top), line, font=font, fill=int(rng.integers(0, 60)))
        top += int(font.size * (1.5 if rng.random() < 0.9 else 2.5))
    return image


def line_of_text(text: str, size: tuple[int, int] = (300, 80)) -> Image.Image:
    image = Image.new("L", size, 255)
    ImageDraw.Draw(image).text((10, 10), text, font=ImageFont.load_default(48), fill=0)
    return image


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
