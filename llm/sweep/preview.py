"""A search with dry_run=true -> what the jobs of its trials would take, as far as that is known before any result."""

from collections.abc import Sequence

import optuna

from llm.config import Sampler, SweeperConfig
from llm.errors import UserError
from llm.run import log, start_logging
from llm.sweep.space import Compose, Dimension, Value, as_overrides, points_of_grid, seed_overrides
from llm.sweep.study import choose, short


def show_dry_run(settings: SweeperConfig, space: Sequence[Dimension], fixed: list[str], compose: Compose) -> None:
    """Print what the jobs of each trial would take."""
    from llm.dry_run import show  # imports what a search does not need

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
