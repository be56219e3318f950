"""Results out: see `store` for the order of things, `pocketgrid.storage.commitlog` for why nothing is lost."""

from pocketgrid.storage.results.contract import (
    Check,
    Committed,
    Recovered,
    Settled,
    ShardCommit,
    StagedResult,
    StoreLimits,
)
from pocketgrid.storage.results.manifest import FileEntry, Manifest, PartEntry, read_manifest
from pocketgrid.storage.results.store import ResultStore
from pocketgrid.storage.results.verification import Damage, Finding, Verification, verify, verify_output
from pocketgrid.storage.results.work import DeviceWork, GroupWork, Work

__all__ = [
    "Check",
    "Committed",
    "Damage",
    "DeviceWork",
    "FileEntry",
    "Finding",
    "GroupWork",
    "Manifest",
    "PartEntry",
    "Recovered",
    "ResultStore",
    "Settled",
    "ShardCommit",
    "StagedResult",
    "StoreLimits",
    "Verification",
    "Work",
    "read_manifest",
    "verify",
    "verify_output",
]
