"""Entries -> the settings in which they differ, and their values."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llm.compare.entries import Entry
from llm.run.tables import ABSENT

NOT_CHOICES = ("stage", "name", "outputs", "reuse", "dry_run")  # a column of its own, or where and how, not what
ADDED = ("tokenizer.ladder", "hydra.")  # overrides that the sweep adds, or that change nothing that a job makes


def settings_of(entries: Sequence[Entry], *, without: Sequence[str] = ()) -> tuple[dict[str, list[str]], list[str]]:
    """(what differs: key -> its value in each entry, the keys that differ too, but as that has decided).

    Of a sweep's jobs what was typed decides; of runs the name of what was chosen for a group decides the group.
    """
    having = [entry for entry in entries if entry.config]
    recorded = varying([entry.config for entry in having])
    swept = _swept(entries) if all(entry.job for entry in entries) else {}
    for key in without:
        swept.pop(key, None)
        recorded.pop(key, None)
    typed = [[v for v, entry in zip(values, entries, strict=True) if entry.config] for values in swept.values()]

    def is_decided(key: str) -> bool:
        name = f"{key.split('.')[0]}.name"
        deciding = typed if swept else [recorded[name]] if name in recorded and name != key else []
        return bool(deciding) and _follows(recorded[key], deciding)

    decided = [key for key in recorded if is_decided(key)]
    columns = {}
    for key, values in recorded.items():
        if key not in decided:
            of = dict(zip(having, values, strict=True))
            columns[key] = [_short(of[entry]) if entry in of else ABSENT for entry in entries]
    return swept | columns, [key for key in decided if key not in swept]


def _follows(values: Sequence[str], deciding: Sequence[Sequence[str]]) -> bool:
    """Whether the values are alike wherever those that decide are."""
    seen: dict[tuple[str, ...], str] = {}
    places = zip(*deciding, strict=True)
    return all(seen.setdefault(place, value) == value for place, value in zip(places, values, strict=True))


def _swept(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Key -> its value in each job, as it was typed, for the keys in which the jobs of a sweep are not all alike."""
    typed = []
    for entry in entries:
        overrides = [o.lstrip("+").partition("=") for o in (entry.job.overrides if entry.job else [])]
        typed.append({key: _short(value) for key, _, value in overrides if not key.startswith(ADDED)})
    return _not_alike(typed)


def shared_overrides(entries: Sequence[Entry]) -> list[str]:
    """The overrides that all jobs of a sweep have: its base."""
    jobs = [entry.job.overrides for entry in entries if entry.job]
    return [o for o in jobs[0] if all(o in job for job in jobs) and not o.startswith(ADDED)] if jobs else []


def _short(value: str) -> str:
    """A number of many digits, as a search draws it, with four of them; all else as it is."""
    try:
        return value if len(value) <= 8 or value.lstrip("-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value


def varying(configs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Dotted key -> its value in each config, for the keys in which they are not all alike.

    A config that lacks a whole group (a fine-tuning has no model of its own) does not make the group's keys vary.
    """
    found = _not_alike([flattened(config) for config in configs])

    def varies(key: str) -> bool:
        return (
            len({value for value, config in zip(found[key], configs, strict=True) if key.split(".")[0] in config}) > 1
        )

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
