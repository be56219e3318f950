"""Log output of every process of ours: one event per line, time in UTC, fields as ``key=value``."""

from __future__ import annotations

import logging
import sys
import time

from pocketgrid.loglines import LineFormatter

LEVELS = ("debug", "info", "warning", "error")

# Libraries whose INFO is chatter to an operator of the grid.
_QUIET = ("aiohttp", "asyncio", "grpc", "kubernetes", "urllib3")


def configure_logs(level: str) -> None:
    """Send log lines of `level` (one of `LEVELS`) and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = LineFormatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
