"""Any text as a manifest, and any JSON as its objects: an error that names the place, soon and with little memory."""

import copy
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.api.convert import to_hardware_class, to_job_spec
from pocketgrid.api.manifest import load_manifest
from pocketgrid.api.v1alpha1.edge_node import EdgeNode
from pocketgrid.api.validation import parse
from pocketgrid.errors import InvalidSpecError
from tests.fuzz.profiles import examples
from tests.unit.api.manifests import JOB

LONGEST_S = 2.0
MOST_BYTES = 64 << 20

BOMBS = {
    "aliases of aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "an alias of itself": "kind: InferenceJob\nspec: &spec\n  again: *spec\n",
    "a list in itself": "&a [*a]",
    "brackets 5,000 deep": "spec: " + "[" * 5000,
    "braces 5,000 deep": "{a: " * 5000,
    "indentation 3,000 deep": "".join(" " * n + "a:\n" for n in range(3000)),
    "a number of 100,000 digits": "spec: " + "9" * 100_000,
    "a date that is none": "spec: !!timestamp never",
    "a number that is none": "spec: !!int x",
    "a fraction that is none": "spec: !!float x",
    "bytes that are none": "spec: !!binary é",
    "a Python object": "spec: !!python/object/apply:os.system [true]",
    "keys that merge": "<<: {a: b}",
    "a key that is a list": "? [a]\n: b",
    "a key twice": "kind: x\nkind: y",
    "a tab": "spec:\n\tmode: Batch",
    "a control character": "spec: \x01",
    "a half of a character": b"spec: \xff\xfe",
    "UTF-16": "kind: InferenceJob".encode("utf-16"),
    "nothing": "",
    "only comments": "# nothing\n---\n# here\n",
    "a list": "- a\n- b",
    "a scalar": "just text",
    "the second document broken": yaml.safe_dump(JOB) + "---\n{",
    "two megabytes": "# " + "x" * (2 << 20),
    "a million documents": "---\n" * 300_000,
}


def read(path: Path) -> None:
    """All there is in a file."""
    for body in load_manifest(path):
        to_job_spec(body, base=path.parent, uid="u")


def is_refused_with_a_word(action: Callable[[], object]) -> None:
    """Run something that may refuse what it is given, but not fail at it."""
    refusal = None
    try:
        action()
    except InvalidSpecError as error:
        refusal = error
    assert refusal is None or refusal.reason
    assert len(str(refusal)) < 2000


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda name: name.replace(" ", "-"))
def test_manifests_that_hurt_are_refused_soon_and_with_a_place(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "job.yaml"
    text = BOMBS[bomb]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(InvalidSpecError) as caught:
            read(path)
        assert time.process_time() - began < LONGEST_S
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert "job.yaml" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_anchors_in_good_measure_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    spec = copy.deepcopy(JOB)
    text = yaml.safe_dump(spec).replace("nodeSelector:", "nodeSelector: &same").replace("mode: Batch", "mode: Batch")
    path.write_text(text)
    (body,) = load_manifest(path)
    assert body["spec"] == JOB["spec"]


@examples(150)
@given(st.data())
def test_any_text_is_a_manifest_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = yaml.safe_dump(JOB)
    pieces = st.sampled_from(
        ["&a ", "*a", "!!", "- ", ": ", "{", "]", "\t", "\n", "---\n", '"', "'", "|\n", "? ", "<<: ", "~"]
    )
    changes = data.draw(st.lists(st.tuples(st.integers(0, len(whole)), st.integers(0, 40), pieces), max_size=5))
    for at, cut, piece in changes:
        whole = whole[:at] + piece + whole[at + cut :]
    if data.draw(st.booleans()):
        whole = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(whole)
    is_refused_with_a_word(lambda: read(path))


@pytest.mark.parametrize("uri", ["\x00", "a" * 5000, "a/" * 1500, "file:%00", "\ud800"], ids=ascii)
@pytest.mark.parametrize("place", ["model", "input", "output"])
def test_a_path_no_file_system_could_have_is_blamed_on_its_field(tmp_path: Path, place: str, uri: str) -> None:
    body = copy.deepcopy(JOB)
    body["spec"][place]["uri"] = uri
    with pytest.raises(InvalidSpecError) as caught:
        to_job_spec(body, base=tmp_path, uid="u")
    assert caught.value.field == f"spec.{place}.uri"
    assert str(caught.value).isprintable()


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=12),
        st.sampled_from(["\x00", "file:///\x00", "a" * 5000, "../..", "s3://", "file:", "://", "%00", "[", "🙂"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


def _paths(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [at] if at else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            found += _paths(inner, (*at, number))
    return found


PATHS = _paths(JOB)


@examples(250)
@given(st.lists(st.tuples(st.sampled_from(PATHS), JSON), min_size=1, max_size=3), st.booleans())
def test_any_json_in_any_place_is_a_job_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list, local: bool
) -> None:
    body = copy.deepcopy(JOB)
    for path, value in changes:
        at = body
        try:
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = value
        except (TypeError, KeyError, IndexError):
            continue  # an earlier change took the place away
    base = tmp_path_factory.getbasetemp() if local else None
    is_refused_with_a_word(lambda: to_job_spec(body, base=base, uid="u"))


@examples(100)
@given(st.one_of(JSON, st.fixed_dictionaries({"metadata": JSON, "spec": JSON, "kind": JSON, "apiVersion": JSON})))
def test_any_json_is_another_object_or_an_error(body: object) -> None:
    parse(EdgeNode, body, "")
    if isinstance(body, dict):
        is_refused_with_a_word(lambda: to_hardware_class(body))
