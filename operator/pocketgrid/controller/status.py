"""From what the engine shows of a job or a class to the status of its object.

Pure: no cluster, no clock. Each function builds the whole status, so that it can replace the one before;
a merge would leave behind what is no longer so. Conditions are the truth and there is no phase: the reason
of `Progressing` sums a job up in one word for the printer column.

kstatus' two conditions are never true together, and say of a job:

====================================  ===========  =======
state                                 Reconciling  Stalled
====================================  ===========  =======
admitting, running, finishing         True         False
running, but no node is ready         True         False    it recovers by itself
running, nobody to check, no money    False        True     somebody has to do something
suspended, complete                   False        False    it is as wished
refused, failed, trouble of our own   False        True     somebody has to do something
====================================  ===========  =======
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_never

from pocketgrid.api.v1alpha1.conditions import (
    READY,
    ClassReason,
    JobCondition,
    JobReason,
)
from pocketgrid.api.v1alpha1.inference_job_status import MAX_CLASSES, NO_CLASS
from pocketgrid.api.v1alpha1.meta import EXACT
from pocketgrid.controller.claims import Claim, Truth, sentence, write_conditions
from pocketgrid.controller.readings import (
    MAX_RATE,
    cut_list,
    moment_of,
    money_text,
    present,
    rate_text,
    within,
)
from pocketgrid.model.view import (
    CostView,
    Explanation,
    JobView,
    Stage,
    VerificationView,
)

Status = dict[str, Any]

NEED_SOMEBODY = frozenset({"NoVerifier", "BudgetExhausted"})
"""Obstacles that do not go away by themselves, as devices that are away may come back."""


def job_status(
    view: JobView,
    previous: Mapping[str, Any] | None,
    generation: int,
    now: datetime,
    *,
    refusal: Explanation | None = None,
) -> Status:
    """The status of an InferenceJob.

    Args:
        view: the job as the engine has it.
        previous: the status the object has now.
        generation: `metadata.generation` of the object that `view` was made from.
        now: current time, with its time zone.
        refusal: why the newest edit of the object was refused although the job itself goes on as it was
            accepted (an immutable field changed on an API server that ignores CEL), or None.
    """
    old = previous or {}
    numbers = _numbers(view)
    if view.stage is Stage.ADMITTING or _was_over(view.stage, old):
        # After a restart the engine knows less of a job, or at first nothing, than its status does.
        numbers |= {key: value for key, value in old.items() if key != "conditions"}
    if "startTime" in old:
        # A job starts once, however often its operator does.
        numbers["startTime"] = old["startTime"]
    return {
        **numbers,
        "observedGeneration": generation,
        "conditions": write_conditions(_job_claims(view, old, refusal), old, generation, now),
    }


def refused_job_status(
    explanation: Explanation, previous: Mapping[str, Any] | None, generation: int, now: datetime
) -> Status:
    """The status of an InferenceJob that could not even be read, so that the engine never saw it."""
    claims = _refused(explanation)
    return {"observedGeneration": generation, "conditions": write_conditions(claims, previous or {}, generation, now)}


def hardware_class_status(
    nodes: int,
    ready_nodes: int,
    previous: Mapping[str, Any] | None,
    generation: int,
    now: datetime,
    *,
    refusal: Explanation | None = None,
) -> Status:
    """The status of a HardwareClass.

    Args:
        nodes: Nodes its selector matches.
        ready_nodes: of these, the ones that can be given work now.
        previous: the status the object has now.
        generation: `metadata.generation` of the object.
        now: current time, with its time zone.
        refusal: why the object cannot be used, or None.
    """
    if refusal is not None:
        claim = Claim(READY, "False", refusal.reason, sentence(refusal))
    elif ready_nodes:
        claim = Claim(READY, "True", ClassReason.NODES_READY, "there are Nodes that can be given work")
    elif nodes:
        claim = Claim(READY, "False", ClassReason.NO_READY_NODES, "none of the matching Nodes can be given work now")
    else:
        claim = Claim(READY, "False", ClassReason.NO_MATCHING_NODES, "spec.nodeSelector matches no Node")
    return {
        "observedGeneration": generation,
        "nodes": nodes,
        "readyNodes": ready_nodes,
        "conditions": write_conditions([claim], previous or {}, generation, now),
    }


# What a job's conditions say.


def _job_claims(view: JobView, old: Mapping[str, Any], refusal: Explanation | None) -> list[Claim]:
    claims = _stage_claims(view, old)
    if refusal is None:
        return claims
    stand_in = {
        JobCondition.ACCEPTED: Claim(JobCondition.ACCEPTED, "False", refusal.reason, sentence(refusal)),
        JobCondition.RECONCILING: Claim(
            JobCondition.RECONCILING, "False", refusal.reason, "the edit that was refused is not carried out"
        ),
        JobCondition.STALLED: Claim(JobCondition.STALLED, "True", refusal.reason, sentence(refusal)),
    }
    return [stand_in.get(JobCondition(claim.type), claim) for claim in claims]


def _stage_claims(view: JobView, old: Mapping[str, Any]) -> list[Claim]:
    match view.stage:
        case Stage.ADMITTING:
            looking = Explanation(JobReason.ADMITTING, "the model and the data set are being looked at")
            return _claims(
                view.trouble or looking,
                accepted="Unknown",
                placed="Unknown",
                progressing=view.trouble is None,
                # A restarted operator looks again at jobs that were over; for users they stay so.
                complete=_held(old, JobCondition.COMPLETE),
                failed=_held(old, JobCondition.FAILED),
                reconciling=view.trouble is None,
                stalled=view.trouble is not None,
            )
        case Stage.REFUSED:
            return _refused(view.explanation or Explanation(JobReason.REFUSED, "the job cannot run as it is written"))
        case Stage.RUNNING:
            return _running(view)
        case Stage.SUSPENDED:
            held = Explanation(JobReason.SUSPENDED, "no work is handed out while spec.suspend is true")
            return _claims(held, suspended=True)
        case Stage.FINISHING:
            if view.trouble is not None:
                return _claims(view.trouble, stalled=True)
            writing = Explanation(JobReason.FINISHING, "all shards are committed; the manifest is being written")
            return _claims(writing, progressing=True, reconciling=True)
        case Stage.COMPLETE:
            return _claims(Explanation(JobReason.COMPLETED, "all results are written"), complete=True)
        case Stage.FAILED:
            why = view.explanation or Explanation(JobReason.FAILED, "the job failed")
            return _claims(why, failed=True, stalled=True)
        case Stage.REMOVED:
            gone = Explanation(JobReason.REMOVED, "the job is being deleted; what was committed stays")
            return _claims(
                gone,
                complete=_held(old, JobCondition.COMPLETE),
                failed=_held(old, JobCondition.FAILED),
            )
        case _:
            assert_never(view.stage)


def _running(view: JobView) -> list[Claim]:
    placed: Truth = "False" if view.obstacle is not None else "True"
    if view.trouble is not None:
        return _claims(view.trouble, placed=placed, placed_why=view.obstacle, stalled=True)
    if view.obstacle is not None:
        stuck = view.obstacle.reason in NEED_SOMEBODY
        return _claims(view.obstacle, placed="False", reconciling=not stuck, stalled=stuck)
    working = Explanation(JobReason.WORKING, "devices are at work")
    if view.verification is not None and view.shards_done == view.shards > 0:
        working = Explanation(
            JobReason.VERIFYING, "all shards are committed; devices check rows that are not yet final"
        )
    return _claims(working, placed="True", progressing=True, reconciling=True)


def _refused(explanation: Explanation) -> list[Claim]:
    return _claims(explanation, accepted="False", stalled=True)


def _claims(
    why: Explanation,
    *,
    accepted: Truth = "True",
    placed: Truth = "False",
    placed_why: Explanation | None = None,
    progressing: bool = False,
    suspended: bool = False,
    complete: bool = False,
    failed: bool = False,
    reconciling: bool = False,
    stalled: bool = False,
) -> list[Claim]:
    """All eight conditions of a state, in the words of `why` wherever something is to be explained."""
    text = sentence(why)
    obstacle = placed_why or why

    def claim(condition: JobCondition, holds: bool, otherwise: str) -> Claim:
        return Claim(condition, "True" if holds else "False", why.reason, text if holds else otherwise)

    return [
        Claim(JobCondition.ACCEPTED, accepted, JobReason.ADMITTED, "model and data set can be used")
        if accepted == "True"
        else Claim(JobCondition.ACCEPTED, accepted, why.reason, text),
        Claim(JobCondition.PLACED, placed, JobReason.NODES_READY, "there are ready nodes to work on it")
        if placed == "True"
        else Claim(JobCondition.PLACED, placed, obstacle.reason, sentence(obstacle)),
        # Explained in every state, also after the end: the one place where a job is summed up.
        Claim(JobCondition.PROGRESSING, "True" if progressing else "False", why.reason, text),
        Claim(JobCondition.SUSPENDED, "True", JobReason.SUSPENDED, text)
        if suspended
        else Claim(JobCondition.SUSPENDED, "False", JobReason.NOT_SUSPENDED, "it is not held"),
        claim(JobCondition.COMPLETE, complete, "not all results are written"),
        claim(JobCondition.FAILED, failed, "the job has not failed"),
        claim(JobCondition.RECONCILING, reconciling, "nothing is under way"),
        claim(JobCondition.STALLED, stalled, "nobody needs to step in"),
    ]


# Numbers.


def _numbers(view: JobView) -> Status:
    opened = view.stage not in (Stage.ADMITTING, Stage.REFUSED)
    at_work = {} if view.stage.terminal else view.devices
    return present(
        items={"total": view.items, "done": view.items_done, "failed": view.items_failed} if opened else None,
        shards={
            "total": view.shards,
            "done": view.shards_done,
            "active": view.shards_active,
            "itemsPerShard": view.items_per_shard,
        }
        if opened
        else None,
        completedShards=cut_list(view.completed_text) if opened else None,
        throughput={"itemsPerSecond": rate_text(_throughput(view))} if view.started else None,
        placement={
            "classes": [
                {"hardwareClass": name or NO_CLASS, "devices": devices}
                for name, devices in sorted(at_work.items(), key=lambda entry: (-entry[1], entry[0]))[:MAX_CLASSES]
            ]
        }
        if opened
        else None,
        attempts={"lost": view.attempts_lost, "copies": view.copies, "duplicates": view.duplicates}
        if view.started
        else None,
        verification=_verification(view.verification) if view.verification is not None else None,
        cost=_cost(view.cost) if view.cost is not None else None,
        output={"manifestUri": view.manifest_uri} if view.manifest_uri else None,
        startTime=moment_of(view.started),
        completionTime=moment_of(view.finished) if view.stage is Stage.COMPLETE else None,
    )


def _verification(view: VerificationView) -> Status:
    bound = view.wrong_rows_upper_bound
    return present(
        rowsVerified=within(view.rows_verified, EXACT),
        rowsChecked=within(view.rows_checked, EXACT),
        disagreementRate=f"{min(max(0.0, view.disagreement_rate), 1.0):.6f}",
        redundancy=f"{min(max(0.0, view.redundancy), MAX_RATE):.4f}",
        # Rounded up: a bound that was rounded down would be none.
        wrongRowsUpperBound95=None if bound is None else within(math.ceil(min(max(0.0, bound), EXACT)), EXACT),
    )


def _cost(view: CostView) -> Status:
    return present(
        spent=money_text(view.spent_micro),
        escrow=money_text(view.escrow_micro),
        limit=None if view.limit_micro is None else money_text(view.limit_micro),
    )


def _throughput(view: JobView) -> float:
    """Of a finished job the mean over its life: the last half minute of it says nothing any more."""
    if view.stage.terminal and not view.throughput and view.finished > view.started > 0:
        return view.items_done / (view.finished - view.started)
    return view.throughput


def _was_over(stage: Stage, old: Mapping[str, Any]) -> bool:
    """Whether a job that is over was so before, in the same way."""
    return (stage is Stage.COMPLETE and _held(old, JobCondition.COMPLETE)) or (
        stage is Stage.FAILED and _held(old, JobCondition.FAILED)
    )


def _held(old: Mapping[str, Any], condition: JobCondition) -> bool:
    return any(entry["type"] == condition and entry["status"] == "True" for entry in old.get("conditions", []))
