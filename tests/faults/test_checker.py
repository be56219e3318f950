"""The checker finds what it is there to find: histories of a sound run, then changed by hand and by Hypothesis."""

import copy
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketgrid.history import HistoryFile
from tests.faults.checker import Expected, check_history, check_output, read_histories, related_lines
from tests.faults.history_model import Violation

SHARDS, PER_SHARD = 12, 5
ITEMS = SHARDS * PER_SHARD - 2


class Script:
    """Writes the history of a sound run: what operators and agents say when everything goes as it should.

    Two operators, one after the other, and three devices; attempts are lost, copied, raced, reissued and settled.
    """

    def __init__(self) -> None:
        self.lines: list[dict] = []
        self.counters: dict[int, int] = {}

    def say(self, source: str, kind: str, **fields) -> dict:
        role = "operator" if source.startswith("op") else "agent"
        line = {"role": role, "t": len(self.lines) / 1000, "n": len(self.lines), "source": source, "kind": kind}
        if role == "agent":
            line["device"] = source.split(".", maxsplit=1)[0]
        line |= fields
        self.lines.append(line)
        return line

    def opened(self, operator: str, epoch: int, committed: str) -> None:
        self.say(operator, "process")
        fields = {"epoch": epoch, "items": ITEMS, "perShard": PER_SHARD, "committed": committed, "done": 0, "failed": 0}
        self.say(operator, "opened", job="j", **fields)

    def attach(self, operator: str, agent: str, *, first: bool = True) -> None:
        if first:
            self.say(agent, "process")
        self.say(operator, "attached", device=agent.split(".", maxsplit=1)[0], boot="b", credits=4, held=[])
        self.say(agent, "welcomed")

    def lease(self, operator: str, epoch: int, agent: str, shards: list[int], *, copy: bool = False) -> list[str]:
        names = []
        for _ in shards:
            self.counters[epoch] = number = self.counters.get(epoch, -1) + 1
            names.append(f"{epoch:08x}{number:08x}")
        pairs = [[shard, name] for shard, name in zip(shards, names, strict=True)]
        device = agent.split(".", maxsplit=1)[0]
        self.say(operator, "leased", job="j", device=device, lease=0, shards=pairs, copy=copy)
        self.say(operator, "sent", job="j", device=device, attempts=names)
        self.say(agent, "leased", job="j", shards=pairs)
        return names

    def compute(self, agent: str, shard: int, attempt: str) -> None:
        self.say(agent, "begun", job="j", shard=shard, attempt=attempt)
        self.say(agent, "finished", attempt=attempt, failed=False)
        self.say(agent, "journaled", attempts=[attempt])
        self.say(agent, "delivered", job="j", attempts=[attempt])

    def take(self, operator: str, epoch: int, agent: str, shard: int, attempt: str, *, die: bool = False) -> None:
        device = agent.split(".", maxsplit=1)[0]
        self.say(operator, "result", job="j", device=device, shard=shard, attempt=attempt, verdict="accepted")
        if die:
            return
        rows = min(PER_SHARD, ITEMS - shard * PER_SHARD)
        self.say(operator, "committed", job="j", epoch=epoch, shards=[[shard, attempt, device, rows, 0]])
        settled = {"committed": [attempt], "superseded": [], "refused": []}
        self.say(operator, "settled", job="j", device=device, **settled)
        self.say(agent, "settled", attempts=[attempt])


def sound_run() -> list[dict]:
    script = Script()
    script.opened("op1", 1, "")
    for agent in ("a.1", "b.1"):
        script.attach("op1", agent)
    ones = script.lease("op1", 1, "a.1", [0, 1, 2])
    twos = script.lease("op1", 1, "b.1", [3, 4])
    for shard, attempt in zip([0, 1], ones, strict=False):
        script.compute("a.1", shard, attempt)
        script.take("op1", 1, "a.1", shard, attempt)
    script.compute("b.1", 3, twos[0])
    script.take("op1", 1, "b.1", 3, twos[0])
    # One is raced by a copy, and the copy wins.
    (copied,) = script.lease("op1", 1, "a.1", [4], copy=True)
    script.compute("a.1", 4, copied)
    script.say("op1", "result", job="j", device="a", shard=4, attempt=copied, verdict="accepted")
    script.say("op1", "cancelled", job="j", device="b", attempts=[twos[1]])
    script.say("op1", "committed", job="j", epoch=1, shards=[[4, copied, "a", PER_SHARD, 0]])
    script.say("op1", "settled", job="j", device="a", committed=[copied], superseded=[], refused=[])
    script.say("a.1", "settled", attempts=[copied])
    # The operator dies with a result on its way to disk, which reaches it; another one takes over.
    script.compute("a.1", 2, ones[2])
    script.take("op1", 1, "a.1", 2, ones[2], die=True)
    script.say("a.1", "lost")
    script.opened("op2", 2, "0-4")
    script.attach("op2", "a.1", first=False)
    script.say("op2", "result", job="j", device="a", shard=2, attempt=ones[2], verdict="superseded")
    script.say("op2", "settled", job="j", device="a", committed=[], superseded=[ones[2]], refused=[])
    script.say("a.1", "settled", attempts=[ones[2]])
    # A device dies with a finished result, comes back as another process and answers a new lease with it.
    script.attach("op2", "c.1")
    first, second = script.lease("op2", 2, "c.1", [5, 6])
    script.say("c.1", "begun", job="j", shard=5, attempt=first)
    script.say("c.1", "finished", attempt=first, failed=False)
    script.say("op2", "detached", device="c", reason="Disconnected")
    script.say("op2", "gone", job="j", device="c", keep=[])
    script.attach("op2", "c.2")
    (again,) = script.lease("op2", 2, "c.2", [5])
    script.say("c.2", "reissued", old=first, attempt=again)
    script.say("c.2", "journaled", attempts=[again])
    script.say("c.2", "delivered", job="j", attempts=[again])
    script.take("op2", 2, "c.2", 5, again)
    for shard in range(6, SHARDS):
        (attempt,) = script.lease("op2", 2, "a.1", [shard])
        script.compute("a.1", shard, attempt)
        script.take("op2", 2, "a.1", shard, attempt)
    script.say("op2", "finished", job="j", manifest="m")
    assert second
    return script.lines


SOUND = sound_run()


def violation_in(lines: list[dict]) -> Violation | None:
    return check_history(lines, ITEMS, PER_SHARD)[1]


def changed(change) -> list[dict]:
    lines = copy.deepcopy(SOUND)
    change(lines)
    return lines


def find(lines: list[dict], kind: str, role: str = "operator", at: int = 0) -> int:
    return [i for i, line in enumerate(lines) if line["kind"] == kind and line["role"] == role][at]


def test_a_sound_run_is_sound() -> None:
    model, violation = check_history(SOUND, ITEMS, PER_SHARD)
    assert violation is None
    assert len(model.computed) == SHARDS
    assert len(model.leases) == SHARDS + 3


# ---- each rule by itself ----


def _set(kind, role="operator", at=0, **fields):
    return lambda lines: lines[find(lines, kind, role, at)].update(fields)


def _drop(kind, role="operator", at=0):
    return lambda lines: lines.pop(find(lines, kind, role, at))


def _again(kind, role="operator", at=0):
    def change(lines):
        index = find(lines, kind, role, at)
        lines.insert(index + 1, copy.deepcopy(lines[index]))

    return change


def _before(kind, earlier, role="operator", at=0):
    """Move a line before an earlier one of another kind."""

    def change(lines):
        line = lines.pop(find(lines, kind, role, at))
        lines.insert(find(lines, earlier, "operator", at), line)

    return change


def _stale(lines):
    """The first operator commits on after the second has opened the log without it."""
    second = find(lines, "opened", at=1)
    lines[second]["committed"] = "0-3"
    index = find(lines, "committed", at=3)
    late = lines.pop(index)
    settled = lines.pop(index)
    assert lines[index]["kind"] == "settled"
    lines.pop(index)
    second = find(lines, "opened", at=1)
    lines[second + 1 : second + 1] = [late, settled]


def _beyond_credits(lines):
    index = find(lines, "leased", at=0)
    more = {**copy.deepcopy(lines[index]), "shards": [[shard, f"{1:08x}{90 + shard:08x}"] for shard in (10, 11)]}
    lines.insert(index + 1, more)


def _other_device(lines):
    """A result of one device is committed as another's."""
    lines[find(lines, "committed")]["shards"][0][2] = "b"


CASES = {
    "a lost row": (_drop("committed", at=5), "settlement"),
    "a row that was never done": (
        lambda lines: lines.__delitem__(slice(find(lines, "leased", at=-1), len(lines) - 1)),
        "end",
    ),
    "a doubled commit": (_again("committed"), "commit"),
    "a doubled lease": (_again("leased"), "lease"),
    "a commit without a result": (_drop("result"), "commit"),
    "a commit before its result": (_before("committed", "result"), "commit"),
    "a commit of another's result": (_other_device, "result"),
    "a settlement before its commit": (_before("settled", "committed"), "settlement"),
    "a settlement of another's result": (_set("settled", device="b"), "settlement"),
    "a lease beyond the credits": (_beyond_credits, "lease"),
    "a lease of a committed shard": (
        lambda lines: lines[find(lines, "leased", at=2)]["shards"][0].__setitem__(0, 0),
        "lease",
    ),
    "a lease of another epoch": (
        lambda lines: lines[find(lines, "leased", at=3)]["shards"][0].__setitem__(1, f"{7:08x}{1:08x}"),
        "lease",
    ),
    "an acknowledged result that the log lost": (_set("opened", at=1, committed="0-2,4"), "recovery"),
    "a result from nowhere in the log": (_set("opened", at=1, committed="0-5"), "recovery"),
    "an epoch that was there before": (_set("opened", at=1, epoch=1), "fencing"),
    "a stale epoch that acknowledges": (_stale, "fencing"),
    "an attempt nobody was given": (_set("result", attempt=f"{1:08x}{99:08x}"), "result"),
    "an attempt under another's name": (_set("result", device="b"), "result"),
    "an attempt of another shard": (_set("result", shard=9), "result"),
    "an end before the end": (lambda lines: lines.insert(find(lines, "committed", at=-2), lines.pop()), "end"),
    "an unfinished job": (_drop("finished"), "end"),
    "work without a lease": (_drop("leased", role="agent"), "device"),
    "a result without work": (_drop("begun", role="agent"), "device"),
    "a delivery of what is not safe": (_drop("journaled", role="agent"), "device"),
    "a settlement nobody sent": (_set("settled", role="agent", attempts=[f"{1:08x}{77:08x}"]), "device"),
    "a delivery of what was settled": (
        lambda lines: lines.insert(
            find(lines, "settled", "agent") + 1, copy.deepcopy(lines[find(lines, "delivered", "agent")])
        ),
        "device",
    ),
    "an answer with another shard's result": (_set("reissued", role="agent", old=f"{1:08x}{0:08x}"), "device"),
    "lines that a full disk swallowed": (
        lambda lines: lines.insert(5, {"role": "operator", "kind": "gap", "lost": 3, "source": "op1", "t": 0}),
        "history",
    ),
    "lines of an unknown kind": (lambda lines: lines[find(lines, "attached")].update(kind="atached"), "history"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_finds_its_violation(case: str) -> None:
    change, rule = CASES[case]
    violation = violation_in(changed(change))
    assert violation is not None, case
    assert violation.rule == rule, str(violation)


# ---- any change that matters ----

DECISIVE = [
    i
    for i, line in enumerate(SOUND)
    if (line["role"], line["kind"])
    in {
        ("operator", "opened"),
        ("operator", "attached"),
        ("operator", "committed"),
        ("operator", "finished"),
        ("agent", "begun"),
        ("agent", "finished"),
    }
    or (line["kind"] == "leased")
    or (line["kind"] == "result" and line["verdict"] == "accepted")
]
"""Lines that no sound history can do without, or have twice."""

HARMLESS_TWICE = {("operator", "attached"), ("agent", "leased"), ("operator", "finished")}

ATTEMPT_KINDS = {"begun", "finished", "result", "reissued"}


@settings(deadline=None, max_examples=150)
@given(index=st.sampled_from(DECISIVE))
def test_no_decisive_line_can_be_dropped(index: int) -> None:
    line = SOUND[index]
    lines = SOUND[:index] + SOUND[index + 1 :]
    violation = violation_in(lines)
    if (line["role"], line["kind"]) == ("operator", "attached") and any(
        other["kind"] == "attached" and other["device"] == line["device"] and other["source"] == line["source"]
        for other in SOUND[:index]
    ):
        return
    assert violation is not None, line


@settings(deadline=None, max_examples=150)
@given(index=st.sampled_from(DECISIVE))
def test_no_decisive_line_can_come_twice(index: int) -> None:
    line = SOUND[index]
    if (line["role"], line["kind"]) in HARMLESS_TWICE:
        return
    lines = [*SOUND[: index + 1], copy.deepcopy(line), *SOUND[index + 1 :]]
    assert violation_in(lines) is not None, line


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_no_commit_can_be_forged(data: st.DataObject) -> None:
    """Any change to what a commit says of shard, attempt, device, rows or failures is found."""
    lines = copy.deepcopy(SOUND)
    commit = data.draw(st.sampled_from([line for line in lines if line["kind"] == "committed"]))
    (entry,) = commit["shards"]
    field = data.draw(st.integers(0, 4))
    forged = [
        st.integers(-3, SHARDS + 3),
        st.from_regex(r"\A0000000[12]000000[01][0-9a-f]\Z"),
        st.sampled_from(["a", "b", "c", "d"]),
        st.integers(0, PER_SHARD + 2),
        st.integers(PER_SHARD + 1, 9) | st.integers(-5, -1),
    ][field]
    value = data.draw(forged)
    if value != entry[field]:
        entry[field] = value
        assert violation_in(lines) is not None, entry


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_attempts_cannot_be_exchanged(data: st.DataObject) -> None:
    """Two lines of different attempts that exchange their attempts do not make a sound history."""
    lines = copy.deepcopy(SOUND)
    spoken = [i for i, line in enumerate(lines) if line["kind"] in ATTEMPT_KINDS and "attempt" in line]
    first = data.draw(st.sampled_from(spoken))
    partners = [i for i in spoken if i != first and lines[i]["kind"] == lines[first]["kind"]]
    if not partners:
        return
    second = data.draw(st.sampled_from(partners))
    one, other = lines[first], lines[second]
    if one["attempt"] == other["attempt"]:
        return
    one["attempt"], other["attempt"] = other["attempt"], one["attempt"]
    assert violation_in(lines) is not None, (one, other)


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 1 << 30))
def test_causes_come_before_effects(seed: int) -> None:
    """Moving a line far to the front is found, if something has to come before it."""
    rng = random.Random(seed)
    lines = copy.deepcopy(SOUND)
    effects = [i for i in DECISIVE if i > 12 and lines[i]["kind"] not in ("attached", "opened", "leased")]
    line = lines.pop(rng.choice(effects))
    lines.insert(rng.randrange(2, 8), line)
    assert violation_in(lines) is not None, line


# ---- files ----


def test_histories_of_many_processes_become_one(tmp_path) -> None:
    operator = HistoryFile(tmp_path / "history-op.jsonl", {"role": "operator"})
    agent = HistoryFile(tmp_path / "history-a.jsonl", {"role": "agent", "device": "a"})
    for number in range(20):
        (operator if number % 3 else agent).record("step", {"number": number})
    operator.close()
    agent.close()
    lines = [line for line in read_histories(tmp_path.glob("history-*")) if line["kind"] == "step"]
    assert [line["number"] for line in lines] == list(range(20))
    assert lines[0]["role"] == "agent"
    assert lines[0]["device"] == "a"
    assert lines[1]["role"] == "operator"


def test_a_report_shows_what_belongs_to_the_violation() -> None:
    lines = changed(CASES["a doubled commit"][0])
    violation = violation_in(lines)
    related = related_lines(lines, violation)
    assert related[-1] is violation.line
    kinds = [line["kind"] for line in related]
    assert kinds.count("committed") == 2
    assert "leased" in kinds
    assert "result" in kinds
    assert not any(line["kind"] == "begun" and line["shard"] != violation.shard for line in related)


def test_an_empty_history_is_no_sound_one(tmp_path) -> None:
    assert violation_in([]) is not None


def write_output(folder: Path, values: np.ndarray, rows: list[int]) -> None:
    table = pa.table({"row": rows, "y": pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])})
    pq.write_table(table, folder / "part-00000.parquet")


@pytest.mark.parametrize("case", ["a row is missing", "a row is doubled", "two rows are exchanged", "a value is wrong"])
def test_the_output_itself_is_looked_at(tmp_path, monkeypatch, case: str) -> None:
    # Digests are `pocketgrid results verify`'s business, tested with it; here it is rows.
    monkeypatch.setattr("pocketgrid.storage.results.verify", lambda uri: [])
    values = np.arange(40, dtype=np.float32).reshape(10, 4)
    expected = Expected(tmp_path, values, 5)
    write_output(tmp_path, values, list(range(10)))
    assert check_output(expected) == ""
    order = list(range(10))
    found = values.copy()
    match case:
        case "a row is missing":
            order.pop(3)
        case "a row is doubled":
            order.insert(3, 3)
        case "two rows are exchanged":
            found[[4, 5]] = found[[5, 4]]
        case "a value is wrong":
            found[7, 2] += 1
    write_output(tmp_path, found[order], order)
    assert check_output(expected).startswith("output: ")
