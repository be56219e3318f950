"""Whether the owner lets this device work now. Pure: vitals and the last verdict in, the next verdict out.

Each threshold has a gap (hysteresis) between stopping and going on, so that a battery at the limit does not switch
work on and off with every heartbeat. What is unknown does not stop work: most boards and PCs report no battery at
all, and many phones hide theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketgrid_agent.vitals import Vitals

BATTERY_GAP_PERCENT = 5.0
HEAT_GAP_CELSIUS = 5.0


@dataclass(frozen=True, slots=True)
class Policy:
    """When to stop. None switches a rule off.

    Attributes:
        min_battery_percent: stop below it while not charging.
        only_charging: stop whenever the battery discharges.
        max_battery_celsius: stop when the battery is hotter.
        max_celsius: stop when the processor is hotter.
        min_memory_bytes: stop when the machine has less memory available.
    """

    min_battery_percent: float | None = None
    only_charging: bool = False
    max_battery_celsius: float | None = None
    max_celsius: float | None = None
    min_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """May work, or may not and why: CamelCase reason and a sentence."""

    allowed: bool = True
    reason: str = ""
    message: str = ""


ALLOWED = Verdict()


def judge(policy: Policy, vitals: Vitals, before: Verdict) -> Verdict:
    """The verdict for these vitals, after `before`."""
    battery_floor = policy.min_battery_percent
    if battery_floor is not None and vitals.battery_percent is not None and vitals.charging is not True:
        floor = battery_floor + (BATTERY_GAP_PERCENT if before.reason == "BatteryLow" else 0)
        if vitals.battery_percent < min(floor, 100):
            return Verdict(
                False, "BatteryLow", f"battery at {vitals.battery_percent:.0f} %, works from {floor:.0f} % on"
            )
    if policy.only_charging and vitals.charging is False:
        return Verdict(False, "NotCharging", "works only while charging")
    for what, limit, heat, reason in (
        ("battery", policy.max_battery_celsius, vitals.battery_celsius, "BatteryHot"),
        ("processor", policy.max_celsius, vitals.processor_celsius, "ProcessorHot"),
    ):
        if limit is None or heat is None:
            continue
        ceiling = limit - (HEAT_GAP_CELSIUS if before.reason == reason else 0)
        if heat > ceiling:
            return Verdict(False, reason, f"{what} at {heat:.0f} °C, works up to {ceiling:.0f} °C")
    if policy.min_memory_bytes is not None and vitals.memory_available_bytes is not None:
        floor_bytes = policy.min_memory_bytes * (1.25 if before.reason == "MemoryLow" else 1)
        if vitals.memory_available_bytes < floor_bytes:
            return Verdict(
                False,
                "MemoryLow",
                f"{vitals.memory_available_bytes >> 20} MiB available, works from {int(floor_bytes) >> 20} MiB on",
            )
    return ALLOWED


def default_policy(*, has_battery: bool) -> Policy:
    """Spare what runs on a battery; leave machines on mains to their own protection."""
    # 45 °C is where batteries begin to age fast and phone makers stop charging; processors stand twice that.
    return Policy(min_battery_percent=30.0, max_battery_celsius=45.0) if has_battery else Policy()
