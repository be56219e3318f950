"""What docs/preprocessing.md shows is accepted, and what it states is so."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pocketgrid.api.convert import to_job_spec
from pocketgrid.model.decoding import BytesDecode, ImageDecode
from pocketgrid.planning.dispatch import SHARD_BYTES
from pocketgrid.settings import EngineSettings
from pocketgrid.storage.decoding.images import LARGEST_PIXELS
from pocketgrid.storage.encoding import DECODED_AT_ONCE
from pocketgrid.storage.reasons import ItemReason
from pocketgrid_agent import affine
from pocketgrid_agent.events import Affine
from tests.unit.api.manifests import minimal_job

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/preprocessing.md").read_text()


def declared(**image: object) -> ImageDecode:
    change = {"spec.input.columns[0].decode": {"image": {"width": 8, "height": 8, "resize": "Fit", **image}}}
    decode = to_job_spec(minimal_job(change)).input.columns[0].decode
    assert isinstance(decode, ImageDecode)
    return decode


def test_the_job_shown_is_a_valid_job() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    decode = to_job_spec(minimal_job({"spec.input": yaml.safe_load(text)["input"]})).input.columns[0].decode
    assert isinstance(decode, ImageDecode)
    assert decode.shorter_side == 256


@pytest.mark.parametrize(
    ("words", "formula"),
    [
        ("| `x / 255` | ", lambda x: x / np.float32(255)),
        ("| `x / 127.5 - 1` | ", lambda x: x / np.float32(127.5) - 1),
    ],
)
def test_the_recipes_give_what_they_say(words, formula) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(words)]
    fields = dict(re.findall(r"`(\w+): (.*?)`", line.removeprefix(words)))
    decode = declared(**{name: yaml.safe_load(value) for name, value in fields.items()})
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    told = Affine(0, (decode.scale,), decode.mean, decode.std)
    np.testing.assert_allclose(affine.apply(told, pixels), formula(pixels.astype(np.float32)), atol=1e-6)


def test_one_in_255_is_written_as_exactly_as_float32_can_tell() -> None:
    assert np.float32(declared(scale="0.00392156862745098").scale) == np.float32(1 / 255)
    assert PAGE.count("0.00392156862745098") == 2


def test_limits_and_defaults_are_those_of_the_code() -> None:
    assert f"{LARGEST_PIXELS // 10**6} million pixels" in PAGE
    assert DECODED_AT_ONCE == 8
    assert "At\nmost eight items are read at a time" in PAGE
    assert EngineSettings().encode_threads == 2
    assert SHARD_BYTES == 768 << 10
    assert SHARD_BYTES // (3 * 224 * 224) == 5
    windows = BytesDecode()
    assert (windows.padding, windows.block_size) == (256, 4096)
    assert f"`padding` ({windows.padding}" in PAGE
    assert f"`blockSize` ({windows.block_size})" in PAGE
    assert declared() == replace(declared(), layout=None, fill=0, scale=1.0, mean=(0.0,), std=(1.0,))


def test_every_reason_of_an_item_is_one_that_the_code_gives() -> None:
    reasons = {value for name, value in vars(ItemReason).items() if name.isupper()}
    table = PAGE.split("| reason | what it means |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines() if "|" in row)))
    assert named
    assert named <= reasons


def test_links_lead_somewhere() -> None:
    for page in ("docs/preprocessing.md", "docs/adr/0008-pixels-travel-as-bytes.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
