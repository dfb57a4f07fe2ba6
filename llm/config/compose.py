"""Hydra's composed config -> the stage's dataclass, or one line that says which key is wrong and what was meant."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from llm.config.choices import composing
from llm.config.data import DataConfig
from llm.config.explain import explain, explain_missing_value, explain_unknown_key
from llm.config.overrides import readable
from llm.config.parts import with_parts
from llm.config.stages import STAGES
from llm.errors import ConfigError

Config = TypeVar("Config")


def from_hydra(cfg: DictConfig) -> Any:
    """The composed config as the dataclass of its stage, with every key, type and range checked.

    Raises:
        ConfigError: a key that the schema does not have, a value that is missing, or values that cannot go together.
    """
    if OmegaConf.get_type(cfg) not in STAGES.values():
        raise ConfigError(f"no stage is chosen. Set stage to one of {', '.join(STAGES)}.")
    try:
        _reject_unknown_keys(cfg)
        refuse_computed(cfg, list(map(str, HydraConfig.get().overrides.task)) if HydraConfig.initialized() else [])
        cfg = with_parts(cfg)
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError(explain_missing_value(missing[0]))
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def as_recorded(schema: type[Config], values: dict[str, Any], *, place: str) -> Config:
    """The dataclass of a config that a run recorded in its config.yaml, checked as one that is typed; `place` names it.

    Raises:
        ConfigError: this version of the schema does not have it, or a credential of it is not in the environment.
    """
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except InterpolationResolutionError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{place}: {reason}. Set it, as it was when that run was made.") from error
    except (OmegaConfBaseException, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{place}: recorded by another version ({reason}). Make that run again.") from error
    assert isinstance(made, schema)
    return made


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """What overrides make of conf/, as nested dicts; what must be set and is not is missing as `???`.

    Raises:
        ConfigError: they cannot be composed.
    """
    with composing():
        config = compose("config", overrides=list(map(readable, overrides)))
        config.name = None  # it may hold ${hydra:job.num}
        return dict(OmegaConf.to_container(config, resolve=True, enum_to_str=True))  # type: ignore[arg-type]  # a dict


def data_config(overrides: Sequence[str]) -> DataConfig:
    """What data=<choice> and data.<key>=<value> come to by themselves.

    Raises:
        ConfigError: they cannot be composed.
    """
    with composing():
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), composed(overrides)["data"]))
    assert isinstance(made, DataConfig)
    return made


def _reject_unknown_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Hydra checks `key=value` against the schema but lets `+key=value` add any key; refuse those too."""
    schema: Any = OmegaConf.get_type(cfg)
    known = {f.name for f in fields(schema)}
    for key in map(str, cfg):
        if key not in known:
            raise ConfigError(explain_unknown_key(key, schema, prefix))
        if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        if is_dataclass(OmegaConf.get_type(cfg, key)) and OmegaConf.is_config(cfg._get_node(key)):
            _reject_unknown_keys(cfg[key], f"{prefix}{key}.")


def refuse_computed(cfg: DictConfig, overrides: list[str]) -> None:
    """Refuse an override of a setting that is computed from another one, which was typed too or comes from a YAML.

    Raises:
        ConfigError: there is one, and it would have been left unused.
    """
    for typed, _, value in (override.lstrip("+").partition("=") for override in overrides):
        group, _, name = typed.rpartition(".")
        chosen = OmegaConf.select(cfg, group) if group else None
        schema: Any = OmegaConf.get_type(chosen) if OmegaConf.is_config(chosen) else None
        known = {f.name: f for f in fields(schema)} if is_dataclass(schema) else {}
        for source in known[name].metadata.get("computed_from", ()) if name in known else ():
            if (other := OmegaConf.select(cfg, f"{group}.{source}")) is not None:
                raise ConfigError(
                    f"{typed}={value} is not used: it is computed from {group}.{source}={other}. Set {group}.{source}="
                    f"null, or leave {typed} out."
                )
