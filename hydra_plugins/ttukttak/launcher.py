"""hydra/launcher=pool and slurm: the jobs of a multirun, here or on a Slurm cluster; the work is in llm.sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from llm.config.stages import StageConfig
from llm.config.sweeping import PoolConfig, SlurmConfig
from llm.errors import ConfigError

if TYPE_CHECKING:
    from llm.sweep.jobs import Job


class CheckedLauncher(Launcher):
    """Takes jobs that are composed and checked; the sweepers of this project give it such."""

    schema: ClassVar[type[PoolConfig] | type[SlurmConfig]]

    def __init__(self, **settings: Any) -> None:
        self.settings: PoolConfig | SlurmConfig = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(self.schema), settings)
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What launch_checked does needs none of it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What another sweeper asks for: jobs as text alone, of which nobody has seen whether they can be.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "hydra/launcher=pool and slurm take the jobs of hydra/sweeper=checked, which looks at each of them first. "
            "Leave hydra/sweeper out, or choose hydra/launcher=basic."
        )

    def launch_checked(
        self, jobs: Sequence[list[str]], configs: Sequence[StageConfig], *, choice: str | None
    ) -> list[JobReturn]:
        """Have the jobs carried out; what each of them came to. `choice` is the name of a recorded sweep."""
        from llm.sweep.driver import run_grid  # imports what composing does not need

        return [returned(job) for job in run_grid(jobs, configs, settings=self.settings, choice=choice)]


class PoolLauncher(CheckedLauncher):
    """Side by side on this machine, each in a process of its own."""

    schema = PoolConfig


class SlurmLauncher(CheckedLauncher):
    """On a Slurm cluster."""

    schema = SlurmConfig


@dataclass(kw_only=True)
class PoolNode(PoolConfig):
    """The settings, as Hydra finds the class that takes them."""

    _target_: str = "hydra_plugins.ttukttak.launcher.PoolLauncher"


@dataclass(kw_only=True)
class SlurmNode(SlurmConfig):
    """The same."""

    _target_: str = "hydra_plugins.ttukttak.launcher.SlurmLauncher"


for name, node in (("pool", PoolNode), ("slurm", SlurmNode)):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="ttukttak")


def returned(job: "Job") -> JobReturn:
    """What a job came to."""
    from llm.sweep.driver import as_error

    made = JobReturn(overrides=job.overrides, working_dir=str(job.folder))
    made.status = JobStatus.COMPLETED if job.run else JobStatus.FAILED
    made._return_value = job.run.objective if job.run else as_error(job)
    return made
