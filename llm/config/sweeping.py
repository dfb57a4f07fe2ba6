"""The schema of hydra/launcher and hydra/sweeper: which jobs a sweep has, and how they are carried out."""

import re
from collections.abc import Sequence
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
    max_attempts: int = setting(5, at_least=1)  # that failed, over all starts of the same sweep
    fail_fast: bool = False  # the first job that fails for good stops the others, which save and can go on
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
    seeds: int = setting(1, at_least=1)  # runs of each point, with seed=0, 1, ...; the point's result is their mean
    objectives: list[str] = setting(["val/bits_per_byte"])  # from a run's results
    directions: list[str] = setting(["minimize"])
    halving: HalvingConfig = setting(HalvingConfig())

    def check(self) -> None:
        """Refuse a search that cannot be.

        Raises:
            ConfigError: a number is out of range, or two settings contradict each other.
        """
        check_settings(self, SWEEPER)
        if self.trials is None and (self.seeds > 1 or self.halving.first_step is not None):
            raise ConfigError(f"{SWEEPER}.seeds and {SWEEPER}.halving are of a search. Set {SWEEPER}.trials, too.")
        if not self.objectives or len(self.objectives) != len(self.directions):
            raise ConfigError(
                f"{SWEEPER}.objectives has {len(self.objectives)} names, and {SWEEPER}.directions "
                f"{len(self.directions)}. Give each objective its direction."
            )
        if wrong := [each for each in self.directions if each not in ("minimize", "maximize")]:
            raise ConfigError(f"{SWEEPER}.directions={wrong[0]} is no direction. Choose minimize or maximize.")
        self._check_halving()

    def _check_halving(self) -> None:
        if self.halving.first_step is None:
            return
        for key, few in (("seeds", self.seeds == 1), ("objectives", len(self.objectives) == 1)):
            if not few:
                raise ConfigError(
                    f"{SWEEPER}.halving compares one curve of each point, but {SWEEPER}.{key} gives several. Set "
                    f"{SWEEPER}.halving.first_step=null, or one of them."
                )


def with_number(overrides: Sequence[str], number: int) -> list[str]:
    """Overrides in which ${hydra:job.num} and ${hydra:job.id} are the job's number, which a run alone does not have.

    Hydra gives what was typed with its own escapes.
    """
    return [re.sub(r"\$\\?\{hydra\\?:job\.(num|id)\\?\}", str(number), override) for override in overrides]
