"""The simulation of trust, small: it runs, says what it should, and its crowd behaves as described."""

import json

import numpy as np
import pytest

from hack.bench.document import rewrite
from hack.bench_trust import boinc
from hack.bench_trust.__main__ import PAGE, main
from hack.bench_trust.crowd import SCENARIOS, Crowd, right
from hack.bench_trust.document import BEGIN, END, build_section
from hack.bench_trust.figures import Result, build_figures
from hack.bench_trust.outcome import Outcome

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def test_a_quick_run_meets_what_does_not_depend_on_size(capsys):
    page = PAGE.read_text()
    assert main(["--quick"]) == 0
    figures = {figure["name"]: figure for figure in map(json.loads, capsys.readouterr().out.splitlines())}
    assert PAGE.read_text() == page
    assert set(figures) >= {"honest_redundancy", "dominated_cases", "honest_devices_caught"}
    assert {f"wrong_rows_{name}" for name in BY_NAME if name != "honest"} <= set(figures)
    assert figures["honest_devices_caught"]["value"] == 0
    assert figures["wrong_rows_random"]["value"] == 0
    assert figures["wrong_rows_random"]["baseline"]["liars_caught"] == 1
    assert figures["wrong_rows_league_two_owners"]["met"]
    assert figures["wrong_rows_cheaper_10"]["met"]
    # Strangers are checked more, and all are strangers to the end in so small a fleet.
    assert 1.0 < figures["honest_redundancy"]["value"] < 1.2


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("constant", 0.85, 0.95),
        ("random", 0.85, 0.95),
        ("cheaper_10", 0.08, 0.12),
        ("cheaper_1", 0.005, 0.015),
        ("league_two_owners", 0.17, 0.23),
        ("honest", 0, 0),
    ],
)
def test_liars_lie_as_often_as_their_title_says(name, low, high):
    crowd = Crowd(BY_NAME[name], 100, 1)
    items = np.arange(20_000)
    devices = items % 10
    wrong = crowd.answer(devices, items) != right(items)
    assert low <= wrong.mean() <= high
    assert not np.any(crowd.answer(devices + 10, items) != right(items))


def test_a_turncoat_turns():
    crowd = Crowd(BY_NAME["turncoat"], 100, 1)
    first, later = np.arange(5_000), np.arange(5_000, 9_000)
    device = np.zeros(5_000, dtype=np.int64)
    assert not np.any(crowd.answer(device, first) != right(first))
    assert np.mean(crowd.answer(device[:4_000], later) != right(later)) > 0.8


def test_a_league_agrees_and_two_leagues_do_not():
    crowd = Crowd(BY_NAME["league_two_owners"], 100, 1)
    items = np.arange(5_000)
    answers = [crowd.answer(np.full(5_000, device), items) for device in (0, 1, 2)]
    assert np.array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])
    assert Crowd(BY_NAME["league_one_owner"], 100, 1).owner[:4].tolist() == [0, 0, 1, 1]


def test_boinc_needs_what_its_formula_says_and_quorums_need_two():
    """N grows by one for each side of a replicated item, so it is about sqrt(4 J) after J items."""
    adaptive = boinc.run(BY_NAME["honest"], 50, 4_000, 3, adaptive=True)
    assert adaptive.wrong == 0
    assert (adaptive.redundancy - 1) * 4_000 == pytest.approx((4 * 4_000) ** 0.5 / 2, rel=0.15)
    assert boinc.run(BY_NAME["honest"], 50, 200, 3, adaptive=False).redundancy == 2.0


def test_what_is_missed_is_shown_as_missed():
    bad, good = Outcome(0.02, 1.5, caught=0.5), Outcome(0.001, 1.2)
    result = Result(BY_NAME["random"], bad, good, good)
    assert result.dominated
    assert not Result(BY_NAME["random"], bad, Outcome(0.02, 1.2), Outcome(0.0, 2.0)).dominated
    figures = build_figures([result], 0.001)
    section = build_section([result], figures, 10, 20)
    assert section.count("**missed**") == 2
    assert "50%" in section
    page = rewrite(f"head\n{BEGIN}\nold\n{END}\ntail", section, BEGIN, END)
    assert "old" not in page
    assert page.startswith("head")
