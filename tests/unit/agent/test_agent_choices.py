"""Small pure decisions: when to work, how large a run, how long to wait, what an owner said."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from pocketgrid.errors import InvalidSpecError
from pocketgrid_agent import settings as options
from pocketgrid_agent import stream
from pocketgrid_agent.backoff import Backoff
from pocketgrid_agent.identity import StateInUseError, is_device_name, make_name, open_state
from pocketgrid_agent.joining import Invitation
from pocketgrid_agent.policy import Policy
from pocketgrid_agent.probe import MachineFacts
from pocketgrid_agent.quantities import parse_bytes
from pocketgrid_agent.tuning import MOST_ITEMS, RUN_SECONDS, Guard, Sample, choose, next_items

FACTS = MachineFacts("sbc", "arm64", "linux", 4, 4 << 30, (), "", has_battery=False)

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


def test_devices_of_a_large_fleet_spread_as_they_were_told() -> None:
    rng = random.Random(2)
    first, later = [], []
    for _ in range(2000):
        backoff = Backoff(rng)
        backoff.reset(40.0)
        first.append(backoff.next())
        later += [backoff.next(), backoff.next(crowded=True)]
    assert min(first) < 1.0
    assert 39.0 < max(first) <= 40.0
    assert sum(first) / len(first) == pytest.approx(20.0, rel=0.05)
    assert 20.0 <= min(later) < 21.0
    assert max(later) <= 40.0
    backoff.reset()
    assert backoff.next() <= 0.1


def test_who_finds_a_gateway_overrun_waits_longer_each_time_and_with_more_patience() -> None:
    class Highest:
        def random(self) -> float:
            return 1.0

    backoff = Backoff(Highest())
    assert backoff.patience_s == 10.0
    assert [(backoff.next(crowded=True), backoff.patience_s) for _ in range(4)] == [
        (10.0, 20.0),
        (20.0, 40.0),
        (40.0, 60.0),
        (60.0, 60.0),
    ]
    backoff.reset()
    assert backoff.patience_s == 10.0


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
    environment = {"HOME": "/home/x", **(environment or {})}
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
    token = tmp_path / "token"
    token.write_text("from a file\nignored\n")
    settings = settings_of(
        *("--join", "g:2", "--token-file", str(token), "--ca-sha256", f"sha256:{'A' * 64}"),
        *("--label", "room=kitchen", "--label", "shelf=2"),
        environment={"POCKETGRID_GATEWAY": "g:1", "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c"},
    )
    assert settings.gateway == "g:1"
    assert settings.invitation == Invitation("g:2", "from a file", "a" * 64)
    assert settings.labels == {"room": "kitchen", "shelf": "2"}
    assert (settings.state_dir, settings.cache_dir) == (Path("/s/pocketgrid-agent"), Path("/c/pocketgrid-agent"))


def test_the_owner_overrides_the_policy_of_battery_devices() -> None:
    environment: dict[str, str] = {}
    arguments = ["--gateway", "g:1", "--min-battery", "10", "--only-charging", "--max-celsius", "70"]
    facts = replace(FACTS, has_battery=True)
    settings = options.settings_from(options.parse(arguments, environment), environment, facts)
    assert settings.policy == Policy(10, only_charging=True, max_battery_celsius=45, max_celsius=70)


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        (["--gateway", "no-port"], {}, "--gateway"),
        (["join"], {}, "address is missing"),
        (["join", "no-port"], {}, "not HOST:PORT"),
        (["run", "g:1"], {}, "only `join` takes an address"),
        (["join", "g:1", "--token", "t"], {}, "--ca-sha256"),
        (["join", "g:1", "--token", "t", "--ca-sha256", "abc"], {}, "--ca-sha256"),
        (["join", "g:1", "--ca-sha256", "a" * 64], {"POCKETGRID_JOIN_TOKEN": " "}, "--token-file"),
        (["join", "g:1", "--ca-sha256", "a" * 64, "--token-file", "/absent"], {}, "cannot read /absent"),
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
        ["--tok", "abbreviated"],
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
    assert parse_bytes(text) == expected


def test_help_explains_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(["--help"], {"HOME": "/h"})
    assert "exit status" in capsys.readouterr().out


# ---- why a stream ended ----


@pytest.mark.parametrize(
    ("details", "crowded"),
    [
        ("Concurrent RPC limit exceeded!", True),
        ("CLIENT: Received message larger than max (3145738 vs. 263168)", False),
    ],
)
def test_only_a_gateway_that_is_overrun_is_given_more_time(details: str, crowded: bool) -> None:
    error = stream._translated(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
    assert isinstance(error, stream.CrowdedError) is crowded
    assert details in str(error)
