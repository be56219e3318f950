"""Results out: see `store` for the order of things, `pocketgrid.storage.commitlog` for why nothing is lost."""

from pocketgrid.storage.results.contract import Committed, Recovered, ShardCommit, StoreLimits
from pocketgrid.storage.results.manifest import FileEntry, Manifest, PartEntry, read_manifest, verify
from pocketgrid.storage.results.store import ResultStore

__all__ = [
    "Committed",
    "FileEntry",
    "Manifest",
    "PartEntry",
    "Recovered",
    "ResultStore",
    "ShardCommit",
    "StoreLimits",
    "read_manifest",
    "verify",
]
