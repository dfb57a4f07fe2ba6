"""The schema of hydra/launcher: how the jobs of a sweep are carried out; none of it changes what they make."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from llm.config.fields import at_least
from llm.errors import ConfigError

LAUNCHER = "hydra.launcher"


@dataclass(kw_only=True)
class RetryConfig:
    """How often a job is tried again, by what ended it; a retry goes on from the last checkpoint."""

    killed: int = 2  # by a signal that we did not send: the machine's doing, mostly
    out_of_memory: int = 0
    diverged: int = 0
    failed: int = 0  # a bug, a full disk; never bad data or a wrong config, which stay what they are


@dataclass(kw_only=True)
class PoolConfig:
    """Jobs side by side, each a process of its own."""

    jobs: int | None = None  # at once; None: as many as there are cores, and 2 GB of memory for each
    threads: int | None = None  # of a process on the CPU; None: the cores over the jobs
    jobs_per_gpu: int = 1
    retries: RetryConfig = field(default_factory=RetryConfig)
    max_attempts: int = 5  # that failed, over all starts of the same sweep
    fail_fast: bool = False  # the first job that fails for good stops the others, which save and can go on
    grace_seconds: float = 120.0  # to save in, once asked to stop

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: a number is out of range.
        """
        for key in ("jobs", "threads"):
            if (value := getattr(self, key)) is not None:
                at_least(f"{LAUNCHER}.{key}", value, 1)
        at_least(f"{LAUNCHER}.jobs_per_gpu", self.jobs_per_gpu, 1)
        at_least(f"{LAUNCHER}.max_attempts", self.max_attempts, 1)
        for each in fields(self.retries):
            at_least(f"{LAUNCHER}.retries.{each.name}", getattr(self.retries, each.name), 0)
        if not 0 <= self.grace_seconds < float("inf"):
            raise ConfigError(f"{LAUNCHER}.grace_seconds={self.grace_seconds} is out of range. Set 0 or more.")


def with_number(overrides: Sequence[str], number: int) -> list[str]:
    """Overrides in which ${hydra:job.num} and ${hydra:job.id} are the job's number, which a run alone does not have."""
    return [re.sub(r"\$\{hydra:job\.(num|id)\}", str(number), override) for override in overrides]
