"""The schema of hydra/launcher=slurm: what the jobs of a sweep ask a Slurm cluster for."""

from dataclasses import dataclass

from llm.config.fields import check_settings, setting
from llm.config.sweeping import LAUNCHER, RetryConfig
from llm.errors import ConfigError


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
