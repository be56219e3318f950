"""The one error of the benchmarks."""

from __future__ import annotations


class BenchError(Exception):
    """Something could not be measured, or was measured and is worth nothing; says what and why."""
