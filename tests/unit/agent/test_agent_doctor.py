"""The doctor: every fault is named by the step at which it happens, with its remedy."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pocketgrid_agent import android, doctor, network
from pocketgrid_agent import settings as options
from pocketgrid_agent.credentials import Credentials
from pocketgrid_agent.engine_facts import EngineError
from pocketgrid_agent.findings import Finding, Gravity, as_table, failure, note, ok, warning
from pocketgrid_agent.probe import MachineFacts
from tests.unit.agent.gateway_peer import Certificates, join_by_hand, make_certificates
from tests.unit.gateway.grid import a_grid

FACTS = MachineFacts("sbc", "arm64", "linux", 4, 4 << 30, (), "", has_battery=False)


def last(findings: Iterator[Finding]) -> Finding:
    return list(findings)[-1]


# ---- the way to the gateway ----


@contextmanager
def listening(answer: bytes = b"", context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Somebody who is not a gateway."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(5)
                if context is not None:
                    with context.wrap_socket(connection, server_side=True) as encrypted:
                        encrypted.recv(1)
                elif answer:
                    connection.recv(1)
                    connection.sendall(answer)
                else:
                    connection.recv(1)
        except OSError:
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        with socket.create_connection(server.getsockname()):
            pass
        thread.join(10)
        server.close()


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return make_certificates()


def holding(certificates: Certificates) -> Credentials:
    """Credentials of a device that trusts this one and nobody else."""
    mine = make_certificates()
    return Credentials(
        "phone", mine.key, mine.certificate, certificates.certificate, b"", "g:1", "g:2", "", 0.0, 3600.0, 2400.0
    )


def server_context(folder: Path, certificates: Certificates) -> ssl.SSLContext:
    (folder / "cert.pem").write_bytes(certificates.certificate)
    (folder / "key.pem").write_bytes(certificates.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@pytest.mark.parametrize("address", ["", "grid", "grid:", "grid:port", "grid:70000", ":7443"])
def test_what_is_no_address_is_said_to_be_none(address: str) -> None:
    finding = last(network.examine(address, None))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "gateway")


def test_a_name_without_an_address() -> None:
    finding = last(network.examine("no-such-host.invalid:7443", None))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "dns")


def test_a_port_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    finding = last(network.examine(f"127.0.0.1:{port}", None))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "port")
    assert "refuses" in finding.message
    assert "nothing listens" in finding.remedy


def test_a_port_that_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def swallowed(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", swallowed)
    finding = last(network.examine("127.0.0.1:7443", None))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "port")
    assert "firewall" in finding.remedy


def test_somebody_who_speaks_no_tls(tmp_path: Path, certificates: Certificates) -> None:
    with listening(b"HTTP/1.1 302 Found\r\nLocation: http://sign-in/\r\n\r\n") as port:
        finding = last(network.examine(f"127.0.0.1:{port}", holding(certificates)))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "tls")
    assert "does not speak TLS" in finding.message


def test_somebody_who_hangs_up(tmp_path: Path, certificates: Certificates) -> None:
    with listening() as port:
        finding = last(network.examine(f"127.0.0.1:{port}", holding(certificates)))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "tls")


def test_a_certificate_of_somebody_else(tmp_path: Path, certificates: Certificates) -> None:
    with listening(context=server_context(tmp_path, certificates)) as port:
        finding = last(network.examine(f"127.0.0.1:{port}", holding(make_certificates())))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "tls")
    assert "join anew" in finding.remedy


def test_a_certificate_for_another_name(tmp_path: Path, certificates: Certificates) -> None:
    with listening(context=server_context(tmp_path, certificates)) as port:
        finding = last(network.examine(f"localhost:{port}", holding(certificates)))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "tls")
    assert "--tls-server-name" in finding.remedy


def test_somebody_who_speaks_tls_but_not_http_2(tmp_path: Path, certificates: Certificates) -> None:
    with listening(context=server_context(tmp_path, certificates)) as port:
        finding = last(network.examine(f"127.0.0.1:{port}", holding(certificates)))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "tls")
    assert "HTTP/2" in finding.message


def test_authorities_that_are_none(certificates: Certificates) -> None:
    rubbish = replace(holding(certificates), bundle_pem=b"no certificate")
    with listening() as port:
        finding = last(network.examine(f"127.0.0.1:{port}", rubbish))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "tls")
    assert "are damaged" in finding.message


async def test_a_gateway_that_would_let_the_device_in_and_knows_the_time(tmp_path: Path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1")
        findings = await asyncio.to_thread(lambda: list(network.examine(grid.gateway.address, held)))
        assert [(f.check, f.gravity) for f in findings] == [
            (check, Gravity.OK) for check in ("dns", "port", "tls", "admission", "clock")
        ]
        assert grid.gateway.sessions == 0, "looking attaches nothing"


async def test_a_gateway_that_does_not_let_the_device_in(tmp_path: Path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1", revoked=True)
        finding = await asyncio.to_thread(lambda: last(network.examine(grid.gateway.address, held)))
    assert (finding.gravity, finding.check) == (Gravity.FAILURE, "admission")
    assert "Revoked" in finding.message


@pytest.mark.parametrize(
    ("skew", "gravity", "word"),
    [
        (0.4, Gravity.OK, ""),
        (-59, Gravity.OK, ""),
        (3600, Gravity.WARNING, "behind"),
        (-86400, Gravity.WARNING, "ahead of"),
    ],
)
def test_clocks(skew: float, gravity: Gravity, word: str) -> None:
    finding = network.clock_finding(skew)
    assert finding.gravity is gravity
    assert word in finding.message


# ---- Android ----


@pytest.mark.parametrize(
    ("sdk", "flag", "gravity", "words"),
    [
        ("30", "", Gravity.OK, []),
        ("31", "", Gravity.WARNING, ["max_phantom_processes", "adb pair"]),
        ("33", "", Gravity.WARNING, ["settings put global settings_enable_monitor_phantom_procs false", "adb pair"]),
        ("33", "null", Gravity.WARNING, ["settings put global"]),
        ("33", "true", Gravity.WARNING, ["settings put global"]),
        ("33", "false", Gravity.OK, []),
        ("34", "", Gravity.WARNING, ["Disable child process restrictions"]),
        ("", "", Gravity.NOTE, ["Android 12"]),
        ("nonsense", "", Gravity.NOTE, ["Android 12"]),
    ],
)
def test_the_limit_of_child_processes(sdk: str, flag: str, gravity: Gravity, words: list[str]) -> None:
    finding = android.phantom_limit(sdk, flag)
    assert finding.gravity is gravity
    assert [word for word in words if word not in finding.remedy] == []
    if gravity is Gravity.WARNING:
        assert "32" in finding.message
        assert "signal 9" in finding.message


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_phone_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, home = tmp_path / "bin", tmp_path / "home"
    tools.mkdir()
    boot = home / ".termux/boot"
    boot.mkdir(parents=True)
    (boot / "pocketgrid-agent").touch()
    tool(tools, "getprop", '[ "$1" = ro.build.version.sdk ] && echo 34')
    tool(tools, "settings", 'echo "cmd: Can\'t find service: settings" >&2; exit 20')
    tool(tools, "termux-battery-status", "exec /bin/sleep 600")
    tool(tools, "termux-wake-lock", "exit 0")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(android, "ANSWER_SECONDS", 0.3)
    for pid in range(20):
        (tmp_path / "proc" / str(pid + 1)).mkdir(parents=True)
    findings = {f.check: f for f in android.examine(tmp_path, {"HOME": str(home)})}
    assert {check: f.gravity.value for check, f in findings.items()} == {
        "phantom-processes": "warning",
        "processes": "warning",
        "termux-api": "warning",
        "wake-lock": "note",
        "battery-optimisation": "note",
        "autostart": "ok",
    }
    assert "cannot be seen from inside" in findings["phantom-processes"].message
    assert "package alone is not enough" in findings["termux-api"].remedy
    assert all(f.remedy for f in findings.values() if f.gravity is not Gravity.OK)


def test_a_phone_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = {f.check: f.gravity.value for f in android.examine(tmp_path, {"HOME": str(tmp_path)})}
    assert findings["termux-api"] == findings["wake-lock"] == "warning"
    assert findings["autostart"] == "note"


# ---- this machine ----


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "2.4.6", "grpcio": "1.62.1", "protobuf": "6.31.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {f.check: f for f in doctor.packages(android_device=True)}
    assert {check: f.gravity.value for check, f in found.items()} == {
        "python": "ok",
        "package-numpy": "ok",
        "package-onnxruntime": "failure",
        "package-grpcio": "failure",
        "package-protobuf": "ok",
        "package-cryptography": "failure",
    }
    assert found["package-onnxruntime"].remedy.startswith("pkg install python-onnxruntime")
    assert "older than 1.80" in found["package-grpcio"].message
    assert "pip install" in {f.check: f for f in doctor.packages(android_device=False)}["package-grpcio"].remedy


def examine(tmp_path: Path, *arguments: str) -> dict[str, Finding]:
    environment = {"HOME": str(tmp_path)}
    parsed = options.parse(["doctor", *arguments], environment)
    return {f.check: f for f in doctor.examine(parsed, FACTS, environment)}


def test_what_an_agent_lacks_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes() -> None:
        raise EngineError("loading it ended with signal 4")

    monkeypatch.setattr(doctor, "ask_engine", crashes)
    (tmp_path / "file").touch()
    found = examine(tmp_path, "--state-dir", str(tmp_path / "file/state"), "--only-charging")
    assert found["engine"].gravity is Gravity.FAILURE
    assert "signal 4" in found["engine"].message
    assert found["state-folder"].gravity is Gravity.FAILURE
    assert "--state-dir" in found["state-folder"].remedy
    assert found["cache-folder"].gravity is Gravity.OK
    assert found["joined"].gravity is Gravity.FAILURE
    assert "gateway" not in found, "without having joined there is nobody to look for"
    assert found["telemetry"].gravity is Gravity.OK


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    assert doctor._disk(tmp_path / "not/there/yet", 1 << 30).gravity is Gravity.FAILURE


def test_tables_show_remedies_below_their_findings() -> None:
    table = as_table(
        [ok("a", "fine"), note("bb", "hm"), warning("c", "slow", "do this\nthen that"), failure("d", "off", "turn on")]
    )
    assert table.splitlines() == [
        "ok       a   fine",
        "note     bb  hm",
        "warning  c   slow",
        "               -> do this",
        "               -> then that",
        "failure  d   off",
        "               -> turn on",
    ]


def test_the_command_reports_for_programs_and_ends_with_a_status(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    join_by_hand(make_certificates(), tmp_path, "phone", 1)
    command = [sys.executable, "-m", "pocketgrid_agent", "doctor", "--json", "--gateway", "no-such-host.invalid:7443"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == doctor.SICK, ran.stderr
    report = json.loads(ran.stdout)
    assert report["healthy"] is False
    findings = {f["check"]: f for f in report["findings"]}
    assert findings["engine"]["gravity"] == "ok"
    assert findings["joined"]["gravity"] == "ok"
    assert findings["dns"]["gravity"] == "failure"
    assert findings["dns"]["remedy"]
