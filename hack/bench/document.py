"""The measured part of docs/benchmarks.md: a table and the facts of the machine, between two markers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hack.bench.figures import Figure, rounded

BEGIN = "<!-- Written by `make bench`; edits between these two marks are lost. -->"
END = "<!-- End of what `make bench` writes. -->"


class MarkerError(ValueError):
    """The page does not have each marker once, in order."""


def rewrite(page: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """`page` with `section` between the markers `begin` and `end`, and all else untouched.

    Raises:
        MarkerError: a marker is missing, doubled or behind the other.
    """
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise MarkerError(f"the page needs one line {begin!r} and, below it, one line {end!r}")
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n\n{section.strip()}\n\n{end}{tail}"


def build_section(figures: Sequence[Figure], facts: Mapping[str, str], command: str) -> str:
    """Table, meanings and facts in Markdown."""
    lines = ["| figure | value | spread | goal | | measured beside it |", "|---|---:|---:|---:|---|---|"]
    for figure in figures:
        low, high = figure.spread
        goal = f"{'≥' if figure.definition.at_least else '≤'} {_number(figure.definition.goal)}"
        beside = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in figure.baseline.items())
        lines.append(
            f"| `{figure.definition.name}` | **{_number(figure.value)}** {_unit(figure)} "
            f"| {_number(low)} to {_number(high)} | {goal} | {'met' if figure.met else '**missed**'} | {beside} |"
        )
    lines += ["", "What each is, and where its goal comes from:", ""]
    lines += [
        f"- `{figure.definition.name}` ({len(figure.values)} values): {figure.definition.meaning}. "
        f"Goal: {figure.definition.origin}."
        for figure in figures
    ]
    lines += _stages(figures)
    lines += ["", f"Measured by `{command}` on:", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join(lines)


def _stages(figures: Sequence[Figure]) -> list[str]:
    """A table with a row for each stage and a column for each figure that looked at them."""
    looked = [figure for figure in figures if figure.stages]
    if not looked:
        return []
    lines = ["", "Where the processor time goes, microseconds per item and share of all:", ""]
    lines += ["| stage | " + " | ".join(f"`{figure.definition.name}`" for figure in looked) + " |"]
    lines += ["|---|" + "---:|" * len(looked)]
    for stage in dict.fromkeys(stage for figure in looked for stage in figure.stages):
        cells = []
        for figure in looked:
            spent = figure.stages.get(stage, 0.0)
            cells.append(f"{_number(spent)} ({100 * spent / sum(figure.stages.values()):.1f} %)")
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return lines


def _number(value: float) -> str:
    return f"{rounded(value):,}"


def _unit(figure: Figure) -> str:
    return "" if figure.definition.unit == "ratio" else figure.definition.unit
