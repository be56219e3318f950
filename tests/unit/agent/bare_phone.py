"""Runs the agent with nothing but what Termux packages; whatever else it imports is refused by name.

Run as ``python bare_phone.py OPTION...``, with the agent's own options.
"""

from __future__ import annotations

import importlib.abc
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# typing_extensions and flatbuffers are pure Python, and come with grpcio and onnxruntime.
PACKAGED = {"numpy", "onnxruntime", "grpc", "google", "cryptography", "typing_extensions", "flatbuffers"}
OWN = {"pocketgrid_agent", "pocketgrid"}


class Gatekeeper(importlib.abc.MetaPathFinder):
    """Stands before all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = fullname.partition(".")[0]
        # Of our own, whatever imports something else is found out by that.
        if top not in PACKAGED | OWN and top not in sys.stdlib_module_names and not top.startswith("_"):
            raise ModuleNotFoundError(f"a phone has no module {fullname}", name=fullname)
        return None


def main() -> None:
    sys.meta_path.insert(0, Gatekeeper())
    from google.protobuf.internal import api_implementation

    print(f"protobuf={api_implementation.Type()}", file=sys.stderr, flush=True)
    runpy.run_module("pocketgrid_agent", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
