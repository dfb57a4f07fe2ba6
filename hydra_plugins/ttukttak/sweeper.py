"""A sweep's overrides -> its jobs, every one checked before the first one runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from hydra_plugins.ttukttak.launcher import CheckedLauncher
from llm.config.compose import from_hydra, searchpath
from llm.config.ladder import ladder_overrides
from llm.config.overrides import readable
from llm.config.stages import Reuse, StageConfig
from llm.config.sweeping import SweeperConfig, with_number
from llm.environment import agents_sweep, tracebacks_wanted
from llm.errors import PARTIAL_EXIT_CODE, ConfigError, UserError, say_error
from llm.sweep.space import Dimension


@dataclass(kw_only=True)
class SweeperNode(SweeperConfig):
    """The settings, as Hydra finds the class that takes them."""

    _target_: str = "hydra_plugins.ttukttak.sweeper.CheckedSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="checked", node=SweeperNode, provider="ttukttak")


class CheckedSweeper(Sweeper):
    """Hydra's basic sweeper, which checks what the schema cannot say too, and leaves no multirun.yaml."""

    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, **settings: Any) -> None:
        self.settings: SweeperConfig = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(SweeperConfig), settings)
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.config = config
        HydraConfig.instance().set_config(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        overrides = self._overrides(arguments)
        if self.settings.trials is not None:
            return self._search(overrides)
        jobs = grid(overrides)
        configs = [self._check(number, job) for number, job in enumerate(jobs)]
        if any(config.dry_run for config in configs):
            show_dry_run(configs, jobs)
            return []
        returns = self._launch(jobs, configs)
        show_ranking(configs, returns, has_ledger=isinstance(self.launcher, CheckedLauncher))
        report_failures(jobs, returns)
        return returns

    def _overrides(self, arguments: list[str]) -> list[Override]:
        """What is recorded in a YAML file and what is typed, which counts more."""
        if agents_sweep():
            raise ConfigError(
                "a trial of wandb agent is one run, and this is a multirun. Take -m (or sweep=...) out of the sweep's "
                "command."
            )
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides(arguments)
        recorded = parser.parse_overrides([readable(f"{key}={value}") for key, value in self.settings.params.items()])
        self.settings.check()
        overrides = [*without(recorded, given), *given]
        require_each_once(overrides)
        return overrides

    def _launch(self, jobs: list[list[str]], configs: list[StageConfig]) -> Sequence[JobReturn]:
        complete = [[*job, *added] for job, added in zip(jobs, ladder_overrides(configs), strict=True)]
        if not isinstance(self.launcher, CheckedLauncher):
            return self.launcher.launch(complete, initial_job_idx=0)
        numbered = [[*with_number(job, number), *searchpath()] for number, job in enumerate(complete)]
        return self.launcher.launch_checked(numbered, configs)

    def _search(self, overrides: list[Override]) -> list[JobReturn]:
        if not isinstance(self.launcher, CheckedLauncher):
            raise ConfigError("a search needs hydra/launcher=pool or slurm. Leave the launcher out.")
        from llm.sweep.search import run_search  # imports what composing does not need

        swept = [each for each in overrides if each.is_sweep_override()]
        if self.settings.seeds > 1 and any(each.key_or_group == "seed" for each in overrides):
            raise ConfigError("seed is given, and hydra.sweeper.seeds sets it too. Leave one of them out.")
        run_search(
            self.settings,
            self.launcher.settings,
            space=[dimension(each) for each in swept],
            fixed=[each.input_line for each in overrides if not each.is_sweep_override()] + searchpath(),
            compose=lambda job, number: self._check(number, job),
            choice=self.config.hydra.runtime.choices.get("sweep"),
        )
        return []

    def _check(self, number: int, job: list[str]) -> StageConfig:
        config: Any = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)  # for a name that holds ${hydra:job.num}
        with open_dict(config):
            del config["hydra"]
        checked: StageConfig = from_hydra(config)
        return checked


def grid(overrides: list[Override]) -> list[list[str]]:
    """The jobs of every combination, as text.

    Raises:
        ConfigError: one of the overrides has no end of values.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if endless := [each for each in overrides if each.is_interval_sweep()]:
        raise ConfigError(f"{endless[0].input_line} has no end of values. Set hydra.sweeper.trials, or list some.")
    [jobs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    return [list(job) for job in jobs]


def without(recorded: list[Override], given: list[Override]) -> list[Override]:
    """A sweep's recorded overrides but for those whose keys are given anew."""
    keys = {each.get_key_element() for each in given}
    return [each for each in recorded if each.get_key_element() not in keys]


def require_each_once(overrides: list[Override]) -> None:
    """Refuse a key that is swept and given again: the later one would win in every job.

    Raises:
        ConfigError: there is one.
    """
    keys = [each.get_key_element() for each in overrides]
    for each in overrides:
        if each.is_sweep_override() and keys.count(each.get_key_element()) > 1:
            raise ConfigError(f"{each.get_key_element()} is swept, and given a second time. Give it once.")


def dimension(override: Override) -> Dimension:
    """A swept override as plain data."""
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return Dimension(key=key, low=value.start, high=value.end, log="log" in value.tags)
    return Dimension(key=key, choices=tuple(map(str, override.sweep_iterator(transformer=Transformer.encode))))


def show_ranking(configs: Sequence[StageConfig], returns: Sequence[JobReturn], *, has_ledger: bool) -> None:
    """Print how the runs of a sweep compare that are done, if all are of one stage."""
    done = [config for config, returned in zip(configs, returns, strict=True) if returned.status is JobStatus.COMPLETED]
    if len(configs) < 2 or len({config.stage for config in configs}) > 1 or not done:
        return
    from llm.compare.entries import Entry, read_sweep  # imports what composing does not need
    from llm.compare.show import print_ranked
    from llm.sweep.finding import Finder

    if has_ledger:
        print_ranked(read_sweep(Path(returns[0].working_dir).parents[1]))
    else:
        finder = Finder()
        print_ranked([Entry(finder.find(replace(config, reuse=Reuse.require))) for config in done])


def show_dry_run(configs: Sequence[StageConfig], jobs: Sequence[Sequence[str]]) -> None:
    """Print what the jobs would take.

    Raises:
        ConfigError: only some of them are dry.
    """
    if not all(config.dry_run for config in configs):
        raise ConfigError("dry_run is true for some jobs of the sweep only. Set dry_run=true for all of them.")
    from llm.dry_run.table import show  # imports what composing does not need

    show(configs, [swept_of(job, jobs) for job in jobs])


def swept_of(job: Sequence[str], jobs: Sequence[Sequence[str]]) -> str:
    """The overrides of a job that the others do not share."""
    return " ".join(override for override in job if any(override not in other for other in jobs))


def report_failures(jobs: Sequence[Sequence[str]], returns: Sequence[JobReturn]) -> None:
    """Say one line for each failed job; end with 3 if others are done, else as the first, or with a bug's traceback."""
    failures = [
        (job, returned._return_value)
        for job, returned in zip(jobs, returns, strict=True)
        if returned.status is JobStatus.FAILED
    ]
    for job, error in failures:
        if not isinstance(error, UserError | OSError) or tracebacks_wanted():
            raise error
        say_error(f"{swept_of(job, jobs)}: {error}")
    if failures:
        raise SystemExit(PARTIAL_EXIT_CODE if len(failures) < len(jobs) else getattr(failures[0][1], "exit_code", 1))
