"""From what the engine shows of a device to the status of its EdgeNode. Pure, as `status` is for the other kinds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_never

from pocketgrid.api.v1alpha1.conditions import PAUSED, READY, TRUSTED, DeviceReason
from pocketgrid.api.v1alpha1.edge_node import MAX_FINGERPRINT, MAX_HISTORIES, MAX_LISTED
from pocketgrid.api.v1alpha1.meta import EXACT
from pocketgrid.controller.claims import MAX_MESSAGE_BYTES, Claim, write_conditions
from pocketgrid.controller.readings import (
    MAX_RATE,
    cut,
    cut_bytes,
    finite,
    moment_of,
    money_text,
    present,
    rate_text,
    within,
)
from pocketgrid.model.device import DISTRUSTED_TAINT_KEY, DeviceFacts, RestraintLevel, Vitals
from pocketgrid.model.money import read_money
from pocketgrid.model.view import DeviceView, EarningsView, Presence, TrustView

Status = dict[str, Any]

MAX_WORD = 256
"""Characters of one of a device's statements."""


def edge_node_status(
    view: DeviceView,
    previous: Mapping[str, Any] | None,
    now: datetime,
    *,
    generation: int | None = None,
    deregistered_boot_id: str | None = None,
) -> Status:
    """The status of an EdgeNode.

    Args:
        view: the device as the engine has it.
        previous: the status the object has now.
        now: current time, with its time zone.
        generation: `metadata.generation` of the object; None keeps what was observed before.
        deregistered_boot_id: the run of the agent that was taken off the grid; None keeps what is recorded.
    """
    old = previous or {}
    observed = old.get("observedGeneration", 0) if generation is None else generation
    deregistered = old.get("deregisteredBootID") if deregistered_boot_id is None else deregistered_boot_id
    fastest = sorted(view.speeds.items(), key=lambda entry: (-entry[1], entry[0]))[:MAX_LISTED]
    return present(
        observedGeneration=observed,
        presence=view.presence.value,
        facts=_facts(view.identity.facts),
        vitals=_vitals(view.vitals),
        classes=list(view.classes[:MAX_LISTED]),
        speeds=[
            present(
                modelSha256=digest,
                itemsPerSecond=rate_text(speed),
                peakItemsPerSecond=rate_text(view.peak_speeds[digest]) if digest in view.peak_speeds else None,
            )
            for digest, speed in fastest
        ],
        leasedShards=view.leased_shards,
        itemsDone=view.items_done,
        trust=_trust(view.trust, view.distrusted) if view.trust is not None else None,
        earnings=earnings_status(view.earnings) if view.earnings is not None else None,
        lastSeenTime=moment_of(view.last_seen),
        bootID=cut(view.identity.boot_id, 128),
        deregisteredBootID=deregistered,
        conditions=write_conditions([_device_claim(view), _pause_claim(view), _trust_claim(view)], old, observed, now),
    )


def absent_trust_status(previous: Mapping[str, Any], distrusted: str, now: datetime) -> Status:
    """The status of an EdgeNode whose device is not there, but is believed or not as the status does not say yet."""
    trust = {"verifiedItems": 0, "disagreements": 0, **(previous.get("trust") or {})}
    trust.pop("taintedNodeUID", None)
    trust.pop("distrusted", None)
    if distrusted:
        trust["distrusted"] = cut_bytes(distrusted, MAX_MESSAGE_BYTES)
    claim = _trust_words(distrusted, trust["verifiedItems"])
    others = [entry for entry in previous.get("conditions") or () if entry["type"] != TRUSTED]
    told = write_conditions([claim], previous, previous.get("observedGeneration", 0), now)
    return {**previous, "trust": trust, "conditions": [*others, *told]}


def _device_claim(view: DeviceView) -> Claim:
    match view.presence:
        case Presence.CONNECTED if view.schedulable:
            return Claim(READY, "True", DeviceReason.ATTACHED, "attached and open to work")
        case Presence.CONNECTED:
            why = "paused by its owner" if view.restraint.paused else "cordoned, tainted or draining"
            why = "its results are not believed" if view.distrusted else why
            return Claim(READY, "True", DeviceReason.NOT_SCHEDULABLE, f"attached, but {why}")
        case Presence.UNKNOWN:
            return Claim(READY, "Unknown", DeviceReason.LINK_BROKEN, "its link broke; its leases still stand")
        case Presence.LOST:
            return Claim(READY, "False", DeviceReason.LOST, "not heard from; its leases went to other devices")
        case _:
            assert_never(view.presence)


def _pause_claim(view: DeviceView) -> Claim:
    restraint = view.restraint
    if view.presence is Presence.LOST:
        return Claim(PAUSED, "Unknown", DeviceReason.LOST, "not heard from")
    if restraint.level is RestraintLevel.NONE:
        return Claim(PAUSED, "False", DeviceReason.WORK_ALLOWED, "its owner lets it work")
    prefix = "" if restraint.paused else "works gently: "
    return Claim(PAUSED, "True" if restraint.paused else "False", restraint.reason, prefix + restraint.message)


def _trust_claim(view: DeviceView) -> Claim:
    return _trust_words(view.distrusted, view.trust.verified_items if view.trust is not None else 0)


def _trust_words(distrusted: str, confirmed: int) -> Claim:
    if distrusted:
        remedy = f"once somebody has looked at it, remove the taint {DISTRUSTED_TAINT_KEY} from its Node"
        return Claim(TRUSTED, "False", DeviceReason.DISTRUSTED, f"it gets no work: {distrusted}; {remedy}")
    if confirmed:
        return Claim(TRUSTED, "True", DeviceReason.CONFIRMED, "others got the same as it did")
    return Claim(TRUSTED, "Unknown", DeviceReason.UNPROVEN, "nobody has confirmed any of its results yet")


def _facts(facts: DeviceFacts) -> Status:
    """Cut to what the schema takes: a device that states nonsense must not block its own status."""
    return present(
        kind=facts.kind.value,
        arch=cut(facts.arch, MAX_WORD),
        os=cut(facts.os, MAX_WORD),
        cores=within(facts.cores, 2**31 - 1),
        memoryBytes=within(facts.memory_bytes, EXACT),
        simd=[cut(name, MAX_WORD) for name in facts.simd[:MAX_LISTED] if name],
        providers=[cut(name, MAX_WORD) for name in facts.providers[:MAX_LISTED] if name],
        engine=cut(facts.engine, MAX_WORD),
        agentVersion=cut(facts.agent_version, MAX_WORD),
        modelName=cut(facts.model_name, MAX_WORD),
    )


def _vitals(vitals: Vitals) -> Status:
    battery, available = finite(vitals.battery_percent), vitals.memory_available_bytes
    load, heat = finite(vitals.load1), finite(vitals.temperature_celsius)
    return present(
        load1=None if load is None else f"{max(0.0, load):.2f}",
        memoryAvailableBytes=None if available is None else within(available, EXACT),
        batteryPercent=None if battery is None else within(round(battery), 100),
        charging=vitals.charging,
        temperatureCelsius=None if heat is None else f"{heat:.1f}",
        network=vitals.network.value,
    )


def _trust(view: TrustView, distrusted: str) -> Status:
    # One that is too long cannot be kept; the device is a stranger under it after a restart.
    kept = [h for h in view.histories if 0 < len(h.fingerprint) <= MAX_FINGERPRINT][:MAX_HISTORIES]
    return present(
        verifiedItems=within(view.verified_items, EXACT),
        disagreements=within(view.disagreements, EXACT),
        since=moment_of(view.since),
        proven=view.proven or None,
        timesCaught=within(view.times_caught, 2**31 - 1) or None,
        caughtTime=moment_of(view.caught),
        distrusted=cut_bytes(distrusted, MAX_MESSAGE_BYTES),
        taintedNodeUID=cut(view.tainted_node, MAX_WORD),
        histories=[
            {
                "fingerprint": history.fingerprint,
                "confirmed": _amount(history.confirmed),
                "refuted": _amount(history.refuted),
                "suspicion": _amount(history.suspicion),
                "consecutive": _amount(history.consecutive),
                "time": moment_of(max(1.0, history.at)),
            }
            for history in kept
        ]
        or None,
    )


def _amount(value: float) -> str:
    return f"{min(max(0.0, value), MAX_RATE):.3f}"


def earnings_status(view: EarningsView | None, before: int = 0) -> Status:
    """`status.earnings` of a device that had earned `before` micro-units when the engine of `view` started."""
    earned, held = (view.earned_micro, view.provisional_micro) if view is not None else (0, 0)
    return {"earned": money_text(before + earned), "provisional": money_text(held)}


def earned_in(status: Mapping[str, Any]) -> int:
    """Micro-units that an EdgeNode's status says its device has earned; 0 if it says nothing that can be read."""
    try:
        return read_money((status.get("earnings") or {}).get("earned", "0"))
    except ValueError:
        return 0
