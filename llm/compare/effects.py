"""Choices -> what each key that differs does to the metric: its marginal effect."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm.compare.choices import Study
from llm.compare.statistics import Estimate, estimate
from llm.errors import ConfigError

MOST_LEVELS = 8  # numbers with more values than that are put together
BINS = 4


@dataclass(frozen=True)
class Level:
    """A value of a key."""

    value: str
    mean: Estimate  # over the choices that have it
    effect: Estimate | None  # against the mean of all values, where all else is alike; None if nothing is comparable


@dataclass(frozen=True)
class Effect:
    """What a key does."""

    key: str
    also: list[str]  # keys that always vary together with it
    levels: list[Level]
    is_binned: bool  # a level is a range of values
    num_blocks: int  # sets of choices that differ in this key alone and have all of its values

    @property
    def spread(self) -> float:
        """Between the best and the worst level."""
        means = [level.mean.mean for level in self.levels]
        return max(means) - min(means)


def effects_of(made: Study, *, only: Sequence[str] = ()) -> list[Effect]:
    """The effect of each key (of `only`, if any is given), the strongest first, over the choices that are done.

    Raises:
        ConfigError: a key of `only` does not differ.
    """
    for key in only:
        if key not in made.columns:
            listed = f"These do: {', '.join(made.columns)}." if made.columns else "Nothing does."
            raise ConfigError(f"--key {key}: it is alike in all that is compared. {listed}")
    done = [
        (index, value.mean)
        for index, (choice, value) in enumerate(zip(made.choices, made.values, strict=True))
        if choice.is_done and value is not None
    ]
    columns = {key: [made.columns[key][index] for index, _ in done] for key in made.keys}
    values = [value for _, value in done]
    found = [marginal_effect(key, columns, values, also=made.keys[key][1:]) for key in columns]
    wanted = [each for each in found if each and (not only or {each.key, *each.also} & set(only))]
    return sorted(wanted, key=lambda effect: -effect.spread)


def marginal_effect(
    key: str, columns: Mapping[str, Sequence[str]], values: Sequence[float], *, also: Sequence[str] = ()
) -> Effect | None:
    """The effect of a key on values, one for each choice; None if the choices have one value of it.

    A level's mean is over all choices that have it. Its effect is measured within blocks of choices that are alike in
    every other key, of which each has all levels: the level's value less the block's mean, averaged over the blocks.
    What the other keys do cancels out, even where the choices are not balanced.
    """
    labels, is_binned = _labels(columns[key])
    levels = list(dict.fromkeys(label for _, label in sorted(zip(map(_order, columns[key]), labels, strict=True))))
    if len(levels) < 2:
        return None
    blocks = {} if is_binned else _blocks(key, columns, values, levels)
    found = []
    for level in levels:
        mean = estimate([value for value, label in zip(values, labels, strict=True) if label == level])
        within = [block[level] - statistics.fmean(block.values()) for block in blocks.values()]
        found.append(Level(level, mean, estimate(within) if within else None))
    return Effect(key, list(also), found, is_binned, len(blocks))


def _blocks(
    key: str, columns: Mapping[str, Sequence[str]], values: Sequence[float], levels: Sequence[str]
) -> dict[tuple[str, ...], dict[str, float]]:
    """The values of the other keys -> level -> value, where every level is there."""
    cells: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for index, value in enumerate(values):
        place = tuple(column[index] for other, column in columns.items() if other != key)
        cells.setdefault(place, {}).setdefault(columns[key][index], []).append(value)
    return {
        place: {level: statistics.fmean(found[level]) for level in levels}
        for place, found in cells.items()
        if len(found) == len(levels)
    }


def _labels(values: Sequence[str]) -> tuple[list[str], bool]:
    """(the level of each value, whether levels are ranges): many different numbers are put into four of like size."""
    numbers = [number(value) for value in values]
    known = sorted({each for each in numbers if each is not None})
    if None in numbers or len(known) <= MOST_LEVELS:
        return list(values), False
    text = {each: value for each, value in zip(numbers, values, strict=True)}
    bins = [known[len(known) * i // BINS : len(known) * (i + 1) // BINS] for i in range(BINS)]
    label = {each: f"{text[each_bin[0]]} … {text[each_bin[-1]]}" for each_bin in bins for each in each_bin}
    return [label[each] for each in numbers if each is not None], True


def _order(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words by the alphabet."""
    found = number(value)
    return found is None, found or 0.0, value


def number(value: str) -> float | None:
    """What a value is as a number; None if it is none."""
    try:
        return float(value)
    except ValueError:
        return None
