"""Which Nodes a job may use, and what is said of those it may not."""

from dataclasses import replace

import pytest

from pocketgrid.model.device import DEVICE_TAINT_KEY, HardwareClass, NodeView
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import Placement
from pocketgrid.model.selectors import LabelSelector, Requirement, Taint, Toleration
from pocketgrid.model.trust import DataClass, TrustTier
from pocketgrid.planning.eligibility import classes_of, judge_eligibility, may_receive, summarise_reasons

LABELS = {"room": "lab", "kubernetes.io/arch": "arm64"}


def a_node(*taints: Taint, unschedulable: bool = False, labels: dict[str, str] | None = None) -> NodeView:
    return NodeView(DeviceName("n"), LABELS if labels is None else labels, taints, unschedulable)


LAB = Placement(hardware_classes=("boards", "phones"), node_selector=(("room", "lab"),))
TOLERANT = Placement(tolerations=(Toleration("", "Exists"),))


@pytest.mark.parametrize(
    ("placement", "node", "classes", "selected", "admits", "evicts", "reasons"),
    [
        pytest.param(Placement(), a_node(), (), True, True, False, (), id="a job that asks for nothing"),
        pytest.param(LAB, a_node(), ("phones",), True, True, False, (), id="one of its classes is enough"),
        pytest.param(
            LAB, a_node(), ("servers",), False, False, True, ("not in class boards or phones",), id="another class"
        ),
        pytest.param(
            LAB, a_node(labels={}), ("boards",), False, False, True, ("label room is not lab",), id="a label is missing"
        ),
        pytest.param(
            Placement(),
            a_node(unschedulable=True),
            (),
            True,
            False,
            False,
            ("cordoned",),
            id="a cordon stops new work",
        ),
        pytest.param(
            TOLERANT,
            a_node(Taint("node.kubernetes.io/unschedulable", "NoSchedule"), unschedulable=True),
            (),
            True,
            False,
            False,
            ("cordoned",),
            id="a cordon is said once and cannot be tolerated away",
        ),
        pytest.param(
            Placement(),
            a_node(Taint("dedicated", "NoSchedule", "x")),
            (),
            True,
            False,
            False,
            ("taint dedicated=x:NoSchedule",),
            id="NoSchedule lets running work end",
        ),
        pytest.param(
            Placement(),
            a_node(Taint("maintenance", "NoExecute")),
            (),
            True,
            False,
            True,
            ("taint maintenance:NoExecute",),
            id="NoExecute evicts",
        ),
        pytest.param(
            Placement(), a_node(Taint("slow", "PreferNoSchedule")), (), True, True, False, (), id="PreferNoSchedule"
        ),
        pytest.param(
            Placement(tolerations=(Toleration("maintenance", "Exists"),)),
            a_node(Taint("maintenance", "NoExecute")),
            (),
            True,
            True,
            False,
            (),
            id="what is tolerated does not count",
        ),
        pytest.param(
            Placement(tolerations=(Toleration("maintenance", "Exists", effect="NoSchedule"),)),
            a_node(Taint("maintenance", "NoSchedule"), Taint("maintenance", "NoExecute")),
            (),
            True,
            False,
            True,
            ("taint maintenance:NoExecute",),
            id="a toleration of one effect does not answer another",
        ),
        pytest.param(
            Placement(), a_node(Taint(DEVICE_TAINT_KEY, "NoSchedule")), (), True, True, False, (), id="our own taint"
        ),
        pytest.param(
            Placement(),
            a_node(
                Taint("node.kubernetes.io/not-ready", "NoExecute"),
                Taint("node.kubernetes.io/unreachable", "NoExecute"),
                Taint("node.kubernetes.io/not-ready", "NoSchedule"),
            ),
            (),
            True,
            True,
            False,
            (),
            id="whether it can be reached is told by its own link",
        ),
        pytest.param(
            Placement(),
            a_node(Taint("node.kubernetes.io/disk-pressure", "NoSchedule")),
            (),
            True,
            False,
            False,
            ("taint node.kubernetes.io/disk-pressure:NoSchedule",),
            id="pressure taints count",
        ),
        pytest.param(
            Placement(),
            a_node(Taint("node-role.kubernetes.io/control-plane", "NoSchedule")),
            (),
            True,
            False,
            False,
            ("taint node-role.kubernetes.io/control-plane:NoSchedule",),
            id="a tainted k3s server gets no work",
        ),
        pytest.param(
            LAB,
            a_node(Taint("a", "NoExecute"), labels={}, unschedulable=True),
            (),
            False,
            False,
            True,
            ("not in class boards or phones", "label room is not lab", "taint a:NoExecute", "cordoned"),
            id="every reason is told",
        ),
    ],
)
def test_eligibility(placement, node, classes, selected, admits, evicts, reasons) -> None:
    verdict = judge_eligibility(placement, node, classes)
    assert (verdict.selected, verdict.admits, verdict.evicts) == (selected, admits, evicts)
    assert verdict.reasons == reasons


@pytest.mark.parametrize("data", DataClass)
@pytest.mark.parametrize("tier", TrustTier)
def test_data_goes_to_devices_of_its_class_or_above(tier: TrustTier, data: DataClass) -> None:
    placement = replace(TOLERANT, data_class=data)
    verdict = judge_eligibility(placement, a_node(), (), tier=tier)
    entrusted = int(tier) >= int(data)
    assert (verdict.selected, verdict.admits, verdict.evicts) == (True, entrusted, not entrusted)
    assert may_receive(tier, placement) is entrusted
    said = f"tier {tier.name.title()} is below data class {data.name.title()}"
    assert verdict.reasons == (() if entrusted else (said,))


def test_a_device_nobody_speaks_for_gets_public_data_only() -> None:
    assert judge_eligibility(Placement(), a_node(), ()).admits
    assert not judge_eligibility(Placement(data_class=DataClass.INTERNAL), a_node(), ()).admits


def test_classes_are_found_by_labels_and_sorted() -> None:
    classes = [
        HardwareClass("phones", LabelSelector({"kind": "phone"})),
        HardwareClass("boards", LabelSelector(expressions=(Requirement("kubernetes.io/arch", "In", ("arm64",)),))),
        HardwareClass("all", LabelSelector()),
    ]
    assert classes_of(a_node(), classes) == ("all", "boards")


@pytest.mark.parametrize(
    ("reasons", "text"),
    [
        pytest.param({}, "0/0 devices can work", id="there are none"),
        pytest.param({"a": ()}, "0/1 devices can work", id="no reason known"),
        pytest.param(
            {"a": ("cordoned",), "b": ("cordoned",), "c": ("not connected",)},
            "0/3 devices can work: 2 cordoned, 1 not connected",
            id="commonest first",
        ),
        pytest.param({"a": ("y", "x")}, "0/1 devices can work: 1 x, 1 y", id="ties in order of text"),
        pytest.param(
            {"a": ("w", "x", "y", "z")}, "0/1 devices can work: 1 w, 1 x, 1 y", id="no more than three reasons"
        ),
    ],
)
def test_summary(reasons: dict[str, tuple[str, ...]], text: str) -> None:
    assert summarise_reasons(reasons) == text
