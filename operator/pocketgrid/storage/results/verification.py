"""Is a finished output still exactly what the job wrote? Everything is recomputed and compared.

Responsible for finding damage, naming its file and saying what to do. Reads only, takes no lock and fences off nobody.
Memory is bounded whatever the number of rows: files are read in blocks, row numbers are compared part by part, and
keys as hashes (`duplicates`). The checks:

- the manifest adds up, and is the one whose digest stands in the commit log;
- the log knows of the same job, model, parts, digests, work and cost;
- each file has the length, digest, schema and number of rows that the manifest says;
- rows are in the order of the data set, none twice and none missing but those in `_errors`;
- no file lies there that a reader would take for data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from pocketgrid.errors import CorruptLogError, StoreError
from pocketgrid.model.job import OutputFormat
from pocketgrid.storage.durable import output_folder, store_error
from pocketgrid.storage.logreading import LogContents, read_log
from pocketgrid.storage.results.duplicates import DuplicateFinder, key_hash
from pocketgrid.storage.results.manifest import NAME as MANIFEST_NAME
from pocketgrid.storage.results.manifest import REWRITE, FileEntry, Manifest, PartEntry, load_manifest
from pocketgrid.storage.results.ownership import PRIVATE
from pocketgrid.storage.results.parts import columns_of, errors_name, part_name, row_keys
from pocketgrid.storage.results.work import summarize_work, total_of

_BLOCK = 1 << 20
_SUSPECTS = 1000
"""Keys looked at again; more than that and the hashes are believed."""
_NAMED = 3
"""Keys, rows or files named in one sentence."""

_REDO = "restore it from a backup, or delete it and start the job again, which does only its rows anew"
_REDO_BOTH = "restore both from a backup, or delete them and start the job again, which does only their rows anew"


class Damage(StrEnum):
    """Kinds of damage."""

    MISSING = "Missing"
    """A file is gone."""
    TRUNCATED = "Truncated"
    """A file is shorter than it was."""
    CHANGED = "Changed"
    """A file has other bytes than it had."""
    MISPLACED = "Misplaced"
    """A file holds what another one should."""
    UNEXPECTED = "Unexpected"
    """A file lies where readers look for data, and is none of the job's."""
    SCHEMA = "WrongSchema"
    """The columns are not those of the manifest."""
    ROWS = "WrongRows"
    """Rows are missing, stand twice, or are not in the order of the data set."""
    KEYS = "DuplicateKeys"
    """Two rows have the same key."""
    MANIFEST = "WrongManifest"
    """The manifest contradicts itself or the commit log."""
    LOG = "WrongLog"
    """The commit log is damaged, or does not prove what the manifest says."""
    MODEL = "WrongModel"
    """The model is not the one that was used."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        file: relative to the output folder.
        message: what is wrong, beginning with the file.
        remedy: what to do about it.
    """

    damage: Damage
    file: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


@dataclass(slots=True)
class Verification:
    """What a check has found.

    Attributes:
        findings: everything that is wrong.
        notes: what could not be compared, and why; no damage.
    """

    manifest: Manifest
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


Progress = Callable[[int, int], None]
"""Told (bytes looked at, bytes in all) from time to time."""


def verify(uri: str) -> list[str]:
    """Everything that is wrong with the finished output at `uri`, as sentences; see `verify_output`."""
    return [str(finding) for finding in verify_output(uri).findings]


def verify_output(uri: str, *, model: Path | None = None, progress: Progress | None = None) -> Verification:
    """Recompute and compare everything about the finished output at `uri`.

    Args:
        model: also compare this file with the digest of the model that was used.
        progress: told how far it is.

    Raises:
        InvalidSpecError: `uri` names no local folder.
        StoreError: there is no manifest, it cannot be understood, or the system refused to read.
    """
    folder = output_folder(uri, field="uri")
    found = Verification(load_manifest(folder / MANIFEST_NAME))
    check = _Check(folder, found, progress or (lambda done, total: None))
    try:
        check.manifest_adds_up()
        check.log_agrees()
        if model is not None:
            check.model_is(model)
        check.files()
        check.strays()
    except OSError as error:
        raise store_error("verifying", Path(error.filename) if error.filename else folder, error) from error
    return found


class _Check:
    """One run of `verify_output`."""

    def __init__(self, folder: Path, found: Verification, progress: Progress) -> None:
        self._folder = folder
        self._found = found
        self._manifest = found.manifest
        self._format = OutputFormat(self._manifest.format)
        self._progress = progress
        self._by_digest = {f.sha256: f.path for p in self._manifest.parts for f in (p.data, p.errors) if f}
        self._total = sum(f.bytes for p in self._manifest.parts for f in (p.data, p.errors) if f)
        self._done = 0

    def _wrong(self, damage: Damage, file: str, problem: str, remedy: str) -> None:
        self._found.findings.append(Finding(damage, file, f"{file} {problem}", remedy))

    # ---- the manifest and the log ----

    def manifest_adds_up(self) -> None:
        manifest = self._manifest
        rows = sum(p.data.rows for p in manifest.parts)
        failed = sum(p.errors.rows for p in manifest.parts if p.errors)
        if (rows, failed) != (manifest.rows, manifest.failed):
            self._manifest_is_wrong(
                f"says {manifest.rows} rows and {manifest.failed} failed, but its parts have {rows} and {failed}"
            )
        if manifest.rows + manifest.failed != manifest.items:
            self._manifest_is_wrong(
                f"says {manifest.items} items, but {manifest.rows} rows and {manifest.failed} failed"
            )
        at = 0
        for number, part in enumerate(manifest.parts):
            names = part_name(number, self._format), errors_name(number)
            if part.data.path != names[0] or (part.errors and part.errors.path != names[1]):
                self._manifest_is_wrong(f"names {part.data.path} where {names[0]} is due")
            if part.first_item != at or part.items != part.data.rows + (part.errors.rows if part.errors else 0):
                self._manifest_is_wrong(f"does not say that {names[0]} holds the {part.items} items from {at} on")
            at = part.first_item + part.items
        if manifest.work is not None:
            work = manifest.work
            for table, total in (
                ("engines", total_of(work.engines)),
                ("classes", total_of(work.classes)),
                ("devices", total_of([*work.devices, *work.other_devices])),
            ):
                if (total.rows, total.failed) != (manifest.rows, manifest.failed):
                    self._manifest_is_wrong(
                        f"says that its {table} computed {total.rows} rows and {total.failed} failed of "
                        f"{manifest.rows} and {manifest.failed}"
                    )

    def _manifest_is_wrong(self, problem: str) -> None:
        self._wrong(Damage.MANIFEST, MANIFEST_NAME, problem, REWRITE)

    def log_agrees(self) -> None:
        """Compare with the commit log, if it is still there: it may be removed when the job is gone."""
        folder = self._folder / PRIVATE / "log"
        try:
            contents = read_log(folder)
        except FileNotFoundError:
            self._found.notes.append("there is no commit log any more, so nothing could be compared with it")
            return
        except CorruptLogError as error:
            remedy = "the output itself can be used; to do the job again, take a new folder"
            self._found.findings.append(Finding(Damage.LOG, f"{PRIVATE}/log", f"{PRIVATE}/log: {error}", remedy))
            return
        except (StoreError, PermissionError) as error:
            self._found.notes.append(f"the commit log could not be compared: {error}")
            return
        if contents.header is None:
            self._found.notes.append("the commit log is empty, so nothing could be compared with it")
            return
        self._found.notes += [f"commit log: {note}" for note in contents.notes]
        self._compare(contents)

    def _compare(self, contents: LogContents) -> None:
        manifest, header, state = self._manifest, contents.header, contents.state
        assert header is not None
        written = hashlib.sha256((self._folder / MANIFEST_NAME).read_bytes()).hexdigest()
        if state.finished is None:
            self._log_is_silent("that the job has finished")
        elif state.finished.manifest_sha256 != written:
            self._manifest_is_wrong("was changed after the job had finished: the commit log has another digest of it")
        for what, own, logged in (
            ("job", manifest.job, header.job),
            ("model", manifest.model, header.fingerprint.get("model")),
            ("input", f"{manifest.input_fingerprint}/{manifest.items}", header.fingerprint.get("input")),
        ):
            if own != logged:
                self._manifest_is_wrong(f"is of {what} {own}, the commit log of {what} {logged}")
        if unlisted := sorted(set(state.sealed) - set(range(len(manifest.parts)))):
            self._manifest_is_wrong(f"does not list part {unlisted[0]}, which the commit log has")
        for number, part in enumerate(manifest.parts):
            sealed = state.sealed.get(number)
            if sealed is None:
                self._log_is_silent(f"that {part.data.path} is final")
                continue
            errors = part.errors or FileEntry("", 0, 0, "")
            own_files = (part.data.rows, part.data.bytes, part.data.sha256, errors.rows, errors.bytes, errors.sha256)
            logged_files = (sealed.rows, sealed.bytes, sealed.sha256, sealed.failed, sealed.errors_bytes,
                            sealed.errors_sha256)  # fmt: skip
            if own_files != logged_files:
                self._manifest_is_wrong(f"and the commit log disagree about {part.data.path} or its errors")
        complete = len(state.sealed) == len(manifest.parts)
        if complete and manifest.work is not None and manifest.work != summarize_work(state.sealed_work()):
            self._manifest_is_wrong("and the commit log disagree about who computed what")
        if manifest.verified != (state.plan is not None and state.plan.verify) and manifest.version > 2:
            self._manifest_is_wrong("and the commit log disagree about whether the rows were verified")
        if manifest.cost != state.pay.earned_micro and not contents.notes:  # a damaged line may have been a check's
            self._manifest_is_wrong(
                f"says that it cost {manifest.cost} micro-units, the commit log {state.pay.earned_micro}"
            )

    def _log_is_silent(self, about: str) -> None:
        folder = f"{PRIVATE}/log"
        remedy = "the output is judged by its own digests and can be used; a job that is started again mends this"
        self._wrong(Damage.LOG, folder, f"does not say, or no longer, {about}", remedy)

    def model_is(self, model: Path) -> None:
        with model.open("rb") as source:
            found = hashlib.file_digest(source, "sha256").hexdigest()
        if found != self._manifest.model:
            self._found.findings.append(
                Finding(
                    Damage.MODEL,
                    str(model),
                    f"{model} has digest {found}, this output was computed with {self._manifest.model}",
                    "compare with the model that was used, or compute the output again with this one",
                )
            )

    # ---- files ----

    def files(self) -> None:
        """Look at every part; then at the keys of all that are as they were."""
        whole: list[PartEntry] = []
        with DuplicateFinder() as finder:
            for part in self._manifest.parts:
                good = [self._is_as_written(f) for f in (part.data, part.errors) if f]
                if not all(good):
                    continue
                try:
                    if self._columns_fit(part) and self._rows_fit(part):
                        whole.append(part)
                        if not self._manifest.numbered:
                            for keys in self._keys_of(part):
                                finder.add(keys)
                except (ValueError, KeyError, TypeError) as error:
                    self._wrong(Damage.CHANGED, part.data.path, f"or its errors cannot be read: {error}", _REDO)
            suspects, excess = finder.suspects(_SUSPECTS)
        if suspects:
            self._name_duplicates(whole, suspects, excess)

    def _is_as_written(self, file: FileEntry) -> bool:
        path = self._folder / file.path
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
            return False  # the manifest was found wrong already, and nothing outside the folder is looked at
        if not path.is_file():
            self._wrong(Damage.MISSING, file.path, "is missing", _REDO)
            return False
        size = path.stat().st_size
        digest = self._digest(path)
        if digest == file.sha256 and size == file.bytes:
            return True
        other = self._by_digest.get(digest)
        if other is not None and other != file.path:
            remedy = f"rename it to {other}; or {_REDO_BOTH}"
            self._wrong(Damage.MISPLACED, file.path, f"holds what {other} should hold", remedy)
        elif size < file.bytes:
            self._wrong(Damage.TRUNCATED, file.path, f"has {size} bytes of {file.bytes}", _REDO)
        elif size > file.bytes:
            self._wrong(Damage.CHANGED, file.path, f"has {size} bytes where {file.bytes} were written", _REDO)
        else:
            self._wrong(Damage.CHANGED, file.path, "has changed since the job finished", _REDO)
        return False

    def _digest(self, path: Path) -> str:
        hasher = hashlib.sha256()
        with path.open("rb") as source:
            while block := source.read(_BLOCK):
                hasher.update(block)
                self._done += len(block)
                self._progress(min(self._done, self._total), self._total)
        return hasher.hexdigest()

    def _columns_fit(self, part: PartEntry) -> bool:
        expected = list(self._manifest.columns)
        found = columns_of(self._folder / part.data.path, self._format)
        if found is None or found == (expected if "type" in found[0] else [{"name": c["name"]} for c in expected]):
            return True
        self._wrong(Damage.SCHEMA, part.data.path, f"has columns {found}, the manifest says {expected}", _REDO)
        return False

    def _rows_fit(self, part: PartEntry) -> bool:
        """Whether the part has exactly its items: each with a result or with an error, in order."""
        errors = np.array([line["row"] for line in self._errors_of(part)], np.int64)
        failed = np.zeros(part.items, bool)
        inside = errors[(errors >= part.first_item) & (errors < part.first_item + part.items)] - part.first_item
        failed[inside] = True
        if part.errors and (
            len(errors) != part.errors.rows or failed.sum() != len(errors) or np.any(np.diff(errors) < 0)
        ):
            self._wrong(
                Damage.ROWS, part.errors.path,
                f"does not have {part.errors.rows} rows of the items {part.first_item} to "
                f"{part.first_item + part.items - 1}, once each and in order",
                _REDO,
            )  # fmt: skip
            return False
        if not self._manifest.numbered:
            count = sum(len(keys) for keys in row_keys(self._folder / part.data.path, self._manifest.key, self._format))
            if count != part.data.rows:
                self._wrong(Damage.ROWS, part.data.path, f"has {count} rows where {part.data.rows} are due", _REDO)
            return count == part.data.rows
        due = np.flatnonzero(~failed) + part.first_item
        at = 0
        for keys in row_keys(self._folder / part.data.path, self._manifest.key, self._format):
            own = np.array(keys, np.int64)
            expected = due[at : at + len(own)]
            differ = np.flatnonzero(own[: len(expected)] != expected)
            if len(differ) or len(own) > len(expected):
                wrong = int(differ[0]) if len(differ) else len(expected)
                due_here = f"where {expected[wrong]} is due" if len(differ) else "where none is due any more"
                problem = f"has row {own[wrong]} at line {at + wrong}, {due_here}"
                self._wrong(Damage.ROWS, part.data.path, problem, _REDO)
                return False
            at += len(own)
        if at != len(due):
            self._wrong(Damage.ROWS, part.data.path, f"has {at} rows where {len(due)} are due", _REDO)
        return at == len(due)

    def _errors_of(self, part: PartEntry) -> Iterator[dict[str, Any]]:
        if part.errors is None:
            return
        with (self._folder / part.errors.path).open("rb") as source:
            for line in source:
                yield json.loads(line)

    def _keys_of(self, part: PartEntry) -> Iterator[list[Any]]:
        yield from row_keys(self._folder / part.data.path, self._manifest.key, self._format)
        yield [line["key"] for line in self._errors_of(part)]

    def _name_duplicates(self, parts: list[PartEntry], suspects: set[int], excess: int) -> None:
        """Look at the suspects' keys themselves, and name those that truly occur twice."""
        seen: dict[Any, list[str]] = {}
        for part in parts:
            for keys in self._keys_of(part):
                for key in keys:
                    if key_hash(key) in suspects:
                        word = str(key) if isinstance(key, bytes | list | dict) else key
                        seen.setdefault(word, []).append(part.data.path)
        doubled = {key: files for key, files in seen.items() if len(files) > 1}
        if not doubled:
            return
        if len(suspects) < _SUSPECTS:
            excess = sum(len(files) - 1 for files in doubled.values())
        names = ", ".join(f"{key!r}" for key in list(doubled)[:_NAMED])
        file = next(iter(doubled.values()))[1]
        self._wrong(
            Damage.KEYS,
            file,
            f"and others: {excess} keys occur more than once in column {self._manifest.key!r}, such as {names}",
            "the data set has such keys, since every item is there once; name a column without them as spec.input.key, "
            "or none to have rows numbered",
        )

    def strays(self) -> None:
        """Files that readers of data sets would take for data, and error files of no part."""
        listed = {f.path for p in self._manifest.parts for f in (p.data, p.errors) if f}
        present = [p.name for p in self._folder.iterdir() if p.name[0] not in "_."]
        present += [f"_errors/{p.name}" for p in (self._folder / "_errors").glob("*")]
        for name in sorted(set(present) - listed):
            remedy = "move it away: readers would take it for data"
            self._wrong(Damage.UNEXPECTED, name, "is not in the manifest", remedy)
