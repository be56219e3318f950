"""What a log believes in and its folder no longer has: parts that vanished, staged results that are gone."""

from __future__ import annotations

from pathlib import Path

from pocketgrid.model.job import OutputFormat
from pocketgrid.storage.logentries import Entry, Unsealed
from pocketgrid.storage.logstate import LogState
from pocketgrid.storage.results.judging import reopening
from pocketgrid.storage.results.parts import errors_name, part_name
from pocketgrid.storage.results.staging import Staging


def missing(state: LogState, folder: Path, format_: OutputFormat, staging: Staging) -> tuple[list[Entry], list[str]]:
    """The entries that have it done again, and what they mean as sentences. Looks at lengths only.

    Raises:
        OSError: a file that is there cannot be asked for its length.
    """
    entries: list[Entry] = []
    notes: list[str] = []
    for part, sealed in state.sealed.items():
        name, errors = part_name(part, format_), errors_name(part)
        if _size(folder / name) != sealed.bytes:
            entries.append(Unsealed(part))
            notes.append(f"{name} is missing or was cut; its shards are done again")
        elif sealed.errors_bytes and _size(folder / errors) != sealed.errors_bytes:
            entries.append(Unsealed(part))
            notes.append(f"{errors} is missing or was cut; the shards of its part are done again")
    sizes = {segment: staging.size(segment) for segment in state.references}
    lost = [c for commits in state.staged.values() for c in commits.values() if c.offset + c.length > sizes[c.staging]]
    if lost:
        entries += [reopening(state, c) for c in lost]
        notes.append(f"the staged results of {len(lost)} shards are gone; they are done again")
    return entries, notes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
