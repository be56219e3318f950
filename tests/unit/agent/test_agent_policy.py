"""The owner's rules: what stops a device, what lets it go on, and what it says of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace

import pytest

from pocketgrid_agent.hours import DAYS, LocalTime, Window, is_open, parse_window
from pocketgrid_agent.policy import ALLOWED, START, Level, Policy, Rule, State, judge
from pocketgrid_agent.probe import MachineFacts
from pocketgrid_agent.profiles import PROFILES, add_arguments, profile_from, suitable_profile
from pocketgrid_agent.vitals import Vitals

NOON = LocalTime(0, 12 * 60)


def levels(policy: Policy, readings: Iterable[tuple[float, Vitals]]) -> list[Level]:
    """Levels after each reading, (seconds, vitals)."""
    state, seen = START, []
    for now, vitals in readings:
        state = judge(policy, vitals, now, NOON, state)
        seen.append(state.verdict.level)
    return seen


def reason(policy: Policy, vitals: Vitals, state: State = START) -> str:
    verdict = judge(policy, vitals, 0.0, NOON, state).verdict
    assert verdict.allowed is (verdict.level is not Level.PAUSE)
    return f"{verdict.level.name} {verdict.reason}".strip()


@pytest.mark.parametrize(
    ("policy", "vitals", "expected"),
    [
        (Policy(min_battery_percent=30), Vitals(battery_percent=29), "PAUSE BatteryLow"),
        (Policy(min_battery_percent=30), Vitals(battery_percent=29, charging=True), "PAUSE BatteryLow"),
        (Policy(min_battery_percent=30), Vitals(battery_percent=30), "WORK"),
        (Policy(only_charging=True), Vitals(charging=False), "PAUSE NotCharging"),
        (Policy(only_charging=True), Vitals(charging=True), "WORK"),
        (Policy(max_battery_celsius=45), Vitals(battery_celsius=46), "PAUSE BatteryHot"),
        (Policy(max_battery_celsius=45), Vitals(battery_celsius=41), "EASE BatteryWarm"),
        (Policy(max_battery_celsius=45), Vitals(battery_celsius=40), "WORK"),
        (Policy(max_battery_celsius=45), Vitals(processor_celsius=80), "WORK"),
        (Policy(max_celsius=80), Vitals(processor_celsius=81), "PAUSE ProcessorHot"),
        (Policy(allow_metered=False), Vitals(metered=True), "PAUSE NetworkMetered"),
        (Policy(allow_metered=False), Vitals(metered=False), "WORK"),
        (Policy(min_memory_bytes=100), Vitals(memory_available_bytes=99), "PAUSE MemoryLow"),
        (Policy(max_others_cpu=0.5), Vitals(others_cpu=0.6), "PAUSE UserActive"),
        (Policy(max_others_cpu=0.5), Vitals(others_cpu=0.3), "EASE UserActive"),
        (Policy(max_others_cpu=0.5), Vitals(others_cpu=0.1), "WORK"),
        (Policy(windows=(parse_window("22:00-06:00"),)), Vitals(), "PAUSE OutsideHours"),
        (Policy(windows=(parse_window("Mon 11:00-13:00"),)), Vitals(), "WORK"),
    ],
)
def test_rules(policy: Policy, vitals: Vitals, expected: str) -> None:
    assert reason(policy, vitals) == expected


ALL_RULES = Policy(
    min_battery_percent=30,
    only_charging=True,
    max_battery_celsius=45,
    max_celsius=80,
    max_celsius_per_minute=3,
    allow_metered=False,
    min_memory_bytes=1 << 30,
    max_others_cpu=0.5,
)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_unknown_is_not_zero(profile: str) -> None:
    assert reason(PROFILES[profile].policy, Vitals()) == "WORK"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule.BATTERY, "PAUSE BatteryUnknown"),
        (Rule.CHARGING, "PAUSE ChargingUnknown"),
        (Rule.BATTERY_HEAT, "PAUSE BatteryHeatUnknown"),
        (Rule.PROCESSOR_HEAT, "PAUSE ProcessorHeatUnknown"),
        (Rule.HEATING, "PAUSE HeatingUnknown"),
        (Rule.NETWORK, "PAUSE NetworkUnknown"),
        (Rule.MEMORY, "PAUSE MemoryUnknown"),
        (Rule.USER, "PAUSE UserUnknown"),
    ],
)
def test_owners_may_say_that_a_rule_is_not_to_be_guessed_at(rule: Rule, expected: str) -> None:
    assert reason(replace(ALL_RULES, pause_if_unknown=frozenset({rule})), Vitals()) == expected
    assert reason(Policy(pause_if_unknown=frozenset({rule})), Vitals()) == "WORK", "of rules that are switched off"


def test_a_board_on_mains_works_whatever_a_battery_that_is_not_there_says() -> None:
    nonsense = Vitals(battery_percent=0.0, charging=False, battery_celsius=90.0, processor_celsius=95.0, metered=True)
    assert reason(PROFILES["stationary"].policy, nonsense) == "WORK"


def test_a_battery_goes_on_only_well_above_the_limit_and_after_a_while() -> None:
    policy = Policy(min_battery_percent=30, dwell_s=60)
    charge = [(0, 35), (10, 29), (20, 34), (30, 35), (80, 36), (95, 36), (100, 31)]
    seen = levels(policy, ((at, Vitals(battery_percent=percent)) for at, percent in charge))
    assert [level is not Level.PAUSE for level in seen] == [True, False, False, False, True, True, True]


def test_heat_eases_before_it_stops_and_after() -> None:
    policy = Policy(max_battery_celsius=45, dwell_s=60)
    heats = [(0, 39), (200, 42), (400, 46), (600, 41), (800, 36), (1000, 36), (1200, 36)]
    seen = levels(policy, ((at, Vitals(battery_celsius=celsius)) for at, celsius in heats))
    work, ease, pause = Level.WORK, Level.EASE, Level.PAUSE
    assert seen == [work, ease, pause, pause, work, work, work]


def test_a_device_that_heats_up_fast_is_stopped_before_it_is_hot() -> None:
    policy = Policy(max_celsius_per_minute=3, dwell_s=60)
    steep = [(at, Vitals(battery_celsius=25 + at / 60 * 4)) for at in range(0, 61, 5)]
    assert levels(policy, steep)[-1] is Level.PAUSE
    gentle = [(at, Vitals(battery_celsius=25 + at / 60 * 2)) for at in range(0, 61, 5)]
    assert levels(policy, gentle)[-1] is Level.EASE
    slow = [(at, Vitals(battery_celsius=25 + at / 60)) for at in range(0, 61, 5)]
    assert levels(policy, slow)[-1] is Level.WORK


def test_a_single_leap_of_a_sensor_is_no_slope() -> None:
    policy = Policy(max_celsius_per_minute=3)
    assert levels(policy, [(0, Vitals(battery_celsius=25)), (5, Vitals(battery_celsius=30))]) == [Level.WORK] * 2


def test_a_device_that_would_be_too_hot_soon_works_gently() -> None:
    policy = Policy(max_battery_celsius=45)
    rising = [(at, Vitals(battery_celsius=34 + at / 60 * 4)) for at in range(0, 61, 5)]
    assert levels(policy, rising)[-1] is Level.EASE


def test_the_message_says_what_is_waited_for() -> None:
    policy = Policy(only_charging=True, dwell_s=60)
    state = judge(policy, Vitals(charging=False), 0.0, NOON, START)
    assert state.verdict.message == "works only on external power"
    state = judge(policy, Vitals(charging=True), 20.0, NOON, state)
    assert state.verdict.message == "works only on external power; fine again for 20 s of 60 s"
    assert judge(policy, Vitals(charging=True), 60.0, NOON, state).verdict == ALLOWED


# ---- hours ----


def at(day: str, clock: str) -> LocalTime:
    hours, minutes = clock.split(":")
    return LocalTime(DAYS.index(day), int(hours) * 60 + int(minutes))


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("08:00-17:00", [("Sun", "08:00"), ("Mon", "16:59")], [("Mon", "17:00"), ("Mon", "07:59")]),
        ("22:00-06:00", [("Mon", "22:00"), ("Tue", "05:59"), ("Mon", "00:00")], [("Mon", "06:00"), ("Mon", "21:59")]),
        (
            "Fri 22:00-06:00",
            [("Fri", "23:00"), ("Sat", "05:59")],
            [("Fri", "05:00"), ("Sat", "06:00"), ("Sat", "23:00")],
        ),
        ("Sun 22:00-06:00", [("Sun", "22:00"), ("Mon", "01:00")], [("Tue", "01:00"), ("Sun", "01:00")]),
        ("Sat,Sun 00:00-24:00", [("Sat", "00:00"), ("Sun", "23:59")], [("Mon", "00:00"), ("Fri", "23:59")]),
        ("Fri-Mon 10:00-11:00", [("Fri", "10:00"), ("Sun", "10:30"), ("Mon", "10:59")], [("Tue", "10:30")]),
        ("00:00-00:00", [("Wed", "00:00"), ("Wed", "23:59")], []),
    ],
)
def test_hours(window: str, inside: list[tuple[str, str]], outside: list[tuple[str, str]]) -> None:
    windows = [parse_window(window)]
    assert [moment for moment in inside if not is_open(windows, at(*moment))] == []
    assert [moment for moment in outside if is_open(windows, at(*moment))] == []


@pytest.mark.parametrize(
    "text",
    ["", "8-17", "08:00", "25:00-06:00", "08:60-09:00", "Someday 08:00-09:00", "Monkey 08:00-09:00", "24:00-06:00"],
)
def test_hours_that_are_none_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as|day|24:00"):
        parse_window(text)


@pytest.mark.parametrize("text", ["22:00-06:00", "Mon,Tue,Wed 00:00-24:00", "Sun 23:30-00:30"])
def test_hours_are_written_as_they_are_read(text: str) -> None:
    assert str(parse_window(text)) == text
    assert parse_window(str(parse_window(text))) == parse_window(text)


def test_windows_stay_the_same_whatever_order_days_come_in() -> None:
    assert parse_window("Sun,Mon 01:00-02:00") == Window(frozenset({0, 6}), 60, 120)


# ---- profiles ----


def facts(kind: str = "sbc", *, battery: bool = False) -> MachineFacts:
    return MachineFacts(kind, "arm64", "linux", 4, 4 << 30, (), "", has_battery=battery)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (facts("phone", battery=True), "phone"),
        (facts("laptop", battery=True), "laptop"),
        (facts("sbc"), "stationary"),
        (facts("server"), "stationary"),
    ],
)
def test_a_machine_gets_the_profile_that_suits_it(machine: MachineFacts, expected: str) -> None:
    assert suitable_profile(machine) == expected


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser.add_argument_group())
    return parser.parse_args(arguments)


def test_each_option_replaces_one_value_of_the_profile() -> None:
    options = parsed(
        *("--profile", "phone", "--min-battery", "off", "--max-battery-celsius", "42", "--allow-metered"),
        *("--no-only-charging", "--hours", "Mon-Fri 22:00-06:00", "--pause-if-unknown", "battery-heat"),
        *("--max-others-cpu", "0.3", "--min-memory", "512Mi", "--resume-after", "5", "--cpu-share", "0.25"),
    )
    profile = profile_from(options, facts("phone", battery=True))
    assert profile.policy == Policy(
        min_battery_percent=None,
        only_charging=False,
        max_battery_celsius=42.0,
        max_celsius_per_minute=3.0,
        allow_metered=True,
        windows=(parse_window("Mon-Fri 22:00-06:00"),),
        min_memory_bytes=512 << 20,
        max_others_cpu=0.3,
        pause_if_unknown=frozenset({Rule.BATTERY_HEAT}),
        dwell_s=5.0,
    )
    assert (profile.cpu_share, profile.memory_share) == (0.25, 0.5)


def test_custom_has_no_rule_but_those_given() -> None:
    assert profile_from(parsed("--profile", "custom"), facts("phone", battery=True)).policy == Policy()
    given = parsed("--profile", "custom", "--only-charging")
    assert profile_from(given, facts()).policy == Policy(only_charging=True)
