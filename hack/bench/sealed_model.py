"""What it costs a device to keep a model encrypted: time and memory of loading it, in processes of their own.

    python -m hack.bench.sealed_model MODEL.onnx

One line of JSON. `verify` is opening the cache's file and comparing its digest, as each work order does; `load` is the
same with the engine's loading, which is what a device waits for. Memory is the most the process ever held.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
KEY = bytes(range(32))


def main() -> None:
    """Measure both ways in turn, so that a machine that gets hot or busy meets both alike."""
    model = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, list[dict[str, float]]] = {"plain": [], "sealed": []}
        for _ in range(REPEATS):
            for way, measured in runs.items():
                arguments = [sys.executable, "-m", __spec__.name, str(model), way, folder]
                measured.append(json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout))
    figures = {
        f"{way}_{name}": round(statistics.median(run[name] for run in measured), 1)
        for way, measured in runs.items()
        for name in measured[0]
    }
    print(json.dumps({"bench": "sealed_model", "bytes": model.stat().st_size, **figures}))


def measure(model: Path, way: str, folder: Path) -> dict[str, float]:
    """Store the model in a cache, if it is not there, and load it from there."""
    import io

    from pocketgrid_agent.cache import ModelCache
    from pocketgrid_agent.runtime import OnnxRuntime

    engine = OnnxRuntime(threads=1, spin=False)
    content = model.read_bytes()
    digest, key = hashlib.sha256(content).hexdigest(), KEY if way == "sealed" else b""
    cache = ModelCache(folder, budget_bytes=4 * len(content) + (1 << 20))
    partial = cache.fetch(digest, len(content), key)
    if partial is not None:
        for at in range(0, len(content), 256 << 10):
            partial.append(content[at : at + (256 << 10)])
        partial.finish()
    size = len(content)
    del content, partial
    before = _memory_mib("VmRSS")
    began = time.perf_counter()
    opened = cache.open(digest, key)
    assert opened is not None
    verified = time.perf_counter()
    into = io.BytesIO() if key else None
    claimed = cache.open(digest, key, into)
    assert claimed is not None
    engine.load(claimed.path if into is None else into.getvalue())
    loaded = time.perf_counter()
    return {
        "verify_ms": 1000 * (verified - began),
        "load_ms": 1000 * (loaded - verified),
        "grown_by_models": (_memory_mib("VmHWM") - before) * (1 << 20) / size,
    }


def _memory_mib(field: str) -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields[field].split()[0]) / 1024


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main()
    else:
        print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))))
