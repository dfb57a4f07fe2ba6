"""How the next token is chosen, as a person sets it on the command line or in the page -> checked."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from llm.config.sampling import Sampling
from llm.errors import ConfigError

MOST_STOPS = 16
LONGEST_STOP = 200  # characters
LARGEST_SEED = 2**63 - 1


DEFAULTS = Sampling(temperature=0.7)  # of a conversation
NAMES = tuple(each.name for each in fields(Sampling))
_RANGES: dict[str, tuple[type | tuple[type, ...], Callable[[Any], bool], str]] = {
    "max_new_tokens": (int, lambda value: value >= 1, "Set it to 1 or more"),
    "temperature": ((int, float), lambda value: 0 <= value < float("inf"), "Set it to 0 or more"),
    "top_p": ((int, float), lambda value: 0 < value <= 1, "Set it above 0 and up to 1"),
    "top_k": (int, lambda value: value >= 0, "Set it to 1 or more, or to 0 to draw from all tokens"),
    "repetition_penalty": ((int, float), lambda value: 0 < value < float("inf"), "Set it above 0; 1 is none"),
    "seed": (int, lambda value: 0 <= value <= LARGEST_SEED, f"Set it from 0 to {LARGEST_SEED}"),
}


def read_settings(values: Mapping[str, Any], *, key: Callable[[str], str] = str) -> Sampling:
    """Settings from what was typed; `key` turns a name into what the person knows it by.

    Raises:
        ConfigError: a name that is none, or a value out of range.
    """
    if unknown := [name for name in values if name not in NAMES]:
        raise ConfigError(f"{unknown[0]} is no setting. There are {', '.join(map(key, NAMES))}.")
    for name, (kind, is_right, hint) in _RANGES.items():
        value = values.get(name, getattr(DEFAULTS, name))
        if isinstance(value, bool) or not isinstance(value, kind) or not is_right(value):
            raise ConfigError(f"{key(name)}={value} is out of range. {hint}.")
    stop = values.get("stop") or ()
    is_list = isinstance(stop, list | tuple) and all(isinstance(text, str) and text for text in stop)
    if not is_list or len(stop) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in stop):
        raise ConfigError(
            f"{key('stop')} is out of range. Give up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters."
        )
    return replace(DEFAULTS, **{**values, "stop": tuple(stop)})


def check_room(settings: Sampling, *, positions: int, name: str, key: Callable[[str], str] = str) -> None:
    """Raises: ConfigError: the answer alone would take all that the model can hold."""
    if settings.max_new_tokens >= positions:
        raise ConfigError(
            f"{key('max_new_tokens')}={settings.max_new_tokens} is out of range: prompt and answer share {positions} "
            f"tokens in {name}. Set it to {positions // 2} or less."
        )


def flag(name: str) -> str:
    """A setting's name as the command line has it."""
    return "--" + name.replace("_", "-")
