"""hydra/launcher=pool and slurm: the jobs of a multirun, here or on a Slurm cluster; the work is in llm.sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from llm.config.slurm import SlurmConfig
from llm.config.stages import StageConfig
from llm.config.sweeping import PoolConfig
from llm.errors import ConfigError

if TYPE_CHECKING:
    from llm.sweep.jobs import Job


class CheckedLauncher(Launcher):
    """Takes jobs that are composed and checked; the sweepers of this project give it such."""

    name: ClassVar[str]
    schema: ClassVar[type[PoolConfig] | type[SlurmConfig]]

    def __init__(self, **settings: Any) -> None:
        self.settings: PoolConfig | SlurmConfig = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(self.schema), settings)
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._choices = config.hydra.runtime.choices

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What another sweeper asks for: jobs as text alone, of which nobody has seen whether they can be.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"hydra/launcher={self.name} takes the jobs of hydra/sweeper=checked, which looks at each of them first. "
            "Leave hydra/sweeper out, or choose hydra/launcher=basic."
        )

    def launch_checked(self, jobs: Sequence[Sequence[str]], configs: Sequence[StageConfig]) -> list[JobReturn]:
        """Have the jobs carried out; what each of them came to, as far as it was waited for."""
        from llm.sweep.grid import run_grid  # imports what composing does not need

        ended = run_grid(jobs, configs, settings=self.settings, choice=self._choices.get("sweep"))
        return [returned(job) for job in ended]


class PoolLauncher(CheckedLauncher):
    """Side by side on this machine, each in a process of its own."""

    name, schema = "pool", PoolConfig


class SlurmLauncher(CheckedLauncher):
    """On a Slurm cluster."""

    name, schema = "slurm", SlurmConfig


@dataclass(kw_only=True)
class PoolNode(PoolConfig):
    """The settings, as Hydra finds the class that takes them."""

    _target_: str = "hydra_plugins.ttukttak.launcher.PoolLauncher"


@dataclass(kw_only=True)
class SlurmNode(SlurmConfig):
    """The same."""

    _target_: str = "hydra_plugins.ttukttak.launcher.SlurmLauncher"


for node, launcher in ((PoolNode, PoolLauncher), (SlurmNode, SlurmLauncher)):
    ConfigStore.instance().store(group="hydra/launcher", name=launcher.name, node=node, provider="ttukttak")


def returned(job: "Job") -> JobReturn:
    """What a job came to; of one that nobody waits for, nothing is known yet."""
    made = JobReturn(overrides=job.overrides, working_dir=str(job.folder))
    if job.run is not None:
        made.status, made._return_value = JobStatus.COMPLETED, job.run.objective
    elif job.state not in ("queued", "running"):
        from llm.sweep.grid import as_error

        made.status, made._return_value = JobStatus.FAILED, as_error(job)
    return made
