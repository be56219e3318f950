"""What the pages about the agent say is what the agent says."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from pocketgrid_agent import settings as options
from pocketgrid_agent.policy import Rule
from pocketgrid_agent.probe import MachineFacts
from pocketgrid_agent.profiles import PROFILES

ROOT = Path(__file__).resolve().parents[2]
AGENT = ROOT / "edge_agent/pocketgrid_agent"
PAGES = ("docs/agent.md", "docs/install-termux.md", "docs/install-raspberry-pi.md", "edge_agent/README.md")
PAGE = (ROOT / "docs/agent.md").read_text()


def known_options() -> set[str]:
    parser = options.parser({"HOME": "/h"})
    return {option for action in parser._actions for option in action.option_strings}


def test_every_reason_of_the_policy_is_explained() -> None:
    source = (AGENT / "policy.py").read_text()
    named = set(re.findall(r'"([A-Z][a-z]+[A-Z][A-Za-z]+)"', source))
    for part in re.findall(r'f"\{name\}([A-Z][A-Za-z]+)"', source):
        named |= {f"Battery{part}", f"Processor{part}"}
    table = PAGE[PAGE.index("| reason |") :].split("\n\n")[0]
    assert set(re.findall(r"`([A-Z][A-Za-z]+)`", table)) == named


def test_every_rule_that_may_be_unknown_is_named() -> None:
    assert [rule for rule in Rule if f"`{rule}`" not in PAGE and f"-unknown {rule}`" not in PAGE] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_option_shown_exists(page: str) -> None:
    script = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "edge_agent/install.sh").read_text()))
    source = (ROOT / "operator/pocketgrid/controller/token_commands.py").read_text()
    # Of `pocketgrid token create`, which makes what a device joins with.
    foreign = {
        "--system-site-packages",
        "--no-deps",
        "--class",
        *(f"--{n}" for n in re.findall(r"^    (\w+): ", source, re.MULTILINE)),
    }
    shown = set(re.findall(r"--[a-z][a-z-]+", (ROOT / page).read_text()))
    assert shown - known_options() - script - foreign == set()


def test_the_settings_shown_are_accepted(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "config.toml").write_text(text)
    environment = {"HOME": "/h", "POCKETGRID_CONFIG": str(tmp_path / "config.toml")}
    facts = MachineFacts("laptop", "amd64", "linux", 4, 4 << 30, (), "", has_battery=True)
    settings = options.settings_from(options.parse([], environment), environment, facts)
    assert settings.policy.min_battery_percent == 50
    assert settings.labels == {"room": "kitchen"}


def test_the_table_of_profiles_is_theirs() -> None:
    rows = {
        cells[0].strip("` "): [cell.strip() for cell in cells[1:4]]
        for line in PAGE.splitlines()
        if line.startswith("| `--") and len(cells := line.strip("|").split("|")) == 5
    }
    names = ("phone", "laptop", "stationary")

    def shown(option: str) -> list[float | None]:
        numbers = [re.match(r"[\d.]+", cell) for cell in rows[option]]
        return [float(number[0]) if number else None for number in numbers]

    policies = [PROFILES[name].policy for name in names]
    assert shown("--min-battery") == [p.min_battery_percent for p in policies]
    assert shown("--max-battery-celsius") == [p.max_battery_celsius for p in policies]
    assert shown("--max-heating") == [p.max_celsius_per_minute for p in policies]
    assert shown("--max-celsius") == [p.max_celsius for p in policies]
    assert shown("--cpu-share") == [PROFILES[name].cpu_share for name in names]
    assert shown("--memory-share") == [PROFILES[name].memory_share for name in names]
    assert [cell == "yes" for cell in rows["--only-charging"]] == [p.only_charging for p in policies]
    assert [cell == "yes" for cell in rows["--allow-metered"]] == [p.allow_metered for p in policies]
    assert not any(p.windows or p.min_memory_bytes or p.max_others_cpu for p in policies)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_help_lists_every_command() -> None:
    parser = options.parser({"HOME": "/h"})
    assert isinstance(parser, argparse.ArgumentParser)
    assert [command for command in options.COMMANDS if f"  {command} " not in (parser.description or "")] == []
