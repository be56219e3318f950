"""Selectors, taints and tolerations mean what Kubernetes documents.

Sources: "Labels and Selectors" and "Taints and Tolerations" of the Kubernetes documentation.
"""

import pytest

from pocketgrid.model.selectors import LabelSelector, Requirement, Taint, Toleration, untolerated

LABELS = {"tier": "edge", "arch": "arm64", "empty": ""}


@pytest.mark.parametrize(
    ("requirement", "matches"),
    [
        pytest.param(Requirement("tier", "In", ("edge", "core")), True, id="In: the value is one of them"),
        pytest.param(Requirement("tier", "In", ("core",)), False, id="In: the value is another"),
        pytest.param(Requirement("zone", "In", ("a",)), False, id="In: the key is missing"),
        pytest.param(Requirement("tier", "NotIn", ("core",)), True, id="NotIn: the value is another"),
        pytest.param(Requirement("tier", "NotIn", ("edge",)), False, id="NotIn: the value is one of them"),
        pytest.param(Requirement("zone", "NotIn", ("a",)), True, id="NotIn: objects without the key match too"),
        pytest.param(Requirement("tier", "Exists"), True, id="Exists: whatever the value"),
        pytest.param(Requirement("empty", "Exists"), True, id="Exists: an empty value is a value"),
        pytest.param(Requirement("zone", "Exists"), False, id="Exists: the key is missing"),
        pytest.param(Requirement("zone", "DoesNotExist"), True, id="DoesNotExist: the key is missing"),
        pytest.param(Requirement("empty", "DoesNotExist"), False, id="DoesNotExist: an empty value is a value"),
        pytest.param(Requirement("empty", "In", ("",)), True, id="In: the empty value can be asked for"),
        pytest.param(Requirement("zone", "In", ("",)), False, id="In: a missing key is not an empty value"),
    ],
)
def test_expressions(requirement: Requirement, matches: bool) -> None:
    assert LabelSelector(expressions=(requirement,)).matches(LABELS) is matches


def test_an_empty_selector_matches_everything() -> None:
    assert LabelSelector().matches(LABELS)
    assert LabelSelector().matches({})


def test_all_requirements_are_anded() -> None:
    both = LabelSelector({"tier": "edge"}, (Requirement("arch", "In", ("arm64",)),))
    assert both.matches(LABELS)
    assert not both.matches({**LABELS, "tier": "core"})
    assert not both.matches({**LABELS, "arch": "amd64"})
    assert not LabelSelector({"zone": ""}).matches(LABELS), "a missing label is not an empty one"


TAINT = Taint("dedicated", "NoSchedule", "lab")


@pytest.mark.parametrize(
    ("toleration", "tolerates"),
    [
        pytest.param(Toleration("dedicated", "Equal", "lab", "NoSchedule"), True, id="key, value and effect are equal"),
        pytest.param(Toleration("dedicated", value="lab"), True, id="the operator is Equal unless stated"),
        pytest.param(Toleration("dedicated", "Equal", "lab"), True, id="an empty effect means every effect"),
        pytest.param(Toleration("dedicated", "Exists"), True, id="Exists ignores the value"),
        pytest.param(Toleration("", "Exists"), True, id="an empty key with Exists tolerates everything"),
        pytest.param(Toleration("", "Exists", effect="NoExecute"), False, id="but only of the effect it names"),
        pytest.param(Toleration("dedicated", "Equal", "other"), False, id="another value"),
        pytest.param(Toleration("dedicated", "Equal"), False, id="no value is not any value"),
        pytest.param(Toleration("other", "Exists"), False, id="another key"),
        pytest.param(Toleration("dedicated", "Exists", effect="NoExecute"), False, id="another effect"),
        pytest.param(Toleration("", "Equal", "lab"), False, id="an empty key needs Exists"),
        pytest.param(Toleration("", "Equal"), False, id="a toleration of nothing"),
    ],
)
def test_tolerations(toleration: Toleration, tolerates: bool) -> None:
    assert toleration.tolerates(TAINT) is tolerates


def test_a_taint_without_value_is_answered_by_equal_without_value() -> None:
    assert Toleration("dedicated").tolerates(Taint("dedicated", "NoExecute"))


def test_every_taint_needs_an_answer_and_only_the_effects_asked_for_count() -> None:
    taints = (TAINT, Taint("gpu", "NoExecute"), Taint("slow", "PreferNoSchedule"))
    answers = (Toleration("gpu", "Exists"),)
    assert untolerated(taints, answers, frozenset({"NoSchedule", "NoExecute"})) == (TAINT,)
    assert untolerated(taints, answers, frozenset({"NoExecute"})) == ()
    assert untolerated(taints, (), frozenset({"NoExecute"})) == (taints[1],)


def test_taints_are_shown_as_kubectl_shows_them() -> None:
    assert str(TAINT) == "dedicated=lab:NoSchedule"
    assert str(Taint("gpu", "NoExecute")) == "gpu:NoExecute"
