"""Configs -> the keys in which they differ, and what a reader of ranks over them must know."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

NOT_CHOICES = (
    "stage",
    "name",
    "outputs",
    "reuse",
    "dry_run",
)  # shown as a column of its own, or where and how, not what
HELD_OUT = (  # beginnings of the keys that say which text is held out
    "data.kind", "data.source", "data.path", "data.text_field", "data.layout.", "data.cleaning.",
    "data.held_out_share", "data.bad_records", "data.parts.",
)  # fmt: skip
HOW_MUCH = (".weight", ".max_bytes", ".max_tokens")  # ends of those of data.parts that say which is trained on
ABSENT = "-"  # a run has no such key or result


def varying(configs: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Dotted key -> its value in each config, for the keys in which they are not all alike.

    A config that lacks a whole group (a fine-tuning has no model of its own) does not make the group's keys vary.
    """
    flat = [flattened({key: value for key, value in config.items() if key not in NOT_CHOICES}) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values)
    cells = {key: [values.get(key, ABSENT) for values in flat] for key in keys}
    groups = {key.split(".")[0] for key in keys}
    having = {group: [i for i, config in enumerate(configs) if group in config] for group in groups}
    return {key: values for key, values in cells.items() if len({values[i] for i in having[key.split(".")[0]]}) > 1}


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key -> value as JSON without the quotes of a bare string."""
    leaves: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            leaves |= flattened(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return leaves


def determined(columns: Mapping[str, list[str]], by: Mapping[str, list[str]]) -> list[str]:
    """The keys of `columns` whose value those of `by` decide: where all of them are alike, it is alike too."""
    decided = []
    for key, values in columns.items():
        seen: dict[tuple[str, ...], str] = {}
        places = zip(*by.values(), strict=True)
        if all(seen.setdefault(place, value) == value for place, value in zip(places, values, strict=True)):
            decided.append(key)
    return decided


def alike(columns: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Key -> the keys that always vary together with it, itself first: a group's name stands for all that it chose."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for key, values in columns.items():
        numbers: dict[str, int] = {}
        pattern = tuple(numbers.setdefault(value, len(numbers)) for value in values)
        groups.setdefault(pattern, []).append(key)
    ordered = [sorted(keys, key=lambda key: not key.endswith(".name")) for keys in groups.values()]
    return {keys[0]: keys for keys in ordered}


def held_out_notes(runs: Sequence[Any]) -> list[str]:
    """What a reader of the ranks of these runs (or entries) must know, if they were not measured on the same text."""
    choices = varying([run.config for run in runs])
    differing = ["stage"] if len({run.stage for run in runs}) > 1 else []
    differing += [key for key in choices if key.startswith(HELD_OUT) and not key.endswith(HOW_MUCH)]
    if not differing:
        return []
    return [f"They were not measured on the same held-out text ({', '.join(differing)} differ): ranks mean little."]
