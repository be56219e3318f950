"""May this device work for this job, as far as labels, taints, classes and the confidentiality of its data go?

The answer carries every reason, because "why does nothing run?" is the question users of schedulers ask most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pocketgrid.model.device import (
    DEVICE_TAINT_KEY,
    DISTRUSTED_TAINT_KEY,
    AgentFeature,
    HardwareClass,
    NodeView,
)
from pocketgrid.model.job import Placement
from pocketgrid.model.selectors import Effect, untolerated
from pocketgrid.model.trust import TrustTier

_BLOCKS_NEW: frozenset[Effect] = frozenset({"NoSchedule", "NoExecute"})
_EVICTS: frozenset[Effect] = frozenset({"NoExecute"})
# Kubernetes puts these on a Node whose lease runs out. The grid's own link knows sooner and better whether the
# device is there, so heeding them would only add a second, slower opinion.
_LIVENESS_TAINTS = frozenset({"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"})
# A cordoned Node carries this beside `spec.unschedulable`, which is what counts.
_CORDON_TAINT = "node.kubernetes.io/unschedulable"
# Whoever is distrusted gets no work of any job; that is not for a job's tolerations to undo.
_NOT_FOR_JOBS = _LIVENESS_TAINTS | {DEVICE_TAINT_KEY, DISTRUSTED_TAINT_KEY, _CORDON_TAINT}


@dataclass(frozen=True, slots=True)
class Eligibility:
    """Whether a device may get work of a job.

    Attributes:
        selected: classes and selectors match: the device is one of those the job asks for.
        admits: new leases may be handed out.
        evicts: leases must be taken back now.
        reasons: why not, for people; empty if `admits`.
    """

    selected: bool
    admits: bool
    evicts: bool
    reasons: tuple[str, ...] = ()


def classes_of(node: NodeView, classes: Iterable[HardwareClass]) -> tuple[str, ...]:
    """Names of the hardware classes `node` belongs to, sorted."""
    return tuple(sorted(c.name for c in classes if c.includes(node.labels)))


def judge_eligibility(
    placement: Placement,
    node: NodeView,
    node_classes: Collection[str],
    missing_features: Collection[AgentFeature] = (),
    tier: TrustTier = TrustTier.PUBLIC,
) -> Eligibility:
    """Hold one Node, whose device it is and what its agent cannot do against what a job asks for."""
    reasons = []
    if placement.hardware_classes and not set(placement.hardware_classes) & set(node_classes):
        reasons.append(f"not in class {' or '.join(placement.hardware_classes)}")
    reasons.extend(
        f"label {key} is not {value}" for key, value in placement.node_selector if node.labels.get(key) != value
    )
    selected = not reasons
    foreign = tuple(t for t in node.taints if t.key not in _NOT_FOR_JOBS)
    blocking = untolerated(foreign, placement.tolerations, _BLOCKS_NEW)
    reasons.extend(f"taint {taint}" for taint in blocking)
    if node.unschedulable:
        reasons.append("cordoned")
    entrusted = may_receive(tier, placement)
    if not entrusted:
        reasons.append(f"tier {tier.name.title()} is below data class {placement.data_class.name.title()}")
    # Work an agent already has was given to an agent that could do it, so this never takes anything back.
    reasons.extend(f"agent too old for {feature}: update it" for feature in sorted(missing_features))
    evicting = untolerated(foreign, placement.tolerations, _EVICTS)
    return Eligibility(
        selected=selected,
        admits=not reasons,
        # A running lease outlives a cordon, as a Pod does, but not an eviction, a change of labels or lost trust.
        evicts=bool(evicting) or not selected or not entrusted,
        reasons=tuple(reasons),
    )


def may_receive(tier: TrustTier, placement: Placement) -> bool:
    """Whether items and the model of a job with `placement` may be sent to a device of `tier`.

    Asked where work is placed, and again right before anything leaves.
    """
    return tier.admits(placement.data_class)


def summarise_reasons(reasons: Mapping[str, tuple[str, ...]], limit: int = 3) -> str:
    """One line on why none of the devices in `reasons` will do, commonest reason first, in kube-scheduler's manner.

    Ties are broken by text, so that the line does not flicker.
    """
    counts: dict[tuple[str, ...], int] = {}
    for why in reasons.values():
        counts[why] = counts.get(why, 0) + 1
    return summarise_counts(counts, limit)


def summarise_counts(devices: Mapping[tuple[str, ...], int], limit: int = 3) -> str:
    """`summarise_reasons` where it is known how many devices share the same reasons."""
    counts: dict[str, int] = {}
    for why, count in devices.items():
        for reason in why:
            counts[reason] = counts.get(reason, 0) + count
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = ", ".join(f"{count} {reason}" for reason, count in ordered[:limit])
    total = sum(devices.values())
    return f"0/{total} devices can work: {shown}" if shown else f"0/{total} devices can work"
