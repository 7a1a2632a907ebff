"""Confidence intervals of shares."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


def wilson_interval(successes: int, number: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927), which holds for few trials and near 0 and 1 too."""
    share, weight = successes / number, _Z * _Z / number
    centre = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / number + weight / (4 * number))
    return max(0.0, centre - half), min(1.0, centre + half)
