"""Settlement files: writing them so that the same settlement is the same files, and looking whether they still are.

A settlement is ``settlement-ID.json``, which is signed, and beside it ``settlement-ID.csv``, which says the same for
those who pay from tables. Only the JSON file counts.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pocketgrid.errors import InvalidSpecError
from pocketgrid.ledger.signing import signature_problem
from pocketgrid.metering.settlements import FORMAT, VERSION, Statement, canonical, table
from pocketgrid.storage.durable import make_folder, store_error, write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def write_settlement(folder: Path, document: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write both files of a signed settlement; writing it again changes nothing.

    Raises:
        StoreError: writing failed.
    """
    base = folder / f"settlement-{document['id']}"
    paths = (base.with_suffix(".json"), base.with_suffix(".csv"))
    try:
        make_folder(folder)
        # The table first: whoever finds the JSON file finds both.
        for path, data in ((paths[1], as_csv(document)), (paths[0], canonical(document))):
            if not path.exists() or path.read_bytes() != data:
                write_atomically(path, path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp"), data)
    except OSError as error:
        raise store_error("writing", Path(error.filename) if error.filename else folder, error) from error
    return paths


def as_csv(document: Mapping[str, Any]) -> bytes:
    """The table of a settlement as RFC 4180 says."""
    sink = io.StringIO(newline="")
    csv.writer(sink, lineterminator="\r\n").writerows(table(document))
    return sink.getvalue().encode()


def read_settlement(path: Path) -> dict[str, Any]:
    """The document in a settlement's JSON file, believed in nothing yet.

    Raises:
        InvalidSpecError: it is no settlement of this version.
        StoreError: it cannot be read.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise store_error("reading", path, error) from error
    except ValueError as error:
        raise InvalidSpecError("InvalidSettlement", f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InvalidSpecError("InvalidSettlement", f"{path} is no settlement")
    if document.get("version") != VERSION:
        raise InvalidSpecError("InvalidSettlement", f"{path} is of another version of PocketGrid; use that one")
    return document


def read_payees(path: Path) -> dict[str, str]:
    """What the payout provider calls each owner, from a YAML or JSON file of one mapping.

    Raises:
        InvalidSpecError: it is something else.
        StoreError: it cannot be read.
    """
    try:
        found = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise store_error("reading", path, error) from error
    except yaml.YAMLError as error:
        raise InvalidSpecError("InvalidPayees", f"{path} is not YAML: {error}", field="--payees") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) and v for pair in found.items() for v in pair):
        message = f'{path} is no mapping of owners to payees; write lines such as `ada: "1f2e"`, both as text'
        raise InvalidSpecError("InvalidPayees", message, field="--payees")
    return found


def settlement_problems(path: Path, key: Ed25519PublicKey, statements: Sequence[Statement]) -> Iterator[str]:
    """What is wrong with the settlement in `path`, as sentences.

    Args:
        statements: of logs that may be at hand; what it pays out of them must have been earned there.

    Raises:
        InvalidSpecError, StoreError: see `read_settlement`.
    """
    document = read_settlement(path)
    if problem := signature_problem(document, key):
        yield f"{path}: {problem}"
        return  # nothing else of it is worth a look
    if sum(line["amount_micro"] for line in document["lines"]) != document["total_micro"]:
        yield f"{path}: its lines do not come to its total"
    beside = path.with_suffix(".csv")
    try:
        if beside.exists() and beside.read_bytes() != as_csv(document):
            yield f"{beside} does not say what {path} says; export it again"
    except OSError as error:
        raise store_error("reading", beside, error) from error
    for statement in statements:
        marks = document["marks"].get(statement.job)
        if marks is None:
            yield f"{path} says nothing of job {statement.job}; it is of other logs"
            continue
        for owner, mark in sorted(marks.items()):
            earned = statement.earned.get(owner, 0)
            if mark > earned:
                yield f"{path} has paid {owner} {mark} micro-units for job {statement.job}, the log says {earned}"


def grown_since(document: Mapping[str, Any], statements: Sequence[Statement]) -> list[str]:
    """Jobs whose logs are not, byte for byte, those on which the settlement rests: they have grown since."""
    evidence = {e["job"]: e["log_sha256"] for e in document["evidence"]}
    return [s.job for s in statements if evidence.get(s.job, s.digest) != s.digest]
