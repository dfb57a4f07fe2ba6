"""A space and a number of trials -> points to run, chosen by Optuna; killed at any moment, the same command goes on.

Optuna's journal keeps the trials, the jobs' files the jobs. A trial that nobody is at any more is taken up with the
number of its point, so that its jobs find their folders and go on from their checkpoints; so does one that failed, at
a later start.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import product
from math import inf, isfinite
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from llm.config.stages import StageConfig
from llm.config.sweeping import SWEEPER, Direction, Sampler, SweeperConfig
from llm.credentials import secret_in
from llm.errors import ConfigError, LaunchError, UserError
from llm.run.announcing import JOB
from llm.run.console import log
from llm.run.files import digest_of, write_json
from llm.run.metrics import Record, history
from llm.run.owner import is_owned
from llm.run.runs import Run
from llm.stage import stage_named
from llm.sweep.jobs import Job

FIRST_TRIAL = "first_trial"  # of the same point, where a trial goes on with it
CURVE = re.compile(r"val/(loss|bits_per_byte)(/.+)?")  # what a training measures as it goes

Space = Mapping[str, BaseDistribution]  # swept key -> what it may be: an interval, or choices as they are typed
Compose = Callable[[list[str], int], StageConfig]  # overrides and a job's number -> its checked config


class Search:
    """Chooses points as there is room for them, and tells Optuna what came of them."""

    def __init__(
        self, settings: SweeperConfig, *, space: Space, fixed: list[str], compose: Compose, folder: Path
    ) -> None:
        self._settings, self._space, self._fixed, self._compose = settings, space, fixed, compose
        self._folder = folder
        self.study = open_study(settings, space, folder)
        self._choosing = FileLock(folder / "choosing.lock")  # who holds it chooses a point: no other driver is at that
        self._mine: dict[int, optuna.Trial] = {}  # by the number of the point, which is that of its job
        self._has_begun = False

    def more(self) -> list[Job]:
        """The jobs of trials that nobody is at any more; where there are none, that of a new one."""
        with self._choosing:
            if not self._has_begun:
                self._has_begun = True
                self._reopen_failed()
            left = self._take_up_left()
            while not left and self._wants_more():
                asked = self.study.ask()
                choose(asked, self._settings, self._space)
                left = self._take_up(asked)
            return left

    def is_over(self) -> bool:
        """Whether all points are tried; those under way may be of other drivers, or of dead ones, and are taken up."""
        under_way = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return not self._mine and not self._wants_more() and not under_way

    def keeps(self, job: Job, *, is_taken: bool) -> bool:
        """Whether a job's trial goes on, and is this driver's: one that another driver is at is not."""
        if job.number in self._mine and (is_taken or points(self.study)[job.number].state is not TrialState.RUNNING):
            del self._mine[job.number]
        return job.number in self._mine

    def is_outdone(self, job: Job, records: list[Record]) -> bool:
        """Tell Optuna what a training has measured; whether its halving stops it."""
        trial, name = self._mine.get(job.number), self._settings.objectives[0]
        if trial is None or self._settings.halving.first_step is None:
            return False
        max_steps = getattr(getattr(job.config, "trainer", None), "max_steps", inf)
        for step, value in history(records, name):
            told = points(self.study)[job.number].intermediate_values
            if not max(told, default=0) < step < max_steps:  # an earlier start of the run was here before
                continue
            trial.report(value, step)
            if trial.should_prune():
                self._tell(job, state=TrialState.PRUNED)
                log.info("%s: stopped at step %d, with %s %.4f", job.label, step, name, value)
                return True
        return False

    def settled(self, job: Job) -> None:
        """Tell Optuna what a trial came to; one that stopped with this driver a later start takes up."""
        if job.number not in self._mine or job.state not in ("done", "failed"):
            return
        try:
            values = [result(job.run, name) for name in self._settings.objectives] if job.run else None
        except ConfigError as error:
            log.warning("%s: %s", job.label, error)
            values = None
        if values is None:
            self._tell(job, state=TrialState.FAIL)
            return
        self._tell(job, values=values)
        said = [f"{name} {value:.4f}" for name, value in zip(self._settings.objectives, values, strict=True)]
        log.info("%s: %s", job.label, ", ".join(said))

    def _tell(self, job: Job, **outcome: Any) -> None:
        """Another driver may have told it, for it had taken up the trial, too."""
        self.study.tell(self._mine.pop(job.number), **outcome, skip_if_finished=True)

    def to_come(self) -> int:
        """The jobs that nobody has chosen yet."""
        return max(0, self._num_trials() - self._num_begun())

    def best(self) -> str | None:
        """The best result so far by the first objective, and its point."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not done:
            return None
        choose_best = min if self._settings.directions[0] is Direction.minimize else max
        trial = choose_best(done, key=lambda trial: trial.values[0])
        return f"{self._settings.objectives[0]} {trial.values[0]:.4f}: {as_label(trial.params)}"

    def best_trials(self) -> list[FrozenTrial]:
        """The trials that no other beats in every objective; with one objective, those of the best value.

        Raises:
            LaunchError: none came to its end.
        """
        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            raise LaunchError("no trial came to its end; the log of each says why.", exit_code=1)
        return self.study.best_trials

    def _wants_more(self) -> bool:
        return self._num_begun() < self._num_trials()

    def _num_begun(self) -> int:
        return sum(trial.state is not TrialState.WAITING for trial in points(self.study).values())

    def _num_trials(self) -> int:
        trials = self._settings.trials or 0
        is_grid = self._settings.sampler is Sampler.grid
        return min(trials, len(points_of_grid(self._space))) if is_grid else trials

    def _take_up_left(self) -> list[Job]:
        """The jobs of those trials that are under way, and that nobody is at."""
        jobs = []
        for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if point_of(left) in self._mine or is_owned(self._job_folder(point_of(left))):
                continue
            again = optuna.Trial(self.study, left._trial_id)
            if len(left.params) < len(self._space):  # its driver was killed as it chose
                choose(again, self._settings, self._space)
            jobs += self._take_up(again)
        return jobs

    def _reopen_failed(self) -> None:
        """Have what failed at an earlier start tried again, unless its values cannot go together.

        To Optuna a trial's end is final, and what its sampler learns from: one that goes on is a further trial.
        """
        for point, failed in points(self.study).items():
            if failed.state is TrialState.FAIL and (self._job_folder(point) / JOB).exists():
                self.study.add_trial(further_trial(failed))

    def _take_up(self, asked: optuna.Trial) -> list[Job]:
        """The job of a trial; none where its values cannot go together, though each can be: it has failed."""
        point, own = point_of(asked), as_overrides(asked.params)
        overrides, label = own + self._fixed, f"trial {point}: {as_label(asked.params)}"
        try:
            config = self._compose(overrides, point)
        except UserError as error:
            log.warning("%s: %s", label, error)
            self.study.tell(asked, state=TrialState.FAIL)
            return []
        self._mine[point] = asked
        folder = self._job_folder(point)
        folder.mkdir(parents=True, exist_ok=True)
        return [Job(number=point, overrides=overrides, config=config, label=label, folder=folder, varying=own)]

    def _job_folder(self, point: int) -> Path:
        return self._folder / "jobs" / f"{point:04d}"


# Optuna's study


def open_study(settings: SweeperConfig, space: Space, folder: Path) -> optuna.Study:
    """The study in a sweep's folder, made if there is none."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says of itself, we say ourselves
    folder.mkdir(parents=True, exist_ok=True)
    halving = settings.halving
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        directions=[StudyDirection[each.name.upper()] for each in settings.directions],
        pruner=SuccessiveHalvingPruner(halving.first_step or 1, reduction_factor=halving.factor),
        load_if_exists=True,
    )
    write_json(
        folder / "search.json",
        {"objectives": settings.objectives, "directions": [each.value for each in settings.directions]},
    )
    if settings.sampler is Sampler.grid:
        for point in points_of_grid(space):
            study.enqueue_trial(point, skip_if_exists=True)
    return study


def point_of(trial: FrozenTrial | optuna.Trial) -> int:
    """The number of a trial's point, by which people and folders know it: that of the first trial of it."""
    return int(trial.user_attrs.get(FIRST_TRIAL, trial.number))


def points(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The newest trial of each point."""
    return {point_of(trial): trial for trial in study.get_trials(deepcopy=False)}


def further_trial(trial: FrozenTrial) -> FrozenTrial:
    """A further trial of the same point, under way, with what the point has measured."""
    return create_trial(
        state=TrialState.RUNNING,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        user_attrs={FIRST_TRIAL: point_of(trial)},
        system_attrs=trial.system_attrs,  # the rungs that it has passed
    )


def choose(trial: optuna.Trial, settings: SweeperConfig, space: Space) -> None:
    """Have a trial choose its values, by chance that its number alone decides.

    A sampler with one seed for all begins its draws anew at each start, and would give points a second time.
    """
    seed = int(digest_of([settings.sampler_seed, trial.number])[:8], 16)
    is_tpe = settings.sampler is Sampler.tpe
    trial.study.sampler = TPESampler(seed=seed, constant_liar=True) if is_tpe else RandomSampler(seed=seed)
    for key, distribution in space.items():
        trial._suggest(key, distribution)  # study.ask, which takes distributions, begins another trial


def key_of_search(settings: SweeperConfig, space: Space, fixed: list[str]) -> str:
    """What makes two searches one: all but how many trials they may have."""
    shown = [settings.objectives, [each.value for each in settings.directions], settings.sampler.value]
    how = [settings.sampler_seed, settings.halving.first_step, settings.halving.factor]
    return digest_of([shown, how, [f"{key}={of}" for key, of in space.items()], sorted(fixed)])[:8]


def result(run: Run, name: str) -> float:
    """One of a run's results as a number.

    Raises:
        ConfigError: the run does not have it, or it is not finite.
    """
    value: Any = run.results.get(name)
    if not isinstance(value, int | float) or not isfinite(value):
        known = ", ".join(key for key, each in run.results.items() if isinstance(each, int | float))
        raise ConfigError(f"{SWEEPER}.objectives={name} of {run.path} is {value}. It has {known}.")
    return float(value)


# The space


def check_space(settings: SweeperConfig, space: Space, fixed: list[str], compose: Compose) -> StageConfig:
    """The config at the first value of each key; every other value is tried too, with the first of the rest.

    Raises:
        ConfigError: one cannot be, nothing is swept, or a grid has no end.
    """
    if not space:
        raise ConfigError(f"{SWEEPER}.trials is set, but no key is swept. Give one: key=interval(1e-4,1e-2).")
    if settings.sampler is Sampler.grid:
        points_of_grid(space)
    for key, distribution in space.items():
        if held := next(filter(None, map(secret_in, map(str, _probes(distribution)))), None):
            raise ConfigError(f"{key} holds {held}, and a search writes its choices down as they are.")
    first = {key: _probes(distribution)[0] for key, distribution in space.items()}
    config = compose(as_overrides(first) + fixed, 0)
    for key, distribution in space.items():
        for value in _probes(distribution)[1:]:
            compose(as_overrides(first | {key: value}) + fixed, 0)
    return config


def _probes(distribution: Any) -> Sequence[Any]:
    """Values that a check tries: the ends of an interval, or every choice."""
    is_choice = isinstance(distribution, CategoricalDistribution)
    return distribution.choices if is_choice else (distribution.low, distribution.high)


def check_objectives(settings: SweeperConfig, config: StageConfig) -> None:
    """Refuse what a search cannot go by.

    Raises:
        ConfigError: an objective that the stage's runs do not have, or that halving cannot see as they go.
    """
    known = stage_named(config.stage).result_names(config)
    for name in settings.objectives:
        said = f"{SWEEPER}.objectives={name}"
        if not any(fnmatchcase(name, each) for each in known):
            close = get_close_matches(name, known, n=1, cutoff=0.5)
            help_ = f"Did you mean {close[0]}?" if close else f"It has {', '.join(known)}."
            raise ConfigError(f"{said} is no result of stage={config.stage}. {help_}")
        if settings.halving.first_step is not None and not (hasattr(config, "trainer") and CURVE.fullmatch(name)):
            raise ConfigError(
                f"{said} is not measured as a run goes, which {SWEEPER}.halving goes by. Choose val/loss or "
                f"val/bits_per_byte of a training, or set {SWEEPER}.halving.first_step=null."
            )


def points_of_grid(space: Space) -> list[dict[str, Any]]:
    """Every combination.

    Raises:
        ConfigError: an interval has no end of them.
    """
    if endless := [key for key, of in space.items() if not isinstance(of, CategoricalDistribution)]:
        raise ConfigError(f"{SWEEPER}.sampler=grid cannot try all of {endless[0]}. List its values, or choose tpe.")
    return [dict(zip(space, values, strict=True)) for values in product(*map(_probes, space.values()))]


def as_overrides(point: Mapping[str, Any]) -> list[str]:
    """A point as it is typed."""
    return [f"{key}={value}" for key, value in point.items()]


def as_label(point: Mapping[str, Any]) -> str:
    """A point for people: its numbers with four digits."""
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in point.items()}
    return " ".join(as_overrides(shown))
