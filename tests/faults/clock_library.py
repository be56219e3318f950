"""libfaketime, which moves the clock of a process: found on this machine, or fetched once from Debian.

`make test` uses it if it is there; `make chaos` fetches it (47 KB, package `libfaketime`, unpacked into the cache and
not installed). Without it clocks do not jump, and a campaign says so.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hack.controlplane.debian import Archive
from hack.controlplane.errors import ControlPlaneError
from hack.datasets import RELEASE, cache_folder

PACKAGE = "libfaketime"
NAME = "libfaketimeMT.so.1"
"""The variant for programs with threads."""


def clock_library() -> Path | None:
    """The library, or None."""
    for places in (Path("/usr/lib").glob(f"*/faketime/{NAME}"), [_cached()]):
        for path in sorted(places):
            if path.exists():
                return path
    return None


def fetch_clock_library() -> Path | None:
    """The same, but fetched if need be; None where Debian's packages cannot be had."""
    if (found := clock_library()) is not None:
        return found
    target = _cached()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as name:
        folder = Path(name)
        packages, root = folder / "packages", folder / "root"
        for each in (packages, root):
            each.mkdir()
        archive = Archive(RELEASE, folder=folder, log=folder / "apt.log")
        try:
            archive.open()
            archive.download_packages([PACKAGE], packages)
            archive.unpack_packages(packages, root)
        except ControlPlaneError:
            return None
        for library in root.rglob(NAME):
            fresh = folder / NAME
            shutil.copyfile(library, fresh)
            fresh.replace(target)
    return clock_library()


def _cached() -> Path:
    return cache_folder(os.environ).parent / "libfaketime" / NAME
