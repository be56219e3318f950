"""docs/conditions.md lists every reason that the code can give, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "conditions.md"
SOURCES = ROOT / "operator" / "pocketgrid"

REASON = re.compile(r"[A-Z][a-z]+[A-Za-z0-9]*")
VOCABULARIES = {"JobReason", "RefusalReason", "DeviceReason", "ClassReason", "Refusal"}
GIVERS = {"Explanation", "InvalidSpecError", "JobBroken", "Rule", "_fail", "build_ready_condition"}
"""Whoever is called with a reason, in words or by the name of a constant."""


def reasons_in(tree: ast.Module, constants: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in VOCABULARIES:
            for member in node.body:
                if isinstance(member, ast.Assign | ast.AnnAssign) and isinstance(member.value, ast.Constant):
                    yield str(member.value.value)
        elif isinstance(node, ast.Call) and _name(node.func) in GIVERS:
            named = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            # The reason stands first or second, and messages are sentences.
            for value in (*node.args[:2], *named):
                text = value.value if isinstance(value, ast.Constant) else constants.get(getattr(value, "id", ""))
                if isinstance(text, str) and REASON.fullmatch(text):
                    yield text


def constants_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield from ((target.id, value.value) for target in targets if isinstance(target, ast.Name))


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def given() -> dict[str, str]:
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(SOURCES.rglob("*.py"))
        if "_pb2" not in path.name
    }
    constants = dict(pair for tree in trees.values() for pair in constants_of(tree))
    return {
        reason: str(path.relative_to(ROOT)) for path, tree in trees.items() for reason in reasons_in(tree, constants)
    }


def listed() -> list[str]:
    rows = (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `"))
    return [re.match(r"\| `(\w+)`", row).group(1) for row in rows]


def test_every_reason_of_the_code_is_on_the_page() -> None:
    missing = {reason: where for reason, where in given().items() if reason not in listed()}
    assert not missing, f"add a row to docs/conditions.md for each of {missing}"


def test_every_reason_on_the_page_is_in_the_code() -> None:
    stale = sorted(set(listed()) - set(given()))
    assert not stale, f"remove these rows from docs/conditions.md, or correct them: {stale}"


def test_no_reason_is_listed_twice() -> None:
    assert len(listed()) == len(set(listed()))


def test_the_search_finds_reasons_in_each_of_their_forms() -> None:
    found = given()
    for reason in ("Working", "DigestMismatch", "NoReadyNodes", "ColumnsOrTokenizer", "DeadlineExceeded", "DeviceLost"):
        assert reason in found
