"""The command `pocketgrid`."""

from __future__ import annotations

import os

# Before anything can import onnxruntime, which reports to its maker unless told not to.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def main() -> None:
    """Run the command line."""
    from pocketgrid.app import cli

    cli()


if __name__ == "__main__":
    main()
