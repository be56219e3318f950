"""Benchmarks: what figures say, the page they are written to, and that nothing wrong is measured."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hack import datasets
from hack.bench import limit, workloads
from hack.bench.breakdown import AgentTimes, break_down
from hack.bench.comparing import require_equal
from hack.bench.document import BEGIN, END, MarkerError, build_section, rewrite
from hack.bench.errors import BenchError
from hack.bench.figures import Definition, Figure, rounded
from hack.bench.grid import Grid, GridRun, committed_shards
from hack.bench.limit import LimitRun
from hack.bench.machine import Neighbours, machine_facts
from hack.bench.measurements import ALL, Conditions
from hack.bench.measurements.agent_loss import release_times
from hack.bench.measurements.base import Round, play_rounds
from hack.bench.progress import Progress
from pocketgrid.storage.logentries import Commit, encode_line, segment_name

ROOT = Path(__file__).parents[3]
DEFINITIONS = [definition for measurement in ALL for definition in measurement.definitions]

SPEED = Definition("speed", "items/s", 100.0, at_least=True, meaning="How fast", origin="somebody said so")
DELAY = Definition("delay", "s", 2.0, at_least=False, meaning="How late", origin="nobody waits longer")


# ---- figures ----


def test_a_figure_is_one_json_line_of_median_spread_and_goal():
    figure = Figure(SPEED, (90.0, 123.45678, 150.0), {"limit": 200.123})
    line = figure.to_json()
    assert "\n" not in line
    assert json.loads(line) == {
        "name": "speed",
        "value": 123.5,
        "unit": "items/s",
        "goal": 100.0,
        "met": True,
        "spread": [90, 150],
        "baseline": {"limit": 200.1},
    }


@pytest.mark.parametrize(
    ("definition", "values", "met"),
    [
        pytest.param(SPEED, (100.0,), True, id="at-least-is-met-by-the-goal-itself"),
        pytest.param(SPEED, (99.9, 99.9, 500.0), False, id="one-good-round-does-not-meet-it"),
        pytest.param(DELAY, (2.0,), True, id="at-most-is-met-by-the-goal-itself"),
        pytest.param(DELAY, (2.1,), False, id="later-is-missed"),
    ],
)
def test_the_median_is_held_against_the_goal_in_its_direction(definition, values, met):
    assert Figure(definition, values).met is met


@pytest.mark.parametrize("values", [(), (float("nan"),), (1.0, float("inf"))])
def test_what_was_not_measured_is_no_figure(values):
    with pytest.raises(ValueError, match="no measured values"):
        Figure(SPEED, values)


@given(st.floats(min_value=-1e12, max_value=1e12, allow_nan=False))
def test_rounding_keeps_four_significant_digits(value):
    assert abs(rounded(value) - value) <= abs(value) * 5.001e-4


def test_large_numbers_are_rounded_to_whole_ones():
    assert rounded(1_234_567.8) == 1_235_000
    assert isinstance(rounded(1_234_567.8), int)


# ---- the list of measurements ----


def test_every_figure_has_a_name_of_its_own_a_unit_a_goal_and_words():
    names = [definition.name for definition in DEFINITIONS]
    assert len(set(names)) == len(names)
    for definition in DEFINITIONS:
        assert re.fullmatch(r"[a-z0-9_]+", definition.name)
        assert definition.unit in {"ratio", "items/s", "ms", "s", "cores", "MB", "KB", "%"}
        assert definition.goal > 0
        assert definition.meaning
        assert definition.origin
        # They become sentences of a list; a stop of their own would be doubled.
        assert not definition.meaning.endswith(".")
        assert not definition.origin.endswith(".")


def test_a_figure_named_after_its_unit_has_it():
    for definition in DEFINITIONS:
        if definition.name.endswith("_seconds"):
            assert definition.unit == "s"
        if definition.name.startswith("items_per_second"):
            assert definition.unit == "items/s"
        if definition.name.startswith("efficiency"):
            assert definition.unit == "ratio"


# ---- the page ----


def test_only_what_is_between_the_markers_is_rewritten():
    page = f"# Title\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    once = rewrite(page, "new\n")
    assert once == f"# Title\n\nbefore\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    assert rewrite(once, "new") == once


@pytest.mark.parametrize(
    "page",
    ["nothing", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}", f"{BEGIN}\n{END}\n{END}"],
    ids=["none", "no-end", "no-begin", "reversed", "two-begins", "two-ends"],
)
def test_a_page_with_broken_markers_is_left_alone(page):
    with pytest.raises(MarkerError):
        rewrite(page, "new")


def test_the_page_in_docs_can_be_rewritten():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert "measured text" in rewrite(page, "measured text")


def test_the_section_shows_values_goals_misses_and_how_to_repeat_them():
    figures = [Figure(SPEED, (90.0,), {"limit_items": 1234.0}), Figure(DELAY, (0.5, 1.5))]
    section = build_section(figures, {"Processor": "an abacus"}, "make bench")
    assert "| `speed` | **90** items/s | 90 to 90 | ≥ 100 | **missed** | limit items 1,234 |" in section
    assert "| `delay` | **1** s | 0.5 to 1.5 | ≤ 2 | met |  |" in section
    assert "- `speed` (1 values): How fast. Goal: somebody said so." in section
    assert "- Processor: an abacus" in section
    assert "`make bench`" in section


def test_machine_facts_do_not_say_whose_machine_it_is():
    import datetime as dt
    import socket

    facts = machine_facts(dt.date(2030, 1, 2))
    assert facts["Measured on"] == "2030-01-02"
    assert {"Processor", "Python", "onnxruntime"} <= set(facts)
    told = " ".join(facts.values())
    assert socket.gethostname() not in told
    assert "/" not in told


def test_neighbours_are_counted_in_cores_and_never_negative():
    began = Neighbours(at=0.0, all_busy_s=0.0, own_s=0.0)
    assert began.cores(now=1e9) >= 0.0
    assert Neighbours(at=0.0, all_busy_s=1e12, own_s=0.0).cores(now=10.0) == 0.0


# ---- ratios ----


def _limit_run(rate: float, whole_s: float, cpu_us: float) -> LimitRun:
    return LimitRun(rate, first_s=1.0, whole_s=whole_s, cpu_us_per_item=cpu_us, results=np.zeros(0))


def test_a_round_holds_the_grid_against_the_mean_of_its_own_limits():
    run = GridRun(
        items_per_second=90.0,
        first_s=1.0,
        whole_s=4.0,
        ended_s=5.0,
        coordinator_ms_per_shard=0.5,
        cpu_us_per_item=40.0,
        stages={"compute": 40.0},
        per_shard=32,
        compute_s=1.0,
        output=Path("none"),
        lines=(),
    )
    played = Round(run, (_limit_run(80.0, 2.0, 30.0), _limit_run(120.0, 4.0, 34.0)))
    assert played.ratio == pytest.approx(0.9)
    assert played.whole_job_ratio == pytest.approx(0.75)
    assert played.processor_ratio == pytest.approx(0.8)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=100), st.integers(1, 16))
def test_the_limit_computes_every_row_once_in_batches_of_like_length(lengths, size):
    batches = list(limit._micro_batches(np.array(lengths), size))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])
    ordered = [lengths[row] for batch in batches for row in batch]
    assert ordered == sorted(lengths)


# ---- wrong answers ----


def _workload(tolerance: float) -> workloads.Workload:
    nowhere = Path("none")
    return workloads.Workload("some", nowhere, 2, 1, 0, "out", False, nowhere, nowhere, {}, {}, tolerance)


def test_results_within_the_tolerance_are_equal():
    assert require_equal(_workload(0.1), np.array([1.0, 2.0]), np.array([1.05, 2.0])) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param([1.0, 2.2], id="one-value-off"),
        pytest.param([1.0, float("nan")], id="not-a-number"),
        pytest.param([1.0], id="a-row-missing"),
    ],
)
def test_a_wrong_answer_is_an_error_and_not_a_figure(found):
    with pytest.raises(BenchError):
        require_equal(_workload(0.1), np.array(found), np.array([1.0, 2.0]))


# ---- loss of an agent ----

_LINES = (
    (1.0, "lease job=default/x device=a shards=3"),
    (1.1, "lease job=default/x device=b shards=3"),
    (5.2, "detached device=a reason=Disconnected"),
    (5.5, "lease job=default/x device=b shards=3"),
    (6.5, "lost device=a"),
    (6.8, "lease job=default/x device=b shards=3"),
)


def test_release_is_the_other_agents_first_lease_after_the_loss():
    assert release_times(_LINES, "a", killed_at=5.0) == pytest.approx((1.5, 1.8))


def test_a_log_without_a_later_lease_gives_no_figure():
    with pytest.raises(BenchError, match="no lease"):
        release_times(_LINES[:-1], "a", killed_at=5.0)
    with pytest.raises(BenchError, match="was lost"):
        release_times(_LINES[:4], "a", killed_at=5.0)


def test_commits_are_counted_in_all_segments(tmp_path):
    log = tmp_path / "_pocketgrid" / "log"
    log.mkdir(parents=True)
    assert committed_shards(tmp_path) == 0
    commits = [encode_line(Commit(shard, 1, 1, 8, 0, 500, segment_name(1, 1), 0, 64, 60, 0)) for shard in (1, 2)]
    (log / "E1-S1.log").write_bytes(b'00000000 {"kind":"plan"}\n' + commits[0])
    (log / "E1-S2.log").write_bytes(commits[1] + commits[0][:10])
    assert committed_shards(tmp_path) == 2


# ---- data sets ----

_DATA = """\
  1 This software and database is being provided to you, the LICENSEE,
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived; "an example | here"
00001930 03 n 01 thing 0 001 @ 00001740 n 0000 | an entity
"""


@pytest.fixture
def small_wordnet(tmp_path, monkeypatch):
    """WordNet as if installed, with two glosses a file; gives the cached file's path."""
    installed = tmp_path / "installed"
    installed.mkdir()
    for part in datasets.PARTS_OF_SPEECH:
        (installed / f"data.{part}").write_text(_DATA)
    import hashlib

    made = "".join(
        f'{part}.00001740\tthat which is perceived; "an example | here"\n{part}.00001930\tan entity\n'
        for part in datasets.PARTS_OF_SPEECH
    )
    monkeypatch.setattr(datasets, "INSTALLED", installed)
    monkeypatch.setattr(datasets, "GLOSSES", 8)
    monkeypatch.setattr(datasets, "SHA256", hashlib.sha256(made.encode()).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return datasets.cache_folder(os.environ) / "wordnet-3.0-glosses.tsv"


def test_glosses_are_read_without_the_licence_and_spread_over_all(small_wordnet):
    assert datasets.wordnet_glosses(4) == [
        (f"{part}.00001740", 'that which is perceived; "an example | here"') for part in datasets.PARTS_OF_SPEECH
    ]
    assert len(dict(datasets.wordnet_glosses(8))) == 8
    assert [path.name for path in small_wordnet.parent.iterdir()] == [small_wordnet.name]


@pytest.mark.parametrize("damage", [b"", b"noun.00001740\tsomething else\n"], ids=["cut", "changed"])
def test_a_damaged_cache_is_made_anew(small_wordnet, damage):
    before = datasets.wordnet_glosses(8)
    small_wordnet.write_bytes(damage)
    assert datasets.wordnet_glosses(8) == before


def test_without_apt_the_error_says_what_to_install(small_wordnet, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    said = []
    with pytest.raises(datasets.DatasetError, match="apt-get is not on PATH") as raised:
        datasets.wordnet_glosses(8, say=said.append)
    assert "install apt" in str(raised.value)
    assert said
    assert not small_wordnet.exists()


@pytest.mark.parametrize("count", [0, 9])
def test_more_glosses_than_there_are_cannot_be_had(small_wordnet, count):
    with pytest.raises(datasets.DatasetError):
        datasets.wordnet_glosses(count)


# ---- the real thing, small ----


def test_a_round_runs_the_product_and_the_limit_and_finds_them_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    monkeypatch.chdir(ROOT)
    conditions = Conditions(rounds=1, quick=True, folder=tmp_path, progress=Progress())
    workload = workloads.digits(tmp_path / "rows", 100_000, 256)
    (played,) = play_rounds(conditions, workload, Grid(tmp_path / "grid", 2))
    assert played.grid.per_shard == 256
    assert 0 < played.grid.first_s < played.grid.whole_s <= played.grid.ended_s
    assert played.grid.coordinator_ms_per_shard > 0
    assert played.ratio > 0
    # The labels are those of the network, in the order of the rows, and so is the wrong model found out.
    from sklearn.datasets import load_digits

    labels = np.resize(load_digits().target, 100_000)
    assert np.mean(played.limits[0].results == labels) > 0.99
    with pytest.raises(BenchError):
        require_equal(replace(workload, tolerance=0.0), played.limits[0].results[::-1], played.limits[0].results)


# ---- stages ----


def test_every_microsecond_is_in_one_stage():
    first = {"cpu_s": 1.0, "work": {"read": 0.1, "encode": 0.2, "judge": 0.0, "commit": 0.0, "seal": 0.0}}
    last = {"cpu_s": 3.0, "work": {"read": 0.5, "encode": 0.7, "judge": 0.3, "commit": 0.2, "seal": 0.1}}
    stages = break_down(first, last, AgentTimes(computing=8.0, others=0.5), items=1_000_000)
    assert stages["read"] == pytest.approx(0.4)
    assert stages["compute"] == pytest.approx(8.0)
    assert sum(stages.values()) == pytest.approx(2.0 + 8.5)


def test_the_page_has_a_column_for_each_figure_whose_stages_are_known():
    definition = DEFINITIONS[0]
    known = Figure(definition, (1.0,), stages={"read": 1.0, "compute": 3.0})
    section = build_section([known, Figure(DEFINITIONS[1], (1.0,))], {}, "make bench")
    assert "| read | 1 (25.0 %) |" in section
    assert "| compute | 3 (75.0 %) |" in section
    assert f"| stage | `{definition.name}` |" in section
