"""What is typed -> what Hydra can read, or one line in the keys that were typed of what cannot be.

Hydra's grammar takes no Hangul and no bracket outside of quotes, which a shell takes away: `data.path="내 글"` arrives
as `data.path=내 글`.
"""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError

from llm.config.stages import STAGES, StageConfig
from llm.errors import nearest

_SIGNS = r""",:=(){}\[\]'\""""
_WORDS = re.compile(rf"[^\s{_SIGNS}]([^{_SIGNS}]*[^\s{_SIGNS}])?")
_INTERPOLATION = re.compile(r"\$\{[^{}]*\}")


def readable(argument: str) -> str:
    """A typed override whose value Hydra cannot read, with the quotes that it lacks; any other as it is.

    Words in letters that the grammar does not have get quotes, so that a list, a dict or a sweep of them stays one;
    where that is not enough, the whole value does, if it has no sign of a list, a dict or quotes.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-") or _is_read(argument):
        return argument
    tries = [_WORDS.sub(lambda words: words[0] if words[0].isascii() else _quoted(words[0]), value)]
    if not set(_INTERPOLATION.sub("", value)) & set(",{}'\""):
        tries.append(_quoted(value))
    return next((found for each in tries if _is_read(found := f"{key}={each}")), argument)


@lru_cache
def as_value(text: str) -> str:
    """A text as the value of an override that is this very text, in quotes where it would be read otherwise."""
    return text if _is_read(f"key={text}") and _value(text) == text else _quoted(text)


def to_paste(key: str, text: str) -> str:
    """The override that sets a key to a text, as a shell needs it."""
    return shlex.quote(f"{key}={as_value(text)}")


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()


def _is_read(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _value(text: str) -> object:
    return OverridesParser.create().parse_override(f"key={text}").value()


# What went wrong


def explain(error: BaseException) -> str:
    """One line for what Hydra, OmegaConf or YAML raised: the file or the key, and what was expected there."""
    if isinstance(error, OverrideParseException):
        return _explain_unreadable(str(error.override))
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem_mark.name}:{error.problem_mark.line + 1}: {error.problem or 'this is no YAML'}."
    if isinstance(error, InstantiationException):
        return " ".join(str(error).split())  # a paragraph, of which the first line is half a sentence
    if isinstance(error, MissingConfigException) and "/" in (name := str(error.missing_cfg_file)):
        group, _, choice = name.lstrip("/").rpartition("/")
        return no_choice(group, choice, error.options or ())
    message = str(error)
    inner = error.__cause__ or (error.__context__ if isinstance(error, HydraException) else None)
    cause: Any = inner if isinstance(inner, OmegaConfBaseException) else error
    reason, key = re.sub(r"^In '[^']+': ", "", str(cause).strip().partition("\n")[0]), getattr(cause, "full_key", "")
    file = f"conf/{found[1]}.yaml: " if (found := re.match(r"In '([^']+)'", message)) else ""
    return file + (_explain_key(cause, reason, message) or (f"{key}: {reason}" if key else reason))


def no_choice(key: str, choice: str, known: Iterable[str]) -> str:
    """What to type in place of a choice that there is not."""
    return f"{key}={choice} is not a choice. {nearest(choice, sorted(known), f'{key}=')}"


def _explain_key(cause: Any, reason: str, message: str) -> str | None:
    """The cases that users run into; None leaves Hydra's own words."""
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is missing. Set {cause.full_key}=<value>."
    if (unknown := re.match(r"Key '([^']+)' not in ", reason)) and isinstance(cause.object_type, type):
        return _explain_unknown(unknown[1], cause.object_type, cause.full_key[: -len(unknown[1])])
    if addition := re.search(r"^To append to your config use (\+(\S+?)=.*)$", message, re.MULTILINE):
        return f"{addition[2]} is not there yet. Add it with {shlex.quote(addition[1])}"
    if group := re.search(r"Could not override '([^'@]+).*'\. No match", message):
        groups = dict.fromkeys(f.name for stage in STAGES.values() for f in fields(stage))
        return f"{group[1]} is not a group of this stage. {_belongs(group[1]) or nearest(group[1], groups)}"
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'$", message, re.MULTILINE):
        text = to_paste(ambiguous[1], re.sub("[\"']", "", ambiguous[2]))
        return f"{'='.join(ambiguous.groups())} is a sweep, or a value with a comma. Add -m to sweep, or write {text}."
    if reason.endswith("is not a ListConfig, list or tuple."):
        return f"{cause.full_key} is a list. Write it in brackets: '{cause.full_key}=[...]'."
    if number := re.match(r"Value '(\d+)\.0' of type 'float' could not be converted to Integer", reason):
        return f"{cause.full_key} takes a whole number. Write {cause.full_key}={number[1]}."
    return None


def _explain_unknown(key: str, schema: type, prefix: str) -> str:
    known = [f.name for f in fields(schema)]
    if issubclass(schema, StageConfig):
        if belongs := _belongs(key):
            return f"{key} is not part of this stage, which takes {', '.join(known)}. {belongs}"
        nested = [dotted for dotted in _dotted_keys(schema) if dotted.endswith(f".{key}")]
        known, key = (nested, nested[0]) if nested else (known, key)
    return f"unknown key {prefix}{key.rpartition('.')[2]}. {nearest(key, known, prefix)}"


def _belongs(key: str) -> str | None:
    stages = [f"stage={name}" for name, stage in STAGES.items() if key in (f.name for f in fields(stage))]
    return f"It belongs to {', '.join(stages)}." if stages else None


def _dotted_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            yield from _dotted_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _explain_unreadable(override: str) -> str:
    """How to write what Hydra's grammar has no word for."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w.@/$-]+", key, re.ASCII):
        return f"cannot read the override {override!r}. Write key=value."
    if re.search(r"[{,]\s*[^\s,:{}]*[^\x00-\x7f][^,:{}]*:", value):
        return f"cannot read {override!r}: a key in {{ }} must be in Latin letters. Write it in a YAML file of conf/."
    return f"cannot read the value of {override!r}. If it is meant as one text, write {to_paste(key, value)}."
