"""An engine and a gateway as a process of their own, whose memory can be looked at."""

import asyncio
import sys
from pathlib import Path

from pocketgrid.clock import SystemClock
from pocketgrid.engine.engine import Engine
from pocketgrid.gateway.server import Gateway
from pocketgrid.settings import EngineSettings, GatewaySettings


async def main(folder: Path) -> None:
    clock = SystemClock()
    settings = GatewaySettings(assembly_bytes=64 << 20, silence_seconds=20.0, hello_seconds=20.0)
    async with (
        Engine(EngineSettings(), clock, folder / "models", nodes_from_facts=True) as engine,
        Gateway(engine, settings, clock, folder / "gateway") as gateway,
    ):
        print(gateway.address, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main(Path(sys.argv[1])))
