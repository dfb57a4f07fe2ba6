"""The schema of hydra/launcher and hydra/sweeper: which jobs a sweep has, and how they are carried out."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from llm.config.fields import check_settings, setting
from llm.errors import ConfigError

LAUNCHER, SWEEPER = "hydra.launcher", "hydra.sweeper"


@dataclass(kw_only=True)
class RetryConfig:
    """How often a job is tried again, by what ended it; a retry goes on from the last checkpoint."""

    killed: int = setting(2, at_least=0)  # by a signal that we did not send: the machine's doing, mostly
    out_of_memory: int = setting(0, at_least=0)
    diverged: int = setting(0, at_least=0)
    failed: int = setting(0, at_least=0)  # a bug, a full disk; never bad data or a wrong config, which stay so


@dataclass(kw_only=True)
class PoolConfig:
    """Jobs side by side, each a process of its own."""

    jobs: int | None = setting(None, at_least=1)  # at once; None: as cores, and memory by the dry run, allow
    threads: int | None = setting(None, at_least=1)  # of a process on the CPU; None: the cores over the jobs
    jobs_per_gpu: int = setting(1, at_least=1)
    retries: RetryConfig = setting(RetryConfig())
    grace_seconds: float = setting(120.0, at_least=0)  # to save in, once asked to stop

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: a number is out of range.
        """
        check_settings(self, LAUNCHER)


class Sampler(Enum):
    tpe = "tpe"  # tree-structured Parzen estimator (Bergstra et al. 2011): near what did well so far
    random = "random"
    grid = "grid"  # every combination, in an order by chance


class Direction(Enum):
    minimize = "minimize"
    maximize = "maximize"


@dataclass(kw_only=True)
class HalvingConfig:
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): what does badly early is stopped."""

    # of the first rung; None: no halving. The next are `factor` times as far each
    first_step: int | None = setting(None, at_least=1)
    factor: int = setting(3, at_least=2)  # of the trials at a rung, the best 1 in so many go on


@dataclass(kw_only=True)
class SweeperConfig:
    """What a multirun tries: every combination, or, where `trials` is set, a search of so many points."""

    params: dict[str, Any] = setting({})  # key -> values to sweep, in Hydra's syntax
    trials: int | None = setting(None, at_least=1)  # points in all, over every start of the same search
    sampler: Sampler = Sampler.tpe
    sampler_seed: int = setting(0, at_least=0)
    objectives: list[str] = setting(["val/bits_per_byte"])  # from a run's results
    directions: list[Direction] = setting([Direction.minimize])
    halving: HalvingConfig = setting(HalvingConfig())

    def check(self) -> None:
        """Refuse a search that cannot be.

        Raises:
            ConfigError: a number is out of range, or two settings contradict each other.
        """
        check_settings(self, SWEEPER)
        is_halved = self.halving.first_step is not None
        if self.trials is None and is_halved:
            raise ConfigError(f"{SWEEPER}.halving is of a search. Set {SWEEPER}.trials, too.")
        if not self.objectives or len(self.objectives) != len(self.directions):
            raise ConfigError(
                f"{SWEEPER}.objectives has {len(self.objectives)} names, and {SWEEPER}.directions "
                f"{len(self.directions)}. Give each objective its direction."
            )
        if is_halved and len(self.objectives) > 1:
            raise ConfigError(
                f"{SWEEPER}.halving goes by one objective, but {SWEEPER}.objectives has {len(self.objectives)}. Give "
                f"one, or set {SWEEPER}.halving.first_step=null."
            )
