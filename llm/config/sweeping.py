"""The schema of hydra/launcher and hydra/sweeper: which jobs a sweep has, and how a pool or Slurm carries them out."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from llm.config.fields import check_settings, identity_settings, setting
from llm.config.stages import StageConfig, TokenizerStage
from llm.config.training import BUDGETS
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


def _no_rungs(shares: list[float]) -> str | None:
    is_one = bool(shares) and sorted(shares) == shares and shares[0] > 0 and shares[-1] <= 1
    return None if is_one else "are no shares that rise to 1 at most. Set [0.25, 1], for example."


@dataclass(kw_only=True)
class TuningConfig:
    """What is chosen for the jobs of a grid that differ in their seed alone: what their trials did best with.

    By successive halving: the better half of the values goes on from one length of trials to the next.
    """

    params: dict[str, Any] = setting({})  # key -> values to choose from, in Hydra's syntax
    seed: int = setting(1000, at_least=0)  # of the trials: none of the jobs'
    rungs: list[float] = setting([0.25, 1.0], fault=_no_rungs)  # of the jobs' budget or steps, what trials have


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
    tuning: TuningConfig = setting(TuningConfig())

    def check(self) -> None:
        """Refuse a search that cannot be.

        Raises:
            ConfigError: a number is out of range, or two settings contradict each other.
        """
        check_settings(self, SWEEPER)
        is_halved = self.halving.first_step is not None
        if self.trials is None and is_halved:
            raise ConfigError(f"{SWEEPER}.halving is of a search. Set {SWEEPER}.trials, too.")
        if self.trials is not None and self.tuning.params:
            raise ConfigError(
                f"{SWEEPER}.tuning is of a grid, and {SWEEPER}.trials={self.trials} makes this a search. Set "
                f"{SWEEPER}.trials=null."
            )
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


@dataclass(kw_only=True)
class SlurmConfig:
    """Jobs of a Slurm cluster; nodes and tasks come from trainer.num_nodes and trainer.devices."""

    partition: str | None = None  # None: the cluster's default, as for the next two
    account: str | None = None
    qos: str | None = None
    time_minutes: int = setting(240, at_least=1)  # of one start; what is not done then saves, is requeued, and goes on
    cpus_per_task: int = setting(1, at_least=1)  # of each device's process
    memory_gb: float | None = setting(None, at_least=0.001)  # of a node; None: the cluster's default
    # None: trainer.devices, if trainer.accelerator lets it and the nodes have some
    gpus_per_node: int | None = setting(None, at_least=0)
    array_parallelism: int | None = setting(None, at_least=1)  # jobs at once of one submission; None: Slurm's choice
    signal_seconds: int = setting(120, at_least=1)  # before the end of its time, a job is told to save
    setup: list[str] = setting([])  # lines of shell before each job: module load, export, ...
    sbatch: list[str] = setting([])  # further arguments, which win over ours: [--constraint=a100, --exclusive]
    srun: list[str] = setting([])  # further arguments of the srun that starts the processes
    poll_seconds: float = setting(10.0, at_least=0.1)  # between two looks at Slurm's queue
    retries: RetryConfig = setting(RetryConfig())
    grace_seconds: float = setting(120.0, at_least=0)  # to save in, before a job that is to stop is cancelled

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: a number is out of range, or a job has no time but that to save in.
        """
        check_settings(self, LAUNCHER)
        if self.signal_seconds >= 60 * self.time_minutes:
            raise ConfigError(
                f"{LAUNCHER}.signal_seconds={self.signal_seconds} leaves nothing of {LAUNCHER}.time_minutes="
                f"{self.time_minutes}. Lower the first or raise the second."
            )


# Trials of a grid's jobs


def trial_overrides(config: StageConfig, tuning: TuningConfig, *, share: float) -> list[str]:
    """What a trial of a job adds to its overrides: the seed, and its share of the budget or steps.

    Raises:
        ConfigError: the stage trains nothing.
    """
    trainer: Any = getattr(config, "trainer", None)
    if trainer is None:
        raise ConfigError(f"{SWEEPER}.tuning is of trainings, and stage={config.stage} is none. Leave it out.")
    key = next((name for name in BUDGETS if getattr(trainer, name) is not None), "max_steps")
    size = getattr(trainer, key) * share
    return [f"seed={tuning.seed}", f"trainer.{key}={size if key == 'max_flops' else max(1, round(size))}"]


# Of tokenizers that differ in nothing but size, the largest alone is trained, and the others are cut from it


def ladder_overrides(configs: Sequence[StageConfig]) -> list[list[str]]:
    """For each job, what to add to its overrides: tokenizer.ladder where a larger one differs in nothing but size."""
    kinds = [_kind(config) for config in configs]
    largest: dict[str, int] = {}
    for kind, config in zip(kinds, configs, strict=True):
        if kind is not None:
            largest[kind] = max(largest.get(kind, 0), _tokenizer(config).size)
    return [
        [f"tokenizer.ladder={largest[kind]}"] if kind and _tokenizer(config).size < largest[kind] else []
        for kind, config in zip(kinds, configs, strict=True)
    ]


def _kind(config: StageConfig) -> str | None:
    """All that determines a job's tokenizer but its size; None if it trains none, or the user said what to cut from."""
    tokenizer = _tokenizer(config)
    if tokenizer is None or tokenizer.ladder is not None or not tokenizer.size:
        return None
    data: Any = config.data  # type: ignore[attr-defined]  # every stage with a tokenizer has data
    own = TokenizerStage(stage="tokenizer", outputs=config.outputs, tokenizer=tokenizer, data=data)
    settings = identity_settings(own)
    settings["tokenizer"][tokenizer.size_name] = None
    text = identity_settings(data, "documents")
    paths = [tokenizer.path, data.path, *(data.parts[name].path for name in sorted(data.parts or ()))]
    return json.dumps([settings, text, paths, config.outputs], sort_keys=True)


def _tokenizer(config: StageConfig) -> Any:
    return getattr(config, "tokenizer", None)
