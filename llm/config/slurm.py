"""The schema of hydra/launcher=slurm: what the jobs of a sweep ask a Slurm cluster for."""

from dataclasses import dataclass

from llm.config.fields import check_settings, setting
from llm.config.sweeping import LAUNCHER, RetryConfig
from llm.errors import ConfigError

# What has a setting of its own, or is what the launcher lives by: not for hydra.launcher.sbatch.
TAKEN = {
    **{"partition": "partition", "account": "account", "qos": "qos", "time": "time_minutes"},
    **{"cpus-per-task": "cpus_per_task", "mem": "memory_gb", "gpus-per-node": "gpus_per_node"},
    **{"signal": "signal_seconds", "array": "array_parallelism"},
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "trainer.num_nodes and trainer.devices"),
    **dict.fromkeys(("comment", "job-name", "output", "error", "open-mode", "chdir", "requeue", "no-requeue"), None),
}


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
    sbatch: list[str] = setting([])  # further #SBATCH arguments: [--constraint=a100, --exclusive]
    srun: list[str] = setting([])  # further arguments of the srun that starts the processes
    wait: bool = True  # false: submit, and leave
    poll_seconds: float = setting(10.0, at_least=0.1)  # between two looks at Slurm's queue
    retries: RetryConfig = setting(RetryConfig())
    max_attempts: int = setting(5, at_least=1)  # that failed, over all starts of the same sweep
    fail_fast: bool = False  # the first job that fails for good stops the others, which save and can go on
    grace_seconds: float = setting(120.0, at_least=0)  # to save in, before a job that is to stop is cancelled

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: a number is out of range, or a setting is given in another's place.
        """
        check_settings(self, LAUNCHER)
        if self.signal_seconds >= 60 * self.time_minutes:
            raise ConfigError(
                f"{LAUNCHER}.signal_seconds={self.signal_seconds} leaves nothing of {LAUNCHER}.time_minutes="
                f"{self.time_minutes}. Lower the first or raise the second."
            )
        self._check_sbatch()

    def _check_sbatch(self) -> None:
        for argument in self.sbatch:
            name = argument.removeprefix("--").partition("=")[0]
            if not argument.startswith("--") or not name:
                raise ConfigError(f"{LAUNCHER}.sbatch={argument} is no argument. Write it as --name=value, or --name.")
            if name not in TAKEN:
                continue
            place = TAKEN[name]
            if place is None:
                raise ConfigError(f"{LAUNCHER}.sbatch={argument} is what the launcher itself sets. Leave it out.")
            place = place if "." in place else f"{LAUNCHER}.{place}"
            raise ConfigError(f"{LAUNCHER}.sbatch={argument} has a setting of its own. Set {place} in its place.")

    @property
    def further(self) -> dict[str, str | bool]:
        """The further #SBATCH arguments by name; True is one that takes no value."""
        parted = [argument.removeprefix("--").partition("=") for argument in self.sbatch]
        return {name: value if equals else True for name, equals, value in parted}
