"""The manifest: what an output folder holds, written last.

Responsible for its words and for reading one that somebody may have edited. It tells no time, host or epoch, and
apart from `work` and `cost` nothing of who computed: the same results have the same manifest. `verification` compares
it with the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketgrid.errors import StoreError
from pocketgrid.storage.durable import output_folder, store_error
from pocketgrid.storage.results.work import DeviceWork, GroupWork, Work

NAME = "_manifest.json"
"""The underscore keeps readers of data sets from taking it for data, as for `_errors`."""
VERSION = 3
"""1 had neither `work` nor `model_uri`, 2 neither `verified` nor `cost`; they are still read."""

REWRITE = "delete it and start the job again, which writes it anew from the log"
"""What to do about a manifest that is not as it was written."""


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
        model_uri: where the model was; empty in version 1.
        input: URI of the data set.
        input_fingerprint: of the data set when it was admitted.
        format: of the parts.
        key: column that identifies a row.
        numbered: whether the key is the row number.
        items: of the data set; always `rows` + `failed`.
        rows: with a result.
        failed: without.
        columns: name and type of each column, key first; `shape` where a list is a flattened tensor.
        work: who computed it; None in version 1.
        verified: whether each row was believed for a reason, by the job's `spec.verification`; False before version 3.
        cost: micro-units that devices have earned by it, checks included; 0 if nothing was verified.
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
    model_uri: str = ""
    work: Work | None = None
    verified: bool = False
    cost: int = 0
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
        raise StoreError(f"{path} is not JSON ({error}); {REWRITE}") from error
    try:
        if document["version"] > VERSION:
            raise StoreError(f"{path} was written by a newer version of PocketGrid; use that one")
        if type(document.get("cost", 0)) is not int or type(document.get("verified", False)) is not bool:
            raise TypeError("cost is no whole number, or verified neither true nor false")
        return Manifest(
            **{
                **document,
                "columns": tuple(document["columns"]),
                "parts": tuple(_part(p) for p in document["parts"]),
                "work": _work(document["work"]) if document.get("work") else None,
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is not a manifest: {error!r}; {REWRITE}") from error


def _part(document: Mapping[str, Any]) -> PartEntry:
    errors = document["errors"]
    numbers = (document["first_item"], document["items"])
    if not all(isinstance(n, int) for n in numbers):
        raise TypeError(f"{numbers} are not numbers of items")
    return PartEntry(*numbers, _file(document["data"]), _file(errors) if errors else None)


def _file(document: Mapping[str, Any]) -> FileEntry:
    file = FileEntry(**document)
    for value, kind in ((file.path, str), (file.rows, int), (file.bytes, int), (file.sha256, str)):
        if not isinstance(value, kind):
            raise TypeError(f"{value!r} in the entry of a file is not {kind.__name__}")
    return file


def _work(document: Mapping[str, Any]) -> Work:
    return Work(
        engines=tuple(GroupWork(**g) for g in document["engines"]),
        classes=tuple(GroupWork(**g) for g in document["classes"]),
        devices=tuple(DeviceWork(**d) for d in document["devices"]),
        other_devices=tuple(GroupWork(**g) for g in document["other_devices"]),
    )
