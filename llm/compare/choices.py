"""Entries -> choices: those that differ in nothing but their seed are one, its results averaged; the best first."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import Any

from llm.compare.differing import alike, determined, held_out_notes, varying
from llm.compare.entries import RANKED_BY, Entry
from llm.compare.finding import short_number, swept_values
from llm.compare.statistics import Estimate, estimate
from llm.errors import ConfigError

SEED = "seed"


@dataclass(frozen=True, eq=False)
class Choice:
    """Entries that differ in nothing but their seed."""

    entries: list[Entry]

    @property
    def best(self) -> Entry:
        """The entry that stands for it: the first that is done, else the first."""
        return next((entry for entry in self.entries if entry.is_done), self.entries[0])

    @property
    def name(self) -> str:
        more = len(self.entries) - 1
        return self.best.name + (f" and {more} more" if more else "")

    @property
    def is_done(self) -> bool:
        """Whether any of its runs is, so that its results are final ones."""
        return self.best.is_done

    @property
    def state(self) -> str:
        states = [entry.state for entry in self.entries]
        if len(states) == 1:
            return states[0]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

    @property
    def error(self) -> str:
        return "; ".join(dict.fromkeys(entry.error for entry in self.entries if entry.error))

    @cached_property
    def measured(self) -> list[Entry]:
        """Those that its results are the mean of: the finished ones; if there is none, what the others have so far."""
        return [entry for entry in self.entries if entry.is_done] or [e for e in self.entries if e.outcome]

    @cached_property
    def outcome(self) -> dict[str, Estimate]:
        names = dict.fromkeys(name for entry in self.measured for name in entry.outcome)
        values = {name: [e.outcome[name] for e in self.measured if name in e.outcome] for name in names}
        return {name: _mean(numbers) for name, numbers in values.items()}


@dataclass(frozen=True, eq=False)
class Study:
    """Choices that are compared, the best first."""

    choices: list[Choice]
    metric: str | None  # that they are ranked by; None: nothing was measured
    is_highest_best: bool
    columns: dict[str, list[str]]  # what differs: key -> its value in each choice
    follows: list[str]  # keys that differ too, but as the columns have decided
    notes: list[str]

    @property
    def values(self) -> list[Estimate | None]:
        """The metric of each choice."""
        return [choice.outcome.get(self.metric) if self.metric else None for choice in self.choices]

    @cached_property
    def keys(self) -> dict[str, list[str]]:
        """What differs, once where several keys always vary together: the key -> itself and those."""
        return alike(self.columns)


def study(entries: Sequence[Entry], *, metric: str | None = None, is_highest_best: bool = False) -> Study:
    """The choices among entries, ranked by a metric; by default by bits per byte, else by loss.

    Raises:
        ConfigError: no entry has the metric.
    """
    ranked_by = (metric,) if metric else RANKED_BY
    grouped = _grouped(entries)
    if metric and not any(metric in choice.outcome for choice in grouped):
        known = sorted({name for choice in grouped for name in choice.outcome})
        listed = f"There are {', '.join(known)}." if known else "None has measured anything yet."
        raise ConfigError(f"--metric {metric}: no run has measured it. {listed}")
    sign = -1 if is_highest_best else 1
    choices = sorted(grouped, key=lambda choice: _rank(choice, ranked_by, sign))
    shown = next((name for name in ranked_by if any(name in choice.outcome for choice in choices)), None)
    columns, follows = _columns(choices)
    measured = [choice.best for choice in choices if _rank(choice, ranked_by, sign)[0] < inf and choice.best.run]
    notes = held_out_notes(measured) + _chance_notes(choices, shown)
    return Study(choices, shown, is_highest_best, columns, follows, notes)


def _grouped(entries: Sequence[Entry]) -> list[Choice]:
    groups: dict[str, list[Entry]] = {}
    seeds: dict[str, set[str]] = {}
    for entry in entries:
        place, seed = _identity(entry)
        number = 0
        while seed in seeds.setdefault(f"{place} {number}", set()):  # the same again: no other draw of chance
            number += 1
        seeds[f"{place} {number}"].add(seed)
        groups.setdefault(f"{place} {number}", []).append(entry)
    return [Choice(group) for group in groups.values()]


def _identity(entry: Entry) -> tuple[str, str]:
    """(what those that differ only in their seed share, the seed)."""
    if entry.job is not None:
        overrides = [o for o in entry.job.overrides if not o.startswith(f"{SEED}=")]
        return json.dumps(overrides), next((o for o in entry.job.overrides if o not in overrides), "")
    identity: dict[str, Any] = (entry.run.record.get("identity") if entry.run else None) or {}
    if "settings" not in identity:
        return str(entry.path), ""
    settings = {key: value for key, value in identity["settings"].items() if key != SEED}
    return json.dumps(identity | {"settings": settings}, sort_keys=True), str(identity["settings"].get(SEED))


def _columns(choices: list[Choice]) -> tuple[dict[str, list[str]], list[str]]:
    """(what differs, the keys that differ as that has decided): of a sweep's jobs, what was typed decides."""
    of_jobs = all(choice.best.job is not None for choice in choices)
    swept = swept_values([choice.best for choice in choices]) if of_jobs and choices else {}
    having = [choice for choice in choices if choice.best.config]
    recorded = varying([choice.best.config for choice in having])
    if any(len(choice.entries) > 1 for choice in choices):  # averaged over
        swept.pop(SEED, None)
        recorded.pop(SEED, None)
    typed = {key: [v for v, choice in zip(values, choices, strict=True) if choice.best.config]
             for key, values in swept.items()}  # fmt: skip
    follows = determined(recorded, typed) if swept else []
    others = {key: iter(values) for key, values in recorded.items() if key not in follows}
    columns = {
        key: [short_number(next(values)) if choice.best.config else "-" for choice in choices]
        for key, values in others.items()
    }
    return swept | columns, [key for key in follows if key not in swept]


def _rank(choice: Choice, names: Sequence[str], sign: int) -> tuple[float, ...]:
    """Smaller is better; what was not measured, or is no number any more, comes last."""
    found = [choice.outcome.get(name) for name in names]
    return tuple(sign * each.mean if each and isfinite(each.mean) else inf for each in found)


def _mean(numbers: list[float]) -> Estimate:
    """As they are where they are alike: a count stays whole."""
    if len(set(numbers)) > 1:
        return estimate(numbers)
    return Estimate(numbers[0], None if len(numbers) == 1 else 0.0, len(numbers))


def _chance_notes(choices: Sequence[Choice], metric: str | None) -> list[str]:
    """What the seeds say about ranks."""
    values = [choice.outcome[metric] for choice in choices if metric in choice.outcome] if metric else []
    if not any(value.half_width for value in values):
        return []
    notes = ["± is half of the mean's 95 % interval over seeds (Student's t)."]
    if any(value.num_values == 2 for value in values):
        notes[0] = notes[0][:-1] + "; with 2 seeds it is 12.7 standard errors, with 3 it is 4.3."
    best = values[0]
    close = [v for v in values[1:] if abs(v.mean - best.mean) <= (best.half_width or 0) + (v.half_width or 0)]
    if close:
        notes.append(f"The intervals of {len(close)} more reach that of the best: they are not told apart.")
    return notes
