"""What every setting's field can say: the stages whose result it changes, and that its value is out of range."""

import os
import re
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from llm.errors import ConfigError

# A field is part of a run's identity unless its metadata names the stages whose result it changes.
HOW = {"identity": ()}  # how or where a run is carried out: devices, intervals, names, paths
ROWS = {"identity": ("pretrain", "finetune")}  # how documents become training rows
LENGTH = {"identity": ("pretrain", "finetune", "evaluate")}  # how much a model sees before a token
CHAT = {"identity": ("finetune", "evaluate")}  # what becomes of conversations
WHERE_SET = {"only_where_set": True}  # a setting that came later: null is no key, so that runs keep theirs
SHARES = {"identity": ("tokenizer", "shards", "pretrain")}  # how much of each text a tokenizer and a model learn from
SHARES_OF_TOKENS = {"identity": ("shards", "pretrain")}  # the same, where there are tokens
TEXT = {"identity": ("tokenizer", "shards", "finetune", "evaluate")}  # which text: pretraining has it from its shards


def identity_settings(config: Any, stage: str) -> dict[str, Any]:
    """The settings that change what `stage` makes, nested as in the config, with enums as their names."""
    settings: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name == "stage" or stage not in f.metadata.get("identity", (stage,)):
            continue
        if value is None and f.metadata.get("only_where_set"):
            continue
        if is_dataclass(value):
            if nested := identity_settings(value, stage):
                settings[f.name] = nested
        elif f.name == "parts":  # no key where there is none: what is no mixture keeps the runs that it had
            if value:
                settings[f.name] = {name: identity_settings(part, stage) for name, part in value.items()}
        else:
            settings[f.name] = value.name if isinstance(value, Enum) else value
    return settings


def label_of(path: str, *, otherwise: str) -> str:
    """The last part of a path as a run's name can have it."""
    return re.sub(r"[^\w.+-]", "_", path.rstrip("/").rpartition("/")[2])[:40].lstrip(".+-") or otherwise


def expand_home(config: Any, *keys: str) -> None:
    """Put the home folder in place of a ~ that these paths begin with: after key= a shell leaves it."""
    for key in keys:
        if (path := getattr(config, key)) is not None:
            setattr(config, key, os.path.expanduser(path))


def at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{key}={value} is too small. Set it to {least} or more.")


def below_one(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{key}={value} is out of range. Set a value from 0 up to 1.")


def divides(key: str, value: int, by_key: str, by: int) -> None:
    if by < 1 or value % by:
        raise ConfigError(f"{key}={value} does not divide by {by_key}={by}. Set {by_key} to a divisor of {value}.")
