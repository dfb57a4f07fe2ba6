"""One line for each setting: its default, its range, what uses it and whose result it changes; and the check of all."""

import logging
import os
import re
from collections.abc import Callable, Container, Iterator
from copy import deepcopy
from dataclasses import MISSING, Field, field, fields, is_dataclass
from enum import Enum
from functools import cache
from operator import ge, gt, le, lt
from typing import Any, TypeVar

from llm.errors import ConfigError

T = TypeVar("T")

HOW = True  # a setting of how or where a run is carried out: devices, intervals, names, paths
_LIMITS = {
    "at_least": (ge, "{} or more"),
    "above": (gt, "more than {}"),
    "at_most": (le, "up to {}"),
    "below": (lt, "less than {}"),
}


def setting(
    default: T,
    how: bool = False,
    *,
    not_of: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    fault: Callable[[Any], str | None] | None = None,
    is_file: bool = False,
    is_masked: bool = False,
    only_where_set: bool = False,
    only_with: tuple[str, Container[Any] | Callable[[Any], bool]] | None = None,
    computed_from: tuple[str, ...] = (),
) -> T:
    """The field of a config: all that a setting is by itself. What it has to do with others is for __post_init__.

    A number with a limit is finite, unless `at_most` is inf; null is not looked at. `fault` says what is wrong with a
    value, as the end of a sentence that begins with KEY=VALUE. A file's path may begin with ~.

    It is in the identity of every stage that has it, unless it is about HOW, or the stage is one that it is `not_of`.
    With `only_where_set` null is no key of the identity. A path may hold a credential, and so may what is masked where
    it is written down; any other setting may not.

    `only_with` names another setting of the group, and its values that use this one: with any other it is left out,
    which is said, so that a grid over the choices can have it. It is `computed_from` settings of the group, where one
    of them is not null: then nobody may type it.
    """
    metadata = {name: value for name, value in locals().items() if value is not None}
    if type(default).__hash__ is None:  # a list, a dict or a config, of which every config has its own
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_settings(config: Any, place: str = "") -> None:
    """Look at each setting by itself, those of nested configs too, and put the home folder in place of a path's ~.

    Raises:
        ConfigError: one is out of range; it is named by its dotted key, which begins with `place`.
    """
    for f in fields(config):
        _leave_out_unused(config, f, place)
        key, value = f"{place}.{f.name}".lstrip("."), getattr(config, f.name)
        if is_dataclass(value):
            check_settings(value, key)
        elif value is not None and (fault := _fault(f, value)):
            raise ConfigError(f"{key}={shown(value)} {fault}")
        elif value is not None and f.metadata.get("is_file"):
            setattr(config, f.name, os.path.expanduser(value))


def _fault(f: Field[Any], value: Any) -> str | None:
    limits = [(*_LIMITS[name], f.metadata[name]) for name in _LIMITS if name in f.metadata]
    is_within = all(compare(value, limit) for compare, _, limit in limits)
    if limits and not (is_within and (value < float("inf") or "at_most" in f.metadata)):
        words = " and ".join(text.format(limit) for _, text, limit in limits)
        return f"is out of range. Set {words}{', or null' if f.default is None else ''}."
    return f.metadata["fault"](value) if "fault" in f.metadata else None


def _leave_out_unused(config: Any, f: Field[Any], place: str) -> None:
    if "only_with" not in f.metadata:
        return
    (other, uses), value = f.metadata["only_with"], getattr(config, f.name)
    default, chosen = f.default if f.default_factory is MISSING else f.default_factory(), getattr(config, other)
    if value != default and not (uses(chosen) if callable(uses) else chosen in uses):
        _say_once(f"{place}.{f.name}={shown(value)} is not used with {place}.{other}={shown(chosen)}, and is left out")
        setattr(config, f.name, default)


@cache
def _say_once(line: str) -> None:
    logging.getLogger("llm").warning(line)


def divides(key: str, value: int, by_key: str, by: int) -> None:
    if value % by:
        raise ConfigError(f"{key}={value} does not divide by {by_key}={by}. Set {by_key} to a divisor of {value}.")


def shown(value: Any) -> Any:
    """A value as it is typed."""
    if is_dataclass(value):
        return "{...}"
    return value.name if isinstance(value, Enum) else str(value).lower() if isinstance(value, bool) else value


def identity_settings(config: Any, stage: str | None = None) -> dict[str, Any]:
    """The settings that change what a stage makes of a config, nested as in it, with enums as their names."""
    stage, settings = stage or config.stage, {}
    for f in fields(config):
        value, about = getattr(config, f.name), f.metadata
        is_left_out = f.name == "stage" or about.get("how") or stage in about.get("not_of", ())
        if not is_left_out and not (value is None and about.get("only_where_set")):
            settings[f.name] = _identity(value, stage)
    return settings


def _identity(value: Any, stage: str) -> Any:
    if isinstance(value, dict):
        return {key: _identity(item, stage) for key, item in value.items()}
    if is_dataclass(value):
        return identity_settings(value, stage)
    return value.name if isinstance(value, Enum) else value


def unmasked_texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of each setting that is written down as it is."""
    if is_dataclass(value):
        for f in fields(value):
            if not f.metadata.get("is_file") and not f.metadata.get("is_masked"):
                yield from unmasked_texts(getattr(value, f.name), f"{key}.{f.name}".lstrip("."))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from unmasked_texts(item, f"{key}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from unmasked_texts(item, key)
    elif isinstance(value, str):
        yield key, value


def label_of(path: str, *, otherwise: str) -> str:
    """The last part of a path as a run's name can have it."""
    return re.sub(r"[^\w.+-]", "_", path.rstrip("/").rpartition("/")[2])[:40].lstrip(".+-") or otherwise
