"""Laws of the agent's policy: for every policy and every history of readings."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given, settings

from pocketgrid_agent.hours import LocalTime, Window
from pocketgrid_agent.policy import START, Level, Policy, Rule, State, judge
from pocketgrid_agent.vitals import Vitals


def maybe(strategy: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.none() | strategy


# Few values near the limits, so that histories cross them all the time.
PERCENT = st.sampled_from([0.0, 20.0, 29.0, 30.0, 34.0, 35.0, 36.0, 100.0])
CELSIUS = st.sampled_from([-10.0, 20.0, 35.0, 39.0, 40.0, 41.0, 44.0, 45.0, 46.0, 80.0])
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 1.0])
BYTES = st.sampled_from([0, 90, 100, 120, 125, 130])

windows = st.builds(
    Window,
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(0, 1440),
)
policies = st.builds(
    Policy,
    min_battery_percent=maybe(st.sampled_from([0.0, 30.0, 98.0])),
    only_charging=st.booleans(),
    max_battery_celsius=maybe(st.just(45.0)),
    max_celsius=maybe(st.just(45.0)),
    max_celsius_per_minute=maybe(st.sampled_from([0.5, 3.0])),
    allow_metered=st.booleans(),
    windows=st.lists(windows, max_size=2).map(tuple),
    min_memory_bytes=st.none() | st.just(100),
    max_others_cpu=maybe(st.just(0.5)),
    pause_if_unknown=st.frozensets(st.sampled_from(Rule)),
    dwell_s=st.sampled_from([0.0, 30.0, 60.0]),
)
vitals = st.builds(
    Vitals,
    memory_available_bytes=st.none() | BYTES,
    battery_percent=maybe(PERCENT),
    charging=st.none() | st.booleans(),
    battery_celsius=maybe(CELSIUS),
    processor_celsius=maybe(CELSIUS),
    metered=st.none() | st.booleans(),
    others_cpu=maybe(SHARES),
)
moments = st.builds(LocalTime, st.integers(0, 6), st.integers(0, 1439))
histories = st.lists(st.tuples(st.sampled_from([1.0, 5.0, 20.0, 59.0, 61.0]), vitals, moments), min_size=1, max_size=10)


def play(policy: Policy, history: list[tuple[float, Vitals, LocalTime]]) -> list[tuple[float, State]]:
    now, state, seen = 0.0, START, []
    for step, reading, local in history:
        now += step
        state = judge(policy, reading, now, local, state)
        seen.append((now, state))
    return seen


def known_violation(policy: Policy, reading: Vitals) -> bool:
    """Whether a reading breaks a rule, said in the plainest way there is."""

    def below(value: float | None, limit: float | None) -> bool:
        return value is not None and limit is not None and value < limit

    def above(value: float | None, limit: float | None) -> bool:
        return value is not None and limit is not None and value > limit

    return (
        below(reading.battery_percent, policy.min_battery_percent)
        or (policy.only_charging and reading.charging is False)
        or above(reading.battery_celsius, policy.max_battery_celsius)
        or above(reading.processor_celsius, policy.max_celsius)
        or (not policy.allow_metered and reading.metered is True)
        or below(reading.memory_available_bytes, policy.min_memory_bytes)
        or above(reading.others_cpu, policy.max_others_cpu)
    )


@settings(max_examples=60, deadline=None)
@given(policies, histories)
def test_it_never_runs_while_a_rule_is_known_to_be_broken(
    policy: Policy, history: list[tuple[float, Vitals, LocalTime]]
) -> None:
    for (_, state), (_, reading, local) in zip(play(policy, history), history, strict=True):
        closed = bool(policy.windows) and not any(window.holds(local) for window in policy.windows)
        if known_violation(policy, reading) or closed:
            assert state.verdict.level is Level.PAUSE
        if state.verdict.level is not Level.WORK:
            assert state.verdict.reason
            assert state.verdict.message


@settings(max_examples=60, deadline=None)
@given(policies, histories)
def test_it_never_goes_on_sooner_than_the_dwell_after_it_stopped(
    policy: Policy, history: list[tuple[float, Vitals, LocalTime]]
) -> None:
    seen = play(policy, history)
    stopped_at = None
    for (_, before), (now, after) in pairwise([(0.0, START), *seen]):
        if after.verdict.level is Level.PAUSE:
            if before.verdict.level is not Level.PAUSE:
                stopped_at = now
        elif before.verdict.level is Level.PAUSE:
            assert stopped_at is not None
            assert now - stopped_at >= policy.dwell_s


@st.composite
def worse_than(draw: st.DrawFn, reading: Vitals) -> Vitals:
    """A reading that is as good or worse wherever anything is known, and knows the same things."""

    def up(value: float | None) -> float | None:
        return None if value is None else value + draw(st.sampled_from([0.0, 0.0, 1.0, 6.0]))

    def down(value: float | None) -> float | None:
        return None if value is None else value - draw(st.sampled_from([0.0, 0.0, 1.0, 6.0]))

    return replace(
        reading,
        memory_available_bytes=None if (memory := down(reading.memory_available_bytes)) is None else int(memory),
        battery_percent=down(reading.battery_percent),
        charging=reading.charging and draw(st.booleans()),
        battery_celsius=up(reading.battery_celsius),
        processor_celsius=up(reading.processor_celsius),
        metered=None if reading.metered is None else reading.metered or draw(st.booleans()),
        others_cpu=up(reading.others_cpu),
    )


@settings(max_examples=60, deadline=None)
@given(policies, histories, vitals, moments, st.data())
def test_a_worse_reading_never_allows_more(
    policy: Policy,
    history: list[tuple[float, Vitals, LocalTime]],
    reading: Vitals,
    local: LocalTime,
    data: st.DataObject,
) -> None:
    now, state = play(policy, history)[-1]
    worse = data.draw(worse_than(reading))
    better_level = judge(policy, reading, now + 5, local, state).verdict.level
    assert judge(policy, worse, now + 5, local, state).verdict.level >= better_level


@settings(max_examples=60, deadline=None)
@given(policies, histories, st.data())
def test_a_worse_history_never_allows_more(
    policy: Policy, history: list[tuple[float, Vitals, LocalTime]], data: st.DataObject
) -> None:
    # Of the slope this cannot hold: whoever was hot before heats up less now.
    policy = replace(policy, max_celsius_per_minute=None, max_battery_celsius=None, max_celsius=None)
    worse = [(step, data.draw(worse_than(reading)), local) for step, reading, local in history]
    for (_, better_state), (_, worse_state) in zip(play(policy, history), play(policy, worse), strict=True):
        assert worse_state.verdict.level >= better_state.verdict.level


@settings(max_examples=60, deadline=None)
@given(policies, histories)
def test_the_same_history_gives_the_same_verdicts(
    policy: Policy, history: list[tuple[float, Vitals, LocalTime]]
) -> None:
    assert play(policy, history) == play(policy, history)


@settings(max_examples=60, deadline=None)
@given(histories)
def test_without_rules_everything_is_allowed(history: list[tuple[float, Vitals, LocalTime]]) -> None:
    policy = Policy(pause_if_unknown=frozenset(Rule))
    assert {state.verdict.level for _, state in play(policy, history)} == {Level.WORK}


def test_every_rule_of_a_policy_is_drawn_here() -> None:
    assert {f.name for f in fields(Policy)} == {
        "min_battery_percent", "only_charging", "max_battery_celsius", "max_celsius", "max_celsius_per_minute",
        "allow_metered", "windows", "min_memory_bytes", "max_others_cpu", "pause_if_unknown", "dwell_s",
    }  # fmt: skip
