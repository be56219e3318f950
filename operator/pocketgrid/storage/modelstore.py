"""Model files by digest, on this machine.

Responsible for having the bytes that a manifest names and for proving that they are the right ones, every time;
not for handing them to devices. A local file is used where it lies. Any other is copied into the store's folder,
named by its digest: written beside its final name, checked, made durable and then renamed, so that a file with such
a name is always whole. Nothing is ever deleted here: the folder is as large as the models that jobs have named.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pocketgrid.errors import InvalidSpecError, StoreError
from pocketgrid.model.ids import ModelDigest
from pocketgrid.model.job import ModelRef
from pocketgrid.model.tensors import ModelSignature
from pocketgrid.storage.locations import Source, blocks, display, local_path, open_source
from pocketgrid.storage.onnxgraph import inspect_model
from pocketgrid.storage.places import Spool, open_place
from pocketgrid.storage.reasons import Refusal

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that is here.

    Attributes:
        path: of a file with exactly the bytes of `sha256` when it was looked at.
        signature: see `storage.onnxgraph`.
        unusable_outputs: outputs that cannot be asked for, and why, as the end of a sentence.
    """

    path: Path
    size_bytes: int
    sha256: ModelDigest
    signature: ModelSignature
    unusable_outputs: tuple[tuple[str, str], ...] = ()


class ModelStore:
    """Models in a folder. Any number of threads and processes may share it.

    Args:
        root: made when the first model must be copied.

    Attributes:
        scratch: folder beside it for what jobs need only while they run; made by whoever needs it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.scratch = root.with_name("scratch")

    def ensure(self, ref: ModelRef) -> StoredModel:
        """Have the model of `ref` and know it. Blocking: reads, and perhaps fetches, the whole file.

        Raises:
            InvalidSpecError: blaming ``spec.model.uri`` or ``spec.model.sha256``.
            StoreError: the copy cannot be written.
        """
        wanted = ref.sha256.lower()
        if not _SHA256.fullmatch(wanted):
            raise InvalidSpecError(
                Refusal.INVALID_DIGEST,
                f"{ref.sha256!r} is not a SHA-256 of 64 hexadecimal digits",
                field="spec.model.sha256",
            )
        path = local_path(ref.uri, field="spec.model.uri") or self._copy(ref.uri, wanted)
        try:
            found, size = _digest_of(path)
            if found != wanted:
                raise _mismatch(ref.uri, found, wanted)
            inspected = inspect_model(path)
        except StoreError as error:
            raise InvalidSpecError(Refusal.UNREADABLE, str(error), field="spec.model.uri") from error
        digest = ModelDigest(wanted)
        return StoredModel(path, size, digest, inspected.signature, inspected.unusable_outputs)

    def _copy(self, uri: str, wanted: str) -> Path:
        final = self._root / f"{wanted}.onnx"
        if final.exists() and _digest_of(final)[0] == wanted:
            return final
        remote = open_place(uri, field="spec.model.uri", spool=Spool(self.scratch))
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(prefix=".partial-", dir=self._root)
        except OSError as error:
            remote.close()
            raise StoreError(f"cannot write in the model store {self._root}: {error.strerror}") from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                found = hashlib.sha256()
                for block in blocks(remote):
                    found.update(block)
                    file.write(block)
                if found.hexdigest() != wanted:
                    raise _mismatch(uri, found.hexdigest(), wanted)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).replace(final)
        except OSError as error:
            raise StoreError(f"cannot write {final}: {error.strerror}") from error
        except StoreError as error:
            raise InvalidSpecError(Refusal.UNREADABLE, str(error), field="spec.model.uri") from error
        finally:
            remote.close()
            Path(partial).unlink(missing_ok=True)
        return final


def _digest_of(path: Path) -> tuple[str, int]:
    source: Source = open_source(str(path), field="spec.model.uri")
    digest = hashlib.sha256()
    try:
        for block in blocks(source):
            digest.update(block)
    finally:
        source.close()
    return digest.hexdigest(), source.size


def _mismatch(uri: str, found: str, wanted: str) -> InvalidSpecError:
    return InvalidSpecError(
        Refusal.DIGEST_MISMATCH,
        f"{display(uri)} has SHA-256 {found}, not {wanted}; was the model changed, or the manifest?",
        field="spec.model.sha256",
    )
