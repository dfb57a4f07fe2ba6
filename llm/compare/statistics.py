"""Values -> their mean, and how far off it may be: the 95 % interval by Student's t."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import atan, cos, pi, sin, sqrt

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of `num_values` values."""

    mean: float
    half_width: float | None  # of its 95 % interval; None of one value, which says nothing about chance
    num_values: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean +- t(n - 1) x s / sqrt(n), s the sample's standard deviation."""
    mean, size = statistics.fmean(values), len(values)
    if size < 2:
        return Estimate(mean, None, size)
    return Estimate(mean, t_quantile(size - 1) * statistics.stdev(values) / sqrt(size), size)


@cache
def t_quantile(degrees_of_freedom: int) -> float:
    """What |t| stays under with 95 % probability."""
    low, high = 0.0, 13.0  # it is 12.71 with one degree of freedom, and falls from there
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, degrees_of_freedom) < CONFIDENCE else (low, middle)
    return high


def _probability(t: float, degrees_of_freedom: int) -> float:
    """That |t| is smaller: the finite series of Abramowitz & Stegun (1964), 26.7.3 and 26.7.4."""
    angle = atan(t / sqrt(degrees_of_freedom))
    is_odd = degrees_of_freedom % 2
    term, total = (cos(angle), 0.0) if is_odd else (1.0, 0.0)
    for power in range(2 + is_odd, degrees_of_freedom + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (power - 1) / power
    return 2 / pi * (angle + sin(angle) * total) if is_odd else sin(angle) * total
