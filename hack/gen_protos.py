"""Compile wire/v1/agent.proto into the committed Python code beside it.

The proto's path mirrors the package path, so the generated imports need no patching.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "pocketgrid/wire/v1/agent.proto"


def main(out: Path = ROOT / "operator") -> int:
    """Write the generated modules below `out`; returns the compiler's exit status."""
    return int(
        protoc.main(
            [
                "protoc",
                f"-I{ROOT / 'operator'}",
                f"--python_out={out}",
                f"--pyi_out={out}",
                f"--grpc_python_out={out}",
                str(ROOT / "operator" / SOURCE),
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
