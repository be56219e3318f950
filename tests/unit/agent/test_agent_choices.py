"""Small pure decisions: when to work, how large a run, how long to wait, what an owner said."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from pocketgrid.errors import InvalidSpecError
from pocketgrid_agent import settings as options
from pocketgrid_agent.backoff import Backoff
from pocketgrid_agent.identity import StateInUseError, is_device_name, make_name, open_state
from pocketgrid_agent.policy import ALLOWED, Policy, default_policy, judge
from pocketgrid_agent.probe import MachineFacts
from pocketgrid_agent.tuning import MOST_ITEMS, RUN_SECONDS, Guard, Sample, choose, next_items
from pocketgrid_agent.vitals import Vitals

FACTS = MachineFacts("sbc", "arm64", "linux", 4, 4 << 30, (), "", has_battery=False)

# ---- policy ----


def test_a_battery_stops_below_the_floor_and_goes_on_above_the_gap() -> None:
    policy = Policy(min_battery_percent=30)
    verdict = ALLOWED
    seen = []
    for percent in (35, 30, 29, 33, 34.9, 35, 31):
        verdict = judge(policy, Vitals(battery_percent=percent, charging=False), verdict)
        seen.append(verdict.allowed)
    assert seen == [True, True, False, False, False, True, True]


def test_heat_stops_above_the_ceiling_and_goes_on_below_the_gap() -> None:
    policy = Policy(max_celsius=80)
    verdict = ALLOWED
    seen = []
    for celsius in (80, 81, 78, 75, 79):
        verdict = judge(policy, Vitals(processor_celsius=celsius), verdict)
        seen.append(verdict.allowed)
    assert seen == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("policy", "vitals", "reason"),
    [
        (default_policy(has_battery=True), Vitals(), ""),
        (default_policy(has_battery=False), Vitals(battery_percent=1, processor_celsius=120), ""),
        (default_policy(has_battery=True), Vitals(battery_percent=10, charging=True), ""),
        (default_policy(has_battery=True), Vitals(battery_percent=10), "BatteryLow"),
        (default_policy(has_battery=True), Vitals(battery_celsius=46), "BatteryHot"),
        (default_policy(has_battery=True), Vitals(processor_celsius=80), ""),
        (Policy(only_charging=True), Vitals(charging=False), "NotCharging"),
        (Policy(only_charging=True), Vitals(charging=None), ""),
        (Policy(max_celsius=80), Vitals(processor_celsius=81), "ProcessorHot"),
        (Policy(min_memory_bytes=100), Vitals(memory_available_bytes=99), "MemoryLow"),
        (Policy(min_memory_bytes=100), Vitals(), ""),
    ],
)
def test_unknown_never_stops_and_known_trouble_does(policy: Policy, vitals: Vitals, reason: str) -> None:
    verdict = judge(policy, vitals, ALLOWED)
    assert verdict.reason == reason
    assert verdict.allowed is (reason == "")


# ---- tuning ----


def tune(seconds: float, overhead: float, per_item_bytes: int = 0, guard: Guard | None = None) -> list[Sample]:
    """Samples of a model that costs `overhead` per run and `seconds` per item."""
    guard = guard or Guard(1 << 30)
    samples: list[Sample] = []
    while (items := next_items(samples, guard)) is not None:
        samples.append(Sample(items, overhead + seconds * items, 1000 + per_item_bytes * items))
        assert len(samples) < 20
    return samples


def test_tiny_models_grow_to_the_limit_or_until_calls_do_not_matter() -> None:
    samples = tune(1e-7, 2e-5)
    assert choose(samples, Guard(1 << 30)).items == MOST_ITEMS
    assert sum(s.seconds for s in samples) < 0.01


def test_slow_models_keep_to_one_item() -> None:
    samples = tune(0.5, 0.001)
    assert [s.items for s in samples] == [1]
    assert choose(samples, Guard(1 << 30)).items == 1


def test_a_run_is_about_as_long_as_wanted() -> None:
    chosen = choose(tune(0.007, 0.002), Guard(1 << 30))
    assert RUN_SECONDS / 4 <= chosen.seconds <= 1.5 * RUN_SECONDS


def test_growth_that_gains_nothing_is_not_pursued() -> None:
    assert choose(tune(0.006, 0.0), Guard(1 << 30)).items == 1


def test_memory_stops_growth_before_it_is_exceeded() -> None:
    guard = Guard(memory_bytes=100_000)
    samples = tune(1e-6, 1e-4, per_item_bytes=1000, guard=guard)
    assert all(s.memory_bytes < guard.memory_bytes for s in samples)
    assert choose(samples, guard).items < 100


# ---- backoff ----


def test_backoff_grows_has_full_jitter_and_starts_anew() -> None:
    class Highest:
        def random(self) -> float:
            return 1.0

    backoff = Backoff(Highest())
    assert [backoff.next() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == 0.1
    jittered = Backoff(random.Random(1))
    waits = [jittered.next() for _ in range(1000)]
    assert 0 <= min(waits) < 0.1
    assert 4.5 < max(waits) <= 5.0


# ---- identity ----


def test_a_name_is_made_once_and_kept(tmp_path: Path) -> None:
    first = open_state(tmp_path, hostname="Pi_in_the.Kitchen.lan")
    first.close()
    again = open_state(tmp_path, hostname="other")
    again.close()
    assert first.name == again.name
    assert first.name.startswith("pi-in-the-")
    assert first.boot_id != again.boot_id


def test_a_damaged_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "device-name").write_text("Not A Name\n")
    state = open_state(tmp_path, hostname="h")
    state.close()
    assert is_device_name(state.name)


@pytest.mark.parametrize("hostname", ["", "localhost", "ÄÖÜ", "-", "x" * 300, "a.b.c", "UPPER_case"])
def test_names_made_of_any_host_name_are_valid(hostname: str) -> None:
    assert is_device_name(make_name(hostname))


@pytest.mark.parametrize("name", ["Upper", "under_score", "-x", "x-", "a..b", "x" * 254, "a b"])
def test_names_kubernetes_would_refuse_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidSpecError, match="--name"):
        open_state(tmp_path, name=name)


def test_two_agents_do_not_share_a_state_folder(tmp_path: Path) -> None:
    state = open_state(tmp_path)
    with pytest.raises(StateInUseError, match="--state-dir"):
        open_state(tmp_path)
    state.close()
    open_state(tmp_path).close()


# ---- settings ----


def settings_of(*arguments: str, environment: dict[str, str] | None = None) -> options.Settings:
    environment = {"HOME": "/home/x", "POCKETGRID_JOIN_SECRET": "s", **(environment or {})}
    return options.settings_from(options.parse(arguments, environment), environment, FACTS)


def test_defaults() -> None:
    settings = settings_of("--gateway", "grid.example:7443")
    assert settings.state_dir == Path("/home/x/.local/state/pocketgrid-agent")
    assert settings.cache_dir == Path("/home/x/.cache/pocketgrid-agent")
    assert settings.cache_bytes == 2 << 30
    assert settings.memory_bytes == 2 << 30
    assert settings.credit_bytes == 32 << 20
    assert settings.credit_shards == 512
    assert (settings.threads, settings.slots, settings.micro_batch) == (4, 1, 0)
    assert settings.policy == Policy()


def test_a_small_memory_budget_means_small_credits() -> None:
    settings = settings_of("--gateway", "g:1", "--memory-budget", "64Mi")
    assert settings.credit_bytes == 8 << 20
    assert settings.credit_shards == 128


def test_environment_and_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from a file\nignored\n")
    settings = settings_of(
        "--join-secret-file",
        str(secret),
        *("--label", "room=kitchen", "--label", "shelf=2"),
        environment={"POCKETGRID_GATEWAY": "g:1", "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c"},
    )
    assert settings.gateway == "g:1"
    assert settings.join_secret == "from a file"
    assert settings.labels == {"room": "kitchen", "shelf": "2"}
    assert (settings.state_dir, settings.cache_dir) == (Path("/s/pocketgrid-agent"), Path("/c/pocketgrid-agent"))


def test_the_owner_overrides_the_policy_of_battery_devices() -> None:
    environment = {"POCKETGRID_JOIN_SECRET": "s"}
    arguments = ["--gateway", "g:1", "--min-battery", "10", "--only-charging", "--max-celsius", "70"]
    facts = replace(FACTS, has_battery=True)
    settings = options.settings_from(options.parse(arguments, environment), environment, facts)
    assert settings.policy == Policy(10, only_charging=True, max_battery_celsius=45, max_celsius=70)


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        ([], {}, "--gateway"),
        (["--gateway", "no-port"], {}, "--gateway"),
        (["--gateway", "g:1"], {"POCKETGRID_JOIN_SECRET": " "}, "--join-secret-file"),
        (["--gateway", "g:1", "--join-secret-file", "/absent"], {}, "cannot read /absent"),
        (["--gateway", "g:1", "--ca-file", "/absent"], {}, "--ca-file"),
        (["--gateway", "g:1", "--slots", "9"], {}, "--slots 9"),
    ],
)
def test_what_is_missing_or_wrong_is_named(arguments: list[str], environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        settings_of(*arguments, environment=environment)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cache-budget", "lots"],
        ["--threads", "0"],
        ["--label", "novalue"],
        ["--drain-seconds", "-1"],
        ["--join-secret", "on the command line, where every user of the machine can read it"],
    ],
)
def test_nonsense_ends_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse(["--gateway", "g:1", *arguments], {"HOME": "/h"})
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("512", 512), ("2Gi", 2 << 30), ("1.5Ki", 1536), ("3M", 3_000_000)]
)
def test_quantities(text: str, expected: int) -> None:
    assert options.parse_bytes(text) == expected


def test_help_explains_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(["--help"], {"HOME": "/h"})
    assert "exit status" in capsys.readouterr().out
