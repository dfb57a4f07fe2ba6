"""One line for each setting: its default, its range and whose result it changes; and the check of all of them."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import MISSING, Field, field, fields, is_dataclass
from enum import Enum
from functools import cache
from operator import ge, gt, le, lt
from typing import Any, TypeVar

from llm.errors import ConfigError

T = TypeVar("T")


class Aspect(Enum):
    """What a setting is about, by which a stage says what leaves its result as it is; nothing does that is not said."""

    how = "how or where a run is carried out: devices, intervals, names, paths; of no stage's result"
    rows = "how documents become training rows"
    length = "how much a model sees before a token"
    chat = "what becomes of conversations"
    shares = "how much of each text a tokenizer and a model learn from"
    shares_of_tokens = "the same, where there are tokens"
    text = "which text"


HOW, ROWS, LENGTH, CHAT = Aspect.how, Aspect.rows, Aspect.length, Aspect.chat
SHARES, SHARES_OF_TOKENS, TEXT = Aspect.shares, Aspect.shares_of_tokens, Aspect.text

_LIMITS = {
    "at_least": (ge, "{} or more"),
    "above": (gt, "more than {}"),
    "at_most": (le, "up to {}"),
    "below": (lt, "less than {}"),
}


def setting(
    default: T,
    aspect: Aspect | None = None,
    *,
    without: tuple[Aspect, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    fault: Callable[[Any], str | None] | None = None,
    is_file: bool = False,
    only_where_set: bool = False,
    is_public: bool = False,
    only_with: tuple[str, tuple[Enum, ...]] | None = None,
    computed_from: tuple[str, ...] = (),
) -> T:
    """The field of a config: all that a setting is by itself. What it has to do with others is for __post_init__.

    A number with a limit is finite, unless `at_most` is inf; null is not looked at. `fault` says what is wrong with a
    value, as the end of a sentence that begins with KEY=VALUE. A file's path may begin with ~.

    It is in the identity of every stage that has it, unless it is about HOW, or about what a group is taken `without`.
    With `only_where_set` null is no key of the identity, so that runs which are older than the setting keep theirs.
    What is public is written down as it is, so that it may hold no credential: all of the identity is.

    `only_with` names another setting of the group and its choices that use this one: with any other it is left out,
    which is said, so that a grid over the choices can have it. It is `computed_from` settings of the group, where one
    of them is not null: then nobody may type it.
    """
    said = {"at_least": at_least, "above": above, "at_most": at_most, "below": below, "aspect": aspect}
    metadata: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    metadata |= {"fault": fault, "is_file": is_file, "only_where_set": only_where_set}
    metadata |= {"without": without, "is_public": is_public, "only_with": only_with, "computed_from": computed_from}
    if type(default).__hash__ is None:  # a list, a dict or a config, of which every config has its own
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_settings(config: Any, place: str = "") -> None:
    """Look at each setting by itself, those of nested configs too, and put the home folder in place of a path's ~.

    Raises:
        ConfigError: one is out of range; it is named by its dotted key, which begins with `place`.
    """
    for f in fields(config):
        key, value = f"{place}.{f.name}".lstrip("."), getattr(config, f.name)
        if is_dataclass(value):
            check_settings(value, key)
        elif value is not None and (fault := _fault(f, value)):
            raise ConfigError(f"{key}={shown(value)} {fault}")
        elif value is not None and f.metadata.get("is_file"):
            setattr(config, f.name, os.path.expanduser(value))
        if f.metadata.get("only_with"):
            _leave_out_unused(config, f, place)


def _fault(f: Field[Any], value: Any) -> str | None:
    limits = [(*_LIMITS[name], f.metadata[name]) for name in _LIMITS if name in f.metadata]
    is_within = all(compare(value, limit) for compare, _, limit in limits)
    if limits and not (is_within and (value < float("inf") or "at_most" in f.metadata)):
        words = " and ".join(text.format(limit) for _, text, limit in limits)
        return f"is out of range. Set {words}{', or null' if f.default is None else ''}."
    return f.metadata["fault"](value) if f.metadata.get("fault") else None


def _leave_out_unused(config: Any, f: Field[Any], place: str) -> None:
    (other, choices), value, default = f.metadata["only_with"], getattr(config, f.name), _default(f)
    if (chosen := getattr(config, other)) not in choices and value != default:
        _say_once(f"{place}.{f.name}={shown(value)} is not used with {place}.{other}={shown(chosen)}, and is left out")
        setattr(config, f.name, default)


@cache
def _say_once(line: str) -> None:
    logging.getLogger("llm").warning(line)


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def refuse_unused(config: Any, place: str, keys: Iterable[str], why: str) -> None:
    """Refuse settings that another one leaves unused, where they are not their defaults; `why` ends the sentence."""
    for f in fields(config):
        if f.name in keys and (value := getattr(config, f.name)) != _default(f):
            raise ConfigError(f"{place}.{f.name}={shown(value)} {why}")


def refuse_below(key: str, value: int, least: int) -> None:
    """Refuse a number that is smaller than another setting lets it be."""
    if value < least:
        raise ConfigError(f"{key}={value} is out of range. Set {least} or more.")


def divides(key: str, value: int, by_key: str, by: int) -> None:
    if value % by:
        raise ConfigError(f"{key}={value} does not divide by {by_key}={by}. Set {by_key} to a divisor of {value}.")


def shown(value: Any) -> Any:
    """A value as it is typed."""
    return value.name if isinstance(value, Enum) else str(value).lower() if isinstance(value, bool) else value


def identity_settings(config: Any, *, without: tuple[Aspect, ...] = ()) -> dict[str, Any]:
    """The settings that change what is made of a config, nested as in it, with enums as their names."""
    settings: dict[str, Any] = {}
    for f in fields(config):
        value, about = getattr(config, f.name), f.metadata.get("aspect")
        if f.name == "stage" or about is HOW or about in without:
            continue
        if value is None and f.metadata.get("only_where_set"):
            continue
        inside = (*without, *f.metadata.get("without", ()))
        if is_dataclass(value):
            if nested := identity_settings(value, without=inside):
                settings[f.name] = nested
        elif f.name == "parts":  # no key where there is none: what is no mixture keeps the runs that it had
            if value:
                settings[f.name] = {name: identity_settings(part, without=inside) for name, part in value.items()}
        else:
            settings[f.name] = value.name if isinstance(value, Enum) else value
    return settings


def public_texts(value: Any, key: str = "", *, is_public: bool = True) -> Iterator[tuple[str, str]]:
    """(dotted key, text) of each setting that run.json, names of folders or W&B have as it is."""
    if is_dataclass(value):
        for f in fields(value):
            is_shown = f.metadata.get("is_public") or (is_public and f.metadata.get("aspect") is not HOW)
            yield from public_texts(getattr(value, f.name), f"{key}.{f.name}".lstrip("."), is_public=is_shown)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from public_texts(item, f"{key}.{name}", is_public=is_public)
    elif isinstance(value, list):
        for item in value:
            yield from public_texts(item, key, is_public=is_public)
    elif isinstance(value, str) and is_public:
        yield key, value


def label_of(path: str, *, otherwise: str) -> str:
    """The last part of a path as a run's name can have it."""
    return re.sub(r"[^\w.+-]", "_", path.rstrip("/").rpartition("/")[2])[:40].lstrip(".+-") or otherwise
