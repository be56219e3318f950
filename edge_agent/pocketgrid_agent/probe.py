"""What this machine is: facts that stay the same while the agent runs.

Everything is read from /proc and /sys below a root that is an argument, so that a test can show it any machine as a
folder of files. What cannot be read is unknown and stays empty; nothing is guessed from nothing. Termux on Android is
a Linux whose /sys is mostly closed to apps, so Android is told by what surrounds it instead.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

ARCHITECTURES = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv8l": "arm",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "i386": "386",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}
"""As `uname -m` says it -> as Kubernetes says it."""

_SIMD = {
    # x86 flags that change which kernels an engine picks, hence speed and last digits.
    "sse4_2": "sse4.2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    # ARM features, as Linux lists them for 64 and 32 bits.
    "asimd": "neon",
    "neon": "neon",
    "asimddp": "asimddp",
    "asimdhp": "asimdhp",
    "fphp": "fphp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}

# DMI chassis types (SMBIOS 3.x, table 17) by what they are for us.
_LAPTOP_CHASSIS = {8, 9, 10, 11, 14, 30, 31, 32}
_DESKTOP_CHASSIS = {3, 4, 5, 6, 7, 13, 15, 16, 24, 35, 36}
_SERVER_CHASSIS = {17, 22, 23, 25, 28, 29}

_DESKTOP_CORES = 16
"""Without any hint of its chassis, a machine with more cores than this is taken for a server."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Facts of the machine; those of the engine are added by whoever has one.

    Attributes:
        kind: phone, sbc, laptop, desktop or server.
        arch: as Kubernetes writes it.
        os: linux or android.
        cores: that this process may use.
        memory_bytes: physical, or this process's control group's limit if that is lower; 0 if unknown.
        simd: sorted.
        model_name: of the machine, for people; may be empty.
        has_battery: whether one was found; phones have one even if it cannot be seen.
    """

    kind: str
    arch: str
    os: str
    cores: int
    memory_bytes: int
    simd: tuple[str, ...]
    model_name: str
    has_battery: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def probe(
    root: Path = Path("/"),
    *,
    environment: Mapping[str, str] | None = None,
    machine: str | None = None,
    cores: int | None = None,
) -> MachineFacts:
    """Look at the machine.

    Args:
        root: where proc and sys are.
        environment: variables of this process; those of the system by default.
        machine: what `uname -m` says; asked of the system by default.
        cores: that may be used; asked of the system by default.
    """
    environment = os.environ if environment is None else environment
    arch = machine or platform.machine()
    android = _is_android(root, environment)
    batteries = battery_folders(root)
    return MachineFacts(
        kind=_kind(root, android=android, battery=bool(batteries), cores=cores or usable_cores()),
        arch=ARCHITECTURES.get(arch.lower(), arch.lower()),
        os="android" if android else "linux",
        cores=cores or usable_cores(),
        memory_bytes=_memory_bytes(root),
        simd=_simd(root),
        model_name=_model_name(root, environment),
        has_battery=android or bool(batteries),
    )


def usable_cores() -> int:
    """Cores this process may run on, at least 1."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except (AttributeError, OSError):  # not on every Android
        return os.cpu_count() or 1


def read_text(path: Path) -> str | None:
    """A small file of /proc or /sys without surrounding blanks and NULs; None if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0 \n\t")
    except (OSError, ValueError):
        return None


def battery_folders(root: Path) -> list[Path]:
    """Batteries that power the machine, not its mouse."""
    try:
        supplies = sorted((root / "sys/class/power_supply").iterdir())
    except OSError:
        return []
    return [s for s in supplies if read_text(s / "type") == "Battery" and read_text(s / "scope") != "Device"]


def _is_android(root: Path, environment: Mapping[str, str]) -> bool:
    if environment.get("ANDROID_ROOT") and environment.get("ANDROID_DATA"):
        return True
    return (root / "system/build.prop").exists() or "com.termux" in environment.get("PREFIX", "")


def _kind(root: Path, *, android: bool, battery: bool, cores: int) -> str:
    if android:
        return "phone"
    chassis = read_text(root / "sys/class/dmi/id/chassis_type")
    number = int(chassis) if chassis and chassis.isdigit() else 0
    if number in _LAPTOP_CHASSIS:
        return "laptop"
    if number in _SERVER_CHASSIS:
        return "server"
    if number in _DESKTOP_CHASSIS:
        return "desktop"
    if battery:
        return "laptop"
    # Boards describe themselves by a device tree; PCs and most servers by DMI.
    if read_text(root / "proc/device-tree/model") and not (root / "sys/class/dmi/id").is_dir():
        return "sbc"
    # Virtual machines say "other" (1) or nothing at all; they live on servers.
    if number in (1, 2) or " hypervisor" in (read_text(root / "proc/cpuinfo") or ""):
        return "server"
    return "server" if cores > _DESKTOP_CORES else "desktop"


def _memory_bytes(root: Path) -> int:
    total = memory_field(root, "MemTotal") or 0
    limit = read_text(root / "sys/fs/cgroup/memory.max")
    if limit and limit.isdigit():
        return min(total, int(limit)) if total else int(limit)
    return total


def memory_field(root: Path, name: str) -> int | None:
    """A line of /proc/meminfo in bytes; None if it is not there."""
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if key == name and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def _simd(root: Path) -> tuple[str, ...]:
    found: set[str] = set()
    for line in (read_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, rest = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            features = {_SIMD[word] for word in rest.split() if word in _SIMD}
            # Cores of one phone differ; only what all of them have can be relied on.
            found = features if not found else found & features
    return tuple(sorted(found))


def _model_name(root: Path, environment: Mapping[str, str]) -> str:
    tree = read_text(root / "proc/device-tree/model")
    if tree:
        return tree
    vendor = read_text(root / "sys/class/dmi/id/sys_vendor") or ""
    product = read_text(root / "sys/class/dmi/id/product_name") or ""
    if product:
        return product if product.startswith(vendor) else f"{vendor} {product}".strip()
    properties = read_text(root / "system/build.prop") or ""
    for line in properties.splitlines():
        if line.startswith("ro.product.model="):
            return line.partition("=")[2].strip()
    return environment.get("HOSTTYPE", "") if not properties else ""
