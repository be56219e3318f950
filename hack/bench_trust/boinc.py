"""Two ways of BOINC, in columns: adaptive replication as its server does it, and a fixed quorum of two.

An item is a job there. A result is believed without a second one if its host has N >= 10 valid results in a row and a
random number exceeds 1/N (sched/: `set_trust`); a replicated result that validates adds one to N, one that does not
resets it (`validator.cpp`). Where two results differ another is asked for, until two agree; nobody is barred, and what
was believed is never looked at again. Hosts of one owner never compute the same item.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hack.bench_trust.crowd import CLASSES, Crowd, Numbers, Scenario, right
from hack.bench_trust.outcome import Outcome

TRUSTED_AFTER = 10
MOST_RESULTS = 12
"""Results for one item, after which it is given up; its last canonical candidate then counts, which favours BOINC."""


def run(scenario: Scenario, devices: int, items_each: int, seed: int, *, adaptive: bool) -> Outcome:
    """Every device brings `items_each` items, one after the other, all devices side by side."""
    crowd = Crowd(scenario, devices, seed, items_each / 10_000)
    rng = np.random.default_rng(seed + 1)
    valid = np.zeros(devices, dtype=np.int64)
    everyone = np.arange(devices)
    computed = wrong = 0
    for step in range(items_each):
        items = everyone * items_each + step
        first = crowd.answer(everyone, items)
        computed += devices
        if adaptive:
            single = (valid >= TRUSTED_AFTER) & (rng.random(devices) * np.maximum(valid, 1) > 1.0)
        else:
            single = np.zeros(devices, dtype=np.bool_)
        truth = right(items)
        wrong += int(np.sum(first[single] != truth[single]))
        replicated = np.flatnonzero(~single)
        if replicated.size:
            canonical, results = _replicate(crowd, replicated, items[replicated], first[replicated], valid, rng)
            computed += results
            wrong += int(np.sum(canonical != truth[replicated]))
    total = devices * items_each
    return Outcome(wrong=wrong / total, redundancy=computed / total)


def _replicate(
    crowd: Crowd, hosts: Numbers, items: Numbers, first: Numbers, valid: Numbers, rng: np.random.Generator
) -> tuple[Numbers, int]:
    """Ask others until two agree. Returns the canonical labels and how many more results that took."""
    count = len(hosts)
    asked, answers = [hosts], [first]
    votes = np.zeros((count, CLASSES), dtype=np.int64)
    votes[np.arange(count), first] += 1
    open_ = np.arange(count)
    results = 0
    while open_.size and len(asked) < MOST_RESULTS:
        others = _strangers(crowd, [column[open_] for column in asked], rng)
        labels = crowd.answer(others, items[open_])
        results += len(open_)
        votes[open_, labels] += 1
        host_column, label_column = np.full(count, -1), np.full(count, -1)
        host_column[open_], label_column[open_] = others, labels
        asked.append(host_column)
        answers.append(label_column)
        open_ = open_[votes[open_].max(axis=1) < 2]
    canonical = votes.argmax(axis=1)
    for hosts_asked, labels_given in zip(asked, answers, strict=True):
        was_asked = hosts_asked >= 0
        agreed = was_asked & (labels_given == canonical)
        np.add.at(valid, hosts_asked[agreed], 1)
        valid[hosts_asked[was_asked & ~agreed]] = 0
    return canonical, results


def _strangers(crowd: Crowd, asked: list[Numbers], rng: np.random.Generator) -> Numbers:
    """A random device for each item, of another owner than all that were asked about it."""
    owners: NDArray[np.int64] = np.stack([crowd.owner[column] for column in asked])
    others: Numbers = rng.integers(len(crowd.owner), size=(owners.shape[1],))
    while True:
        known = np.flatnonzero((owners == crowd.owner[others]).any(axis=0))
        if not known.size:
            return others
        others[known] = rng.integers(len(crowd.owner), size=known.size)
