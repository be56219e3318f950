"""docs/trust-benchmarks.md, written from results. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hack.bench.figures import Figure, rounded
from hack.bench_trust.figures import Result

BEGIN = "<!-- Written by `make bench-trust`; edits between these two marks are lost. -->"
END = "<!-- End of what `make bench-trust` writes. -->"


def build_section(results: Sequence[Result], figures: Sequence[Figure], devices: int, items_each: int) -> str:
    """Tables of goals and scenarios in Markdown."""
    lines = ["| figure | value | goal | |", "|---|---:|---:|---|"]
    lines += [
        f"| `{figure.definition.name}` | **{_share(figure.value)}** | ≤ {_share(figure.definition.goal)} "
        f"| {'met' if figure.met else '**missed**'} |"
        for figure in figures
    ]
    lines += [
        "",
        f"{devices:,} devices, {items_each:,} items each. Wrong rows are of all rows, in the end; redundancy is items "
        "computed over items needed.",
        "",
        "| a tenth of the devices | wrong rows | redundancy | liars caught | after items | after seconds "
        "| 95 % bound stated | BOINC adaptive: wrong, redundancy | quorum of 2: wrong, redundancy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        ours = result.ours
        lines.append(
            f"| {result.scenario.title} | **{_share(ours.wrong)}** | **{ours.redundancy:.4f}** "
            f"| {_or_dash(ours.caught, '.0%')} | {_or_dash(ours.items_to_catch, ',.0f')} "
            f"| {_or_dash(ours.seconds_to_catch, ',.0f')} | {_or_dash(ours.upper_bound, '.2g')} "
            f"| {_share(result.adaptive.wrong)}, {result.adaptive.redundancy:.4f} "
            f"| {_share(result.quorum.wrong)}, {result.quorum.redundancy:.4f} |"
        )
    return "\n".join(lines)


def _share(value: float) -> str:
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{rounded(value):,}"


def _or_dash(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
