"""A gateway with no job at all, in a process of its own: what an agent attaches to when only waiting is measured.

Two JSON files appear whole: where devices may connect, and when the first device was attached.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from hack.bench.operator_process import write_whole
from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.server import Gateway
from pocketgrid.settings import Settings


async def serve(settings: Settings, ready: Path, attached: Path) -> None:
    """Take in devices until cancelled; their heartbeats are as frequent as in the product."""
    clock = SystemClock()
    async with (
        Engine(settings.engine, clock, settings.state_dir / "models", nodes_from_facts=True) as engine,
        Gateway(engine, settings.gateway, clock, settings.state_dir / "gateway") as gateway,
    ):
        write_whole(
            ready,
            {
                "address": gateway.address,
                "gateway_folder": str(settings.state_dir / "gateway"),
            },
        )
        revision = 0
        while True:
            revision = await engine.changed(revision, 1.0)
            if gateway.sessions and not attached.exists():
                write_whole(attached, {"at": time.monotonic()})


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(prog="python -m hack.bench.idle_gateway")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True, help="file that says where to connect")
    parser.add_argument("--attached", type=Path, required=True, help="file that says when a device attached first")
    arguments = parser.parse_args()
    asyncio.run(serve(Settings(state_dir=arguments.state_dir), arguments.ready, arguments.attached))


if __name__ == "__main__":
    main()
