"""A space and a number of trials -> points to run, chosen by Optuna; killed at any moment, the same command goes on.

The jobs' files are all that is kept: of them each choice makes Optuna's study anew, in memory. A trial is a job, which
another driver or a later start takes up as one of a grid.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import product
from math import inf, isfinite
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from llm.config.stages import StageConfig
from llm.config.sweeping import SWEEPER, Direction, Sampler, SweeperConfig
from llm.credentials import secret_in
from llm.errors import ConfigError, LaunchError, UserError
from llm.run.console import log
from llm.run.files import digest_of, write_json
from llm.run.launch import JOB, Result
from llm.run.models import read_json
from llm.run.record import Record, history
from llm.run.runs import Run, load
from llm.stage import stage_named
from llm.sweep.jobs import STOP, Job, this_process

CURVES = ("val/loss", "val/bits_per_byte", "val/loss/*", "val/bits_per_byte/*")  # measured as a training goes
RUNGS = "rungs.json"  # in a job's folder: what it had measured at each rung of the halving that it has come to

Space = Mapping[str, BaseDistribution]  # swept key -> what it may be: an interval, or choices as they are typed
Compose = Callable[[list[str], int], StageConfig]  # overrides and a job's number -> its checked config


class Search:
    """Chooses points as there is room for them, and stops what does badly."""

    def __init__(
        self, settings: SweeperConfig, *, space: Space, fixed: list[str], compose: Compose, folder: Path
    ) -> None:
        self._settings, self._space, self._fixed, self._compose = settings, dict(space), fixed, compose
        self._folder, self._num_seen = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._choosing = FileLock(folder / "choosing.lock")  # who holds it chooses a point: no other driver is at that
        shown = {"objectives": settings.objectives, "directions": [each.value for each in settings.directions]}
        write_json(folder / "search.json", shown)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says of itself, we say ourselves

    def more(self) -> list[Job]:
        """The next trial's job: one of an earlier start or of another driver, or else of a point that is chosen now."""
        with self._choosing:
            while self.to_come():
                self._num_seen += 1
                if job := self._job(self._num_seen - 1):
                    return [job]
        return []

    def to_come(self) -> int:
        """The jobs that `more` has yet to give."""
        is_grid = self._settings.sampler is Sampler.grid
        most = min(len(points_of_grid(self._space)) if is_grid else inf, self._settings.trials or 0)
        return int(max(most, len(self._job_files()))) - self._num_seen

    def is_outdone(self, job: Job, records: list[Record]) -> bool:
        """Whether a job that runs is to be stopped for good, by what it has measured anew.

        Asynchronous successive halving, by the rule of Optuna's SuccessiveHalvingPruner.
        """
        halving, name = self._settings.halving, self._settings.objectives[0]
        if halving.first_step is None or job.is_outdone:
            return False
        values = _at_rungs(job.folder)
        max_steps = getattr(getattr(job.config, "trainer", None), "max_steps", inf)
        for step, value in history(records, name):
            while halving.first_step * halving.factor ** len(values) <= step < max_steps:
                others = [_at_rungs(path.parent) for path in self._job_files()]
                rivals = [each[len(values)] for each in others if len(each) > len(values)]
                goes_on = is_promoted(value, rivals, halving.factor, self._settings.directions[0])
                if not goes_on:
                    (job.folder / STOP).touch()
                    log.info("%s: stopped at step %d, with %s %.4f", job.label, step, name, value)
                if isfinite(value):
                    values = [*values, value]
                    write_json(job.folder / RUNGS, {"values": values})
                if not goes_on:
                    return True
        return False

    def settled(self, job: Job) -> None:
        """Say what a trial came to."""
        if job.run is None:
            return
        try:
            values = results(job.run, self._settings.objectives)
        except ConfigError as error:
            log.warning("%s: %s", job.label, error)
            return
        if job.result:  # it was not done before
            said = [f"{name} {value:.4f}" for name, value in zip(self._settings.objectives, values, strict=True)]
            log.info("%s: %s", job.label, ", ".join(said))

    def best(self) -> str | None:
        """The best result so far by the first objective, and its point."""
        done = [trial for trial in self.study().trials if trial.state is TrialState.COMPLETE]
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
        study = self.study()
        if not study.get_trials(states=(TrialState.COMPLETE,)):
            raise LaunchError("no trial came to its end; the log of each says why.", exit_code=1)
        return study.best_trials

    def study(self) -> optuna.Study:
        """What the jobs came to so far, as Optuna knows it; a trial's number is its job's."""
        study = optuna.create_study(
            directions=[StudyDirection[each.name.upper()] for each in self._settings.directions]
        )
        study.add_trials([self._trial(path.parent) for path in self._job_files()])
        return study

    def _job_files(self) -> list[Path]:
        return sorted(self._folder.glob(f"jobs/*/{JOB}"))

    def _trial(self, folder: Path) -> FrozenTrial:
        record, halving = read_json(folder / JOB), self._settings.halving
        values, state = None, TrialState.PRUNED if (folder / STOP).exists() else TrialState.RUNNING
        try:
            run = load(Path(record["run"])) if record["run"] else None
            if run and run.is_done:
                values, state = results(run, self._settings.objectives), TrialState.COMPLETE
            elif record["state"] == "failed" and state is TrialState.RUNNING:
                state = TrialState.FAIL
        except UserError:  # it is gone, damaged, or without such a result
            state = TrialState.FAIL
        at_rungs = enumerate(_at_rungs(folder))
        return create_trial(
            state=state,
            values=values,
            params=self._point(record["varying"]),
            distributions=self._space,
            intermediate_values={(halving.first_step or 1) * halving.factor**rung: value for rung, value in at_rungs},
        )

    def _point(self, typed: list[str]) -> dict[str, Any]:
        """The values of a job's own overrides."""
        texts = dict(each.split("=", 1) for each in typed)
        return {key: _value(texts[key], distribution) for key, distribution in self._space.items()}

    def _job(self, number: int) -> Job | None:
        """A trial's job; None of one that is stopped for good, or whose values cannot go together: it has failed."""
        folder = self._folder / "jobs" / f"{number:04d}"
        is_new = not (folder / JOB).exists()
        point = self._choose(number) if is_new else self._point(read_json(folder / JOB)["varying"])
        own = as_overrides(point)
        job = Job(
            number=number,
            overrides=own + self._fixed,
            config=StageConfig(stage=""),
            label=f"trial {number}: {as_label(point)}",
            folder=folder,
            varying=own,
        )
        if job.is_outdone:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        try:
            job.config = self._compose(job.overrides, number)
        except UserError as error:
            log.warning("%s: %s", job.label, error)
            if is_new:
                job.begin(this_process())
                job.end(Result("config", str(error)))
            return None
        if is_new:
            job.write()
        return job

    def _choose(self, number: int) -> dict[str, Any]:
        """The values of a new trial, by chance that its number alone decides.

        A sampler with one seed for all begins its draws anew at each start, and would give points a second time.
        """
        if self._settings.sampler is Sampler.grid:
            return points_of_grid(self._space)[number]
        study, seed = self.study(), int(digest_of([self._settings.sampler_seed, number])[:8], 16)
        is_tpe = self._settings.sampler is Sampler.tpe
        study.sampler = TPESampler(seed=seed, constant_liar=True) if is_tpe else RandomSampler(seed=seed)
        return study.ask(self._space).params


def is_promoted(value: float, rivals: Sequence[float], factor: int, direction: Direction) -> bool:
    """Whether a value is among the best one in `factor` of those that have come to a rung, or the best of fewer."""
    is_lowest_best = direction is Direction.minimize
    ranked = sorted([*rivals, value], reverse=not is_lowest_best)
    last = ranked[max(len(ranked) // factor, 1) - 1]
    return value <= last if is_lowest_best else value >= last


def _at_rungs(folder: Path) -> list[float]:
    """What a job had measured at each rung that it has come to."""
    return list(read_json(folder / RUNGS)["values"]) if (folder / RUNGS).exists() else []


def key_of_search(settings: SweeperConfig, space: Space, fixed: list[str]) -> str:
    """What makes two searches one: all but how many trials they may have."""
    shown = [settings.objectives, [each.value for each in settings.directions], settings.sampler.value]
    how = [settings.sampler_seed, settings.halving.first_step, settings.halving.factor]
    return digest_of([shown, how, [f"{key}={of}" for key, of in space.items()], sorted(fixed)])[:8]


def results(run: Run, names: Sequence[str]) -> list[float]:
    """Some of a run's results as numbers.

    Raises:
        ConfigError: the run does not have one, or it is not finite.
    """
    found: list[float] = []
    for name in names:
        value: Any = run.results.get(name)
        if not isinstance(value, int | float) or not isfinite(value):
            known = ", ".join(key for key, each in run.results.items() if isinstance(each, int | float))
            raise ConfigError(f"{SWEEPER}.objectives={name} of {run.path} is {value}. It has {known}.")
        found.append(float(value))
    return found


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
        is_curve = hasattr(config, "trainer") and any(fnmatchcase(name, each) for each in CURVES)
        if settings.halving.first_step is not None and not is_curve:
            raise ConfigError(
                f"{said} is not measured as a run goes, which {SWEEPER}.halving goes by. Choose val/loss or "
                f"val/bits_per_byte of a training, or set {SWEEPER}.halving.first_step=null."
            )


def _value(typed: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return typed
    return int(typed) if isinstance(distribution, IntDistribution) else float(typed)


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
