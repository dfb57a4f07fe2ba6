"""hydra/launcher=slurm: the jobs of a multirun on a Slurm cluster; the work is in llm.sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.ttukttak.pool import returned
from llm.config import SlurmConfig, StageConfig
from llm.errors import ConfigError


@dataclass(kw_only=True)
class SlurmNode(SlurmConfig):
    """The settings, as Hydra finds the class that takes them."""

    _target_: str = "hydra_plugins.ttukttak.slurm.SlurmLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmNode, provider="ttukttak")


class SlurmLauncher(Launcher):
    """Takes jobs that are composed and checked; the sweepers of this project give it such."""

    def __init__(self, **settings: Any) -> None:
        self.settings: SlurmConfig = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SlurmConfig), settings))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._choices = config.hydra.runtime.choices

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What another sweeper asks for: jobs as text alone, of which nobody has seen whether they can be.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "hydra/launcher=slurm takes the jobs of hydra/sweeper=checked, which looks at each of them first. Leave "
            "hydra/sweeper out."
        )

    def launch_checked(self, jobs: Sequence[Sequence[str]], configs: Sequence[StageConfig]) -> list[JobReturn]:
        """Have the jobs carried out; what each of them came to, as far as it was waited for."""
        from llm.sweep.grid import run_grid  # imports what composing does not need

        standings = run_grid(jobs, configs, settings=self.settings, choice=self._choices.get("sweep"))
        return [returned(job, standing) for job, standing in zip(jobs, standings, strict=True)]
