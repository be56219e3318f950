"""Read manifests from a file, for local mode: YAML as kubectl takes it, with line numbers in complaints.

Only shape is checked here (YAML, kind, version); what the objects say is for `convert`.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pocketgrid.api.v1alpha1.conditions import RefusalReason
from pocketgrid.api.v1alpha1.hardware_class import HardwareClass
from pocketgrid.api.v1alpha1.inference_job import InferenceJob
from pocketgrid.api.v1alpha1.meta import API_VERSION, Body
from pocketgrid.errors import InvalidSpecError

LOCAL_KINDS = (InferenceJob.resource.kind, HardwareClass.resource.kind)
"""What can be run from a file."""


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: times stay text, and a key that comes twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text; quote it", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} comes twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_manifest(path: Path) -> list[Body]:
    """The objects of a manifest file, in order; empty documents are skipped.

    Raises:
        InvalidSpecError: it cannot be read, is not YAML, holds no object, or one that cannot be run from a file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpecError(RefusalReason.INVALID_MANIFEST, f"{path}: cannot be read: {error}") from error
    bodies = []
    try:
        loader = _Loader(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                document = None if node is None else loader.construct_document(node)
                if node is not None and document is not None:
                    bodies.append(_check_kind(document, f"{path}:{node.start_mark.line + 1}"))
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise InvalidSpecError(RefusalReason.INVALID_MANIFEST, _where(path, error)) from error
    if not bodies:
        raise InvalidSpecError(
            RefusalReason.INVALID_MANIFEST, f"{path}: holds no object; expected {' or '.join(LOCAL_KINDS)}"
        )
    return bodies


def _check_kind(document: Any, where: str) -> Body:
    if not isinstance(document, dict):
        raise InvalidSpecError(
            RefusalReason.INVALID_MANIFEST, f"{where}: expected an object with apiVersion, kind, metadata and spec"
        )
    version, kind = document.get("apiVersion"), document.get("kind")
    if kind not in LOCAL_KINDS:
        raise InvalidSpecError(
            RefusalReason.INVALID_MANIFEST,
            f"{where}: kind {kind!r} cannot be run from a file; expected {' or '.join(LOCAL_KINDS)}",
            field="kind",
        )
    if version != API_VERSION:
        raise InvalidSpecError(
            RefusalReason.INVALID_MANIFEST,
            f"{where}: apiVersion {version!r} is not known; expected {API_VERSION}",
            field="apiVersion",
        )
    return document


def _where(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{path}:{mark.line + 1}: {problem}" if mark is not None else f"{path}: {problem}"
