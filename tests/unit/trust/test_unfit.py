"""Comparators that make no sense for a job's outputs are refused before anything is computed."""

import pytest

from pocketgrid.model.trust import Comparator, ComparatorKind
from pocketgrid.trust.comparators import unfit
from pocketgrid.trust.judge import OutputExpectation

SCORES = OutputExpectation("scores", "float32", (10,))
LABEL = OutputExpectation("label", "int64", ())
NUMBER = OutputExpectation("number", "float32", ())
TOKENS = OutputExpectation("tokens", "float32", (None,), ragged=True)
TOKEN_SCORES = OutputExpectation("tokens", "float32", (None, 10), ragged=True)
ANYTHING = OutputExpectation("anything", "float16", None)

COSINE = Comparator(ComparatorKind.COSINE, minimum=0.9)


def top(k: int) -> Comparator:
    return Comparator(ComparatorKind.TOP_K, k=k)


@pytest.mark.parametrize(
    ("comparator", "outputs"),
    [
        (Comparator(), [LABEL]),
        (Comparator(ComparatorKind.ALL_CLOSE), [LABEL, NUMBER]),
        (COSINE, [SCORES, LABEL]),
        (COSINE, [TOKENS]),
        (COSINE, [ANYTHING]),
        (top(10), [SCORES]),
        (top(3), [TOKEN_SCORES]),
        (top(3), [ANYTHING]),
    ],
)
def test_fitting(comparator, outputs):
    assert unfit(comparator, outputs) is None


@pytest.mark.parametrize(
    ("comparator", "outputs", "reason"),
    [
        (COSINE, [LABEL], "label is int64; use Exact"),
        (top(1), [LABEL], "label is int64; use Exact"),
        (COSINE, [NUMBER], "single values; use AllClose"),
        (top(1), [NUMBER], "single values"),
        (top(11), [SCORES], "scores has 10 classes"),
        (top(1), [TOKENS], "differ in length"),
    ],
)
def test_unfit(comparator, outputs, reason):
    assert reason in (unfit(comparator, outputs) or "")
