"""Entries -> choices: those that differ in nothing but their seed are one, its results averaged; the best first."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite
from typing import Any

from llm.compare.differing import settings_of, varying
from llm.compare.effects import Effect, Estimate, effect_of, estimate
from llm.compare.entries import LOSSES, Entry
from llm.errors import ConfigError
from llm.run.tables import ABSENT, TextTable, shown

SEED = "seed"
HELD_OUT = (  # beginnings of the keys that say which text is held out
    "data.kind", "data.source", "data.path", "data.text_field", "data.layout.", "data.cleaning.",
    "data.held_out_share", "data.bad_records", "data.parts.",
)  # fmt: skip
HOW_MUCH = (".weight", ".max_bytes", ".max_tokens")  # ends of those of data.parts that say which is trained on


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
        return (
            states[0]
            if len(states) == 1
            else ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
        )

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
    decided: list[str]  # keys that differ too, but as the settings have decided
    notes: list[str] = field(default_factory=list)  # what a reader of the ranks must know

    @cached_property
    def values(self) -> list[Estimate | None]:
        """The metric of each choice; None of one that has no number of it."""
        found = [choice.outcome.get(self.metric or "") for choice in self.choices]
        return [value if value and isfinite(value.mean) else None for value in found]

    @cached_property
    def results(self) -> list[str]:
        """What any of them measured: first what they are ranked by, last what tells their tokenizers apart."""
        names = list(dict.fromkeys(n for c in self.choices for entry in c.measured for n in entry.outcome))
        if self.metric not in (None, *LOSSES):
            names = sorted(names, key=lambda name: name != self.metric)
        return [*names, *(name for name in self._of_tokenizers if name not in names)]

    @cached_property
    def _of_tokenizers(self) -> list[str]:
        """What their tokenizers did, where that is not alike."""
        names = dict.fromkeys(n for c in self.choices for entry in c.measured for n in entry.tokenizer_outcome)
        return [n for n in names if len({str(c.outcome.get(n)) for c in self.choices if c.outcome}) > 1]

    @cached_property
    def table(self) -> TextTable:
        """A row of text for each choice."""
        choices = self.choices
        cells = {"run": [choice.name for choice in choices], "stage": [choice.best.stage for choice in choices]}
        cells["state"] = [choice.state for choice in choices]
        cells |= {shown_key(key): values for key, values in self.settings.items()}
        if any(len(choice.entries) > 1 for choice in choices):
            cells["seeds"] = [str(len(choice.measured)) for choice in choices]
        cells |= {name: [shown_estimate(choice.outcome.get(name)) for choice in choices] for name in self.results}
        if any(errors := [choice.error for choice in choices]):
            cells["error"] = [error or ABSENT for error in errors]
        return TextTable(list(cells), [list(row) for row in zip(*cells.values(), strict=True)])

    @cached_property
    def short_table(self) -> TextTable:
        """What tells the choices apart, by their rank, and what they are ranked by; the heads of columns in pieces."""
        told = {key.rpartition(".")[2] for key in self.settings}
        kept = {
            *map(shown_key, self.settings),
            "seeds",
            self.metric,
            *(n for n in self._of_tokenizers if n not in told),
        }
        places = [place for place, name in enumerate(self.table.columns) if name in kept]
        heads = [re.sub(r"(?<=[./_])", "\n", self.table.columns[place]) for place in places]
        rows = [[str(rank), *(row[place] for place in places)] for rank, row in enumerate(self.table.rows, 1)]
        return TextTable(["#", *heads], rows, heads_may_fold=True)

    @cached_property
    def together(self) -> dict[str, list[str]]:
        """The settings, those that always vary together once: the key -> itself and those; a group's name first."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for key, values in self.settings.items():
            groups.setdefault(tuple(map(values.index, values)), []).append(key)
        in_order = [sorted(keys, key=lambda key: not key.endswith(".name")) for keys in groups.values()]
        return {keys[0]: keys for keys in in_order}

    def effects(self, only: Sequence[str] = ()) -> list[Effect]:
        """The effect of each setting (of `only`, if any is given), the strongest first, over the choices that are done.

        Raises:
            ConfigError: a key of `only` does not differ.
        """
        for key in only:
            if key not in self.settings:
                listed = f"These do: {', '.join(self.settings)}." if self.settings else "Nothing does."
                raise ConfigError(f"--key {key}: it is alike in all that is compared. {listed}")
        done = self.done
        columns = {key: [self.settings[key][place] for place in done] for key in self.together}
        values = [value.mean for place in done if (value := self.values[place])]
        wanted = [key for key, keys in self.together.items() if not only or set(keys) & set(only)]
        found = [effect for key in wanted if (effect := effect_of(key, columns, values))]
        return sorted(found, key=lambda effect: -effect.spread)

    @cached_property
    def done(self) -> list[int]:
        """The places of the choices whose metric is a final one."""
        return [n for n, (c, value) in enumerate(zip(self.choices, self.values, strict=True)) if c.is_done and value]


def rank(entries: Sequence[Entry], *, metric: str | None = None, is_highest_best: bool = False) -> Ranking:
    """The choices among entries by a metric; by default by bits per byte, else by loss.

    Raises:
        ConfigError: no entry has the metric.
    """
    grouped = _grouped(entries)
    if metric and not any(metric in choice.outcome for choice in grouped):
        known = sorted({name for choice in grouped for name in choice.outcome})
        listed = f"There are {', '.join(known)}." if known else "None has measured anything yet."
        raise ConfigError(f"--metric {metric}: no run has measured it. {listed}")
    names = (metric,) if metric else LOSSES
    sign = -1 if is_highest_best else 1

    def order(choice: Choice) -> tuple[float, ...]:
        """Smaller is better; what was not measured, or is no number any more, comes last."""
        found = [choice.outcome.get(name) for name in names]
        return tuple(sign * each.mean if each and isfinite(each.mean) else inf for each in found)

    choices = sorted(grouped, key=order)
    ranked_by = next((name for name in names if any(name in choice.outcome for choice in choices)), None)
    has_seeds = any(len(choice.entries) > 1 for choice in choices)
    settings, decided = settings_of([choice.best for choice in choices], without=(SEED,) if has_seeds else ())
    ranking = Ranking(choices, ranked_by, is_highest_best, settings, decided)
    measured = [choice.best for choice in choices if order(choice)[0] < inf and choice.best.run]
    ranking.notes.extend([*_held_out_notes(measured), *_chance_notes(ranking)])
    if ranking.decided:
        listed = ", ".join(ranking.decided[:8])
        more = f" and {len(ranking.decided) - 8} more" if len(ranking.decided) > 8 else ""
        ranking.notes.append(f"Not shown, since the settings that are shown decide them: {listed}{more}.")
    return ranking


def _grouped(entries: Sequence[Entry]) -> list[Choice]:
    """Entries by what they share but for the seed; a seed that is there again is no other draw of chance."""
    groups: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    times: dict[tuple[str, str], int] = defaultdict(int)
    for entry in entries:
        shared, seed = _identity(entry)
        groups[shared, times[shared, seed]].append(entry)
        times[shared, seed] += 1
    return [Choice(group) for group in groups.values()]


def _identity(entry: Entry) -> tuple[str, str]:
    """(what those that differ only in their seed share, the seed)."""
    if entry.job is not None:
        shared = [o for o in entry.job.overrides if not o.startswith(f"{SEED}=")]
        return json.dumps(shared), next((o for o in entry.job.overrides if o not in shared), "")
    identity: dict[str, Any] = (entry.run.record.get("identity") if entry.run else None) or {}
    if "settings" not in identity:
        return str(entry.path), ""
    settings = {key: value for key, value in identity["settings"].items() if key != SEED}
    return json.dumps(identity | {"settings": settings}, sort_keys=True), str(identity["settings"].get(SEED))


def _held_out_notes(entries: Sequence[Entry]) -> list[str]:
    """What a reader of the ranks of these must know, if they were not measured on the same text."""
    differing = ["stage"] if len({entry.stage for entry in entries}) > 1 else []
    keys = varying([entry.config for entry in entries])
    differing += [key for key in keys if key.startswith(HELD_OUT) and not key.endswith(HOW_MUCH)]
    if not differing:
        return []
    return [f"They were not measured on the same held-out text ({', '.join(differing)} differ): ranks mean little."]


def _chance_notes(ranking: Ranking) -> list[str]:
    """What the seeds say about ranks."""
    values = [value for value in ranking.values if value]
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


def shown_key(key: str) -> str:
    """A setting as the head of a column."""
    return "run=" if key == "run" else key  # of an evaluation


def shown_estimate(value: Estimate | None) -> str:
    """A mean, and where it is of several values that differ, how far off it may be."""
    if value is None:
        return ABSENT
    return shown(value.mean) + (f" ± {shown(value.half_width)}" if value.half_width else "")
