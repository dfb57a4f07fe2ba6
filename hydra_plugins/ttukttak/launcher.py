"""hydra/launcher=pool and slurm: the settings of where the jobs of a multirun run; the work is in llm.sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from llm.config.sweeping import PoolConfig, SlurmConfig
from llm.errors import ConfigError


class CheckedLauncher(Launcher):
    """Has settings, by which the sweeper of this project has its jobs carried out."""

    schema: ClassVar[type[PoolConfig] | type[SlurmConfig]]

    def __init__(self, **settings: Any) -> None:
        self.settings: PoolConfig | SlurmConfig = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(self.schema), settings)
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing: the jobs are composed."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What another sweeper asks for: jobs as text alone, of which nobody has seen whether they can be.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "hydra/launcher=pool and slurm take the jobs of hydra/sweeper=checked, which looks at each of them first. "
            "Leave hydra/sweeper out, or choose hydra/launcher=basic."
        )


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
