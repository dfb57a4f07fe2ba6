"""A space and a number of trials -> the best of them, by Optuna; killed at any moment, the same command goes on.

Optuna's journal keeps the trials, the ledger the jobs. A trial that nobody is at any more is taken up with the number
of its point, so that its jobs find their folders and go on from their checkpoints; so does one that failed, at a later
start.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from pathlib import Path
from statistics import fmean

import optuna
from optuna.trial import FrozenTrial, TrialState

from llm.compare.at_end import page_at_end
from llm.config import PoolConfig, Sampler, SlurmConfig, StageConfig, SweeperConfig, TrainerConfig
from llm.errors import PARTIAL_EXIT_CODE, ConfigError, DamagedError, LaunchError, StoppedError, UserError
from llm.run import history, read_metrics
from llm.run.signals import on_signal
from llm.run.tables import output_console
from llm.sweep.board import Board
from llm.sweep.driver import LOOK_SECONDS, Standing
from llm.sweep.ending import Ending, may_retry
from llm.sweep.finding import Finder
from llm.sweep.halving import PAST_RUNG, Halving, Place, go_on, point_of, points
from llm.sweep.ledger import Job
from llm.sweep.opening import opened
from llm.sweep.pool import Pool
from llm.sweep.preview import show_dry_run
from llm.sweep.slurm import Cluster
from llm.sweep.space import Compose, Dimension, Value, as_overrides, check_space, points_of_grid, seed_overrides
from llm.sweep.study import best_trials, check_objectives, choose, open_study, result, search_identity, short, table

CHOOSING = timedelta(seconds=20)  # at most, from the begin of a trial until it has its values


@dataclass
class Trial:
    """A point that this driver has taken up, and its jobs: one for each seed."""

    optuna_trial: optuna.Trial
    jobs: list[Standing]
    past_rung: int = 0  # the last at which it was looked at, in steps
    is_pruned: bool = False

    @property
    def number(self) -> int:
        """That of the point, by which people and folders know it."""
        return point_of(self.optuna_trial)

    @property
    def point(self) -> dict[str, Value]:
        return self.optuna_trial.params


class Search:
    """Asks for points as there is room for them, and tells what came of them."""

    def __init__(
        self,
        settings: SweeperConfig,
        launcher: PoolConfig | SlurmConfig,
        *,
        space: Sequence[Dimension],
        fixed: list[str],
        compose: Compose,
        folder: Path,
        pool: Pool | Cluster,
        board: Board,
        finder: Finder,
    ) -> None:
        self._settings, self._launcher = settings, launcher
        self._space, self._fixed, self._compose = space, fixed, compose
        self._folder, self._pool, self._board, self._finder = folder, pool, board, finder
        self.study = open_study(settings, space, fixed, folder)
        self._halving: Halving | None = None
        if settings.halving.first_step is not None:
            self._halving = Halving(settings.halving, direction=settings.directions[0])
        self._mine: dict[int, Trial] = {}  # by the number of the point
        self._standings: dict[int, Standing] = {}
        self._stopped_by: str | None = None
        self._is_stopping = False
        self._failed = ""  # what ended the search, where the first failure is to

    def run(self) -> optuna.Study:
        """The study, once it has its trials.

        Raises:
            StoppedError: a signal came.
        """
        try:
            with on_signal(self._stop), self._board.shown(self._standings.values(), self._pool, self):
                self._take_up_failed()
                self._take_up_left()
                while self._goes_on():
                    self._start_ready()
                    for job, ended in self._pool.ended(LOOK_SECONDS):
                        self._settle(self._standings[job.number], ended)
                    self._look_at_rungs()
                    self._tell_ended()
                    self._board.refresh()
        finally:
            self._pool.kill_all()
        if self._failed:
            raise LaunchError(f"hydra.launcher.fail_fast: {self._failed}", exit_code=PARTIAL_EXIT_CODE)
        if self._stopped_by:
            raise StoppedError(f"stopped by {self._stopped_by}. Start the same command again to go on.")
        return self.study

    def to_come(self) -> int:
        """The jobs of points that are not chosen yet."""
        return max(0, self._num_trials - self._num_begun()) * self._settings.seeds

    def best(self) -> str | None:
        """The best result so far by the first objective, and its point."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not done:
            return None
        choose_best = min if self._settings.directions[0] == "minimize" else max
        trial = choose_best(done, key=lambda trial: trial.values[0])
        return f"{self._settings.objectives[0]} {trial.values[0]:.4f}: {' '.join(as_overrides(short(trial.params)))}"

    def _stop(self, name: str) -> None:
        self._stopped_by = name

    def _goes_on(self) -> bool:
        if self._stopped_by:
            if not self._is_stopping:
                self._is_stopping = True
                if self._failed:
                    self._pool.stop_all()
                else:
                    self._pool.leave(self._stopped_by)
            return bool(self._pool.running)
        return bool(self._mine) or self._wants_more() or self._others_are_at_it() or self._promote_furthest()

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

    def _others_are_at_it(self) -> bool:
        """Whether trials of other drivers are under way; those of dead ones are taken up."""
        if not self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            return False
        self._take_up_left()
        return True

    def _take_up_left(self) -> None:
        for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if point_of(left) in self._mine:
                continue
            again = optuna.Trial(self.study, left._trial_id)
            if len(left.params) < len(self._space):  # its driver was killed, or is about to choose
                begun = left.datetime_start  # on a clock that may have been set back since
                if begun and abs(datetime.now() - begun) < CHOOSING:
                    continue
                choose(self.study, again, self._settings, self._space)
            trial = self._trial_or_none(again)
            if trial and not any(self._pool.is_taken(each.job) for each in trial.jobs):
                self._take(trial)

    def _take_up_failed(self) -> None:
        """Have what failed at an earlier start tried again, as long as it may be."""
        for failed in [each for each in points(self.study).values() if each.state is TrialState.FAIL]:
            try:
                jobs = self._trial(optuna.Trial(self.study, failed._trial_id)).jobs
            except UserError:  # its values cannot go together
                continue
            times = max(len(each.job.read().failures()) for each in jobs)
            if 0 < times < self._launcher.max_attempts:
                go_on(self.study, failed)
            elif times:
                said = f"has failed {times} times; hydra.launcher.max_attempts={self._launcher.max_attempts}. Raise it"
                self._board.say(f"trial {point_of(failed)}: {said}")

    def _job_folder(self, number: int) -> Path:
        return self._folder / "jobs" / f"{number:04d}"

    def _take(self, trial: Trial) -> None:
        self._mine[trial.number] = trial
        self._standings.update({each.job.number: each for each in trial.jobs})

    def _trial(self, asked: optuna.Trial) -> Trial:
        jobs = []
        for seed in range(self._settings.seeds):
            number = point_of(asked) * self._settings.seeds + seed
            point, seeded = as_overrides(asked.params), seed_overrides(self._settings, seed)
            overrides = point + self._fixed + seeded
            config = self._compose(overrides, number)
            folder = self._job_folder(number)
            folder.mkdir(parents=True, exist_ok=True)
            label = " ".join(as_overrides(short(asked.params)) + seeded)
            job = Job(
                number=number,
                overrides=overrides,
                config=config,
                label=label,
                folder=folder,
                varying=(*point, *seeded),
            )
            jobs.append(Standing(job, len(job.read().attempts)))
        return Trial(asked, jobs, past_rung=asked.user_attrs.get(PAST_RUNG, 0))

    def _start_ready(self) -> None:
        if self._stopped_by:
            return
        for trial in [*self._mine.values()]:
            for each in trial.jobs:
                if each.state == "waiting" and time.monotonic() >= each.not_before and not self._start(trial, each):
                    return
        while not self._is_full():
            if self._halving and (found := self._halving.to_go_on(self.study)):
                self._promote(*found)
            elif self._wants_more():
                self._ask()
            else:
                return

    def _is_full(self) -> bool:
        return any(each.state == "waiting" for trial in self._mine.values() for each in trial.jobs)

    def _ask(self) -> None:
        asked = self.study.ask()
        choose(self.study, asked, self._settings, self._space)
        if trial := self._trial_or_none(asked):
            self._begin(trial)

    def _trial_or_none(self, asked: optuna.Trial) -> Trial | None:
        """A trial with its jobs; one whose values cannot go together, though each can be, has failed."""
        try:
            return self._trial(asked)
        except UserError as error:
            self._board.say(f"trial {asked.number}: {' '.join(as_overrides(asked.params))}: {error}")
            self.study.tell(asked, state=TrialState.FAIL)
            return None

    def _begin(self, trial: Trial) -> None:
        self._take(trial)
        for each in trial.jobs:
            self._start(trial, each)

    def _promote(self, stopped: FrozenTrial, place: Place) -> None:
        """Have a trial go on that was stopped at a rung."""
        trial = self._trial(go_on(self.study, stopped))
        self._board.say(f"trial {trial.number}: goes on past step {place.rung}, as {place.rank} of {place.of}")
        self._begin(trial)

    def _promote_furthest(self) -> bool:
        """Where all is over and no trial has come to its end: have the best one go on."""
        over = not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if self._halving is None or not over or not (found := self._halving.furthest(self.study)):
            return False
        self._promote(*found)
        return True

    def _start(self, trial: Trial, each: Standing) -> bool:
        """Start a job, or find its run; gives whether there may be room for another."""
        record = each.job.read()  # before the look: what ends after it has changed the record
        if run := self._finder.find(each.job.config):
            each.state, each.run = "done", run
            each.job.keep_found(run)
            return True
        if self._pool.start(each.job, record):
            each.state = "running"
            self._board.say(f"trial {trial.number}: {each.job.label}: {self._pool.begun}")
            return True
        if self._pool.is_taken(each.job):  # another driver took the trial up
            self._mine.pop(trial.number, None)
        return False

    def _settle(self, each: Standing, ended: Ending) -> None:
        each.ending = ended
        if ended.kind == "done":
            each.state, each.run = "done", each.job.announced_run()
            return
        trial = self._mine[each.job.number // self._settings.seeds]
        failures = each.job.read().failures(since=each.attempts_before)
        if trial.is_pruned:
            each.state = "stopped"
        elif ended.kind == "busy" or (ended.is_failure and may_retry(ended.kind, failures, self._launcher.retries)):
            each.state, each.not_before = "waiting", time.monotonic() + LOOK_SECONDS
        else:
            each.state = "failed" if ended.is_failure else "stopped"
            if ended.is_failure:
                said = f"trial {trial.number}: {each.job.label}: {ended.kind}: {ended.message}"
                self._say_failed(said)

    def _say_failed(self, said: str) -> None:
        self._board.say(said)
        if self._launcher.fail_fast and not self._stopped_by:
            self._failed, self._stopped_by = said, "hydra.launcher.fail_fast"

    def _look_at_rungs(self) -> None:
        """Tell Optuna what each run has reached, and stop those that do not go on."""
        if self._halving is None:
            return
        for trial in self._mine.values():
            [each] = trial.jobs
            folder = each.job.announced_folder()
            if each.state != "running" or folder is None or trial.is_pruned:
                continue
            try:
                curve = history(read_metrics(folder / "metrics.jsonl"), self._settings.objectives[0])
            except DamagedError:  # the run itself fails by it, at its end
                continue
            reached = self._halving.reached(curve, max_steps=max_steps_of(each.job.config))
            new = {rung: value for rung, value in reached.items() if rung > trial.past_rung}
            if not new:
                continue
            trial.past_rung = max(new)
            place = self._halving.tell(self.study, trial.optuna_trial, new)
            if not place.goes_on:
                trial.is_pruned = True
                said = f"stopped at step {place.rung}, as {place.rank} of {place.of}"
                self._board.say(f"trial {trial.number}: {each.job.label}: {said}")
                self._pool.stop(each.job.number)

    def _tell_ended(self) -> None:
        for trial in [*self._mine.values()]:
            states = {each.state for each in trial.jobs}
            if states & {"waiting", "running"} or (self._is_stopping and "stopped" in states and not trial.is_pruned):
                continue
            del self._mine[trial.number]
            if states == {"done"}:  # even if it was to be stopped: it came to its end before
                self._tell_values(trial)
            elif trial.is_pruned and "failed" not in states:
                self.study.tell(trial.optuna_trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial.optuna_trial, state=TrialState.FAIL)

    def _tell_values(self, trial: Trial) -> None:
        runs = [each.run for each in trial.jobs if each.run is not None]
        try:
            values = [fmean(result(run, name) for run in runs) for name in self._settings.objectives]
        except ConfigError as error:
            self.study.tell(trial.optuna_trial, state=TrialState.FAIL)
            self._say_failed(f"trial {trial.number}: {' '.join(as_overrides(short(trial.point)))}: {error}")
            return
        self.study.tell(trial.optuna_trial, values)
        said = ", ".join(f"{name} {value:.4f}" for name, value in zip(self._settings.objectives, values, strict=True))
        self._board.say(f"trial {trial.number}: {' '.join(as_overrides(short(trial.point)))}: {said}")


def max_steps_of(config: StageConfig) -> float:
    """The steps of a training; infinite where a stage has none."""
    trainer: TrainerConfig | None = getattr(config, "trainer", None)
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
    name = config.name or choice or config.stage
    folder = Path(config.outputs) / "sweeps" / f"{name}-{search_identity(settings, space, fixed)[:8]}"
    with opened(launcher, [config], folder, num_jobs=num_jobs, of=f"{settings.trials} trials") as pool:
        search = Search(
            settings,
            launcher,
            space=space,
            fixed=fixed,
            compose=compose,
            folder=folder,
            pool=pool,
            board=Board(),
            finder=Finder(),
        )
        with page_at_end(folder):
            study = search.run()
    console = output_console()
    console.print(table(study, settings))
    for trial in best_trials(study):
        console.print(f"best: python train.py {shlex.join(as_overrides(trial.params) + fixed)} hydra.mode=RUN")
