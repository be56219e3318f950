"""Read manifests from a file, for local mode: YAML as kubectl takes it, with line and column in complaints.

Only shape is checked here (YAML, kind, version); what the objects say is for `convert`. A file that would take long to
read or much memory once its aliases are followed is refused, because a manifest may come from anybody.
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
from pocketgrid.loglines import one_line

LOCAL_KINDS = (InferenceJob.resource.kind, HardwareClass.resource.kind)
"""What can be run from a file."""


MOST_BYTES = 1 << 20
"""Of a file: about what etcd takes of an object."""

MOST_NODES = 30_000
"""Values in a file, those behind an alias counted each time it is used."""

MOST_DEPTH = 64

_LONGEST_SHOWN = 80


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: times stay text, and a key that comes twice is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        self._composed += 1
        if self._depth > MOST_DEPTH or self._composed > MOST_NODES:
            much = f"more than {MOST_DEPTH} levels" if self._depth > MOST_DEPTH else f"more than {MOST_NODES} values"
            raise yaml.composer.ComposerError(None, None, f"the file holds {much}", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_node(self) -> yaml.Node | None:
        node = super().get_node()
        if node is not None:
            _weigh(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # The constructors of numbers and times take for granted that the text is one.
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"cannot be read as {kind}: {_shown(str(error))}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {_shown(repr(key))} is not text; quote it", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {_shown(repr(key))} comes twice", key_node.start_mark
                )
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
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpecError(RefusalReason.INVALID_MANIFEST, f"{path}: cannot be read: {error}") from error
    if len(content) > MOST_BYTES:
        raise InvalidSpecError(
            RefusalReason.INVALID_MANIFEST, f"{path}: is larger than {MOST_BYTES >> 20} MiB; is it a manifest?"
        )
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
            f"{where}: kind {_shown(repr(kind))} cannot be run from a file; expected {' or '.join(LOCAL_KINDS)}",
            field="kind",
        )
    if version != API_VERSION:
        raise InvalidSpecError(
            RefusalReason.INVALID_MANIFEST,
            f"{where}: apiVersion {_shown(repr(version))} is not known; expected {API_VERSION}",
            field="apiVersion",
        )
    return document


def _where(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = _shown(getattr(error, "problem", None) or str(error), 400)
    return f"{path}:{mark.line + 1}:{mark.column + 1}: {problem}" if mark is not None else f"{path}: {problem}"


def _shown(text: str, limit: int = _LONGEST_SHOWN) -> str:
    return one_line(text, limit)


def _weigh(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values `node` is once all aliases are followed; `known` holds those of nodes seen, 0 of unfinished ones.

    Raises:
        ComposerError: it contains itself, or too many values.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    weight = known.get(id(node))
    if weight:
        return weight
    if weight == 0:
        raise yaml.composer.ComposerError(None, None, "a value contains itself through an alias", node.start_mark)
    known[id(node)] = 0
    inner = [n for pair in node.value for n in pair] if isinstance(node, yaml.MappingNode) else node.value
    total = 1
    for each in inner:
        total += _weigh(each, known)
        if total > MOST_NODES:
            raise yaml.composer.ComposerError(
                None, None, f"aliases make more than {MOST_NODES} values of it", node.start_mark
            )
    known[id(node)] = total
    return total
