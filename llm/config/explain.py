"""What Hydra, OmegaConf or YAML raised while composing -> one line in the keys that the user typed."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from llm.config.aliases import CONF
from llm.config.overrides import to_paste
from llm.config.stages import STAGES, StageConfig


def explain(error: BaseException) -> str:
    """One line for what went wrong: the file or the key, what was expected there, and the nearest that exists."""
    if isinstance(error, MissingConfigException):
        return _explain_missing_choice(error)
    if isinstance(error, OverrideParseException):
        return _explain_unreadable(str(error.override))
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}:{error.problem_mark.line + 1}: {error.problem or 'this is no YAML'}."
    if isinstance(error, InstantiationException):
        return " ".join(str(error).split())  # a paragraph, of which the first line is half a sentence
    message = str(error)
    inner = error.__cause__ or (error.__context__ if isinstance(error, HydraException) else None)
    cause = inner if isinstance(inner, OmegaConfBaseException) else error
    reason, key = re.sub(r"^In '[^']+': ", "", _first_line(cause)), getattr(cause, "full_key", None) or ""
    if known := _explain_known(message, reason, key, getattr(cause, "object_type", None)):
        return _place(message) + known
    return f"{_place(message)}{key}: {reason}" if key else f"{_place(message)}{reason}"


def explain_unknown_key(key: str, config: Any, prefix: str = "") -> str:
    """What to type in place of a key that a dataclass of the schema does not have."""
    known = [f.name for f in fields(config)]
    if issubclass(config, StageConfig):
        if belongs := _belongs(key):
            stage = next(name for name, stage in STAGES.items() if stage is config)
            return f"{key} is not part of stage={stage}, which takes {', '.join(known)}. {belongs}"
        nested = [dotted for dotted in _dotted_keys(config) if dotted.endswith(f".{key}")]
        if nested:
            return f"unknown key {key}. Did you mean {nested[0]}?"
    return f"unknown key {prefix}{key}. {_suggest(key, known, prefix)}"


def explain_missing_value(key: str) -> str:
    """What to set where the schema has no default and nobody gave a value."""
    meanings = {
        "base": "the name or the folder of a pretraining run",
        "run": "the name or the folder of a pretraining or fine-tuning run",
    }
    return f"{key} is missing. Set {key}=<{meanings.get(key, 'value')}>."


def _explain_known(message: str, reason: str, key: str, config: Any) -> str | None:
    """The cases that users run into, of which `config` has the key; None leaves Hydra's own words."""
    if (unknown := re.match(r"Key '([^']+)' not in ", reason)) and is_dataclass(config):
        return explain_unknown_key(unknown[1], config, key[: -len(unknown[1])])
    if addition := re.search(r"^To append to your config use (\+(\S+?)=.*)$", message, re.MULTILINE):
        return f"{addition[2]} is not there yet. Add it with {shlex.quote(addition[1])}"
    if group := re.search(r"Could not override '([^']+)'\. No match", message):
        name = group[1].partition("@")[0]
        groups = [f.name for stage in STAGES.values() for f in fields(stage)]
        return f"{name} is not a group of this stage. {_belongs(name) or _suggest(name, dict.fromkeys(groups))}"
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'$", message, re.MULTILINE):
        name, value = ambiguous.groups()
        text = to_paste(name, re.sub("[\"']", "", value))
        return f"{name}={value} is a sweep, or a value with a comma. Add -m to sweep, or write {text}."
    if twice := re.match(r"(\S+) appears more than once in the final defaults list", reason):
        return f"{twice[1]} is chosen twice. Write {twice[1]}=<choice> once, without a +."
    if plugin := re.match(r"(?:Invalid plugin|Unknown plugin class :) '(.*?)'", reason):
        return f"{plugin[1]} is no launcher or sweeper. Choose hydra/launcher and hydra/sweeper by name."
    if "Config group override must be a string or a list" in message:
        return "a group cannot be null. Give a choice of it, or leave it out."
    if re.search(r"field '\w+' is not Optional", reason):
        return f"{key} cannot be null. Give it a value, or leave it out."
    return None


def _explain_unreadable(override: str) -> str:
    """How to write what Hydra's grammar has no word for."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w.@/$-]+", key, re.ASCII):
        return f"cannot read the override {override!r}. Write key=value."
    if re.search(r"[{,]\s*[^\s,:{}]*[^\x00-\x7f][^,:{}]*:", value):
        return f"cannot read {override!r}: a key in {{ }} must be in Latin letters. Write it in a YAML file of conf/."
    return f"cannot read the value of {override!r}. If it is meant as one text, write {to_paste(key, value)}."


def _explain_missing_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file or "").lstrip("/").rpartition("/")
    if not group:
        return _first_line(error)
    choices = sorted(map(str, error.options or (path.stem for path in (CONF / group).glob("*.yaml"))))
    if not choices:
        return f"{group}={choice} is not a choice. There is none yet: a file conf/{group}/{choice}.yaml makes one."
    return f"{group}={choice} is not a choice. {_suggest(choice, choices, f'{group}=')}"


def _belongs(key: str) -> str | None:
    stages = [f"stage={name}" for name, stage in STAGES.items() if key in (f.name for f in fields(stage))]
    return f"It belongs to {', '.join(stages)}." if stages else None


def _suggest(key: str, known: Iterable[str], prefix: str = "") -> str:
    known = list(known)
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean {prefix}{close[0]}?" if close else f"Known here: {', '.join(known)}."


def _dotted_keys(config: Any, prefix: str = "") -> Iterable[str]:
    for name, kind in get_type_hints(config).items():
        if is_dataclass(kind):
            yield from _dotted_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _place(message: str) -> str:
    """The YAML file that Hydra was reading, as the start of the line."""
    if not (file := re.match(r"In '([^']+)'", message)):
        return ""
    path = f"{file[1]}.yaml"
    return f"conf/{path}: " if (CONF / path).exists() else f"{path}: "


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
