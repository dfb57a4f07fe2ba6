"""A space and a number of trials -> the best of them, by Optuna; killed at any moment, the same command goes on.

Optuna's journal keeps the trials, the jobs' files the jobs. A trial that nobody is at any more is taken up with the
number of its point, so that its jobs find their folders and go on from their checkpoints; so does one that failed, at
a later start.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from llm.compare.show import page_at_end
from llm.config.slurm import SlurmConfig
from llm.config.stages import StageConfig
from llm.config.sweeping import PoolConfig, Sampler, SweeperConfig
from llm.errors import PARTIAL_EXIT_CODE, ConfigError, LaunchError, UserError
from llm.run.console import output_console
from llm.run.metrics import history
from llm.run.owner import is_owned
from llm.sweep.board import Board
from llm.sweep.driver import Driver, opened
from llm.sweep.finding import Finder
from llm.sweep.jobs import Job, NewMetrics, sweep_folder
from llm.sweep.space import Compose, Dimension, as_overrides, check_space, points_of_grid, seed_overrides
from llm.sweep.study import (
    FIRST_TRIAL,
    best_trials,
    check_objectives,
    choose,
    open_study,
    point_of,
    points,
    result,
    search_identity,
    short,
    show_dry_run,
    table,
)


@dataclass
class Trial:
    """A point that this driver has taken up, and its jobs: one for each seed."""

    of_study: optuna.Trial
    jobs: list[Job]
    metrics: NewMetrics = field(default_factory=NewMetrics)

    @property
    def number(self) -> int:
        """That of the point, by which people and folders know it."""
        return point_of(self.of_study)

    @property
    def label(self) -> str:
        return f"trial {self.number}: {' '.join(as_overrides(short(self.of_study.params)))}"


class Search:
    """Chooses points as there is room for them, and tells Optuna what came of them."""

    def __init__(
        self,
        settings: SweeperConfig,
        *,
        space: Sequence[Dimension],
        fixed: list[str],
        compose: Compose,
        folder: Path,
        max_attempts: int,
        board: Board,
    ) -> None:
        self._settings, self._space, self._fixed, self._compose = settings, space, fixed, compose
        self._folder, self._max_attempts, self._board = folder, max_attempts, board
        self.study = open_study(settings, space, fixed, folder)
        self._choosing = FileLock(folder / "choosing.lock")  # who holds it chooses a point: no other driver is at that
        self._mine: dict[int, Trial] = {}  # by the number of the point
        self._has_begun = False

    def more(self) -> list[Job]:
        """The jobs of the next point: at first of those that an earlier start has left, then of a new one."""
        with self._choosing:
            if not self._has_begun:
                self._has_begun = True
                self._reopen_failed()
                if left := self._take_up_left():
                    return left
            while self._wants_more():
                asked = self.study.ask()
                choose(self.study, asked, self._settings, self._space)
                if trial := self._trial_or_none(asked):
                    self._mine[trial.number] = trial
                    return trial.jobs
            return self._take_up_left()

    def is_over(self) -> bool:
        """Whether all points are tried; those under way may be of other drivers, or of dead ones, and are taken up."""
        under_way = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return not self._mine and not self._wants_more() and not under_way

    def keeps(self, job: Job, *, is_taken: bool) -> bool:
        """Whether its trial goes on, and is this driver's: one of which another driver has begun a job is not."""
        trial = self._mine.get(job.number // self._settings.seeds)
        if trial is None:
            return False
        is_left = is_taken and all(each.state == "waiting" for each in trial.jobs)
        if is_left or points(self.study)[trial.number].state is not TrialState.RUNNING:
            del self._mine[trial.number]
            return False
        return True

    def outdone(self) -> list[Job]:
        """Tell Optuna what the trainings have measured, and give those that its halving stops."""
        if self._settings.halving.first_step is None:
            return []
        return [trial.jobs[0] for trial in [*self._mine.values()] if self._is_outdone(trial)]

    def _is_outdone(self, trial: Trial) -> bool:
        [job] = trial.jobs
        name, max_steps = self._settings.objectives[0], max_steps_of(job.config)
        records = trial.metrics.read(job.announced_folder()) if job.state == "running" else []
        for step, value in history(records, name):
            told = points(self.study)[trial.number].intermediate_values
            if not max(told, default=0) < step < max_steps:  # an earlier start of the run was here before
                continue
            trial.of_study.report(value, step)
            if trial.of_study.should_prune():
                self._tell(trial, state=TrialState.PRUNED)
                self._board.say(f"{job.label}: stopped at step {step}, with {name} {value:.4f}")
                return True
        return False

    def settled(self, job: Job) -> str | None:
        """Tell Optuna what a trial came to, once all of its jobs have come to their ends."""
        trial = self._mine.get(job.number // self._settings.seeds)
        if trial is None or any(each.state in ("waiting", "queued", "running") for each in trial.jobs):
            return None
        states = {each.state for each in trial.jobs}
        if "failed" in states:
            self._tell(trial, state=TrialState.FAIL)
        elif states == {"done"}:
            return self._tell_values(trial)
        return None  # stopped with this driver: a later start takes it up

    def _tell_values(self, trial: Trial) -> str | None:
        try:
            runs = [job.run for job in trial.jobs if job.run]
            values = [fmean(result(run, name) for run in runs) for name in self._settings.objectives]
        except ConfigError as error:
            self._tell(trial, state=TrialState.FAIL)
            return f"{trial.label}: {error}"
        self._tell(trial, values=values)
        said = ", ".join(f"{name} {value:.4f}" for name, value in zip(self._settings.objectives, values, strict=True))
        self._board.say(f"{trial.label}: {said}")
        return None

    def _tell(self, trial: Trial, **outcome: Any) -> None:
        """Another driver may have told it, for it had taken up the trial, too."""
        del self._mine[trial.number]
        self.study.tell(trial.of_study, **outcome, skip_if_finished=True)

    def to_come(self) -> int:
        return max(0, self._num_trials - self._num_begun()) * self._settings.seeds

    def best(self) -> str | None:
        """By the first objective."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not done:
            return None
        choose_best = min if self._settings.directions[0] == "minimize" else max
        trial = choose_best(done, key=lambda trial: trial.values[0])
        return f"{self._settings.objectives[0]} {trial.values[0]:.4f}: {' '.join(as_overrides(short(trial.params)))}"

    def _wants_more(self) -> bool:
        return self._num_begun() < self._num_trials

    def _num_begun(self) -> int:
        return sum(trial.state is not TrialState.WAITING for trial in points(self.study).values())

    @property
    def _num_trials(self) -> int:
        assert self._settings.trials is not None
        if self._settings.sampler is Sampler.grid:
            return min(self._settings.trials, len(points_of_grid(self._space)))
        return self._settings.trials

    def _take_up_left(self) -> list[Job]:
        """The jobs of those trials that are under way, and that nobody is at."""
        jobs = []
        for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if point_of(left) in self._mine or any(map(is_owned, self._folders(point_of(left)))):
                continue
            again = optuna.Trial(self.study, left._trial_id)
            if len(left.params) < len(self._space):  # its driver was killed as it chose
                choose(self.study, again, self._settings, self._space)
            if trial := self._trial_or_none(again):
                self._mine[trial.number] = trial
                jobs += trial.jobs
        return jobs

    def _reopen_failed(self) -> None:
        """Have what failed at an earlier start tried again, as long as it may be.

        To Optuna a trial's end is final, and what its sampler learns from: one that goes on is a further trial.
        """
        for failed in [each for each in points(self.study).values() if each.state is TrialState.FAIL]:
            try:
                jobs = self._trial(optuna.Trial(self.study, failed._trial_id)).jobs
            except UserError:  # its values cannot go together
                continue
            times = max(len(job.read().failures()) for job in jobs)
            if 0 < times < self._max_attempts:
                self.study.add_trial(further_trial(failed))
            elif times:
                said = f"has failed {times} times; hydra.launcher.max_attempts={self._max_attempts}. Raise it"
                self._board.say(f"trial {point_of(failed)}: {said}")

    def _trial_or_none(self, asked: optuna.Trial) -> Trial | None:
        """A trial with its jobs; one whose values cannot go together, though each can be, has failed."""
        try:
            return self._trial(asked)
        except UserError as error:
            self._board.say(f"trial {asked.number}: {' '.join(as_overrides(asked.params))}: {error}")
            self.study.tell(asked, state=TrialState.FAIL)
            return None

    def _trial(self, asked: optuna.Trial) -> Trial:
        trial = Trial(asked, [])
        for seed, folder in enumerate(self._folders(trial.number)):
            number = trial.number * self._settings.seeds + seed
            point, seeded = as_overrides(asked.params), seed_overrides(self._settings, seed)
            overrides = point + self._fixed + seeded
            config = self._compose(overrides, number)
            folder.mkdir(parents=True, exist_ok=True)
            label = " ".join([trial.label, *seeded])
            varying = (*point, *seeded)
            trial.jobs.append(
                Job(number=number, overrides=overrides, config=config, label=label, folder=folder, varying=varying)
            )
        return trial

    def _folders(self, point: int) -> list[Path]:
        """Of the jobs of a point, one for each seed."""
        seeds = self._settings.seeds
        return [self._folder / "jobs" / f"{point * seeds + seed:04d}" for seed in range(seeds)]


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


def max_steps_of(config: StageConfig) -> float:
    """The steps of a training; infinite where a stage has none."""
    trainer = getattr(config, "trainer", None)
    return inf if trainer is None else trainer.max_steps


def run_search(
    settings: SweeperConfig,
    launcher: PoolConfig | SlurmConfig,
    *,
    space: Sequence[Dimension],
    fixed: list[str],
    compose: Compose,
    choice: str | None,
) -> None:
    """Search, and print the trials and how to run the best again.

    With dry_run=true, print what its trials would take in its place.

    Raises:
        ConfigError: a space, an objective or a job that cannot be.
        StoppedError: a signal came.
        LaunchError: no trial came to its end.
    """
    settings.check()
    launcher.check()
    config = check_space(space, fixed, compose)
    check_objectives(settings, config)
    if isinstance(launcher, SlurmConfig) and not launcher.wait:
        raise ConfigError("hydra.launcher.wait=false leaves nobody to choose a search's points. Leave it out.")
    if config.dry_run:
        show_dry_run(settings, space, fixed, compose)
        return
    num_jobs = (settings.trials or 1) * settings.seeds
    folder = sweep_folder([config], search_identity(settings, space, fixed)[:8], choice=choice)
    with opened(launcher, [config], folder, num_jobs=num_jobs, of=f"{settings.trials} trials") as backend:
        board = Board()
        search = Search(
            settings,
            space=space,
            fixed=fixed,
            compose=compose,
            folder=folder,
            max_attempts=launcher.max_attempts,
            board=board,
        )
        with page_at_end(folder):
            carry_out(search, Driver(search, backend, launcher, board, Finder()))
    console = output_console()
    console.print(table(search.study, settings))
    for trial in best_trials(search.study):
        console.print(f"best: python train.py {shlex.join(as_overrides(trial.params) + fixed)} hydra.mode=RUN")


def carry_out(search: Search, driver: Driver) -> optuna.Study:
    """The study, once it has its trials.

    Raises:
        StoppedError: a signal came.
        LaunchError: a trial failed, and is to end the search.
    """
    driver.run()
    if driver.failed_fast:
        raise LaunchError(f"hydra.launcher.fail_fast: {driver.failed_fast}", exit_code=PARTIAL_EXIT_CODE)
    return search.study
