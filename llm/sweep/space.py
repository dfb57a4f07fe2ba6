"""What a search may choose from: for each swept key an interval or a list of choices, checked before the first job."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from llm.config.stages import StageConfig
from llm.config.sweeping import SweeperConfig
from llm.credentials import secret_in
from llm.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Trial

Value = int | float | str
Compose = Callable[[list[str], int], StageConfig]  # overrides and a job's number -> its checked config


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One swept key: an interval, both ends included, or a list of choices as they are typed."""

    key: str
    choices: tuple[str, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if self.low is None or self.high is None:
            for choice in self.choices:
                if held := secret_in(choice):
                    raise ConfigError(f"{self.key} holds {held}, and a search writes its choices down as they are.")
            if len(set(self.choices)) < len(self.choices):
                raise ConfigError(f"{self.key}={','.join(self.choices)} holds a value twice. Give each once.")
            return
        if self.low >= self.high:
            raise ConfigError(f"{self.key}=interval({self.low},{self.high}) is empty. Give the lower end first.")
        if self.log and self.low <= 0:
            raise ConfigError(f"{self.key}=interval({self.low},{self.high}) has no logarithm at its lower end.")

    @property
    def is_interval(self) -> bool:
        return self.low is not None

    def suggest(self, trial: "Trial") -> None:
        """Have a trial choose its value, unless it has one."""
        if self.low is None or self.high is None:
            trial.suggest_categorical(self.key, self.choices)
        elif isinstance(self.low, int) and isinstance(self.high, int):
            trial.suggest_int(self.key, self.low, self.high, log=self.log)
        else:
            trial.suggest_float(self.key, self.low, self.high, log=self.log)

    @property
    def probes(self) -> tuple[Value, ...]:
        """Values that a check tries: the ends of an interval, or every choice."""
        return self.choices if self.low is None or self.high is None else (self.low, self.high)


def points_of_grid(space: Sequence[Dimension]) -> list[dict[str, Value]]:
    """Every combination.

    Raises:
        ConfigError: an interval has no end of them.
    """
    if endless := [each.key for each in space if each.is_interval]:
        raise ConfigError(f"hydra.sweeper.sampler=grid cannot try all of {endless[0]}. List its values, or choose tpe.")
    return [dict(zip([each.key for each in space], values, strict=True)) for values in product(*_choices(space))]


def check_space(space: Sequence[Dimension], fixed: list[str], compose: Compose) -> StageConfig:
    """The config at the first value of each key; every other value is tried too, with the first of the rest.

    Raises:
        ConfigError: one cannot be, or nothing is swept.
    """
    if not space:
        raise ConfigError("hydra.sweeper.trials is set, but no key is swept. Give one: key=interval(1e-4,1e-2).")
    first = {each.key: each.probes[0] for each in space}
    config = compose(as_overrides(first) + fixed, 0)
    for each in space:
        for value in each.probes[1:]:
            compose(as_overrides(first | {each.key: value}) + fixed, 0)
    return config


def as_overrides(point: dict[str, Value]) -> list[str]:
    """A point as it is typed."""
    return [f"{key}={value}" for key, value in point.items()]


def seed_overrides(settings: SweeperConfig, seed: int) -> list[str]:
    """What tells the replicates of a point apart; nothing where there is one."""
    return [f"seed={seed}"] if settings.seeds > 1 else []


def _choices(space: Sequence[Dimension]) -> Iterator[tuple[str, ...]]:
    return (each.choices for each in space)
