"""The parts of a mixture as they were typed -> each merged over its choice of conf/data, and checked.

What a part has comes from, the later the stronger: the schema, data.cleaning and data.bad_records of the mixture, the
YAML file of its choice, and the part's own keys.
"""

import re
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config.choices import data_choices, data_settings
from llm.config.data import DataSource, PartConfig
from llm.config.explain import explain, explain_unknown_key
from llm.errors import ConfigError

_OF_MIXTURE = ("name", "sequence_length", "batch_size", "packing", "num_workers")  # of a choice: rows are the mixture's
_NAME = re.compile(r"\w[\w-]{0,31}")  # it names metrics
_KNOWN = PartConfig.__dataclass_fields__


def with_parts(cfg: DictConfig) -> DictConfig:
    """A composed config whose data.parts are complete.

    Raises:
        ConfigError: a part has no such choice or key, or a value that cannot be.
    """
    data = cfg.get("data")
    if data is None or OmegaConf.is_missing(data, "source") or not data.parts:
        return cfg
    if data.source is not DataSource.mixture:
        raise ConfigError(f"data.parts is for data=mixture, not for {data.name}. Choose data=mixture, or leave it out.")
    if not isinstance(data.parts, DictConfig):
        raise ConfigError("data.parts is no set of parts. Write data.parts={<name>: {use: <a choice of conf/data>}}.")
    cfg = cfg.copy()
    cfg.data.parts = {str(name): _part(str(name), part, data) for name, part in sorted(data.parts.items())}
    return cfg


def _part(name: str, typed: Any, mixture: DictConfig) -> PartConfig:
    key = f"data.parts.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{key}: {name!r} cannot name a part. Use letters, digits, '_' and '-', 32 in all.")
    if not isinstance(typed, DictConfig) or not typed:
        raise ConfigError(f"{key} is no part. Write {name}: {{use: <a choice of conf/data>, weight: <number>}}.")
    for typed_key in map(str, typed):
        if typed_key not in _KNOWN or typed_key in ("kind", "source"):
            raise ConfigError(explain_unknown_key(typed_key, PartConfig, f"{key}."))
    use = typed.get("use")
    choice = _choice(key, use, held_out_share=mixture.held_out_share)
    inherited = {"cleaning": mixture.cleaning, "bad_records": mixture.bad_records}
    try:
        places = OmegaConf.create({"data": {"parts": {name: OmegaConf.structured(PartConfig)}}})  # for errors to name
        for settings in (inherited, choice, typed):
            OmegaConf.update(places, key, settings)
        part = OmegaConf.to_object(OmegaConf.select(places, key))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except ConfigError as error:
        raise ConfigError(in_keys_of_part(str(error), name)) from error
    assert isinstance(part, PartConfig)
    return part


def in_keys_of_part(line: str, name: str) -> str:
    """A line about data.path and the like in the keys of a part; what a file's name has of them stays as it is."""
    keys = "|".join(_KNOWN)
    line = re.sub(rf"(?<![^\s(])data\.(?=(?:{keys})\b)", f"data.parts.{name}.", line)
    return re.sub(r"(?<![^\s(])data=", f"data.parts.{name}.use=", line)


def _choice(key: str, use: Any, *, held_out_share: float) -> dict[str, Any]:
    """The YAML file that a part uses, but for what the mixture has for all its parts."""
    if use is None:
        raise ConfigError(f"{key}.use is missing. Set it to a choice of conf/data: {', '.join(data_choices())}.")
    if use not in (known := data_choices()):
        close = get_close_matches(str(use), known, n=1, cutoff=0.5)
        hint = f"Did you mean {key}.use={close[0]}?" if close else f"Choose one of {', '.join(known)}."
        raise ConfigError(f"{key}.use={use} is not a choice of conf/data. {hint}")
    settings = data_settings([use])[use]
    share = settings.pop("held_out_share", held_out_share)
    if settings.get("kind") == "text" and share != held_out_share:
        raise ConfigError(
            f"{key}.use={use} holds out {share} of the documents, the mixture {held_out_share}: texts would be on "
            f"both sides of the split. Set data.held_out_share={share}."
        )
    return {name: value for name, value in settings.items() if name not in _OF_MIXTURE}
