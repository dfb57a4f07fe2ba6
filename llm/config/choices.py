"""The choices of conf/data as Hydra reads them: those of conf/, of --config-dir and of hydra.searchpath alike."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llm.config.aliases import CONF
from llm.config.data import DataConfig
from llm.config.explain import explain
from llm.config.overrides import as_value
from llm.errors import ConfigError


@contextmanager
def composing() -> Iterator[None]:
    """Let Hydra compose, the one that is at it here or else one over conf/.

    Raises:
        ConfigError: something cannot be composed.
    """
    try:
        if GlobalHydra.instance().is_initialized():
            yield
        else:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def data_choices() -> list[str]:
    """The names of all choices of data."""
    with composing():
        loader = GlobalHydra.instance().config_loader()
        return list(loader.get_group_options("data", config_name="config", overrides=searchpath()))


def data_settings(choices: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the YAML file of each choice says, and those that it is built on; nothing of the schema.

    Raises:
        ConfigError: one cannot be read.
    """
    with composing():
        config = compose("config", ["~stage", *(f"+data@{each}={each}" for each in choices), *searchpath()])
        return {each: dict(OmegaConf.to_container(config[each])) for each in choices}  # type: ignore[arg-type]


def data_presets() -> dict[str, DataConfig]:
    """Every choice of data that reads files, by its name, with an empty path."""
    settings = data_settings(data_choices())
    return {name: preset(each) for name, each in settings.items() if "source" not in each}


def preset(settings: dict[str, Any], *, path: str = "") -> DataConfig:
    """The config of what the YAML file of a choice says.

    Raises:
        ConfigError: the schema does not have it.
    """
    with composing():
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), settings, {"path": path}))
    assert isinstance(made, DataConfig)
    return made


def searchpath() -> list[str]:
    """The override by which another command has Hydra look where the one that runs here has it look."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    typed = [
        f"{each.schema}://{each.path}" for each in sources if re.match(r"hydra\.searchpath|command-line", each.provider)
    ]
    return [f"hydra.searchpath=[{','.join(map(as_value, typed))}]"] if typed else []
