"""The manifest: what an output folder holds, written last; and the check that it still holds exactly that.

Deterministic like the parts: it tells no time, host, device or epoch, so one job has one manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketgrid.errors import StoreError
from pocketgrid.model.job import OutputFormat
from pocketgrid.storage.durable import output_folder, store_error
from pocketgrid.storage.results.parts import digest, row_keys

NAME = "_manifest.json"
"""The underscore keeps readers of data sets from taking it for data, as for `_errors`."""
VERSION = 1


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the output.

    Attributes:
        path: relative to the output folder.
    """

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PartEntry:
    """One part: the items [first_item, first_item + items) of the data set.

    Attributes:
        data: its rows that have a result.
        errors: its rows that have none, if any.
    """

    first_item: int
    items: int
    data: FileEntry
    errors: FileEntry | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an output folder holds.

    Attributes:
        job: uid of the job.
        name: ``namespace/name`` of the job.
        model: SHA-256 of the model.
        input: URI of the data set.
        input_fingerprint: of the data set when it was admitted.
        format: of the parts.
        key: column that identifies a row.
        numbered: whether the key is the row number.
        items: of the data set; always `rows` + `failed`.
        rows: with a result.
        failed: without.
        columns: name and type of each column, key first; `shape` where a list is a flattened tensor.
    """

    job: str
    name: str
    model: str
    input: str
    input_fingerprint: str
    format: str
    key: str
    numbered: bool
    items: int
    rows: int
    failed: int
    columns: tuple[dict[str, Any], ...]
    parts: tuple[PartEntry, ...]
    version: int = VERSION

    def to_bytes(self) -> bytes:
        """As it is written."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode()


def read_manifest(uri: str) -> Manifest:
    """The manifest of the finished output at `uri`.

    Raises:
        StoreError: there is none, or it cannot be understood.
    """
    return load_manifest(output_folder(uri) / NAME)


def load_manifest(path: Path) -> Manifest:
    """The manifest in the file `path`; see `read_manifest`."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist: the job has not finished, or this is not its output") from error
    except OSError as error:
        raise store_error("reading", path, error) from error
    except ValueError as error:
        raise StoreError(f"{path} is not JSON ({error}); let the job finish again to have it rewritten") from error
    try:
        if document["version"] > VERSION:
            raise StoreError(f"{path} was written by a newer version of PocketGrid; use that one")
        parts = tuple(
            PartEntry(
                p["first_item"], p["items"], FileEntry(**p["data"]), FileEntry(**p["errors"]) if p["errors"] else None
            )
            for p in document["parts"]
        )
        return Manifest(**{**document, "columns": tuple(document["columns"]), "parts": parts})
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is not a manifest: {error!r}") from error


def verify(uri: str) -> list[str]:
    """Everything that is wrong with the finished output at `uri`; empty if nothing is.

    Digests, lengths and row counts are recomputed, files that do not belong are named, and keys must be unique and,
    if they are row numbers, exactly the row numbers of the data set.

    Raises:
        StoreError: there is no manifest, or the system refused to read.
    """
    folder = output_folder(uri)
    manifest = read_manifest(uri)
    problems: list[str] = []
    try:
        _verify_counts(manifest, problems)
        keys: list[Any] = []
        for part in manifest.parts:
            keys += _verify_part(folder, manifest, part, problems)
        _verify_keys(manifest, keys, problems)
        listed = {f.path for p in manifest.parts for f in (p.data, p.errors) if f}
        present = (str(p.relative_to(folder)) for p in [*folder.glob("part-*"), *folder.glob("_errors/*")])
        problems += [f"{name} is not in the manifest" for name in sorted(present) if name not in listed]
    except OSError as error:
        raise store_error("verifying", folder, error) from error
    return problems


def _verify_counts(manifest: Manifest, problems: list[str]) -> None:
    rows = sum(p.data.rows for p in manifest.parts)
    failed = sum(p.errors.rows for p in manifest.parts if p.errors)
    if (rows, failed) != (manifest.rows, manifest.failed):
        problems.append(
            f"the parts have {rows} rows and {failed} failed, the manifest {manifest.rows} and {manifest.failed}"
        )
    if rows + failed != manifest.items:
        problems.append(f"{rows} rows and {failed} failed do not make {manifest.items} items")
    at = 0
    for part in manifest.parts:
        if part.first_item != at or part.items != part.data.rows + (part.errors.rows if part.errors else 0):
            problems.append(f"{part.data.path} does not hold the items from {at} on")
        at = part.first_item + part.items


def _verify_part(folder: Path, manifest: Manifest, part: PartEntry, problems: list[str]) -> list[Any]:
    """Keys of the part's files; the row numbers, if those are the keys."""
    keys: list[Any] = []
    for file in (part.data, part.errors):
        if file is None:
            continue
        path = folder / file.path
        if not path.is_file():
            problems.append(f"{file.path} is missing")
            continue
        found = digest(path)
        if (found.bytes, found.sha256) != (file.bytes, file.sha256):
            problems.append(f"{file.path} has changed since the job finished")
            continue
        if file is part.data:
            own = list(row_keys(path, manifest.key, OutputFormat(manifest.format)))
        else:
            own = list(_error_keys(path, "row" if manifest.numbered else "key"))
        if len(own) != file.rows:
            problems.append(f"{file.path} has {len(own)} rows, the manifest says {file.rows}")
        keys += own
    return keys


def _error_keys(path: Path, field: str) -> Iterable[Any]:
    with path.open("rb") as source:
        for line in source:
            yield json.loads(line)[field]


def _verify_keys(manifest: Manifest, keys: list[Any], problems: list[str]) -> None:
    words = [str(k) if isinstance(k, bytes | list | dict) else k for k in keys]
    distinct = set(words)
    if len(distinct) != len(words):
        problems.append(f"{len(words) - len(distinct)} keys occur more than once in column {manifest.key!r}")
    if manifest.numbered and not problems and distinct != set(range(manifest.items)):
        problems.append(f"the row numbers are not exactly 0 to {manifest.items - 1}")
