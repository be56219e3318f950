"""Which turns of a job are told as Events, and when its object may go."""

import pytest

from pocketgrid.controller.transitions import accusation, device_transitions, transitions
from pocketgrid.controller.ttl import expires_at
from pocketgrid.model.ids import DeviceName


def status(**conditions: str) -> dict:
    """``Accepted="True/Admitted"`` and so on."""
    parts = {kind: text.partition("/") for kind, text in conditions.items()}
    return {
        "conditions": [
            {"type": kind, "status": truth, "reason": reason or "Any", "message": f"{kind} is {truth}"}
            for kind, (truth, _, reason) in parts.items()
        ]
    }


NOTHING: dict = {}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        pytest.param(NOTHING, status(Accepted="Unknown/Admitting"), [], id="being looked at"),
        pytest.param(status(Accepted="Unknown"), status(Accepted="True"), ["Accepted"], id="accepted"),
        pytest.param(NOTHING, status(Accepted="False/UnknownClass"), ["Refused"], id="refused at once"),
        pytest.param(status(Accepted="False/A"), status(Accepted="False/B"), [], id="refused all the same"),
        pytest.param(status(Progressing="False"), status(Progressing="True/Working"), ["Started"], id="started"),
        pytest.param(NOTHING, status(Progressing="True/Admitting"), [], id="admitting is not starting"),
        pytest.param(
            status(Placed="False/Other"), status(Placed="False/NoReadyNodes"), ["NoReadyNodes"], id="no nodes any more"
        ),
        pytest.param(status(Placed="False/NoReadyNodes"), status(Placed="False/NoReadyNodes"), [], id="still no nodes"),
        pytest.param(
            status(Progressing="True/Finishing"),
            status(Progressing="False", Complete="True"),
            ["Complete"],
            id="complete",
        ),
        pytest.param(NOTHING, status(Complete="True"), ["Started", "Complete"], id="begun and over between two looks"),
        pytest.param(NOTHING, status(Failed="True"), ["Failed"], id="failed"),
        pytest.param(status(Complete="True"), status(Complete="True"), [], id="nothing new"),
    ],
)
def test_one_event_for_each_turn(old: dict, new: dict, told: list[str]) -> None:
    assert [turn.reason for turn in transitions(old, new)] == told


def test_bad_news_is_a_warning() -> None:
    new = status(Accepted="False", Placed="False/NoReadyNodes", Failed="True", Complete="True")
    warnings = {turn.reason: turn.warning for turn in transitions(NOTHING, new)}
    assert warnings == {"Refused": True, "Started": False, "NoReadyNodes": True, "Failed": True, "Complete": False}


END = "2026-11-23T12:00:00Z"
END_S = 1_795_435_200.0


@pytest.mark.parametrize(
    ("done", "ttl", "expected"),
    [
        pytest.param({"conditions": [], "completionTime": END}, 5, None, id="not over"),
        pytest.param({**status(Complete="True"), "completionTime": END}, None, None, id="kept for ever"),
        pytest.param({**status(Complete="True"), "completionTime": END}, 5, END_S + 5, id="complete"),
        pytest.param({**status(Complete="True"), "completionTime": END}, 0, END_S, id="at once"),
        pytest.param(
            {"conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": END}]}, 7, END_S + 7, id="failed"
        ),
        pytest.param({**status(Complete="True"), "completionTime": "soon"}, 5, None, id="unreadable time"),
    ],
)
def test_time_to_live_counts_from_what_the_object_says(done: dict, ttl: int | None, expected: float | None) -> None:
    assert expires_at(done, ttl) == expected


def trusted(status: str, message: str = "because") -> dict:
    return {"conditions": [{"type": "Trusted", "status": status, "reason": "R", "message": message}]}


def test_a_device_that_is_caught_and_one_that_is_pardoned_are_told_of_once() -> None:
    caught = list(device_transitions(trusted("True"), trusted("False", "wrong on an item")))
    assert [(t.reason, t.message, t.warning) for t in caught] == [("Distrusted", "wrong on an item", True)]
    assert [t.reason for t in device_transitions({}, trusted("False"))] == ["Distrusted"]
    assert [(t.reason, t.warning) for t in device_transitions(trusted("False"), trusted("Unknown"))] == [
        ("Pardoned", False)
    ]
    for old, new in (("False", "False"), ("Unknown", "True"), ("True", "True")):
        assert list(device_transitions(trusted(old), trusted(new, "other"))) == []


def test_a_job_names_who_it_found_out_within_a_bound() -> None:
    turn = accusation({DeviceName("phone-1"): 17})
    assert (turn.reason, turn.warning) == ("DeviceDistrusted", True)
    assert turn.message == "no longer believed: phone-1 (17 shards taken back)"
    many = accusation({DeviceName(f"phone-{n:03}"): n for n in range(100)})
    assert "phone-007 (7 shards taken back) and 92 more" in many.message
