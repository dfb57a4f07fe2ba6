"""Successive halving: the curves of a search's trials -> which of them go on at a rung, and which are stopped there.

Asynchronous (Li et al. 2020, arXiv:1810.05934): a trial that comes to a rung goes on if it is among the best 1 in
`factor` of those that have come there; else it is stopped, and goes on from its checkpoint once it is among them. To
Optuna a trial's end is final, and what its sampler learns from; one that goes on is a further trial of the same point.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from llm.config import HalvingConfig

FIRST_TRIAL = "first_trial"  # of the same point, where a trial goes on with it
PAST_RUNG = "past_rung"  # from which on it does, in steps


def point_of(trial: FrozenTrial | optuna.Trial) -> int:
    """The number of a trial's point: that of the first trial of it."""
    return int(trial.user_attrs.get(FIRST_TRIAL, trial.number))


def points(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The newest trial of each point; it has the values at the rungs of those before it."""
    return {point_of(trial): trial for trial in study.get_trials(deepcopy=False)}


def go_on(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A further trial of the same point, under way."""
    number = point_of(trial)
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            intermediate_values=trial.intermediate_values,
            user_attrs={FIRST_TRIAL: number, PAST_RUNG: max(trial.intermediate_values, default=0)},
        )
    )
    return optuna.Trial(study, points(study)[number]._trial_id)


@dataclass(frozen=True)
class Place:
    """Where a point stands among all that have come to a rung."""

    rung: int  # in steps
    rank: int  # 1 is the best
    of: int
    goes_on: bool


class Halving:
    """The rungs of a search, and who has come how far."""

    def __init__(self, settings: HalvingConfig, *, direction: str) -> None:
        assert settings.first_step is not None
        self._first, self._factor = settings.first_step, settings.factor
        self._sign = 1 if direction == "minimize" else -1

    def reached(self, curve: Iterable[tuple[int, float]], *, max_steps: float) -> dict[int, float]:
        """Rung -> the first value of a curve that was measured there or later; the end is no rung."""
        values: dict[int, float] = {}
        rung = self._first
        for step, value in curve:
            while rung <= step and rung < max_steps:
                values[rung] = value
                rung *= self._factor
        return values

    def tell(self, study: optuna.Study, trial: optuna.Trial, values: dict[int, float]) -> Place:
        """Keep the values at the rungs that a trial has come to; where it stands at the highest."""
        known = points(study)[point_of(trial)].intermediate_values  # a driver that was killed may have told them
        for rung in values.keys() - known.keys():
            trial.report(values[rung], rung)
        return self.place(study, point_of(trial), max(values))

    def place(self, study: optuna.Study, point: int, rung: int) -> Place:
        """Where a point stands at a rung that it has come to."""
        ranking = self._ranking(study, rung)
        rank = 1 + [each for each, _ in ranking].index(point)
        return Place(rung, rank, len(ranking), rank <= len(ranking) // self._factor)

    def to_go_on(self, study: optuna.Study) -> tuple[FrozenTrial, Place] | None:
        """The stopped trial of the highest rung, and the best there, that is among those that go on by now."""
        for rung in self._rungs(study):
            for point, trial in self._ranking(study, rung):
                place = self.place(study, point, rung)
                if place.goes_on and trial.state is TrialState.PRUNED and max(trial.intermediate_values) == rung:
                    return trial, place
        return None

    def furthest(self, study: optuna.Study) -> tuple[FrozenTrial, Place] | None:
        """The best stopped trial of the highest rung that has one: too few may have come there for one to go on."""
        for rung in self._rungs(study):
            for point, trial in self._ranking(study, rung):
                if trial.state is TrialState.PRUNED:
                    return trial, self.place(study, point, rung)
        return None

    def _rungs(self, study: optuna.Study) -> list[int]:
        """The rungs that a trial has come to, the highest first."""
        return sorted({rung for trial in points(study).values() for rung in trial.intermediate_values}, reverse=True)

    def _ranking(self, study: optuna.Study, rung: int) -> list[tuple[int, FrozenTrial]]:
        """The points that have come to a rung, each with its newest trial, the best first."""
        come = [(point, trial) for point, trial in points(study).items() if rung in trial.intermediate_values]
        return sorted(come, key=lambda pair: (self._worth(pair[1].intermediate_values[rung]), pair[0]))

    def _worth(self, value: float) -> float:
        return self._sign * value if isfinite(value) else inf
