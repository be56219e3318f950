"""What the agent makes of machines, shown to it as folders of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketgrid_agent.probe import MachineFacts, probe

X86_FLAGS = "flags : fpu sse4_2 avx avx2 fma f16c avx512f avx512_vnni"
ARM_FEATURES = "Features : fp asimd evtstrm aes asimdhp asimddp i8mm"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


PHONE = {
    "proc/meminfo": "MemTotal: 7812345 kB\nMemAvailable: 3000000 kB\n",
    "proc/cpuinfo": f"processor : 0\n{ARM_FEATURES}\n\nprocessor : 1\nFeatures : fp asimd asimddp\n",
}
RASPBERRY = {
    "proc/meminfo": "MemTotal: 3884400 kB\nMemAvailable: 3500000 kB\n",
    "proc/cpuinfo": "processor : 0\nFeatures : fp asimd evtstrm crc32 cpuid\n",
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/loadavg": "0.52 0.40 0.30 1/200 999\n",
    "proc/net/route": "Iface\tDestination\tGateway\nwlan0\t00000000\t0101A8C0\t0003\n",
    "sys/class/net/wlan0/wireless/x": "",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "51608\n",
}
LAPTOP = {
    "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 9000000 kB\n",
    "proc/cpuinfo": f"processor : 0\n{X86_FLAGS}\n",
    "sys/class/dmi/id/chassis_type": "10\n",
    "sys/class/dmi/id/sys_vendor": "Framework\n",
    "sys/class/dmi/id/product_name": "Laptop 13\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/capacity": "42\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/BAT0/temp": "312\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/mouse/type": "Battery\n",
    "sys/class/power_supply/mouse/scope": "Device\n",
    "sys/class/power_supply/mouse/capacity": "3\n",
    "sys/class/thermal/thermal_zone0/type": "acpitz\n",
    "sys/class/thermal/thermal_zone0/temp": "-274000\n",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone1/temp": "67000\n",
    "sys/class/thermal/thermal_zone2/type": "iwlwifi_1\n",
    "sys/class/thermal/thermal_zone2/temp": "99000\n",
    "proc/net/route": "Iface\tDestination\tGateway\nenp3s0\t00000000\t0101A8C0\t0003\n",
}
SERVER = {
    "proc/meminfo": "MemTotal: 263000000 kB\n",
    "proc/cpuinfo": f"processor : 0\n{X86_FLAGS} amx_int8\n",
    "sys/class/dmi/id/chassis_type": "23\n",
    "sys/class/dmi/id/product_name": "PowerEdge R650\n",
    "sys/fs/cgroup/memory.max": "8589934592\n",
}


@pytest.mark.parametrize(
    ("files", "environment", "machine", "cores", "expected"),
    [
        pytest.param(
            PHONE,
            {"ANDROID_ROOT": "/system", "ANDROID_DATA": "/data", "PREFIX": "/data/data/com.termux/files/usr"},
            "aarch64",
            8,
            MachineFacts("phone", "arm64", "android", 8, 7812345 * 1024, ("asimddp", "neon"), "", has_battery=True),
            id="phone in Termux, cores that differ, no battery to be seen",
        ),
        pytest.param(
            RASPBERRY,
            {},
            "aarch64",
            4,
            MachineFacts(
                "sbc", "arm64", "linux", 4, 3884400 * 1024, ("neon",), "Raspberry Pi 4 Model B Rev 1.4", False
            ),
            id="Raspberry Pi",
        ),
        pytest.param(
            LAPTOP,
            {},
            "x86_64",
            16,
            MachineFacts(
                "laptop",
                "amd64",
                "linux",
                16,
                16000000 * 1024,
                ("avx", "avx2", "avx512_vnni", "avx512f", "f16c", "fma", "sse4.2"),
                "Framework Laptop 13",
                has_battery=True,
            ),
            id="laptop",
        ),
        pytest.param(
            SERVER,
            {},
            "x86_64",
            64,
            MachineFacts(
                "server",
                "amd64",
                "linux",
                64,
                8589934592,
                ("amx_int8", "avx", "avx2", "avx512_vnni", "avx512f", "f16c", "fma", "sse4.2"),
                "PowerEdge R650",
                has_battery=False,
            ),
            id="server with a memory limit",
        ),
        pytest.param({}, {}, "riscv64", 4, MachineFacts("desktop", "riscv64", "linux", 4, 0, (), "", False), id="bare"),
        pytest.param(
            {"proc/cpuinfo": "flags : sse4_2 hypervisor\n"},
            {},
            "x86_64",
            2,
            MachineFacts("server", "amd64", "linux", 2, 0, ("sse4.2",), "", False),
            id="virtual machine",
        ),
    ],
)
def test_machines(
    tmp_path: Path,
    files: dict[str, str],
    environment: dict[str, str],
    machine: str,
    cores: int,
    expected: MachineFacts,
) -> None:
    assert probe(tree(tmp_path, files), environment=environment, machine=machine, cores=cores) == expected


def test_a_32_bit_raspberry_is_arm(tmp_path: Path) -> None:
    facts = probe(tree(tmp_path, RASPBERRY), environment={}, machine="armv7l", cores=4)
    assert (facts.arch, facts.kind) == ("arm", "sbc")


def test_this_machine_can_be_probed() -> None:
    facts = probe()
    assert facts.cores >= 1
    assert facts.memory_bytes > 0
    json.dumps(facts.as_dict())
