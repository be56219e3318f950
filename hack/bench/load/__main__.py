"""Command line: `python -m hack.bench.load`: devices until terminated; a file that appears whole says how they are."""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import resource
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from hack.bench.load.devices import AT_ONCE, Fleet
from hack.bench.load.identities import FixedCredentials, crowd_key, device_names
from hack.bench.operator_process import write_whole
from hack.joining import certify
from pocketgrid_agent.stream import Target

REPORT_S = 0.25


def main() -> None:
    """Dial and stay until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m hack.bench.load")
    parser.add_argument("--gateway", required=True, metavar="HOST:PORT")
    parser.add_argument("--gateway-folder", type=Path, required=True, help="where the gateway keeps its authority")
    parser.add_argument("--prefix", default="idle", help="of the devices' names")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="how many dial before the first is attached")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter")
    parser.add_argument("--state", type=Path, required=True, help="file that says how they are")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if arguments.count + 256 > hard:
        parser.error(f"{arguments.count} devices need as many open files; the limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, arguments.count + 256)), hard))
    names = device_names(arguments.prefix, arguments.count)
    key = crowd_key(arguments.gateway_folder)
    targets = [
        Target(FixedCredentials(each))
        for each in asyncio.run(certify(arguments.gateway_folder, key, names, arguments.gateway))
    ]
    rng = random.Random(arguments.seed)
    fleet = Fleet(names, targets, rng, at_once=arguments.at_once)
    # A hundred thousand long-lived objects: looking through them again and again would be most of this process's work.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    with suppress(asyncio.CancelledError):
        asyncio.run(_run(fleet, arguments.state))


async def _run(fleet: Fleet, state: Path) -> None:
    running = asyncio.ensure_future(fleet.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    reporting = asyncio.ensure_future(_report(fleet, state))
    try:
        await running
    finally:
        reporting.cancel()


async def _report(fleet: Fleet, path: Path) -> None:
    while True:
        write_whole(path, {"at": time.monotonic(), "cpu_s": time.process_time(), **asdict(fleet.state())})
        await asyncio.sleep(REPORT_S)


if __name__ == "__main__":
    main()
