"""What owners may say about when and how much a device works: profiles, and the options that change them.

A profile is a policy and two shares that suit a kind of machine; each option replaces one value of it.

phone: only on external power, from 30 % charge on, half of the processors, never over a metered network. 40 °C is where
volunteer computing on Android has stopped by default for years; 45 °C is where batteries age fast and makers stop
charging. So it works gently from 40 °C on and not above 45 °C.
laptop: the same care for the battery, all processors, any network.
stationary: no rule at all about batteries, heat or network, whatever sensors say: boards on mains often show a battery
that is not there, and protect themselves against heat.
custom: no rule but those given.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

from pocketgrid_agent.policy import Policy, Rule
from pocketgrid_agent.probe import MachineFacts
from pocketgrid_agent.quantities import Off, bytes_or_off, hours, limit_or_off, seconds, share


@dataclass(frozen=True, slots=True)
class Profile:
    """Defaults for a kind of machine.

    Attributes:
        policy: when to work.
        cpu_share: of the processors, 0 to 1.
        memory_share: of the memory, for models, runs and queued inputs together, 0 to 1.
    """

    policy: Policy
    cpu_share: float = 1.0
    memory_share: float = 0.5


PROFILES = {
    "phone": Profile(
        Policy(
            min_battery_percent=30.0,
            only_charging=True,
            max_battery_celsius=45.0,
            max_celsius_per_minute=3.0,
            allow_metered=False,
        ),
        cpu_share=0.5,
    ),
    "laptop": Profile(Policy(min_battery_percent=30.0, only_charging=True, max_battery_celsius=45.0)),
    "stationary": Profile(Policy()),
    "custom": Profile(Policy()),
}


def suitable_profile(facts: MachineFacts) -> str:
    """The profile for a machine whose owner named none."""
    if facts.kind == "phone":
        return "phone"
    return "laptop" if facts.has_battery else "stationary"


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Options about when to work; limits may also be `off`."""
    limit: dict[str, Any] = {"type": limit_or_off}
    group.add_argument("--profile", choices=tuple(PROFILES), help="default: what suits the machine")
    group.add_argument("--min-battery", **limit, metavar="PERCENT", help="charge from which on it works")
    group.add_argument(
        "--only-charging", action=argparse.BooleanOptionalAction, default=None, help="work only on external power"
    )
    group.add_argument("--max-battery-celsius", **limit, metavar="C")
    group.add_argument("--max-celsius", **limit, metavar="C", help="of the processor")
    group.add_argument("--max-heating", **limit, metavar="C", help="degrees a minute")
    group.add_argument(
        "--allow-metered", action=argparse.BooleanOptionalAction, default=None,
        help="work also where the network is paid for by the byte",
    )  # fmt: skip
    group.add_argument(
        "--hours", action="append", default=[], type=hours, metavar="WINDOW",
        help="such as 22:00-06:00 or 'Mon-Fri 18:00-08:00', local time; repeat; default: always",
    )  # fmt: skip
    group.add_argument("--min-memory", type=bytes_or_off, metavar="BYTES", help="available to others and us")
    group.add_argument(
        "--max-others-cpu",
        type=limit_or_off,
        metavar="SHARE",
        help="0 to 1: stop when others use more of the processor",
    )
    group.add_argument(
        "--pause-if-unknown", action="append", default=[], choices=tuple(Rule), metavar="RULE",
        help=f"a reading that is not to be had stops work: {', '.join(Rule)}; repeat; default: it does not",
    )  # fmt: skip
    group.add_argument(
        "--resume-after", type=seconds, default=Policy().dwell_s, metavar="S",
        help="of everything being fine; default 60",
    )  # fmt: skip
    group.add_argument("--cpu-share", type=share, metavar="SHARE", help="of the processors, above 0 to 1")
    group.add_argument("--memory-share", type=share, metavar="SHARE", help="of the memory; default 0.5")


def profile_from(arguments: argparse.Namespace, facts: MachineFacts) -> Profile:
    """The profile chosen, with what was said about single values."""
    profile = PROFILES[arguments.profile or suitable_profile(facts)]
    base = profile.policy

    def limit(given: float | Off | None, otherwise: float | None) -> float | None:
        return otherwise if given is None else None if given is Off.OFF else given

    memory = limit(arguments.min_memory, base.min_memory_bytes)
    policy = replace(
        base,
        min_battery_percent=limit(arguments.min_battery, base.min_battery_percent),
        only_charging=base.only_charging if arguments.only_charging is None else arguments.only_charging,
        max_battery_celsius=limit(arguments.max_battery_celsius, base.max_battery_celsius),
        max_celsius=limit(arguments.max_celsius, base.max_celsius),
        max_celsius_per_minute=limit(arguments.max_heating, base.max_celsius_per_minute),
        allow_metered=base.allow_metered if arguments.allow_metered is None else arguments.allow_metered,
        windows=tuple(arguments.hours),
        min_memory_bytes=None if memory is None else int(memory),
        max_others_cpu=limit(arguments.max_others_cpu, base.max_others_cpu),
        pause_if_unknown=frozenset(Rule(rule) for rule in arguments.pause_if_unknown),
        dwell_s=arguments.resume_after,
    )
    return Profile(policy, arguments.cpu_share or profile.cpu_share, arguments.memory_share or profile.memory_share)
