"""Optuna's study in a sweep's folder: made or found again, its results read from runs, and shown as a table."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from llm.config.stages import StageConfig
from llm.config.sweeping import SWEEPER, Sampler, SweeperConfig
from llm.errors import ConfigError, LaunchError, UserError
from llm.run.console import log, start_logging
from llm.run.files import digest_of, write_json
from llm.run.runs import Run
from llm.stage import stage_named
from llm.sweep.space import Compose, Dimension, Value, as_overrides, points_of_grid, seed_overrides

FIRST_TRIAL = "first_trial"  # of the same point, where a trial goes on with it
CURVE = re.compile(r"val/(loss|bits_per_byte)(/.+)?")  # what a training measures as it goes


def open_study(settings: SweeperConfig, space: Sequence[Dimension], fixed: list[str], folder: Path) -> optuna.Study:
    """The study in a sweep's folder, made if there is none.

    Raises:
        ConfigError: the one that is there has another space.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says of itself, we say ourselves
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="sweep",
        storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        directions=[optuna.study.StudyDirection[each.upper()] for each in settings.directions],
        pruner=_pruner(settings),
        load_if_exists=True,
    )
    identity = search_identity(settings, space, fixed)
    if study.user_attrs.get("identity", identity) != identity:
        raise ConfigError(f"{folder}/study.journal is of another search. Move it away to begin this one.")
    study.set_user_attr("identity", identity)
    write_json(folder / "search.json", {"objectives": settings.objectives, "directions": settings.directions})
    if settings.sampler is Sampler.grid:
        for point in points_of_grid(space):
            study.enqueue_trial(point, skip_if_exists=True)
    return study


def _pruner(settings: SweeperConfig) -> optuna.pruners.BasePruner:
    halving = settings.halving
    if halving.first_step is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=halving.first_step, reduction_factor=halving.factor)


def point_of(trial: FrozenTrial | optuna.Trial) -> int:
    """The number of a trial's point: that of the first trial of it."""
    return int(trial.user_attrs.get(FIRST_TRIAL, trial.number))


def points(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The newest trial of each point."""
    return {point_of(trial): trial for trial in study.get_trials(deepcopy=False)}


def search_identity(settings: SweeperConfig, space: Sequence[Dimension], fixed: list[str]) -> str:
    """What makes two searches one: all but how many trials they may have."""
    shown = [repr(settings.objectives), repr(settings.directions), settings.sampler.value, settings.sampler_seed]
    halving = [settings.halving.first_step, settings.halving.factor]
    return digest_of([*shown, settings.seeds, halving, [repr(each) for each in space], sorted(fixed)])


def choose(study: optuna.Study, trial: optuna.Trial, settings: SweeperConfig, space: Sequence[Dimension]) -> None:
    """Have a trial choose its values, by chance that its number alone decides.

    A sampler with one seed for all begins its draws anew at each start, and would give points a second time.
    """
    study.sampler = _sampler(settings, trial.number)
    for each in space:
        each.suggest(trial)


def _sampler(settings: SweeperConfig, number: int) -> optuna.samplers.BaseSampler:
    seed = int(digest_of([settings.sampler_seed, number])[:8], 16)
    if settings.sampler is Sampler.tpe:
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def result(run: Run, name: str) -> float:
    """One of a run's results as a number.

    Raises:
        ConfigError: the run does not have it, or it is not finite.
    """
    value: Any = run.results.get(name)
    if not isinstance(value, int | float):
        known = ", ".join(key for key, each in run.results.items() if isinstance(each, int | float))
        raise ConfigError(f"hydra.sweeper.objectives={name} is no result of {run.path}. It has {known}.")
    if not isfinite(value):
        raise ConfigError(f"{name} of {run.path} is {value}.")
    return float(value)


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


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that no other beats in every objective; with one objective, those of the best value.

    Raises:
        LaunchError: none came to its end.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise LaunchError("no trial came to its end; the log of each says why.", exit_code=1)
    return study.best_trials


def table(study: optuna.Study, settings: SweeperConfig) -> Table:
    """A row for each point: the finished ones first, by their first objective, then those that came furthest."""
    keys = dict.fromkeys(key for trial in points(study).values() for key in trial.params)
    drawn = Table("trial", *settings.objectives, *keys, "", highlight=False)
    sign = 1 if settings.directions[0] == "minimize" else -1
    for trial in sorted(points(study).values(), key=lambda trial: _order(trial, sign)):
        values = [f"{value:.4f}" for value in trial.values or []]
        drawn.add_row(
            str(point_of(trial)),
            *(values or ["-"] * len(settings.objectives)),
            *(str(short(trial.params).get(key, "")) for key in keys),
            "" if trial.state is TrialState.COMPLETE else _state(trial),
        )
    return drawn


def _order(trial: FrozenTrial, sign: int) -> tuple[int, float, int]:
    """The best of the finished first, then those that came furthest."""
    if trial.values:
        return 0, sign * trial.values[0], point_of(trial)
    return 1, -max(trial.intermediate_values, default=0), point_of(trial)


def _state(trial: FrozenTrial) -> str:
    if trial.state is TrialState.PRUNED:
        return f"stopped at step {trial.last_step}"
    return trial.state.name.lower() + "ed" * (trial.state is TrialState.FAIL)


def short(point: dict[str, Value]) -> dict[str, Value]:
    return {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in point.items()}


def show_dry_run(settings: SweeperConfig, space: Sequence[Dimension], fixed: list[str], compose: Compose) -> None:
    """Print what the jobs of each trial would take."""
    from llm.dry_run.table import show  # imports what a search does not need

    start_logging()
    configs, labels = [], []
    for number, point in enumerate(points_ahead(settings, space)):
        for seed in range(settings.seeds):
            overrides = as_overrides(point) + fixed + seed_overrides(settings, seed)
            try:
                configs.append(compose(overrides, number * settings.seeds + seed))
            except UserError as error:  # values that cannot go together, though each can be
                log.warning("%s: %s", " ".join(as_overrides(point)), error)
                break
            labels.append(" ".join(as_overrides(short(point)) + seed_overrides(settings, seed)))
    show(configs, labels)
    if settings.sampler is Sampler.tpe:
        log.info("these points are drawn as they are before a search has results; it will choose others as it learns")
    if settings.halving.first_step is not None:
        log.info("this is what all would take to their end; hydra.sweeper.halving stops most of them before")


def points_ahead(settings: SweeperConfig, space: Sequence[Dimension]) -> list[dict[str, Value]]:
    """The points of a grid or of a random search; of tpe, those that it would draw while it has no results."""
    assert settings.trials is not None
    if settings.sampler is Sampler.grid:
        return points_of_grid(space)[: settings.trials]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    for _ in range(settings.trials):
        choose(study, study.ask(), settings, space)
    return [trial.params for trial in study.get_trials(deepcopy=False)]
