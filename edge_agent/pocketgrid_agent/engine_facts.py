"""What the inference engine of this device is, known without loading it.

Loading onnxruntime takes 30 MB that a device without work should not carry, and to ask it anything it must be loaded.
So a process that ends at once is asked, and its answer is kept until the engine's package changes: Android counts
processes, but not those that are gone.

Not here: running models (`runtime`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketgrid_agent import __version__

log = logging.getLogger(__name__)

PACKAGE = "onnxruntime"
ASKING_SECONDS = 60.0
"""Deadline of the question; the slowest phones take a few seconds to load an engine."""


class EngineError(Exception):
    """The engine does not load; the message says what happened."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What Hello says of the engine.

    Attributes:
        description: name and version, such as ``onnxruntime 1.32.0``.
        providers: execution providers it was built with.
        opset: newest default operator set it runs; 0 if unknown.
    """

    description: str
    providers: tuple[str, ...] = ()
    opset: int = 0


UNKNOWN = EngineFacts("onnxruntime")
"""Of an engine that does not answer. Whether it runs models will show with the first work order."""


def known_facts(state_folder: Path) -> EngineFacts:
    """Facts from an earlier start, else from asking; may take seconds, and never fails."""
    key = _identity()
    path = state_folder / "engine.json"
    try:
        kept: Any = json.loads(path.read_text())
        if key and kept["of"] == key:
            return _facts_from(kept["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if not key:
        log.error("package %s is not installed; run `pocketgrid-agent doctor`", PACKAGE)
        return UNKNOWN
    try:
        facts = ask_engine()
    except EngineError as error:
        log.warning("the engine did not say what it is cause=%s", error)
        return UNKNOWN
    with contextlib.suppress(OSError):  # asked again next time
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"of": key, "facts": asdict(facts)}))
        fresh.rename(path)
    return facts


def _identity() -> str:
    """Changes with the engine's package; empty if there is none."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.origin:
        return ""
    try:
        return f"{__version__} {spec.origin} {Path(spec.origin).stat().st_mtime_ns}"
    except OSError:
        return ""


def ask_engine() -> EngineFacts:
    """Load the engine in a process that ends at once, and tell what it says.

    Raises:
        EngineError: it does not load, crashes or takes too long; the message says what happened.
    """
    # However this process found its packages, the other one must find the same.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        answer = subprocess.run(
            [sys.executable, "-m", __name__],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASKING_SECONDS,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(str(error)) from error
    if answer.returncode < 0:
        raise EngineError(f"loading it ended with signal {-answer.returncode}")
    if answer.returncode:
        raise EngineError((answer.stderr.strip().splitlines() or ["no reason given"])[-1])
    try:
        return _facts_from(json.loads(answer.stdout))
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"it answered nonsense: {answer.stdout[:80]!r}") from error


def _facts_from(said: dict[str, Any]) -> EngineFacts:
    return EngineFacts(str(said["description"]), tuple(str(p) for p in said["providers"]), int(said["opset"]))


def main() -> None:
    """Load the engine and print what it is."""
    from pocketgrid_agent.runtime import OnnxRuntime

    engine = OnnxRuntime(threads=1, spin=False)
    print(json.dumps(asdict(EngineFacts(engine.description, engine.providers, engine.opset))))


if __name__ == "__main__":
    main()
