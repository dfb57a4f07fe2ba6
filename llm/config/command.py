"""The command line of train.py -> the job or the jobs that it asks for, composed by Hydra and checked."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from traceback import walk_tb
from typing import Any

import hydra
from hydra._internal import utils as hydra_utils
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from llm.config.compose import CONF, from_hydra, searchpath
from llm.config.overrides import explain, readable
from llm.errors import ConfigError


@dataclass(frozen=True)
class Job:
    """One run that is asked for."""

    config: Any  # of the schema of its stage
    overrides: list[str]  # by which another process composes the same config
    is_alone: bool  # whether it is all that this process is to do: no job of a multirun


def run_command(run: Callable[[Job], float | None]) -> None:
    """Do what the command line says: run one job, sweep several, or show help, a config or completions.

    Raises:
        ConfigError: Hydra cannot compose what is asked for.
        Exception: what `run` raised of a job by itself; of a multirun's the sweeper's report.
    """
    raised: list[Exception] = []

    def task(cfg: DictConfig) -> float | None:
        is_alone = HydraConfig.get().mode is RunMode.RUN
        try:
            config = from_hydra(cfg)
            return run(Job(config, [*map(str, HydraConfig.get().overrides.task), *searchpath()], is_alone))
        except Exception as error:
            if not is_alone:
                raise
            raised.append(error)  # Hydra would add lines of its own
            return None

    words = sorted(
        sys.argv[1:], key=lambda word: word not in ("-m", "--multirun")
    )  # argparse takes none between others
    sys.argv[1:] = map(readable, words)
    hydra_utils.run_and_report = lambda func: func()  # as it is, it prints what is raised and exits with 1
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, RuntimeError) as error:
        if not _is_of_hydra(error):
            raise
        raise ConfigError(explain(error)) from error
    if raised:
        raise raised[0]


def _is_of_hydra(error: BaseException) -> bool:
    """Whether Hydra or what it reads YAML with raised it; a ValueError of our own is a bug, or says itself what is."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).split(".")[0] in ("hydra", "omegaconf", "yaml")
