"""Benchmarks of our parts beside others', each a program of its own; ``tools/bench.py`` runs them all."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """How a figure varies over its turns: ``min``, ``median`` and ``max``."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
