"""An agent whose owner cheats: `python hack/demo_trust/liar.py FILE [options of pocketgrid-agent]`.

It is the agent as it is shipped, over an engine that answers wrongly as soon as FILE exists. To the grid nothing tells
it from an honest one but its answers: it measures itself, joins, and delivers as fast as others.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketgrid_agent import workshop
from pocketgrid_agent.__main__ import main
from pocketgrid_agent.runtime import Model, OnnxRuntime, Port


class LyingModel:
    """A model whose floating-point outputs are shifted by one place along their last axis, once `signal` exists."""

    def __init__(self, model: Model, signal: Path) -> None:
        self._model = model
        self._signal = signal

    @property
    def inputs(self) -> Mapping[str, Port]:
        """As the model has them."""
        return self._model.inputs

    @property
    def outputs(self) -> frozenset[str]:
        """As the model has them."""
        return self._model.outputs

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """The right outputs, or wrong ones of the same shape."""
        outputs = self._model.run(names, feeds)
        if not self._signal.exists():
            return outputs
        return [np.roll(y, 1, axis=-1) if y.dtype.kind == "f" and y.ndim > 1 else y for y in outputs]


class LyingRuntime(OnnxRuntime):
    """Loads models that lie.

    Attributes:
        signal: the file for which they wait.
    """

    signal: Path

    def load(self, source: Path | bytes) -> Model:
        """Load a model."""
        return LyingModel(super().load(source), self.signal)


if __name__ == "__main__":
    LyingRuntime.signal = Path(sys.argv[1])
    # The one place where the agent makes its engine.
    vars(workshop)["OnnxRuntime"] = LyingRuntime
    sys.exit(main(sys.argv[2:]))
