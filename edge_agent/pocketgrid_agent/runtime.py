"""The inference engine behind a small protocol, and the models it has loaded.

onnxruntime is imported when an engine is first made, which takes about half a second and happens in a thread beside
dialling. Loaded models are kept up to a memory bound and dropped least recently used first; a model that is dropped
while a shard runs on it lives on until that shard is done.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pocketgrid.errors import PocketGridError
from pocketgrid_agent.batching import Array, RunError

if TYPE_CHECKING:
    import onnxruntime

_DTYPE_OF_ONNX = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(float16)": "float16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(double)": "float64",
}

_TRAVELLING_DTYPES = frozenset(np.dtype(name) for name in _DTYPE_OF_ONNX.values())

# How the engine's allocators and the C++ library word it; onnxruntime has no error class of its own for this.
_MEMORY_COMPLAINTS = ("failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")


GRAPH_OPTIMIZATIONS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}


class LoadError(PocketGridError):
    """The engine cannot load a model; `reason` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Port:
    """One input of a loaded model: dtype and shape, in which open dimensions are None."""

    dtype: str
    shape: tuple[int | None, ...]


class Model(Protocol):
    """A model ready to run; `run` may be called from several threads."""

    @property
    def inputs(self) -> Mapping[str, Port]:
        """What it wants to be fed."""
        ...

    @property
    def outputs(self) -> frozenset[str]:
        """What it can be asked for."""
        ...

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Compute the named outputs. Raises MemoryError, or RunError for anything else that fails."""
        ...


class Engine(Protocol):
    """Something that runs ONNX models."""

    @property
    def description(self) -> str:
        """Name and version, such as ``onnxruntime 1.32.0``."""
        ...

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers it was built with."""
        ...

    @property
    def opset(self) -> int:
        """Newest default operator set it runs; 0 if unknown."""
        ...

    def load(self, source: Path | bytes) -> Model:
        """Load a model file, or what would be in one. Raises LoadError, or MemoryError."""
        ...


class OnnxRuntime:
    """onnxruntime on the processor.

    Args:
        threads: that one run may use.
        spin: whether idle engine threads spin for a while, which is faster and drains batteries.
        graph_optimization: a key of `GRAPH_OPTIMIZATIONS`.
    """

    def __init__(self, *, threads: int, spin: bool, graph_optimization: str = "all") -> None:
        import onnxruntime

        self._ort = onnxruntime
        self._threads = threads
        self._spin = spin
        self._optimization = getattr(onnxruntime.GraphOptimizationLevel, GRAPH_OPTIMIZATIONS[graph_optimization])
        self.description = f"onnxruntime {onnxruntime.__version__}"
        self.providers: tuple[str, ...] = tuple(onnxruntime.get_available_providers())
        self.opset = _newest_opset(onnxruntime)

    def load(self, source: Path | bytes) -> Model:
        """Load a model file, or what would be in one."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = self._optimization
        options.log_severity_level = 3  # what matters comes back as an error
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._spin else "0")
        try:
            model = source if isinstance(source, bytes) else str(source)
            session = self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            # The session keeps the bytes in case its providers are changed, which ours never are.
            session._model_bytes = None  # noqa: SLF001  # there is no other way to say so
            return _OnnxModel(session)
        except LoadError:
            raise
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            if _is_about_memory(error):
                raise MemoryError(str(error)) from error
            raise LoadError("LoadFailed", f"{self.description} cannot load the model: {error}") from error


class _OnnxModel:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        inputs = {}
        for port in session.get_inputs():
            dtype = _DTYPE_OF_ONNX.get(port.type)
            if dtype is None:
                raise LoadError("UnsupportedInput", f"input {port.name!r} is {port.type}; only numbers travel")
            shape = tuple(d if isinstance(d, int) and d > 0 else None for d in port.shape)
            inputs[port.name] = Port(dtype, shape)
        self.inputs: Mapping[str, Port] = inputs
        self.outputs = frozenset(port.name for port in session.get_outputs())

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        try:
            outputs: list[Any] = self._session.run(names, feeds)
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            if _is_about_memory(error):
                raise MemoryError(str(error)) from error
            raise RunError(str(error)) from error
        for name, output in zip(names, outputs, strict=True):
            if not isinstance(output, np.ndarray) or output.dtype not in _TRAVELLING_DTYPES:
                raise RunError(f"output {name!r} is not a tensor of numbers and cannot travel")
        return outputs


def _is_about_memory(error: Exception) -> bool:
    text = str(error).lower()
    return any(complaint in text for complaint in _MEMORY_COMPLAINTS)


def _newest_opset(ort: Any) -> int:
    """Newest default operator set this build accepts, found by offering it models of one Identity node each.

    There is no call to ask for it, and a table by version would be wrong for the next version.
    """
    for opset in range(40, 6, -1):
        try:
            ort.InferenceSession(_identity_model(opset), providers=["CPUExecutionProvider"])
        except Exception:  # noqa: S112  # refusing is what most of these offers are for
            continue
        return opset
    return 0


def _identity_model(opset: int) -> bytes:
    """A serialised ONNX ModelProto; by hand, because package onnx is not to be had on a phone."""

    def block(number: int, *content: bytes) -> bytes:
        joined = b"".join(content)
        return bytes([number << 3 | 2, len(joined)]) + joined

    def value(number: int, name: bytes) -> bytes:
        float_scalar = block(1, bytes([1 << 3, 1]), block(2, block(1, bytes([1 << 3, 1]))))
        return block(number, block(1, name), block(2, float_scalar))

    node = block(1, block(1, b"x"), block(2, b"y"), block(4, b"Identity"))
    graph = block(7, node, block(2, b"g"), value(11, b"x"), value(12, b"y"))
    return bytes([1 << 3, 8]) + graph + block(8, block(1, b""), bytes([2 << 3, opset]))


@dataclass(slots=True)
class _Loaded:
    model: Model
    memory_bytes: int
    release: Callable[[], None]


class LoadedModels:
    """Models in memory by digest, least recently used dropped first. Safe in several threads.

    Args:
        engine: loads them.
        locate: gives, for a digest, a verified file or the content of one, and a function to call when it is no longer
            needed.
        memory_bytes: bound on their estimated memory; one alone may exceed it.
        resident: memory of this process at the moment, bytes.
    """

    def __init__(
        self,
        engine: Engine,
        locate: Callable[[str], tuple[Path | bytes, Callable[[], None]]],
        *,
        memory_bytes: int,
        resident: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._locate = locate
        self._memory_bytes = memory_bytes
        self._resident = resident
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._table = threading.Lock()
        # Apart from the table's, so that shards of a loaded model do not wait for another model's loading.
        self._loading = threading.Lock()

    def get(self, digest: str) -> Model:
        """The model, loaded if need be (also if it was dropped meanwhile). Raises LoadError, MemoryError."""
        with self._table:
            known = self._known(digest)
        if known is not None:
            return known
        with self._loading:
            with self._table:
                known = self._known(digest)
            return known if known is not None else self._load(digest)

    def _known(self, digest: str) -> Model | None:
        loaded = self._loaded.get(digest)
        if loaded is None:
            return None
        self._loaded.move_to_end(digest)
        return loaded.model

    def _load(self, digest: str) -> Model:
        before = self._resident()
        source, release = self._locate(digest)
        try:
            model = self._engine.load(source)
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            del source
            # Growth is what counts, but pages freed elsewhere meanwhile may hide it.
            memory_bytes = max(self._resident() - before, size)
        except BaseException:
            release()
            raise
        with self._table:
            self._loaded[digest] = _Loaded(model, memory_bytes, release)
            while len(self._loaded) > 1 and self.memory_bytes > self._memory_bytes:
                _, dropped = self._loaded.popitem(last=False)
                dropped.release()
        return model

    def __contains__(self, digest: str) -> bool:
        return digest in self._loaded

    @property
    def memory_bytes(self) -> int:
        """Estimated memory of all loaded models."""
        return sum(loaded.memory_bytes for loaded in self._loaded.values())

    def drop(self, digest: str) -> None:
        """Forget a model, if it is loaded; runs under way go on."""
        with self._table:
            loaded = self._loaded.pop(digest, None)
        if loaded is not None:
            loaded.release()

    def close(self) -> None:
        """Drop all."""
        with self._table:
            while self._loaded:
                self._loaded.popitem()[1].release()
