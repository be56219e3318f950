"""What the agent reads of machines: files of Linux shown to it as folders, and programs that behave as they please."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from pocketgrid_agent.sensors import LinuxSensor, Sensors, battery_of
from pocketgrid_agent.tools import (
    STALE_AFTER,
    Tool,
    ToolSensor,
    all_sensors,
    network_manager,
    termux_battery,
    termux_wifi,
)
from pocketgrid_agent.vitals import Vitals, merge
from tests.unit.agent.machine_trees import LAPTOP, PHONE, RASPBERRY, tree


def read(root: Path) -> Vitals:
    return LinuxSensor(root).read()


# ---- files ----


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    vitals = read(tmp_path)
    assert vitals == Vitals()
    assert vitals.temperature_celsius is None


def test_vitals_of_a_board(tmp_path: Path) -> None:
    assert read(tree(tmp_path, RASPBERRY)) == Vitals(
        load1=0.52,
        memory_available_bytes=3500000 * 1024,
        processor_celsius=51.608,
        network="wifi",
        metered=False,
    )


def test_vitals_of_a_laptop_leave_out_mouse_and_broken_sensors(tmp_path: Path) -> None:
    vitals = read(tree(tmp_path, LAPTOP))
    assert (vitals.battery_percent, vitals.charging, vitals.battery_celsius) == (42.0, False, 31.2)
    assert vitals.processor_celsius == 67.0
    assert vitals.temperature_celsius == 67.0
    assert (vitals.network, vitals.metered) == ("ethernet", False)


@pytest.mark.parametrize(
    ("status", "charging"),
    [("Charging", True), ("Full", True), ("Not charging", True), ("Discharging", False), ("Unknown", None)],
)
def test_charging_means_plugged_in(tmp_path: Path, status: str, charging: bool | None) -> None:
    files = {"sys/class/power_supply/b/type": "Battery", "sys/class/power_supply/b/status": status}
    battery = battery_of(tree(tmp_path, files))
    assert battery.charging is charging
    assert battery.battery_percent is None


@pytest.mark.parametrize(("status", "expected"), [("Unknown", None), ("Charging", None), ("Discharging", 0.0)])
def test_an_empty_battery_that_is_not_being_emptied_is_a_sensor_that_does_not_know(
    tmp_path: Path, status: str, expected: float | None
) -> None:
    folder = "sys/class/power_supply/battery/"
    files = {folder + "type": "Battery", folder + "status": status, folder + "capacity": "0"}
    assert battery_of(tree(tmp_path, files)).battery_percent == expected


def test_a_phone_on_mobile_data_is_metered(tmp_path: Path) -> None:
    files = {"proc/net/route": "Iface\tDestination\nrmnet_data1\t00000000\t0\n"}
    vitals = read(tree(tmp_path, files))
    assert (vitals.network, vitals.metered) == ("cellular", True)


@pytest.mark.parametrize(
    ("own_s", "expected"),
    [pytest.param(0.0, 0.6, id="all of it is others'"), pytest.param(0.4, 0.4, id="ours is not others'")],
)
def test_load_by_others_is_what_is_busy_without_us(tmp_path: Path, own_s: float, expected: float) -> None:
    own = [5.0]
    tree(tmp_path, {"proc/stat": "cpu  1000 0 500 3000 100 0 0 0 0 0\ncpu0 1 1 1 1\n"})
    sensor = LinuxSensor(tmp_path, own_seconds=lambda: own[0], ticks_per_second=100)
    assert sensor.read().others_cpu is None
    tree(tmp_path, {"proc/stat": "cpu  1100 0 520 3080 100 0 0 0 0 0\n"})
    own[0] += own_s
    assert sensor.read().others_cpu == pytest.approx(expected)


FILES = [
    "proc/meminfo",
    "proc/loadavg",
    "proc/stat",
    "proc/net/route",
    "sys/class/power_supply/b/type",
    "sys/class/power_supply/b/capacity",
    "sys/class/power_supply/b/status",
    "sys/class/power_supply/b/temp",
    "sys/class/thermal/thermal_zone0/type",
    "sys/class/thermal/thermal_zone0/temp",
]
RUBBISH = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"nan", b"inf", b"-1e308", b"0", b"4294967295", b"Battery", b"cpu-thermal", b"cpu 1 2 x 4"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.dictionaries(st.sampled_from(FILES), RUBBISH))
def test_rubbish_gives_plausible_readings_or_none(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("root")
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    sensor = LinuxSensor(root)
    for vitals in (sensor.read(), sensor.read()):
        assert vitals.battery_percent is None or 0 <= vitals.battery_percent <= 100
        for heat in (vitals.battery_celsius, vitals.processor_celsius):
            assert heat is None or -30 <= heat <= 150
        assert vitals.others_cpu is None or 0 <= vitals.others_cpu <= 1


def test_earlier_sensors_count_and_later_ones_fill_the_gaps() -> None:
    first = Vitals(battery_percent=50.0, charging=False)
    second = Vitals(battery_percent=1.0, processor_celsius=40.0, network="wifi")
    assert merge([first, second]) == Vitals(
        battery_percent=50.0, charging=False, processor_celsius=40.0, network="wifi"
    )


# ---- what programs say ----

BATTERY_UNPLUGGED = """{
  "health": "GOOD",
  "percentage": 81,
  "plugged": "UNPLUGGED",
  "status": "DISCHARGING",
  "temperature": 29.5,
  "current": -372460
}
"""
BATTERY_PLUGGED = """{
  "present": true,
  "technology": "Li-ion",
  "health": "GOOD",
  "plugged": "PLUGGED_AC",
  "status": "NOT_CHARGING",
  "temperature": 33.400001525878906,
  "voltage": 4321,
  "current": 0,
  "percentage": 100,
  "level": 100,
  "scale": 100
}
"""
WIFI_CONNECTED = """{
  "bssid": "02:00:00:00:00:00",
  "frequency_mhz": 5180,
  "ip": "192.168.1.23",
  "link_speed_mbps": 433,
  "mac_address": "02:00:00:00:00:00",
  "network_id": -1,
  "rssi": -48,
  "ssid": "<unknown ssid>",
  "ssid_hidden": true,
  "supplicant_state": "COMPLETED"
}
"""
WIFI_OFF = """{
  "bssid": null,
  "frequency_mhz": -1,
  "ip": "0.0.0.0",
  "link_speed_mbps": -1,
  "mac_address": "02:00:00:00:00:00",
  "network_id": -1,
  "rssi": -127,
  "ssid": "<unknown ssid>",
  "ssid_hidden": true,
  "supplicant_state": "UNINITIALIZED"
}
"""


@pytest.mark.parametrize(
    ("understand", "text", "expected"),
    [
        (termux_battery, BATTERY_UNPLUGGED, Vitals(battery_percent=81.0, charging=False, battery_celsius=29.5)),
        (
            termux_battery,
            BATTERY_PLUGGED,
            Vitals(battery_percent=100.0, charging=True, battery_celsius=33.400001525878906),
        ),
        (termux_battery, '{"percentage": 0, "status": "UNKNOWN", "temperature": -500}', Vitals()),
        (termux_battery, '{"percentage": "much"}', Vitals()),
        (termux_battery, '{"percentage": true, "temperature": []}', Vitals()),
        (termux_battery, "{}", Vitals()),
        (termux_wifi, WIFI_CONNECTED, Vitals(network="wifi", metered=False)),
        (termux_wifi, WIFI_OFF, Vitals(network="cellular", metered=True)),
        (termux_wifi, '{"API_ERROR": "Please grant the following permission: ACCESS_FINE_LOCATION"}', Vitals()),
        (network_manager, "yes\n", Vitals(metered=True)),
        (network_manager, "yes (guessed)\n", Vitals(metered=True)),
        (network_manager, "no (guessed)\n", Vitals(metered=False)),
        (network_manager, "unknown\n", Vitals()),
        (network_manager, "", Vitals()),
    ],
)
def test_answers_of_programs(understand: Callable[[str], Vitals], text: str, expected: Vitals) -> None:
    assert understand(text) == expected


@pytest.mark.parametrize("understand", [termux_battery, termux_wifi])
@pytest.mark.parametrize("text", ["", "[]", "nonsense", "null", "{"])
def test_answers_that_make_no_sense_are_no_answers(understand: Callable[[str], Vitals], text: str) -> None:
    with pytest.raises(ValueError):
        understand(text)


# ---- how programs behave ----


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def program(folder: Path, text: str, name: str = "tool") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def sensor_of(command: Path, clock: Clock, deadline_s: float = 10.0) -> ToolSensor:
    return ToolSensor(Tool((str(command),), 30.0, termux_battery), now=clock, deadline_s=deadline_s)


def answer(percent: int) -> str:
    return json.dumps({"percentage": percent, "status": "DISCHARGING"})


def test_a_program_is_asked_in_the_background_and_rarely(tmp_path: Path) -> None:
    clock = Clock()
    said = tmp_path / "said"
    sensor = sensor_of(program(tmp_path, f"echo x >>{said}; echo '{answer(81)}'"), clock)
    assert sensor.read() == Vitals(), "the first answer is not there yet"
    sensor.settle(10.0)
    assert sensor.read().battery_percent == 81.0
    clock.now += 29.0
    sensor.read()
    sensor.settle(10.0)
    assert said.read_text() == "x\n"
    clock.now += 2.0
    sensor.read()
    sensor.settle(10.0)
    assert said.read_text() == "x\nx\n"


def test_without_work_a_program_is_asked_more_rarely_and_believed_for_longer(tmp_path: Path) -> None:
    clock = Clock()
    said = tmp_path / "said"
    sensor = sensor_of(program(tmp_path, f"echo x >>{said}; echo '{answer(81)}'"), clock)
    sensor.read(calm=True)
    sensor.settle(10.0)
    clock.now += 119.0
    assert sensor.read(calm=True).battery_percent == 81.0
    sensor.settle(10.0)
    assert said.read_text() == "x\n"
    sensor.read()
    sensor.settle(10.0)
    assert said.read_text() == "x\nx\n", "as soon as there is work, the present counts"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("exit 1", id="fails"),
        pytest.param("echo nonsense", id="talks nonsense"),
        pytest.param("printf '\\377\\376'", id="not even text"),
        pytest.param("exec sleep 600", id="hangs"),
    ],
)
def test_a_program_that_misbehaves_costs_its_own_answers_only(tmp_path: Path, script: str) -> None:
    clock = Clock()
    good = program(tmp_path, f"echo '{answer(81)}'")
    sensor = sensor_of(good, clock, deadline_s=0.5)
    sensor.read()
    sensor.settle(10.0)
    program(tmp_path, script)
    clock.now += 31.0
    started = time.monotonic()
    assert sensor.read().battery_percent == 81.0, "the last answer stands for a while"
    assert time.monotonic() - started < 0.4, "reading never waits"
    sensor.settle(10.0)
    assert sensor.read().battery_percent == 81.0
    clock.now += STALE_AFTER * 30.0
    assert sensor.read() == Vitals(), "an old answer is not believed for ever"


def test_a_program_that_is_gone_is_no_answer(tmp_path: Path) -> None:
    sensor = sensor_of(tmp_path / "absent", Clock())
    sensor.read()
    sensor.settle(10.0)
    assert sensor.read() == Vitals()


def test_a_phone_in_termux_is_understood_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tmp_path / "battery.json").write_text(BATTERY_UNPLUGGED)
    (tmp_path / "wifi.json").write_text(WIFI_OFF)
    program(tools, f"cat {tmp_path}/battery.json", "termux-battery-status")
    program(tools, f"cat {tmp_path}/wifi.json", "termux-wifi-connectioninfo")
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    sensors = all_sensors(gateway_is_local=False, root=tree(tmp_path / "root", PHONE))
    sensors.settle(10.0)
    assert sensors.read() == Vitals(
        memory_available_bytes=3000000 * 1024,
        battery_percent=81.0,
        charging=False,
        battery_celsius=29.5,
        network="cellular",
        metered=True,
    )


def test_a_grid_on_this_very_machine_uses_no_network(tmp_path: Path) -> None:
    vitals = Sensors((LinuxSensor(tree(tmp_path, RASPBERRY)),), gateway_is_local=True).read()
    assert (vitals.network, vitals.metered) == ("loopback", False)
