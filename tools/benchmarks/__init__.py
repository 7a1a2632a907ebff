"""Benchmarks of our parts beside others', each a program of its own; ``tools/bench.py`` runs them all."""

import math
import statistics
from collections.abc import Sequence
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float]:
    """How a figure varies over its turns: ``min``, ``median`` and ``max``."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Ours / theirs in each turn, and how that varies."""
    return spread([our / their for our, their in zip(ours, theirs, strict=True)])


def growth_of(sizes: Sequence[float], cost: Sequence[float], unit: str = "s") -> dict[str, Any]:
    """How a cost grows: ``sizes``, ``cost`` in ``unit``, and the ``exponent`` of the cost as a power of the size.

    The exponent is the slope of a line through the logarithms.
    """
    logs = [[math.log(value) for value in values] for values in (sizes, cost)]
    exponent = statistics.linear_regression(*logs).slope
    return {"sizes": list(sizes), "cost": list(cost), "unit": unit, "exponent": exponent}
