"""The history checker on jobs whose results are verified: checks travel apart from shards, only commits are final."""

import copy

import pytest

from tests.faults.history_model import HistoryModel, Violation
from tests.faults.test_checker import PER_SHARD, Script

SHARDS = 2


def verified_run() -> list[dict]:
    """Two shards, each checked by the other device, with an operator that dies in between."""
    script = Script()
    script.say("op1", "process")
    cut = {"items": SHARDS * PER_SHARD, "perShard": PER_SHARD}
    script.say("op1", "opened", job="j", epoch=1, **cut, committed="", verified="", done=0, failed=0)
    for agent in ("a.1", "b.1"):
        script.attach("op1", agent)
    for shard, agent in enumerate(("a.1", "b.1")):
        attempt = lease(script, "op1", agent, shard, 900 + shard, 1, shard)
        script.compute(agent, 900 + shard, attempt)
        script.take("op1", 1, agent, shard, attempt)
    check(script, "op1", "b.1", SHARDS, 955, 1, 2)
    script.say("op1", "verified", job="j", shards=[0])
    lease(script, "op1", "a.1", SHARDS + 1, 977, 1, 3, check=True)
    script.say("op2", "process")
    script.say("op2", "opened", job="j", epoch=2, **cut, committed="0,1", verified="0", done=0, failed=0)
    script.attach("op2", "a.1", first=False)
    check(script, "op2", "a.1", SHARDS, 966, 2, 0)
    script.say("op2", "verified", job="j", shards=[1])
    script.say("op2", "finished", job="j", manifest="m")
    return script.lines


def lease(script: Script, operator: str, agent: str, shard: int, index: int, epoch: int, n: int, **fields) -> str:
    attempt, device = f"{epoch:08x}{n:08x}", agent.split(".", maxsplit=1)[0]
    shards = [[shard, attempt, index]]
    script.say(operator, "leased", job="j", device=device, lease=0, shards=shards, copy=False, **fields)
    script.say(operator, "sent", job="j", device=device, attempts=[attempt])
    script.say(agent, "leased", job="j", shards=[[index, attempt]])
    return attempt


def check(script: Script, operator: str, agent: str, number: int, index: int, epoch: int, n: int) -> None:
    attempt = lease(script, operator, agent, number, index, epoch, n, check=True)
    device = agent.split(".", maxsplit=1)[0]
    script.compute(agent, index, attempt)
    script.say(operator, "result", job="j", device=device, shard=number, attempt=attempt, verdict="checked")
    script.say(operator, "settled", job="j", device=device, committed=[attempt], superseded=[], refused=[])
    script.say(agent, "settled", attempts=[attempt])


def replay(lines: list[dict]) -> None:
    model = HistoryModel(SHARDS * PER_SHARD, PER_SHARD)
    for line in lines:
        model.follow(line)
    model.end(lines[-1])


def nth(lines: list[dict], kind: str, at: int = 0, role: str = "operator") -> dict:
    return [line for line in lines if line["kind"] == kind and line["role"] == role][at]


def test_a_sound_history_of_a_verified_job_is_followed() -> None:
    replay(verified_run())


WRONG = {
    "a check under the number of a shard": (lambda h: nth(h, "leased", 2)["shards"][0].__setitem__(2, 900), "check"),
    "a check of an earlier epoch's number": (lambda h: nth(h, "leased", 4)["shards"][0].__setitem__(2, 955), "check"),
    "a check that is a shard": (lambda h: nth(h, "leased", 2)["shards"][0].__setitem__(0, 1), "check"),
    "an agent that was told another number": (
        lambda h: nth(h, "leased", 0, "agent")["shards"][0].__setitem__(0, 1),
        "lease",
    ),
    "what is not committed is verified": (lambda h: nth(h, "verified").update(shards=[0, 7]), "check"),
    "a log that knows more than was committed": (lambda h: nth(h, "opened", 1).update(verified="0,7"), "check"),
    "an end with something provisional": (lambda h: nth(h, "verified", 1).update(shards=[]), "end"),
    "a check settled for somebody else": (lambda h: nth(h, "settled", 2).update(device="a"), "settlement"),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_rule_about_checks_finds_its_violation(what: str) -> None:
    spoil, rule = WRONG[what]
    lines = copy.deepcopy(verified_run())
    spoil(lines)
    with pytest.raises(Violation) as found:
        replay(lines)
    assert found.value.rule == rule
