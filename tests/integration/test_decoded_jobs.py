"""Real models from packages over real files and images: `pocketgrid run` against what the models' own code computes.

The manifests are those in `examples/`, with other places in them; nothing is coded for these models.
"""

import copy
import json
import os
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pocketgrid.storage.results import verify
from tests.fakes import pages, real_models

pytestmark = pytest.mark.timeout(110)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GUIDE = EXAMPLES.parent / "docs/preprocessing.md"
DEADLINE_S = 90.0


def example(name: str, model: Path, folder: Path) -> dict[str, Any]:
    """The manifest of an example with a model, an output and a data set of this machine."""
    job = yaml.safe_load((EXAMPLES / name).read_text())
    assert job["spec"]["model"]["sha256"] == real_models.digest_of(model), "the example is of another release"
    job["spec"]["model"]["uri"] = str(model)
    job["spec"]["output"]["uri"] = str(folder / "out")
    return job


def run(folder: Path, *jobs: dict[str, Any]) -> dict[str, Any]:
    """Run jobs to their end, with two agents, and say what became of the first."""
    manifest = folder / "job.yaml"
    manifest.write_text(yaml.safe_dump_all(jobs))
    line = [
        sys.executable,
        "-m",
        "pocketgrid",
        "run",
        str(manifest),
        "--state-dir",
        str(folder / "state"),
        "--json",
        "--log-level",
        "info",
    ]
    log = folder / "log"
    with log.open("w") as file:  # not a pipe: what was said before a deadline passed must not be lost
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=file, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, log.read_text()
    for job in jobs:
        assert verify(Path(job["spec"]["output"]["uri"]).as_uri()) == []
    return json.loads(done.stdout)["jobs"][0]


def results(output: Path, file_format: str = "parquet") -> dict[Any, Any]:
    """Result by key."""
    keys, values = ds.dataset(output, format=file_format).to_table().columns
    return dict(zip(keys.to_pylist(), values.to_pylist(), strict=True))


def failures(output: Path) -> dict[Any, str]:
    """Reason by key."""
    rows = [json.loads(line) for p in (output / "_errors").glob("*.jsonl") for line in p.read_text().splitlines()]
    return {row["key"]: row["reason"] for row in rows}


def images_in_parquet(path: Path, images: dict[str, bytes | None]) -> None:
    columns = {"name": list(images), "image": pa.array(images.values(), pa.binary())}
    pq.write_table(pa.table(columns), path, row_group_size=16)


# ---- files ----


def some_files(count: int) -> list[Path]:
    """Files of many kinds that every machine with Python has; of each kind only a few."""
    found: list[Path] = []
    for root in (Path(os.__file__).parent, real_models.package_folder("numpy"), Path("/usr/share")):
        seen: dict[str, int] = {}
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - {"site-packages"})
            for name in sorted(names):
                path = Path(folder, name)
                kind = path.suffix
                if seen.get(kind, 0) < 8 and path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20:
                    seen[kind] = seen.get(kind, 0) + 1
                    found.append(path)
    return found[:: max(1, len(found) // count)][:count]


def test_file_types_are_those_that_magika_itself_finds(tmp_path) -> None:
    """Over a tree of real files, and some that are hard: empty, blank, too large."""
    import magika

    tree = tmp_path / "tree"
    contents = {f"{number:03}/{path.name}": path.read_bytes() for number, path in enumerate(some_files(200))}
    contents |= {
        "hard/empty": b"",
        "hard/tiny": b"short",
        "hard/blank": b" \n" * 40_000,
        "hard/seven": b"  1234567",
        "hard/eight": b"12345678",
        "hard/edge": b" " * 4_090 + b"import os\n" * 3,
        "hard/tail": b"#!/bin/sh\necho\n" * 200 + b"\n" * 5_000,
    }
    for name, content in contents.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    with (tree / "hard/huge").open("wb") as file:
        file.truncate(40 << 20)
    job = example("file-types.yaml", real_models.magika_folder() / "model.onnx", tmp_path)
    job["spec"]["input"]["uri"] = f"{tree}/"
    told = run(tmp_path, job)

    own = magika.Magika(prediction_mode=magika.PredictionMode.BEST_GUESS)
    expected = {name: str(own.identify_path(tree / name).prediction.dl.label) for name in contents}
    asked = {name: label for name, label in expected.items() if label != "undefined"}
    assert results(tmp_path / "out", "json") == asked
    not_asked = dict.fromkeys(expected.keys() - asked.keys(), "TooShort")
    assert failures(tmp_path / "out") == {**not_asked, "hard/huge": "FileTooLarge"}
    assert {"hard/empty", "hard/tiny", "hard/blank", "hard/seven"} <= not_asked.keys()
    assert len(set(asked.values())) > 20, "files of many kinds"
    assert told["failed"] == len(not_asked) + 1


# ---- pages ----


def opened(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


def bare_orientation(image: Image.Image) -> np.ndarray:
    """What onnxruntime makes of a page after plain Pillow and numpy."""
    width, height = image.size
    size = (round(width * 256 / min(width, height)), round(height * 256 / min(width, height)))
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    pixels = np.asarray(resized.crop((left, top, left + 224, top + 224)))[:, :, ::-1].transpose(2, 0, 1)
    mean = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
    std = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
    scaled = (pixels.astype(np.float32) * np.float32(1 / 255) - mean) / std
    return real_models.bare_run(real_models.orientation_model(), {"x": scaled[None]})[0]


def test_turned_pages_are_told_from_images_in_a_table(tmp_path) -> None:
    formats = (("PNG", {}), ("JPEG", {"quality": 85}), ("WEBP", {"lossless": True}), ("TIFF", {}))
    images: dict[str, bytes | None] = {}
    expected: dict[str, np.ndarray] = {}
    for number in range(12):
        file_format, options = formats[number % len(formats)]
        for turn in (0, 90, 180, 270):
            key = f"{number:02}-{turn}"
            turned = pages.page(number).rotate(-turn, expand=True)
            content = images[key] = pages.encoded(turned, file_format, **options)
            expected[key] = bare_orientation(opened(content))
    whole = images["00-0"]
    assert whole is not None
    images |= {"truncated": whole[: len(whole) // 2], "text": b"no image at all", "none": None}
    images_in_parquet(tmp_path / "pages.parquet", images)
    labelled = example("page-orientation.yaml", real_models.orientation_model(), tmp_path)
    labelled["spec"]["input"] |= {"uri": str(tmp_path / "pages.parquet"), "format": "Parquet", "key": "name"}
    labelled["spec"]["input"]["columns"][0]["column"] = "image"
    raw = copy.deepcopy(labelled)
    raw["metadata"]["name"] = "scores"
    raw["spec"]["output"] = {"uri": str(tmp_path / "scores")}
    run(tmp_path, labelled, raw)
    found = results(tmp_path / "out", "json")
    assert found == {key: key.split("-")[1] for key in expected}, "every page is told right"
    assert failures(tmp_path / "out") == {"truncated": "InvalidImage", "text": "InvalidImage", "none": "NullValue"}
    scores = results(tmp_path / "scores")
    assert scores.keys() == expected.keys()
    for key, bare in expected.items():
        np.testing.assert_allclose(scores[key], bare, rtol=1e-4, atol=1e-6, err_msg=key)


# ---- a fixed batch of one ----


def documented(function: str) -> Any:
    """A function as the user guide prints it."""
    (code,) = re.findall(rf"```python\n(.*?def {function}\(.*?)```", GUIDE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names[function]


def test_a_model_with_a_batch_of_one_and_its_time_axis_first_reads_lines_of_text(tmp_path) -> None:
    words = ["hello", "2024", "PocketGrid", "seven", "1234567", "orange", "paper", "boat"] * 3
    images = {f"{n}": pages.encoded(pages.line_of_text(word), "PNG") for n, word in enumerate(words)}
    images_in_parquet(tmp_path / "lines.parquet", dict(images))
    model = real_models.ocr_model()
    image = {"width": 240, "height": 64, "resize": "Stretch", "resample": "Lanczos", "mode": "Gray", "std": ["255"]}
    job = {
        "apiVersion": "pocketgrid.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"name": "lines"},
        "spec": {
            "model": {"uri": str(model), "sha256": real_models.digest_of(model), "outputs": ["387"]},
            "input": {
                "uri": str(tmp_path / "lines.parquet"),
                "format": "Parquet",
                "key": "name",
                "columns": [{"column": "image", "input": "input1", "decode": {"image": image}}],
            },
            "output": {
                "uri": str(tmp_path / "out"),
                "postprocess": [
                    {"operation": "BatchFirst", "output": "387"},
                    {"operation": "Argmax", "output": "387", "labels": list(real_models.ocr_characters())},
                ],
            },
        },
    }
    run(tmp_path, job)
    read = documented("read")
    for key, characters in results(tmp_path / "out").items():
        pixels = np.asarray(opened(images[key]).resize((240, 64), Image.Resampling.LANCZOS), np.float32)
        scores = real_models.bare_run(model, {"input1": pixels[None, None] / np.float32(255)})
        assert characters == [real_models.ocr_characters()[i] for i in scores[:, 0].argmax(-1)]
        assert read(characters) == words[int(key)]
