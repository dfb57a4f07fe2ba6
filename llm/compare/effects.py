"""Values -> their mean and how far off it may be, and what each setting does to them."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import atan, cos, isfinite, pi, sin, sqrt

CONFIDENCE = 0.95
MOST_LEVELS = 8  # numbers with more values than that are put together
RANGES = 4


@dataclass(frozen=True)
class Estimate:
    """A mean of `num_values` values."""

    mean: float
    half_width: float | None  # of its 95 % interval; None of one value, which says nothing about chance
    num_values: int


def estimate(values: Sequence[float]) -> Estimate:
    """The mean +- t(n - 1) x s / sqrt(n), s the sample's standard deviation; values that are alike stay as they are."""
    if len(values) < 2:
        return Estimate(values[0], None, 1)
    if len(set(values)) == 1:
        return Estimate(values[0], 0.0, len(values))
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / sqrt(len(values))
    return Estimate(statistics.fmean(values), half, len(values))


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


@dataclass(frozen=True)
class Level:
    """A value of a setting, or a range of its values."""

    value: str
    mean: Estimate  # over the choices that have it
    effect: Estimate | None  # against the mean of all values, where all else is alike; None if nothing is comparable


@dataclass(frozen=True)
class Effect:
    """What a setting does."""

    key: str
    levels: list[Level]
    labels: list[str]  # of each choice, the level that it has
    num_blocks: int  # sets of choices that differ in this setting alone and have all of its values

    @property
    def spread(self) -> float:
        """Between the best and the worst level."""
        means = [level.mean.mean for level in self.levels]
        return max(means) - min(means)


def effect_of(key: str, columns: Mapping[str, Sequence[str]], values: Sequence[float]) -> Effect | None:
    """The effect of a setting on values, one for each choice; None if the choices have one value of it.

    A level's mean is over all choices that have it. Its effect is measured within blocks of choices that are alike in
    every other setting, of which each has all levels: the level's value less the block's mean, averaged over the
    blocks. What the other settings do cancels out, even where the choices are not balanced.
    """
    labels = _labels(columns[key])
    in_order = [label for _, label in sorted(zip(map(_order, columns[key]), labels, strict=True))]
    by_level: dict[str, list[float]] = {label: [] for label in in_order}
    cells: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        by_level[label].append(value)
        cells[tuple(column[index] for other, column in columns.items() if other != key)][label].append(value)
    if len(by_level) < 2:
        return None
    means = [{label: statistics.fmean(found) for label, found in cell.items()} for cell in cells.values()]
    blocks = [block for block in means if len(block) == len(by_level)]
    levels = []
    for label, found in by_level.items():
        within = [block[label] - statistics.fmean(block.values()) for block in blocks]
        levels.append(Level(label, estimate(found), estimate(within) if within else None))
    return Effect(key, levels, labels, len(blocks))


def _labels(values: Sequence[str]) -> list[str]:
    """The level of each value: itself, but of many different numbers one of four ranges with as many of them each."""
    numbers = [number(value) for value in values]
    known = sorted({each for each in numbers if each is not None})
    if None in numbers or len(known) <= MOST_LEVELS:
        return list(values)
    text = dict(zip(numbers, values, strict=True))
    ranges = [known[len(known) * i // RANGES : len(known) * (i + 1) // RANGES] for i in range(RANGES)]
    label = {each: f"{text[one[0]]} … {text[one[-1]]}" for one in ranges for each in one}
    return [label[each] for each in numbers if each is not None]


def _order(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words by the alphabet."""
    found = number(value)
    return found is None, found or 0.0, value


def number(value: str) -> float | None:
    """What a value is as a number; None if it is none that has a place on an axis."""
    try:
        found = float(value)
    except ValueError:
        return None
    return found if isfinite(found) else None
