"""Order of news, differences, and what the API server dropped."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.controller.records import Record, finished, lost_fields, merge_patch, version_of

SCALARS = st.one_of(st.booleans(), st.integers(-5, 5), st.text("ab", max_size=2))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text("abc", min_size=1, max_size=2), VALUES, max_size=4)


def apply_merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2, word for word."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = apply_merge_patch(result.get(name), value)
    return result


@given(OBJECTS, OBJECTS)
def test_a_patch_turns_the_old_into_the_new(old: dict, new: dict) -> None:
    assert apply_merge_patch(old, merge_patch(old, new)) == new


@given(OBJECTS)
def test_nothing_to_change_is_an_empty_patch(status: dict) -> None:
    assert merge_patch(status, status) == {}


@given(OBJECTS)
def test_what_comes_back_whole_has_lost_nothing(status: dict) -> None:
    assert lost_fields(status, status) == []


@given(OBJECTS, st.data())
def test_every_pruned_field_is_named(status: dict, data: st.DataObject) -> None:
    if not status:
        return
    key = data.draw(st.sampled_from(sorted(status)))
    assert f"status.{key}" in lost_fields(status, {k: v for k, v in status.items() if k != key})


@pytest.mark.parametrize(
    ("sent", "returned", "lost"),
    [
        pytest.param({"a": {"b": 1}}, {"a": {}}, ["status.a.b"], id="nested"),
        pytest.param({"a": {"b": 1}}, {}, ["status.a"], id="whole"),
        pytest.param(
            {"l": [{"x": 1}, {"x": 2, "y": 3}]}, {"l": [{"x": 1}, {"x": 2}]}, ["status.l[1].y"], id="in a list"
        ),
        pytest.param({"l": [1, 2]}, {"l": [1]}, ["status.l[1]"], id="entry of a list"),
        pytest.param({"a": None}, {}, [], id="a removal loses nothing"),
        pytest.param({"a": 1}, {"a": 2, "b": 3}, [], id="others' values and fields are not lost"),
    ],
)
def test_lost_fields(sent: dict, returned: dict, lost: list[str]) -> None:
    assert lost_fields(sent, returned) == lost


def body(version: str, uid: str = "u", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "n", "uid": uid, "resourceVersion": version}, "status": status}


def test_older_news_and_news_of_a_namesake_are_ignored() -> None:
    record = Record("n", "u")
    assert record.see(body("10", a=1))
    assert not record.see(body("9", a=2))
    assert not record.see(body("11", uid="other", a=3))
    assert record.status == {"a": 1}
    assert record.see(body("10", a=1))
    assert record.see(body("12"))
    assert record.status == {}


def test_a_version_that_is_no_number_is_taken_as_new() -> None:
    record = Record("n", "u")
    assert record.see(body("abc", a=1))
    assert version_of(body("abc")) == 0


def test_finished_means_a_condition_that_is_true() -> None:
    complete = {"type": "Complete", "status": "True"}
    assert finished({"conditions": [{"type": "Failed", "status": "False"}, complete]}) == complete
    assert finished({"conditions": [{"type": "Complete", "status": "False"}]}) == {}
    assert finished({}) == {}
