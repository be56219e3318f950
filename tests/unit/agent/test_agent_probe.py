"""What the agent makes of machines, shown to it as folders of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketgrid_agent.probe import MachineFacts, probe
from tests.unit.agent.machine_trees import LAPTOP, PHONE, RASPBERRY, SERVER, tree


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
