"""Where built control planes are kept, and how one becomes visible: all at once or not at all.

The cache lies outside the checkout (XDG base directories), so that a `git clean` or a second clone costs no
build. A build works in a sibling folder and ends with one rename: whoever sees the folder sees all of it. The
lock serialises builders, not readers; the kernel drops it when its holder dies, so a killed builder blocks
nobody.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# The layout that envtest and KUBEBUILDER_ASSETS use: these programs side by side in one folder.
SERVERS = ("kube-apiserver", "etcd")
PROGRAMS = (*SERVERS, "kubectl")
# To be raised whenever the recipe in build.py changes what comes out, so that old builds are not taken for
# new ones.
RECIPE = 1


def cached_programs(environment: Mapping[str, str]) -> Path:
    """Name the folder of the finished build for this machine's architecture; it may not exist yet."""
    base = environment.get("XDG_CACHE_HOME", "")
    # The XDG specification wants relative values ignored.
    root = Path(base) if base.startswith("/") else Path(environment.get("HOME") or Path.home()) / ".cache"
    return root / "pocketgrid" / "controlplane" / f"debian-bookworm-{platform.machine()}-r{RECIPE}"


def missing_programs(folder: Path, programs: tuple[str, ...] = PROGRAMS) -> list[str]:
    """Name the programs that `folder` lacks or that cannot be executed."""
    return [name for name in programs if not os.access(folder / name, os.X_OK) or (folder / name).is_dir()]


@contextmanager
def only_builder(target: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the build lock of `target`; calls `on_wait` once if another process holds it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """Give a folder beside `target`, on the same file system, and remove it afterwards; needs the build lock.

    Leftovers of killed builds go first: under the lock nobody else can own them.
    """
    prefix = f"{target.name}.building-"
    for leftover in target.parent.glob(f"{prefix}*"):
        # A compiler of the killed build may still be writing its last file; the next build removes the rest.
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def publish(finished: Path, target: Path) -> None:
    """Make the folder `finished` appear as `target`, replacing an older one; needs the build lock."""
    for name in PROGRAMS:
        # A rename can reach the disk before the data does: after a power cut a whole folder of empty
        # programs.
        with (finished / name).open("rb") as program:
            os.fsync(program.fileno())
    if target.exists():
        # rename(2) cannot replace a folder that has files. Running servers keep their files open.
        retired = Path(tempfile.mkdtemp(prefix=f"{target.name}.building-old-", dir=target.parent))
        target.rename(retired / target.name)
        finished.rename(target)
        shutil.rmtree(retired)
    else:
        finished.rename(target)
