"""Hydra's composed config -> the stage's dataclass, or one line that says which key is wrong and what was meant."""

import re
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config import schema
from llm.config.schema import STAGES, StageConfig
from llm.errors import ConfigError, fail, have_hydra_raise, tracebacks_wanted

for _name, _schema in STAGES.items():
    ConfigStore.instance().store(group="schema", name=_name, node=_schema, package="_global_")


def from_hydra(cfg: DictConfig) -> Any:
    """The composed config as the dataclass of its stage, with every key, type and range checked.

    Raises:
        ConfigError: a key that the schema does not have, a value that is missing, or values that cannot go together.
    """
    try:
        _reject_unknown_keys(cfg)
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError(f"{missing[0]} is missing. Set {missing[0]}=<value>{_meaning(missing[0])}.")
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def run_hydra(main: Callable[[], Any]) -> None:
    """Call a function that hydra.main wraps; what cannot be composed ends in one line and exit code 2.

    HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    if tracebacks_wanted():
        main()
        return
    have_hydra_raise()
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        fail(explain(error), ConfigError.exit_code)


def job_overrides() -> list[str]:
    """The overrides of the job that runs here, those of its place in a sweep included."""
    return [str(override) for override in HydraConfig.get().overrides.task]


def num_devices(config: StageConfig) -> int:
    """Devices on which a stage runs: more than one only where it has a trainer."""
    trainer = getattr(config, "trainer", None)
    return int(trainer.devices) if trainer else 1


def explain(error: BaseException) -> str:
    """One line for what Hydra or OmegaConf raised while composing."""
    if isinstance(error, MissingConfigException):
        return _explain_missing_choice(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}. Write key=value, and quote what your shell would change."
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    file = re.match(r"In '([^']+)'", str(error))
    place = f"conf/{file[1]}.yaml: " if file else ""
    reason = str(cause).strip().splitlines()[0]
    key = getattr(cause, "full_key", None) or ""
    if unknown := re.match(r"Key '([^']+)' not in '(\w+)'", reason):
        prefix = key[: -len(unknown[1])] if key.endswith(unknown[1]) else ""
        return place + _unknown(unknown[1], getattr(schema, unknown[2]), prefix)
    if group := re.match(r"Could not override '([^']+)'. No match", reason):
        return f"{group[1]} is not part of this stage. Choose another stage, or remove it."
    return f"{place}{key}: {reason}" if key else f"{place}{reason}"


def _explain_missing_choice(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or ""
    group, _, choice = str(name).rpartition("/")
    options = [str(option) for option in error.options or []]
    if not group or not options:
        return str(error).splitlines()[0]
    return f"{group}={choice} is not a choice. {_suggest(choice, options, f'{group}=')}"


def _unknown(key: str, config: type, prefix: str = "") -> str:
    known = [f.name for f in fields(config)]
    elsewhere = [name for name, stage in STAGES.items() if key in (f.name for f in fields(stage))]
    if issubclass(config, StageConfig) and elsewhere:
        stage = next(name for name, schema_class in STAGES.items() if schema_class is config)
        return (
            f"{key} is not part of stage={stage}, which takes {', '.join(known)}. It belongs to stage={elsewhere[0]}."
        )
    return f"unknown key {prefix}{key}. {_suggest(key, known, prefix)}"


def _suggest(key: str, known: Iterable[str], prefix: str) -> str:
    known = list(known)
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean {prefix}{close[0]}?" if close else f"Known here: {', '.join(known)}."


def _meaning(key: str) -> str:
    return {"base": " to the name or the folder of a pretraining run"}.get(key, "")


def _schema_of(cfg: DictConfig) -> type:
    found = OmegaConf.get_type(cfg)
    assert found is not None and is_dataclass(found)
    return found


def _reject_unknown_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Hydra checks `key=value` against the schema but lets `+key=value` add any key; refuse those too."""
    known = [f.name for f in fields(_schema_of(cfg))]
    for key in map(str, cfg):
        if key not in known:
            raise ConfigError(_unknown(key, _schema_of(cfg), prefix))
        if not OmegaConf.is_missing(cfg, key) and is_dataclass(OmegaConf.get_type(cfg, key)):
            _reject_unknown_keys(cfg[key], f"{prefix}{key}.")
