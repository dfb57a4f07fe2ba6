"""Entries -> choices: those that differ in nothing but their seed are one, its results averaged; the best first."""

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, sqrt
from pathlib import Path
from typing import Any

from llm.compare.entries import LOSSES, Entry, objective_of
from llm.errors import ConfigError
from llm.run.console import ABSENT, TextTable, shown

SEED = "seed"
ANSWERS = "answers/loss"  # what evaluations of tuned models are ranked by
NOT_CHOICES = ("stage", "name", "outputs", "reuse", "dry_run", "logger")  # a column of its own, or where, not what
ADDED = ("tokenizer.ladder", "hydra.")  # overrides that the sweep adds, or that change nothing that a job makes
HELD_OUT = (  # beginnings of the keys that say which text is held out
    "data.kind", "data.source", "data.path", "data.text_field", "data.layout.", "data.cleaning.",
    "data.held_out_share", "data.bad_records", "data.parts.",
)  # fmt: skip
HOW_MUCH = (".weight", ".max_bytes", ".max_tokens")  # ends of those of data.parts that say which is trained on
MOST_LISTED = 8  # settings in a note
MOST_LEVELS = 8  # values of a setting whose means are shown
NORMAL = 1.959964
# What |t| stays under with 95 % probability, at 1, 2, 3, ... degrees of freedom
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Estimate:
    """A mean of `num_values` values."""

    mean: float
    half_width: float | None  # of its 95 % interval; None of one value, which says nothing about chance
    num_values: int

    def __str__(self) -> str:
        return shown(self.mean) + (f" ± {shown(self.half_width)}" if self.half_width else "")


def estimate(values: Sequence[float]) -> Estimate:
    """The mean +- t(n - 1) x s / sqrt(n), s the sample's standard deviation; values that are alike stay as they are."""
    if len(set(values)) == 1:
        return Estimate(values[0], 0.0 if len(values) > 1 else None, len(values))
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / sqrt(len(values))
    return Estimate(statistics.fmean(values), half, len(values))


def t_quantile(degrees_of_freedom: int) -> float:
    """What |t| stays under with 95 % probability; past the table by Abramowitz & Stegun (1964), 26.7.5."""
    if degrees_of_freedom <= len(STUDENT):
        return STUDENT[degrees_of_freedom - 1]
    z, n = NORMAL, degrees_of_freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / n + second / n**2 + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / n**3


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
    def state(self) -> str:
        counts = Counter(entry.state for entry in self.entries)
        return self.best.state if len(self.entries) == 1 else ", ".join(f"{n} {state}" for state, n in counts.items())

    @property
    def error(self) -> str:
        return "; ".join(dict.fromkeys(entry.error for entry in self.entries if entry.error))

    @cached_property
    def measured(self) -> list[Entry]:
        """Those that its results are the mean of: the finished ones; if there is none, what the others have so far."""
        return [entry for entry in self.entries if entry.is_done] or [e for e in self.entries if e.outcome]

    @cached_property
    def outcome(self) -> dict[str, Estimate]:
        """What came out, and of a pretraining what its tokenizer did to its text."""
        values: dict[str, list[float]] = defaultdict(list)
        for entry in self.measured:
            for name, value in (entry.tokenizer_outcome | entry.outcome).items():
                values[name].append(value)
        return {name: estimate(found) for name, found in values.items()}


@dataclass(frozen=True, eq=False)
class Ranking:
    """Choices, the best first."""

    choices: list[Choice]
    metric: str | None  # that they are ranked by; None: nothing was measured
    is_highest_best: bool
    settings: dict[str, list[str]]  # what differs: key -> its value in each choice
    notes: list[str]  # what a reader of the ranks must know
    title: str
    sweep: Path | None  # that it is of
    keys: Sequence[str]  # whose effects are shown alone

    @property
    def entries(self) -> list[Entry]:
        return [entry for choice in self.choices for entry in choice.entries]

    @property
    def counts(self) -> str:
        """What is ranked, by its state."""
        states = Counter(entry.state for entry in self.entries).most_common()
        return f"{len(self.choices)} choices: " + ", ".join(f"{count} {state}" for state, count in states)

    @cached_property
    def values(self) -> list[Estimate | None]:
        """The metric of each choice; None of one that has no number of it."""
        found = [choice.outcome.get(self.metric or "") for choice in self.choices]
        return [value if value and isfinite(value.mean) else None for value in found]

    @cached_property
    def results(self) -> list[str]:
        """What any of them measured: first what they are ranked by, last what tells their tokenizers apart."""
        measured = [entry for choice in self.choices for entry in choice.measured]
        names = list(dict.fromkeys(name for entry in measured for name in entry.outcome))
        if self.metric not in (None, *LOSSES):
            names = sorted(names, key=lambda name: name != self.metric)
        of_tokenizer = dict.fromkeys(name for entry in measured for name in entry.tokenizer_outcome)
        return [*names, *(name for name in of_tokenizer if name not in names and self._differs(name))]

    def _differs(self, name: str) -> bool:
        return len({choice.outcome.get(name) for choice in self.choices if choice.outcome}) > 1

    @cached_property
    def table(self) -> TextTable:
        """A row of text for each choice."""
        choices = self.choices
        cells = {"run": [choice.name for choice in choices], "stage": [choice.best.stage for choice in choices]}
        cells["state"] = [choice.state for choice in choices]
        cells |= {shown_key(key): values for key, values in self.settings.items()}
        if any(len(choice.entries) > 1 for choice in choices):
            cells["seeds"] = [str(len(choice.measured)) for choice in choices]
        cells |= {name: [str(choice.outcome.get(name, ABSENT)) for choice in choices] for name in self.results}
        if any(errors := [choice.error for choice in choices]):
            cells["error"] = [error or ABSENT for error in errors]
        return TextTable(list(cells), [list(row) for row in zip(*cells.values(), strict=True)])

    @property
    def short_table(self) -> TextTable:
        """What tells the choices apart, by their rank, and what they are ranked by; the heads of columns in pieces."""
        kept = {*map(shown_key, self.settings), "seeds", self.metric}
        places = [place for place, name in enumerate(self.table.columns) if name in kept]
        heads = [re.sub(r"(?<=[./_])", "\n", self.table.columns[place]) for place in places]
        rows = [[str(rank), *(row[place] for place in places)] for rank, row in enumerate(self.table.rows, 1)]
        return TextTable(["#", *heads], rows, heads_may_fold=True)

    @cached_property
    def told_apart_by(self) -> list[str]:
        """The settings, of those that always vary together the first; the choice of a group before what it decides."""
        firsts: dict[tuple[int, ...], str] = {}
        for key in sorted(self.settings, key=lambda key: not key.endswith(".name")):
            firsts.setdefault(tuple(map(self.settings[key].index, self.settings[key])), key)
        return [key for key in self.settings if key in firsts.values()]

    @cached_property
    def done(self) -> list[int]:
        """The places of the choices whose metric is a final one."""
        return [n for n, (c, v) in enumerate(zip(self.choices, self.values, strict=True)) if c.best.is_done and v]

    @cached_property
    def effects(self) -> dict[str, dict[str, Estimate]]:
        """Setting -> its values -> the mean over the choices that are done and have it, the strongest setting first."""
        found = {key: self._means(self.settings[key]) for key in self.keys or self.told_apart_by}
        spread = {key: max(each.mean for each in of) - min(each.mean for each in of)
                  for key, means in found.items() if len(of := list(means.values())) > 1}  # fmt: skip
        return {key: found[key] for key in sorted(spread, key=lambda key: -spread[key])}

    def _means(self, column: Sequence[str]) -> dict[str, Estimate]:
        by_value: dict[str, list[float]] = defaultdict(list)
        for place in self.done:
            if value := self.values[place]:
                by_value[column[place]].append(value.mean)
        return {value: estimate(by_value[value]) for value in sorted(by_value, key=by_size)}


def rank(
    entries: Sequence[Entry],
    *,
    title: str = "",
    sweep: Path | None = None,
    metric: str | None = None,
    is_highest_best: bool = False,
    keys: Sequence[str] = (),
) -> Ranking:
    """The choices among entries by a metric; of entries that share a run the first counts.

    By default that is the first objective of a search; else answers if all have them, else bits per byte or loss.

    Raises:
        ConfigError: no entry has the metric, or a key does not differ.
    """
    if metric is None:
        metric, is_maximized = objective_of(sweep, entries)
        is_highest_best = is_highest_best or is_maximized
    once: dict[Path, Entry] = {}
    for entry in entries:
        once.setdefault(entry.path.resolve(), entry)
    grouped = _grouped(list(once.values()))
    outcomes = [choice.outcome for choice in grouped]
    if metric and not any(metric in outcome for outcome in outcomes):
        known = sorted({name for outcome in outcomes for name in outcome})
        listed = f"There are {', '.join(known)}." if known else "None has measured anything yet."
        raise ConfigError(f"--metric {metric}: no run has measured it. {listed}")
    names = (metric,) if metric else (ANSWERS,) if all(ANSWERS in outcome for outcome in outcomes) else LOSSES
    sign = -1 if is_highest_best else 1

    def order(choice: Choice) -> tuple[float, ...]:
        """Smaller is better; what was not measured, or is no number any more, comes last."""
        found = [choice.outcome.get(name) for name in names]
        return tuple(sign * each.mean if each and isfinite(each.mean) else inf for each in found)

    choices = sorted(grouped, key=order)
    ranked_by = next((name for name in names if any(name in outcome for outcome in outcomes)), None)
    settings, decided = _settings([choice.best for choice in choices])
    if any(len(choice.entries) > 1 for choice in choices):
        settings.pop(SEED, None)
    if unknown := [key for key in keys if key not in settings]:
        listed = f"These do: {', '.join(settings)}." if settings else "Nothing does."
        raise ConfigError(f"--key {unknown[0]}: it is alike in all that is compared. {listed}")
    ranking = Ranking(choices, ranked_by, is_highest_best, settings, [], title, sweep, keys)
    measured = [choice.best for choice in choices if order(choice)[0] < inf and choice.best.run]
    ranking.notes.extend([*_held_out_notes(measured), *_chance_notes(ranking)])
    if decided:
        ranking.notes.append(f"Not shown, since the settings that are shown decide them: {_listed(decided)}.")
    return ranking


def _grouped(entries: Sequence[Entry]) -> list[Choice]:
    """Entries by what they share but for the seed; a seed that is there again is no other draw of chance."""
    groups: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    times: Counter[tuple[str, str]] = Counter()
    for entry in sorted(entries, key=lambda entry: _identity(entry)[1]):
        shared, seed = _identity(entry)
        groups[shared, times[shared, seed]].append(entry)
        times[shared, seed] += 1
    return [Choice(group) for group in groups.values()]


def _identity(entry: Entry) -> tuple[str, str]:
    """(what those that differ only in their seed share, the seed)."""
    if entry.job:
        seeds = [override for override in entry.overrides if override.startswith(f"{SEED}=")]
        return json.dumps([override for override in entry.overrides if override not in seeds]), "".join(seeds)
    identity: dict[str, Any] = (entry.run.record.get("identity") if entry.run else None) or {}
    if "settings" not in identity:
        return str(entry.path), ""
    settings = {key: value for key, value in identity["settings"].items() if key != SEED}
    return json.dumps(identity | {"settings": settings}, sort_keys=True), str(identity["settings"].get(SEED))


# What differs


def _settings(entries: Sequence[Entry]) -> tuple[dict[str, list[str]], list[str]]:
    """(what differs: key -> its value in each entry, the keys that differ too, but as the choice of their group has).

    Of a sweep's jobs that is what was typed; of runs what their configs hold.
    """
    if all(entry.job for entry in entries):
        typed = [
            [o.lstrip("+").partition("=") for o in entry.overrides if not o.startswith(ADDED)] for entry in entries
        ]
        return _not_alike([{key: _short(value) for key, _, value in each} for each in typed]), []
    found = varying([entry.config for entry in entries])
    decided = [key for key in found if _is_decided(key, found)]
    return {key: list(map(_short, values)) for key, values in found.items() if key not in decided}, decided


def _is_decided(key: str, found: Mapping[str, list[str]]) -> bool:
    """Whether a setting is alike wherever what was chosen for its group is."""
    name = f"{key.partition('.')[0]}.name"
    pairs = set(zip(found[name], found[key], strict=True)) if name in found and name != key else ()
    return bool(pairs) and len(pairs) == len(set(found[name]))


def varying(configs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Dotted key -> its value in each config, for the keys in which they are not all alike.

    A config that lacks a whole group (a fine-tuning has no model of its own) does not make the group's keys vary.
    """
    found = _not_alike([flattened(config) for config in configs])

    def varies(key: str) -> bool:
        group = key.partition(".")[0]
        return len({value for value, config in zip(found[key], configs, strict=True) if group in config}) > 1

    return {key: values for key, values in found.items() if varies(key)}


def _not_alike(rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for row in rows for key in row)
    cells = {key: [row.get(key, ABSENT) for row in rows] for key in keys}
    return {key: values for key, values in cells.items() if len(set(values)) > 1}


def flattened(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a config: dotted key -> value as JSON without the quotes of a bare string."""
    return {k: v for key, value in config.items() if key not in NOT_CHOICES for k, v in _leaves(key, value)}


def _leaves(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [leaf for inner, each in value.items() for leaf in _leaves(f"{key}.{inner}", each)]
    return [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def _short(value: str) -> str:
    """A number of many digits, as a search draws it, with four of them; all else as it is."""
    size = as_number(value)
    return value if size is None or len(value) <= 8 or value.lstrip("-").isdigit() else f"{size:.4g}"


def as_number(value: str) -> float | None:
    """What a value is as a number; None if it is none that has a place on an axis."""
    try:
        return found if isfinite(found := float(value)) else None
    except ValueError:
        return None


def by_size(value: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words by the alphabet."""
    size = as_number(value)
    return size is None, size or 0.0, value


def shown_key(key: str) -> str:
    """A setting as the head of a column."""
    return "run=" if key == "run" else key  # of an evaluation


# What a reader must know


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(names[:MOST_LISTED]) + more


def _held_out_notes(entries: Sequence[Entry]) -> Iterator[str]:
    """That these were not measured on the same text, if they were not."""
    differing = ["stage"] if len({entry.stage for entry in entries}) > 1 else []
    keys = varying([entry.config for entry in entries])
    differing += [key for key in keys if key.startswith(HELD_OUT) and not key.endswith(HOW_MUCH)]
    if differing:
        yield f"They were not measured on the same held-out text ({_listed(differing)} differ): ranks mean little."


def _chance_notes(ranking: Ranking) -> Iterator[str]:
    """What the seeds say about ranks."""
    values = [value for value in ranking.values if value]
    if not any(value.half_width for value in values):
        return
    best = values[0]
    yield "± is half of the mean's 95 % interval over seeds (Student's t): of 2 seeds 12.7 standard errors, of 3 4.3."
    close = [v for v in values[1:] if abs(v.mean - best.mean) <= (best.half_width or 0) + (v.half_width or 0)]
    if close:
        yield f"The intervals of {len(close)} more reach that of the best: they are not told apart."
