"""How a judgement about committed shards is put into log entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pocketgrid.errors import InternalError
from pocketgrid.model.ids import ShardIndex
from pocketgrid.model.ranges import IndexSet
from pocketgrid.storage.logentries import Checked, Commit, Entry, Reopened, Verified
from pocketgrid.storage.logstate import LogState
from pocketgrid.storage.results.contract import Check, Settled

_SHARDS_OF_AN_ENTRY = 4096
"""Damage to both copies of a line sends back no more shards than these, to be verified anew."""


def judge(
    state: LogState, verified: Iterable[ShardIndex], reopened: Iterable[ShardIndex], checks: Sequence[Check]
) -> tuple[Settled, list[Entry]]:
    """What a judgement changes, and the entries that say so; see `ResultStore.settle`.

    Raises:
        InternalError: a shard is named both as final and to be done again.
    """
    final = sorted({s for s in verified if s in state.committed and s not in state.verified})
    commits = [state.staged_commit(s) for s in sorted(set(reopened)) if s not in state.verified]
    back = [c for c in commits if c is not None]
    if both := {c.shard for c in back}.intersection(final):
        raise InternalError(f"shard {min(both)} was judged both final and to be done again")
    entries = _check_entries(state, checks)
    entries += [Verified(text) for text in _in_pieces(final)]
    entries += [reopening(state, c) for c in back]
    return Settled(tuple(final), tuple(ShardIndex(c.shard) for c in back)), entries


def reopening(state: LogState, commit: Commit) -> Reopened:
    """The entry that takes `commit` back; what was verified before stays paid, since it is we who lost it."""
    if commit.shard not in state.verified:
        return Reopened(commit.shard, commit.staging, commit.offset)
    return Reopened(commit.shard, commit.staging, commit.offset, commit.worker, commit.rows)


def _check_entries(state: LogState, checks: Sequence[Check]) -> list[Entry]:
    numbers, introductions = state.introduce(c.worker for c in checks)
    entries: list[Entry] = list(introductions)
    for number, check in enumerate(checks, state.checks + 1):
        entries.append(Checked(number, numbers[check.worker], check.agreed, check.disagreed, _text(check.shards)))
    return entries


def _in_pieces(shards: Sequence[int]) -> Iterator[str]:
    """The text of ascending `shards`, a bounded number at a time."""
    for start in range(0, len(shards), _SHARDS_OF_AN_ENTRY):
        yield _text(shards[start : start + _SHARDS_OF_AN_ENTRY])


def _text(shards: Iterable[int]) -> str:
    return IndexSet((shard, shard + 1) for shard in sorted(set(shards))).to_text()
