"""install.sh: what it would do, what it does, and that what it writes is understood by those who read it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "edge_agent/install.sh"
DEADLINE_S = 100.0

JOIN = ("--join", "grid:7444", "--token", "s3cret", "--ca-sha256", "ab" * 32)


def run(
    *arguments: str, home: Path, status: int = 0, path: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    known = {"HOME": str(home), "PATH": path or os.environ["PATH"], **environment}
    ran = subprocess.run(
        ["sh", str(SCRIPT), *arguments],
        env=known, capture_output=True, text=True, timeout=DEADLINE_S, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ran.returncode == status, ran.stdout + ran.stderr
    return ran


def commands(said: str) -> list[str]:
    return [line.removeprefix("+ ") for line in said.splitlines() if line.startswith("+ ")]


def tools(folder: Path, **scripts: str) -> str:
    """A PATH with programs that do as told, before those of this machine."""
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=DEADLINE_S)
    (built,) = folder.glob("*.whl")
    return built


def test_the_script_is_clean_posix_shell() -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    subprocess.run([str(checker), "--shell=sh", "--enable=quote-safe-variables", str(SCRIPT)], check=True)


def test_it_can_be_executed_and_explains_itself(tmp_path: Path) -> None:
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
    assert "--dry-run" in run("--help", home=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--nonsense",), "no option --nonsense"),
        (("--join",), "--join needs a value"),
        (("--join", "no-port"), "HOST:PORT"),
        (("--join", "grid:7444", "--ca-sha256", "ab"), "--join needs --token"),
        (("--join", "grid:7444", "--token", "t"), "and --ca-sha256"),
        (("--wheel", "/absent.whl"), "cannot read /absent.whl"),
        (("--profile", 'a"b'), "cannot hold quotes"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_done(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in run("--user", *arguments, home=tmp_path, status=1).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_does_nothing(tmp_path: Path) -> None:
    said = run("--dry-run", "--user", *JOIN, "--profile", "phone", home=tmp_path).stdout
    assert list(tmp_path.iterdir()) == []
    assert any(c.endswith("pocketgrid[agent]") and "--only-binary :all:" in c for c in commands(said))
    assert f"write {tmp_path}/.config/systemd/user/pocketgrid-agent.service (mode 644)" in commands(said)
    assert '  | profile = "phone"' in said
    (join,) = [c for c in commands(said) if "pocketgrid-agent join " in c]
    assert join.endswith(f"join grid:7444 --ca-sha256 {'ab' * 32} --state-dir {tmp_path}/.local/state/pocketgrid-agent")
    assert "s3cret" not in said, "a token is for nobody's eyes"


def test_on_termux_packages_come_from_termux_and_nothing_is_compiled(tmp_path: Path) -> None:
    path = tools(tmp_path / "bin", pkg="exit 0", python="exit 0")
    said = run(
        *("--dry-run", *JOIN),
        home=tmp_path, path=path, PREFIX="/data/data/com.termux/files/usr",
    )  # fmt: skip
    done = commands(said.stdout)
    install = next(i for i, c in enumerate(done) if c.startswith("pkg install -y"))
    assert {"python-numpy", "python-onnxruntime", "python-grpcio", "python-cryptography"} <= set(done[install].split())
    pips = [(i, c) for i, c in enumerate(done) if " -m pip install " in c]
    assert all(i > install and "--only-binary :all:" in c for i, c in pips)
    assert pips[-1][1].endswith("--no-deps pocketgrid")
    assert any("venv --clear --system-site-packages" in c for c in done)
    assert f"write {tmp_path}/.termux/boot/pocketgrid-agent (mode 755)" in done
    assert not any("systemctl" in c for c in done)


def test_a_user_installs_updates_and_removes_it_without_a_network(tmp_path: Path, wheel: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    path = tools(tmp_path / "bin", systemctl="exit 1")
    base = ("--user", "--offline", "--wheel", str(wheel))
    said = run(*base, "--profile", "stationary", home=home, path=path).stdout
    assert "has not joined a grid yet" in said
    agent = home / ".local/share/pocketgrid-agent/bin/pocketgrid-agent"
    config = home / ".config/pocketgrid-agent"
    assert "installed: pocketgrid-agent " in said
    assert tomllib.loads((config / "config.toml").read_text()) == {"profile": "stationary"}
    # Nobody answers there, so it has the agent's own words for it, and nothing is left half done.
    failed = run(*base, *JOIN[:1], "127.0.0.1:1", *JOIN[2:], home=home, path=path, status=1)
    assert "nobody answers as a gateway at 127.0.0.1:1" in failed.stderr
    unit = home / ".config/systemd/user/pocketgrid-agent.service"
    assert f"ExecStart={agent} run --config {config}/config.toml" in unit.read_text()
    if shutil.which("systemd-analyze"):
        command = ["systemd-analyze", "verify", "--user", "--man=no", str(unit)]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
        subprocess.run(command, check=True, timeout=DEADLINE_S, env=environment)

    # Again, with one thing changed and one added by hand: the rest stays.
    with (config / "config.toml").open("a") as file:
        file.write("min-battery = 40\n")
    run(*base, "--profile", "laptop", home=home, path=path)
    settings = tomllib.loads((config / "config.toml").read_text())
    assert (settings["profile"], settings["min-battery"]) == ("laptop", 40)
    before = (config / "config.toml").read_bytes()
    assert "is kept as it is" in run(*base, home=home, path=path).stdout
    assert (config / "config.toml").read_bytes() == before

    state = home / ".local/state/pocketgrid-agent"
    state.mkdir(parents=True, exist_ok=True)
    (state / "device-name").write_text("phone-1\n")
    run("--user", "--uninstall", home=home, path=path)
    assert not agent.exists()
    assert not unit.exists()
    assert (state / "device-name").exists(), "a device keeps its name and what it has not delivered"
    run("--user", "--uninstall", "--purge", home=home, path=path)
    assert [p for p in home.rglob("*") if p.is_file() and "pocketgrid" in str(p.relative_to(home))] == []


def test_the_service_of_a_machine_is_a_user_of_its_own(tmp_path: Path, wheel: Path) -> None:
    root = tmp_path / "root"
    said = run(
        *("--dry-run", "--system", "--offline", "--wheel", str(wheel), *JOIN),
        home=tmp_path, DESTDIR=str(root),
    ).stdout  # fmt: skip
    assert not root.exists()
    lines = said.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.endswith("pocketgrid-agent.service (mode 644)")) + 1
    text = [line.removeprefix("  | ").removeprefix("  |") for line in lines[begin:] if line.startswith("  |")]
    assert "DynamicUser=yes" in text
    assert "s3cret" not in said
    assert any("pocketgrid-agent join grid:7444" in line and f"{root}/var/lib/" in line for line in lines)
    if shutil.which("systemd-analyze"):
        unit = tmp_path / "pocketgrid-agent.service"
        # What it starts is not there in a dry run; something that is takes its place.
        unit.write_text("\n".join(text).replace("/opt/pocketgrid-agent/bin/pocketgrid-agent", "/bin/true") + "\n")
        subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], check=True, timeout=DEADLINE_S)


def test_what_the_phone_starts_keeps_the_agent_running_and_ends_with_it(tmp_path: Path) -> None:
    said = run(
        *("--dry-run", "--offline"), home=tmp_path, PREFIX="/data/data/com.termux/files/usr",
        path=tools(tmp_path / "bin", python="exit 0"),
    ).stdout  # fmt: skip
    lines = said.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.endswith(".termux/boot/pocketgrid-agent (mode 755)")) + 1
    script = "\n".join(line.removeprefix("  | ") for line in lines[begin:] if line.startswith("  |")) + "\n"
    boot = tmp_path / "boot"
    boot.write_text(script)
    checker = Path(sys.executable).with_name("shellcheck")
    subprocess.run([str(checker), "--shell=sh", str(boot)], check=True)
    agent = tmp_path / ".local/share/pocketgrid-agent/bin/pocketgrid-agent"
    agent.parent.mkdir(parents=True)
    path = tools(tmp_path / "termux", termux_wake_lock=f"echo lock >>{tmp_path}/said", sleep="exit 0")
    # Killed twice, as Android does, and then in good order.
    agent.write_text(
        f"#!/bin/sh\necho run >>{tmp_path}/said\n[ $(grep -c run {tmp_path}/said) -lt 3 ] && kill -9 $$\nexit 0\n"
    )
    agent.chmod(0o755)
    environment = {"PATH": path, "HOME": str(tmp_path)}
    subprocess.run(["sh", str(boot)], env=environment, check=True, timeout=DEADLINE_S)
    assert (tmp_path / "said").read_text() == "lock\nrun\nrun\nrun\n"
