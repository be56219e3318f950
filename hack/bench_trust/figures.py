"""What the simulation is to show, as figures with goals. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hack.bench.figures import Definition, Figure
from hack.bench_trust.crowd import Scenario
from hack.bench_trust.outcome import Outcome

HONEST_REDUNDANCY = Definition(
    name="honest_redundancy",
    unit="ratio",
    goal=1.03,
    at_least=False,
    meaning="Items computed over items needed in a fleet of honest devices of which nothing was known before",
    origin="BOINC's adaptive replication needs 1.014 for its items, without an audit floor",
)


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario under three ways of verifying."""

    scenario: Scenario
    ours: Outcome
    adaptive: Outcome
    quorum: Outcome

    @property
    def dominated(self) -> bool:
        """Whether one of the baselines is better on both axes."""
        return self.ours.dominated_by(self.adaptive) or self.ours.dominated_by(self.quorum)


def build_figures(results: Sequence[Result], max_error_rate: float) -> list[Figure]:
    """Redundancy of the honest fleet, and wrong rows, redundancy and time to catch of each fleet with liars."""
    figures: list[Figure] = []
    for result in results:
        name = result.scenario.name
        if result.scenario.liars is None:
            figures.append(Figure(HONEST_REDUNDANCY, (result.ours.redundancy,), _beside(result)))
            continue
        wrong = Definition(
            f"wrong_rows_{name}",
            "ratio",
            max_error_rate,
            at_least=False,
            meaning=_WRONG,
            origin="maxErrorRate of the job",
        )
        figures.append(Figure(wrong, (result.ours.wrong,), _beside(result)))
    dominated = Definition(
        "dominated_cases", "cases", 0, at_least=False, meaning=_DOMINATED, origin="else one would better use BOINC"
    )
    figures.append(Figure(dominated, (float(sum(result.dominated for result in results)),)))
    accused = Definition(
        "honest_devices_caught", "devices", 0, at_least=False, meaning=_ACCUSED, origin="who is honest need not fear"
    )
    figures.append(Figure(accused, (float(sum(result.ours.honest_caught for result in results)),)))
    return figures


_WRONG = "Share of wrong rows among all, in the end, with a tenth of liars"
_DOMINATED = "Scenarios in which a baseline has fewer wrong rows and less redundancy"
_ACCUSED = "Honest devices that were caught, over all scenarios"


def _beside(result: Result) -> Mapping[str, float]:
    ours = result.ours
    known = {
        "redundancy": ours.redundancy,
        "upper_bound": ours.upper_bound,
        "liars_caught": ours.caught,
        "honest_caught": ours.honest_caught,
        "items_to_catch": ours.items_to_catch,
        "seconds_to_catch": ours.seconds_to_catch,
        "boinc_wrong_rows": result.adaptive.wrong,
        "boinc_redundancy": result.adaptive.redundancy,
        "quorum_wrong_rows": result.quorum.wrong,
        "quorum_redundancy": result.quorum.redundancy,
    }
    return {name: value for name, value in known.items() if value is not None}
