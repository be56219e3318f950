"""Whether the owner lets this device work now: fully, gently or not at all. Pure: readings and time in, verdict out.

Three properties hold for every policy and every history, and are tested as laws:

- a reading that is known to break a rule stops work at once;
- work goes on only after everything has been fine for `dwell_s` without a break, judged by stricter limits than those
  that stopped it (hysteresis), so a sensor at its limit cannot switch work on and off;
- worse readings never turn a pause into work.

What a sensor does not tell is unknown, which is not zero. What unknown means is said per rule: work goes on unless the
rule is listed in `Policy.pause_if_unknown`. Between work and pause lies EASE: near a limit the device works at half
speed, which often keeps it from having to stop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from pocketgrid_agent.hours import LocalTime, Window, is_open
from pocketgrid_agent.vitals import Vitals

BATTERY_GAP_PERCENT = 5.0
HEAT_GAP_CELSIUS = 5.0
SLOPE_GAP = 0.5
MEMORY_GAP = 1.25
OTHERS_GAP = 0.5
"""How much better than its limit a reading must be for work to go on: percent, degrees, and shares of the limit."""

SLOPE_WINDOW_S = 90.0
SLOPE_SPAN_S = 30.0
"""Heat is compared over at most the first and at least the second: shorter spans show noise, longer ones history."""

FORESIGHT_MINUTES = 2.0
"""A device that would be too hot in so many minutes, heating up as it does, works gently."""


class Level(IntEnum):
    """How much the device may do; higher is less."""

    WORK = 0
    EASE = 1
    PAUSE = 2


class Rule(StrEnum):
    """Rules that depend on a sensor, as owners name them."""

    BATTERY = "battery"
    CHARGING = "charging"
    BATTERY_HEAT = "battery-heat"
    PROCESSOR_HEAT = "processor-heat"
    HEATING = "heating"
    NETWORK = "network"
    MEMORY = "memory"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Policy:
    """When to stop. None, or the default, switches a rule off.

    Attributes:
        min_battery_percent: stop when the battery holds less, charging or not: a weak charger would never fill it.
        only_charging: stop while not on external power.
        max_battery_celsius: stop when the battery is hotter.
        max_celsius: stop when the processor is hotter.
        max_celsius_per_minute: stop when the battery (or else the processor) heats up faster.
        allow_metered: work also where the network is paid for by the byte.
        windows: work only within these hours; none: always.
        min_memory_bytes: stop when the machine has less memory available.
        max_others_cpu: stop when others keep more of the processor busy, 0 to 1: somebody is using the machine.
        pause_if_unknown: rules for which a reading that is not to be had means stopping.
        dwell_s: how long everything must have been fine before work goes on.
    """

    min_battery_percent: float | None = None
    only_charging: bool = False
    max_battery_celsius: float | None = None
    max_celsius: float | None = None
    max_celsius_per_minute: float | None = None
    allow_metered: bool = True
    windows: tuple[Window, ...] = ()
    min_memory_bytes: int | None = None
    max_others_cpu: float | None = None
    pause_if_unknown: frozenset[Rule] = frozenset()
    dwell_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the device may do, and unless that is everything, why: CamelCase reason and a sentence."""

    level: Level = Level.WORK
    reason: str = ""
    message: str = ""

    @property
    def allowed(self) -> bool:
        """Whether work may go on at all."""
        return self.level is not Level.PAUSE


ALLOWED = Verdict()

LOOKING_AROUND = Verdict(
    Level.PAUSE, "LookingAround", "sensors that take their time are being asked for the first time"
)
"""Before the first reading where reading takes long: a phone must not begin to work and stop a moment later."""


@dataclass(frozen=True, slots=True)
class State:
    """What judging remembers.

    Attributes:
        verdict: the last one.
        last: by level, the last finding at that level or above, and when (monotonic seconds).
        heats: (monotonic seconds, degrees Celsius) of the last minutes.
    """

    verdict: Verdict = ALLOWED
    last: tuple[tuple[Level, float, Verdict], ...] = ()
    heats: tuple[tuple[float, float], ...] = ()


START = State()


def judge(policy: Policy, vitals: Vitals, now: float, local: LocalTime, before: State) -> State:
    """The verdict for a reading.

    Args:
        policy: of the owner.
        vitals: the reading.
        now: monotonic seconds.
        local: time of day and week where the device is.
        before: what the last call returned, `START` at first.
    """
    heats = _with_heat(before.heats, now, vitals)
    findings = list(_findings(policy, vitals, local, _slope(heats), before.verdict.level))
    last = {level: (at, finding) for level, at, finding in before.last}
    for level in (Level.EASE, Level.PAUSE):
        worst = next((f for f in findings if f.level >= level), None)
        if worst is not None:
            last[level] = (now, worst)
    verdict = _verdict(policy, now, last)
    return State(verdict, tuple((level, at, finding) for level, (at, finding) in sorted(last.items())), heats)


def _verdict(policy: Policy, now: float, last: dict[Level, tuple[float, Verdict]]) -> Verdict:
    for level in (Level.PAUSE, Level.EASE):
        if level not in last:
            continue
        at, finding = last[level]
        fine_s = now - at
        if fine_s < policy.dwell_s or fine_s <= 0:
            waiting = f"; fine again for {fine_s:.0f} s of {policy.dwell_s:.0f} s" if fine_s > 0 else ""
            return Verdict(level, finding.reason, finding.message + waiting)
    return ALLOWED


def _findings(policy: Policy, vitals: Vitals, local: LocalTime, slope: float | None, level: Level) -> Iterator[Verdict]:
    """Everything that speaks against working fully, what stops work in the order of importance.

    Args:
        level: of the last verdict; limits are stricter after a worse one.
    """
    paused, eased = level >= Level.PAUSE, level >= Level.EASE
    yield from _charge(policy, vitals, paused=paused)
    for rule, name, what, limit, heat in (
        (Rule.BATTERY_HEAT, "Battery", "battery", policy.max_battery_celsius, vitals.battery_celsius),
        (Rule.PROCESSOR_HEAT, "Processor", "processor", policy.max_celsius, vitals.processor_celsius),
    ):
        if limit is None:
            continue
        if heat is None:
            yield from _unknown(policy, rule, f"{name}HeatUnknown", f"how hot the {what} is")
            continue
        ceiling = limit - (HEAT_GAP_CELSIUS if paused else 0)
        warm = limit - HEAT_GAP_CELSIUS * (1.5 if eased else 1)
        ahead = heat + max(slope or 0.0, 0.0) * FORESIGHT_MINUTES
        if heat > ceiling:
            text = f"{what} at {heat:.0f} °C, works up to {ceiling:.0f} °C"
            yield Verdict(Level.PAUSE, f"{name}Hot", text)
        elif heat > warm or ahead > limit:
            yield Verdict(Level.EASE, f"{name}Warm", f"{what} at {heat:.0f} °C of at most {limit:.0f} °C")
    yield from _heating(policy, vitals, slope, paused=paused)
    yield from _surroundings(policy, vitals, local, paused=paused, eased=eased)


def _charge(policy: Policy, vitals: Vitals, *, paused: bool) -> Iterator[Verdict]:
    if policy.min_battery_percent is not None:
        if vitals.battery_percent is None:
            yield from _unknown(policy, Rule.BATTERY, "BatteryUnknown", "how full the battery is")
        else:
            floor = min(policy.min_battery_percent + (BATTERY_GAP_PERCENT if paused else 0), 100.0)
            if vitals.battery_percent < floor:
                text = f"battery at {vitals.battery_percent:.0f} %, works from {floor:.0f} % on"
                yield Verdict(Level.PAUSE, "BatteryLow", text)
    if policy.only_charging:
        if vitals.charging is None:
            yield from _unknown(policy, Rule.CHARGING, "ChargingUnknown", "whether the device is on external power")
        elif not vitals.charging:
            yield Verdict(Level.PAUSE, "NotCharging", "works only on external power")


def _heating(policy: Policy, vitals: Vitals, slope: float | None, *, paused: bool) -> Iterator[Verdict]:
    limit = policy.max_celsius_per_minute
    if limit is None:
        return
    if vitals.battery_celsius is None and vitals.processor_celsius is None:
        yield from _unknown(policy, Rule.HEATING, "HeatingUnknown", "how fast the device heats up")
    elif slope is not None and slope > limit * (SLOPE_GAP if paused else 1):
        yield Verdict(Level.PAUSE, "HeatingUp", f"heats up by {slope:.1f} °C a minute, works up to {limit:.1f}")
    elif slope is not None and slope > limit * SLOPE_GAP:
        yield Verdict(Level.EASE, "HeatingUp", f"heats up by {slope:.1f} °C a minute of at most {limit:.1f}")


def _surroundings(policy: Policy, vitals: Vitals, local: LocalTime, *, paused: bool, eased: bool) -> Iterator[Verdict]:
    if policy.windows and not is_open(policy.windows, local):
        hours = ", ".join(str(window) for window in policy.windows)
        yield Verdict(Level.PAUSE, "OutsideHours", f"works {hours} local time")
    if not policy.allow_metered:
        if vitals.metered is None:
            yield from _unknown(policy, Rule.NETWORK, "NetworkUnknown", "whether the network is paid for by the byte")
        elif vitals.metered:
            yield Verdict(Level.PAUSE, "NetworkMetered", "works only where the network is not paid for by the byte")
    if policy.min_memory_bytes is not None:
        available = vitals.memory_available_bytes
        if available is None:
            yield from _unknown(policy, Rule.MEMORY, "MemoryUnknown", "how much memory is available")
        elif available < (floor := policy.min_memory_bytes * (MEMORY_GAP if paused else 1)):
            text = f"{available >> 20} MiB available, works from {int(floor) >> 20} MiB on"
            yield Verdict(Level.PAUSE, "MemoryLow", text)
    if policy.max_others_cpu is not None:
        others, limit = vitals.others_cpu, policy.max_others_cpu
        if others is None:
            yield from _unknown(policy, Rule.USER, "UserUnknown", "whether somebody uses the device")
        elif others > limit * (OTHERS_GAP if paused else 1):
            yield Verdict(Level.PAUSE, "UserActive", f"others keep {others:.0%} of the processor busy")
        elif others > limit * OTHERS_GAP * (0.75 if eased else 1):
            yield Verdict(Level.EASE, "UserActive", f"others keep {others:.0%} of the processor busy")


def _unknown(policy: Policy, rule: Rule, reason: str, what: str) -> Iterator[Verdict]:
    if rule in policy.pause_if_unknown:
        yield Verdict(Level.PAUSE, reason, f"it cannot be read {what}, and the owner wants it to wait then")


def _with_heat(heats: tuple[tuple[float, float], ...], now: float, vitals: Vitals) -> tuple[tuple[float, float], ...]:
    # A processor's own heat leaps with every shard; a battery's follows slowly, and says where things are going.
    heat = vitals.processor_celsius if vitals.battery_celsius is None else vitals.battery_celsius
    kept = tuple((at, celsius) for at, celsius in heats if now - SLOPE_WINDOW_S <= at < now)
    return kept if heat is None else (*kept, (now, heat))


def _slope(heats: tuple[tuple[float, float], ...]) -> float | None:
    """Degrees per minute between the oldest and the newest reading; None over too short a time."""
    if len(heats) < 2:
        return None
    (began, first), (ended, last) = heats[0], heats[-1]
    return 60 * (last - first) / (ended - began) if ended - began >= SLOPE_SPAN_S else None
