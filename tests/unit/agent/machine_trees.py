"""Machines as folders of files."""

from __future__ import annotations

from pathlib import Path

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
