"""What an owner says to an agent, in which way ever, and what the agent says to its owner."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hack import joining
from pocketgrid.model.ids import DeviceName
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid_agent import settings as options
from pocketgrid_agent import status
from pocketgrid_agent.hours import parse_window
from pocketgrid_agent.policy import Policy
from pocketgrid_agent.probe import MachineFacts
from tests.unit.agent.gateway_peer import DEADLINE_S, AgentProcess, GatewayPeer, Stream, make_certificates, until
from tests.unit.gateway.grid import a_grid

FACTS = MachineFacts("sbc", "arm64", "linux", 4, 4 << 30, (), "", has_battery=False)
PHONE = replace(FACTS, kind="phone", os="android", cores=8, has_battery=True)


@pytest.fixture
async def peer() -> AsyncIterator[GatewayPeer]:
    async with GatewayPeer(make_certificates()).serving() as serving:
        yield serving


@pytest.fixture
async def agent(peer: GatewayPeer, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    process = AgentProcess(peer, tmp_path / "home")
    yield process
    if process.process is not None:
        await process.kill()


async def attached(peer: GatewayPeer) -> Stream:
    await until(lambda: bool(peer.streams), "attached")
    return peer.streams[-1]


# ---- a running agent ----


async def test_status_says_what_an_agent_does_and_why_it_waits(peer: GatewayPeer, agent: AgentProcess) -> None:
    async def ask(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pocketgrid_agent", "status", *arguments]
        environment = {"PATH": os.environ["PATH"], "HOME": str(agent.home)}
        asked = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await asyncio.wait_for(asked.communicate(), DEADLINE_S)
        assert asked.returncode is not None
        return asked.returncode, said.decode()

    status, said = await ask()
    assert status == 1
    assert "no agent runs with the state folder" in said
    agent.extra = ("--min-memory", "1000Ti")
    await agent.start()
    stream = await attached(peer)
    await until(lambda: bool(stream.of("restraint")), "restraint")
    status, said = await ask()
    assert status == 0
    assert "PAUSED: " in said
    assert "(MemoryLow)" in said
    status, said = await ask("--json")
    report = json.loads(said)
    assert (report["device"], report["attached"], report["level"]) == ("test-device", True, "PAUSE")
    assert report["engine_loaded"] is False, "an agent without work carries no engine"
    maps = Path(f"/proc/{agent.pid}/maps").read_text()
    assert "cygrpc" in maps
    assert "onnxruntime" not in maps
    assert "numpy" not in maps
    await agent.kill()
    assert (await ask())[0] == 1, "a socket that a killed agent left behind is no agent"


async def test_the_grid_knows_why_a_device_waits(tmp_path: Path) -> None:
    async with a_grid(tmp_path / "grid", silence_seconds=8.0, hello_seconds=10.0) as grid:
        await joining.enrol(
            grid.gateway_folder, tmp_path / ".local/state/pocketgrid-agent", "test-device", grid.gateway.address
        )
        command = [
            sys.executable, "-m", "pocketgrid_agent", "--min-memory", "1000Ti",
        ]  # fmt: skip
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        agent = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL)
        try:
            name = DeviceName("test-device")
            await until(lambda: name in grid.engine.device_views(), "attached")
            await until(lambda: grid.engine.device_views()[name].restraint.paused, "paused")
            view = grid.engine.device_views()[name]
            assert (view.restraint.reason, view.schedulable) == ("MemoryLow", False)
            assert "MiB available, works from" in view.restraint.message
        finally:
            agent.kill()
            await agent.wait()


async def test_a_phone_whose_battery_is_low_never_begins_to_work(peer: GatewayPeer, agent: AgentProcess) -> None:
    """Termux takes a moment to answer, and until then nothing is known."""
    tools = agent.home / "bin"
    tools.mkdir(parents=True)
    asked = tools / "termux-battery-status"
    asked.write_text('#!/bin/sh\nsleep 1\necho \'{"percentage": 9, "plugged": "UNPLUGGED"}\'\n')
    asked.chmod(0o755)
    agent.extra = ("--profile", "phone")
    agent.wrapper = ("sh", "-c", f'PATH={tools}:$PATH exec "$@"', "sh")
    await agent.start()
    stream = await attached(peer)
    await until(lambda: any(r.reason != "LookingAround" for r in stream.of("restraint")), "a verdict")
    assert stream.of("restraint")[-1].reason == "BatteryLow"
    assert {r.level for r in stream.of("restraint")} == {pb.Restraint.LEVEL_PAUSED}


async def test_an_agent_finds_its_file(peer: GatewayPeer, agent: AgentProcess) -> None:
    config = agent.home / ".config/pocketgrid-agent/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('min-memory = "1000Ti"\nlabel = { room = "kitchen" }\n')
    await agent.start()
    stream = await attached(peer)
    assert dict(stream.hello.labels) == {"room": "kitchen"}
    await until(lambda: bool(stream.of("restraint")), "restraint")
    assert stream.of("restraint")[0].reason == "MemoryLow"


def test_reports_are_readable() -> None:
    report = {
        "device": "phone-1", "gateway": "g:1", "attached": True, "level": "EASE", "reason": "BatteryWarm",
        "message": "battery at 41 °C of at most 45 °C", "draining": "", "running": 1, "queued": 2, "unsettled": 3,
        "jobs": [{"job": "uid", "state": "getting ready"}],
        "vitals": {"battery_percent": 81.0, "charging": True, "processor_celsius": None, "network": ""},
    }  # fmt: skip
    assert status.describe(report).splitlines() == [
        "device     phone-1",
        "gateway    g:1, attached",
        "policy     works gently: battery at 41 °C of at most 45 °C (BatteryWarm)",
        "work       1 running, 2 queued, 3 results not settled",
        "job        uid: getting ready",
        "readings   battery_percent=81, charging=True",
        "unknown    network, processor_celsius",
    ]


# ---- options, wherever they come from ----


def settings_of(
    *arguments: str, file: Path | None = None, facts: MachineFacts = FACTS, **environment: str
) -> options.Settings:
    known = {"HOME": "/nowhere", "POCKETGRID_GATEWAY": "g:1", **environment}
    if file is not None:
        known["POCKETGRID_CONFIG"] = str(file)
    return options.settings_from(options.parse(list(arguments), known), known, facts)


def toml(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_everything_can_be_said_in_a_file(tmp_path: Path) -> None:
    file = toml(
        tmp_path,
        """
        gateway = "from-the-file:7443"
        threads = 2
        cache-budget = "1Gi"
        profile = "phone"
        min-battery = 40
        max-battery-celsius = "off"
        only-charging = false
        hours = ["Mon-Fri 22:00-06:00", "Sat,Sun 00:00-24:00"]
        pause-if-unknown = ["battery"]
        preload = true
        label = { room = "kitchen", shelf = "2" }
        """,
    )
    settings = settings_of(file=file, POCKETGRID_GATEWAY="")
    assert (settings.gateway, settings.threads) == ("from-the-file:7443", 2)
    assert (settings.cache_bytes, settings.preload) == (1 << 30, True)
    assert settings.labels == {"room": "kitchen", "shelf": "2"}
    assert settings.policy == Policy(
        min_battery_percent=40.0,
        only_charging=False,
        max_battery_celsius=None,
        max_celsius_per_minute=3.0,
        allow_metered=False,
        windows=(parse_window("Mon-Fri 22:00-06:00"), parse_window("Sat,Sun 00:00-24:00")),
        pause_if_unknown=frozenset({"battery"}),
    )


def test_the_command_line_counts_most_then_the_environment_then_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "min-battery = 10\nmax-celsius = 60\nslots = 1\n")
    settings = settings_of(
        *("--max-celsius", "80"), file=file, POCKETGRID_AGENT_MAX_CELSIUS="70", POCKETGRID_AGENT_MIN_BATTERY="20"
    )
    assert settings.policy == Policy(min_battery_percent=20.0, max_celsius=80.0)
    assert settings.gateway == "g:1"


def test_lists_in_the_environment() -> None:
    settings = settings_of(POCKETGRID_AGENT_HOURS="22:00-06:00;Sun 00:00-24:00", POCKETGRID_AGENT_ONLY_CHARGING="yes")
    assert [str(window) for window in settings.policy.windows] == ["22:00-06:00", "Sun 00:00-24:00"]
    assert settings.policy.only_charging is True


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("min-batery = 40", "no option min-batery; did you mean min-battery?"),
        ("min-battery = true", "true is no value of it"),
        ("min-battery = [1, 2]", "one value is wanted"),
        ('min-battery = "much"', "'much' is not a number, or off"),
        ('only-charging = "maybe"', "neither true nor false"),
        ('hours = ["late"]', "'late' are no hours such as"),
        ('profile = "tablet"', "none of phone"),
        ("[policy]\nx = 1", "no option policy"),
        ("not toml", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(
    tmp_path: Path, text: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        settings_of(file=toml(tmp_path, text))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert "agent.toml" in said


def test_a_variable_nobody_knows_and_a_file_that_is_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings_of(POCKETGRID_AGENT_MIN_BATERY="40")
    assert "POCKETGRID_AGENT_MIN_BATERY: there is no option min-batery; did you mean min-battery?" in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        settings_of("--config", "/absent.toml")
    assert "cannot read /absent.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "facts", "threads", "duty"),
    [
        pytest.param((), FACTS, 4, 1.0, id="a board gives all"),
        pytest.param((), PHONE, 4, 1.0, id="a phone gives half"),
        pytest.param(("--cpu-share", "0.4"), FACTS, 1, 1.0, id="less than two cores are one"),
        pytest.param(("--cpu-share", "0.1"), FACTS, 1, 0.4, id="less than one core rests"),
        pytest.param(("--cpu-share", "0.001"), FACTS, 1, options.SHORTEST_DUTY, id="next to nothing"),
        pytest.param(("--threads", "3", "--cpu-share", "0.1"), FACTS, 3, 1.0, id="threads count more than shares"),
    ],
)
def test_shares_become_threads_and_rest(
    arguments: tuple[str, ...], facts: MachineFacts, threads: int, duty: float
) -> None:
    settings = settings_of(*arguments, facts=facts)
    assert (settings.threads, settings.duty) == (threads, pytest.approx(duty))


def test_a_share_of_the_memory_is_the_budget_of_models_and_runs() -> None:
    assert settings_of("--memory-share", "0.25").memory_bytes == 1 << 30
    assert settings_of("--memory-share", "0.25", "--memory-budget", "64Mi").memory_bytes == 64 << 20
