"""A sweep's overrides -> its jobs, every one checked before the first one runs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
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
from llm.config.overrides import readable
from llm.config.stages import Reuse, StageConfig
from llm.config.sweeping import SweeperConfig, ladder_overrides, trial_overrides
from llm.environment import agents_sweep, tracebacks_wanted
from llm.errors import PARTIAL_EXIT_CODE, ConfigError, LaunchError, UserError, say_error

if TYPE_CHECKING:
    from llm.sweep.jobs import Job as SweepJob
    from llm.sweep.search import Space
    from llm.sweep.tuning import Arm, Choices, Trial


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
        self.choice = config.hydra.runtime.choices.get("sweep")
        HydraConfig.instance().set_config(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        overrides = self._overrides(arguments)
        if self.settings.trials is not None:
            self._search(overrides)
            return []
        if endless := [each for each in overrides if each.is_interval_sweep()]:
            raise ConfigError(f"{endless[0].input_line} has no end of values. Set hydra.sweeper.trials, or list some.")
        [jobs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
        configs = [self._check(number, job) for number, job in enumerate(jobs)]
        choices = self._choices(jobs, typed={each.get_key_element() for each in overrides})
        if any(config.dry_run for config in configs):
            trials, tried = self._trials(jobs, configs, choices, share=self.settings.tuning.rungs[0])
            show_dry_run([*tried, *configs], [*(trial.overrides for trial in trials), *jobs])
            return []
        lost: list[tuple[list[str], Exception]] = []
        if choices:
            from llm.sweep.tuning import arm_of  # imports what composing does not need

            choices, unfit = self._tuned(jobs, configs, choices)
            lost = [(job, unfit[arm_of(job)]) for job in jobs if arm_of(job) in unfit]
            jobs = [[*job, *choices[arm_of(job)][0]] for job in jobs if arm_of(job) in choices]
            configs = [self._check(number, job) for number, job in enumerate(jobs)]
        errors = self._errors(jobs, configs) if jobs else []
        report_failures([*jobs, *(job for job, _ in lost)], [*errors, *(error for _, error in lost)])
        return []

    def _choices(self, jobs: list[list[str]], *, typed: set[str]) -> "Choices":
        """The values that trials choose from, but for keys that have theirs already."""
        params = self.settings.tuning.params
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        values = parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in typed])
        if not values:
            return {}
        if not isinstance(self.launcher, CheckedLauncher):
            raise ConfigError("hydra.sweeper.tuning needs hydra/launcher=pool or slurm. Leave the launcher out.")
        from llm.sweep.tuning import arm_of  # imports what composing does not need

        [choices] = BasicSweeper.split_arguments(values, max_batch_size=None)
        return {arm_of(job): choices for job in jobs}

    def _trials(
        self, jobs: list[list[str]], configs: list[StageConfig], choices: "Choices", *, share: float
    ) -> tuple[list["Trial"], list[StageConfig]]:
        """The trials of so much of the jobs' budget, and their configs."""
        if not choices:
            return [], []
        from llm.sweep.tuning import arm_of, trials_of  # imports what composing does not need

        tuning = self.settings.tuning
        shortened = {
            arm_of(job): trial_overrides(config, tuning, share=share) for job, config in zip(jobs, configs, strict=True)
        }
        trials = trials_of(choices, shortened)
        return trials, [self._check(number, trial.overrides) for number, trial in enumerate(trials)]

    def _tuned(
        self, jobs: list[list[str]], configs: list[StageConfig], choices: "Choices"
    ) -> tuple["Choices", dict["Arm", LaunchError]]:
        """(the best values for each arm, why the others have none)."""
        from llm.sweep.tuning import best_choices  # imports what composing does not need

        lost: dict[Arm, LaunchError] = {}
        for share in (rungs := self.settings.tuning.rungs):
            trials, tried = self._trials(jobs, configs, choices, share=share)
            launched = self._launch([trial.overrides for trial in trials], tried, suffix="_tuning")
            choices, unfit = best_choices(trials, launched, is_last=share == rungs[-1])
            lost |= unfit
        return choices, lost

    def _overrides(self, arguments: list[str]) -> list[Override]:
        """What is recorded in a YAML file, but for the keys that are given anew, and what is typed."""
        if agents_sweep():
            raise ConfigError(
                "a trial of wandb agent is one run, and this is a multirun. Take -m (or sweep=...) out of the sweep's "
                "command."
            )
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides(arguments)
        recorded = parser.parse_overrides([readable(f"{key}={value}") for key, value in self.settings.params.items()])
        self.settings.check()
        keys = [each.get_key_element() for each in given]
        for each in given:  # the later one would win in every job
            if each.is_sweep_override() and keys.count(each.get_key_element()) > 1:
                raise ConfigError(f"{each.get_key_element()} is swept, and given a second time. Give it once.")
        return [*(each for each in recorded if each.get_key_element() not in keys), *given]

    def _launch(self, jobs: list[list[str]], configs: list[StageConfig], *, suffix: str = "") -> list["SweepJob"]:
        """Have the jobs carried out by our own launcher, and print how their runs compare unless they are trials."""
        from llm.sweep.driver import run_grid  # imports what composing does not need

        assert isinstance(self.launcher, CheckedLauncher)
        numbered = [[*with_number(job, number), *searchpath()] for number, job in enumerate(_complete(jobs, configs))]
        choice = f"{self.choice or configs[0].stage}{suffix}" if suffix else self.choice
        return run_grid(numbered, configs, settings=self.launcher.settings, choice=choice, prints=not suffix)

    def _errors(self, jobs: list[list[str]], configs: list[StageConfig]) -> list[Exception | None]:
        """Have the jobs carried out, and print how their runs compare; why each has none."""
        from llm.sweep.driver import error_of, quiet  # imports what composing does not need

        if isinstance(self.launcher, CheckedLauncher):
            return [error_of(job) for job in self._launch(jobs, configs)]
        from llm.compare.entries import Entry
        from llm.compare.show import print_ranked
        from llm.stage import find_step, step_of

        failed = [
            returned._return_value if returned.status is JobStatus.FAILED else None
            for returned in self.launcher.launch(_complete(jobs, configs), initial_job_idx=0)
        ]
        done = [config for config, error in zip(configs, failed, strict=True) if error is None]
        if len(configs) > 1 and len({config.stage for config in configs}) == 1 and done:
            with quiet():  # each has been said to be reused, or made
                runs = [find_step(step_of(replace(config, reuse=Reuse.require))) for config in done]
            print_ranked(list(map(Entry, runs)))
        return failed

    def _search(self, overrides: list[Override]) -> None:
        if not isinstance(self.launcher, CheckedLauncher):
            raise ConfigError("a search needs hydra/launcher=pool or slurm. Leave the launcher out.")
        from llm.sweep.driver import run_search  # imports what composing does not need

        run_search(
            self.settings,
            self.launcher.settings,
            space=space_of([each for each in overrides if each.is_sweep_override()]),
            fixed=[each.input_line for each in overrides if not each.is_sweep_override()] + searchpath(),
            compose=lambda job, number: self._check(number, job),
            choice=self.choice,
        )

    def _check(self, number: int, job: Sequence[str]) -> StageConfig:
        config: Any = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)  # for a name that holds ${hydra:job.num}
        with open_dict(config):
            del config["hydra"]
        checked: StageConfig = from_hydra(config)
        return checked


def _complete(jobs: Sequence[list[str]], configs: Sequence[StageConfig]) -> list[list[str]]:
    """The overrides of jobs, with what their tokenizers are cut from."""
    return [[*job, *added] for job, added in zip(jobs, ladder_overrides(configs), strict=True)]


def space_of(overrides: Sequence[Override]) -> "Space":
    """What a search may choose from, of the overrides that are swept.

    Raises:
        ConfigError: an interval that is none, in Optuna's words.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, Any] = {}
    for override in overrides:
        key, value = override.get_key_element(), override.value()
        if not isinstance(value, IntervalSweep):
            space[key] = CategoricalDistribution([*map(str, override.sweep_iterator(Transformer.encode))])
            continue
        is_whole = isinstance(value.start, int) and isinstance(value.end, int)
        interval: Any = IntDistribution if is_whole else FloatDistribution
        try:
            space[key] = interval(value.start, value.end, log="log" in value.tags)
        except ValueError as error:
            raise ConfigError(f"{override.input_line} is no interval: {error}") from None
    return space


def with_number(overrides: Sequence[str], number: int) -> list[str]:
    """Overrides in which ${hydra:job.num} and ${hydra:job.id} are the job's number, which a run alone does not have.

    Hydra gives what was typed with its own escapes.
    """
    return [re.sub(r"\$\\?\{hydra\\?:job\.(num|id)\\?\}", str(number), override) for override in overrides]


def show_dry_run(configs: Sequence[StageConfig], jobs: Sequence[Sequence[str]]) -> None:
    """Print what the jobs would take.

    Raises:
        ConfigError: only some of them are dry.
    """
    if not all(config.dry_run for config in configs):
        raise ConfigError("dry_run is true for some jobs of the sweep only. Set dry_run=true for all of them.")
    from llm.dry_run.table import show  # imports what composing does not need
    from llm.sweep.jobs import varying

    show(configs, [" ".join(own) for own in varying(jobs)])


def report_failures(jobs: Sequence[Sequence[str]], errors: Sequence[Exception | None]) -> None:
    """Say one line for each failed job; end with 3 if others are done, else as the first, or with a bug's traceback."""
    from llm.sweep.jobs import varying

    failures = [(" ".join(own), error) for own, error in zip(varying(jobs), errors, strict=True) if error]
    for own, error in failures:
        if not isinstance(error, UserError | OSError) or tracebacks_wanted():
            raise error
        say_error(f"{own}: {error}")
    if failures:
        raise SystemExit(PARTIAL_EXIT_CODE if len(failures) < len(jobs) else getattr(failures[0][1], "exit_code", 1))
