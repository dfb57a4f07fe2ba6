"""Hydra's composed config -> the stage's dataclass, or one line that says which key is wrong and what was meant."""

import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from traceback import walk_tb
from typing import Any, TypeVar

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from llm.config.aliases import check_aliases
from llm.config.choices import composing, searchpath
from llm.config.data import DataConfig
from llm.config.explain import explain, explain_missing_value, explain_unknown_key
from llm.config.overrides import readable
from llm.config.parts import with_parts
from llm.config.stages import STAGES
from llm.config.training import BUDGETS
from llm.errors import ConfigError, fail, have_hydra_raise, one_line_errors, tracebacks_wanted

Config = TypeVar("Config")
COMPUTED = {  # a setting -> those that it is computed from, where one of them is set
    "data.batch_size": ("data.batch_tokens",),
    "trainer.max_steps": tuple(f"trainer.{key}" for key in BUDGETS),
}


def from_hydra(cfg: DictConfig) -> Any:
    """The composed config as the dataclass of its stage, with every key, type and range checked.

    Raises:
        ConfigError: a key that the schema does not have, a value that is missing, or values that cannot go together.
    """
    if OmegaConf.get_type(cfg) not in STAGES.values():
        raise ConfigError(f"no stage is chosen. Set stage to one of {', '.join(STAGES)}.")
    try:
        _reject_unknown_keys(cfg)
        refuse_computed(cfg, job_overrides() if HydraConfig.initialized() else [])
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


def run_hydra(main: Callable[[], Any]) -> None:
    """Call a function that hydra.main wraps; what is no bug ends in one line and its exit code.

    HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    have_hydra_raise()
    sys.argv[1:] = map(readable, sys.argv[1:])
    with one_line_errors():
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as train.py has it while it imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
        check_aliases(sys.argv[1:])
        refuse_targets(sys.argv[1:])
        try:
            main()
        except (HydraException, OmegaConfBaseException, ValueError, YAMLError, RuntimeError) as error:
            if tracebacks_wanted() or _was_raised_in_a_job(error):
                raise
            if isinstance(error, RuntimeError) and not _is_about_a_plugin(error):
                raise
            fail(explain(error), ConfigError.exit_code)


def refuse_targets(words: Sequence[str]) -> None:
    """Refuse a class that is typed as what Hydra is to call: what runs is chosen by its name.

    Raises:
        ConfigError: an override sets a `_target_`, alone or in a dict.
    """
    for word in words:
        if re.search(r"(^[+~]*|[.{,]\s*)_target_\s*([=:]|$)", word):
            raise ConfigError(
                f"{word}: no override says which code runs. Leave _target_ out; hydra/launcher and hydra/sweeper are "
                "chosen by name."
            )


def _was_raised_in_a_job(error: BaseException) -> bool:
    """Whether Hydra had composed the config and called our function: a ValueError is a bug then, not a bad config."""
    return any(frame.f_code.co_name == "run_job" for frame, _ in walk_tb(error.__traceback__))


def _is_about_a_plugin(error: RuntimeError) -> bool:
    """Whether Hydra itself raised it: a file names a class that is no launcher or sweeper."""
    return [frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)][-1:] == ["_instantiate"]


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
    typed = {key: value for key, _, value in (override.lstrip("+").partition("=") for override in overrides)}
    for computed, sources in COMPUTED.items():
        for source in sources:
            if computed in typed and (value := OmegaConf.select(cfg, source)) is not None:
                raise ConfigError(
                    f"{computed}={typed[computed]} is not used: it is computed from {source}={value}. Set {source}="
                    f"null, or leave {computed} out."
                )


def job_errors() -> AbstractContextManager[None]:
    """One line for what is no bug: said here in a single run, and by the sweeper at a sweep's end."""
    return nullcontext() if is_sweep() else one_line_errors()


def is_sweep() -> bool:
    """Whether this process runs one job of a multirun after the other."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def job_overrides() -> list[str]:
    """The overrides of the job that runs here, those of its place in a sweep included, for another process."""
    return [str(override) for override in HydraConfig.get().overrides.task] + searchpath()
