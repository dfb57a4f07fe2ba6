"""What a machine has -> who gets which part of it: GPUs by count, and on the CPU cores and memory."""

import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llm.config.stages import StageConfig
from llm.config.sweeping import PoolConfig
from llm.config.training import Accelerator
from llm.environment import visible_gpus
from llm.errors import ConfigError
from llm.run.console import log

BYTES_PER_JOB = 2_000_000_000  # of memory, where a stage trains nothing, or its model cannot be known yet


@dataclass(frozen=True)
class Share:
    """What one job may use."""

    gpus: tuple[str, ...]
    slots: int  # of the CPU's
    memory: int  # bytes of it, where they are counted
    environment: dict[str, str]


class Shares:
    """The parts of this machine that are free."""

    def __init__(
        self,
        settings: PoolConfig,
        *,
        num_jobs: int,
        gpus: Sequence[str],
        cores: int,
        memory: int,
        bytes_of: Callable[[StageConfig], int] = lambda config: BYTES_PER_JOB,
    ) -> None:
        """`bytes_of` says what memory each process of a job takes on the CPU."""
        self._settings, self._gpus, self._cores, self._bytes_of = settings, list(gpus), cores, bytes_of
        self.slots = settings.jobs or max(1, min(num_jobs, cores))
        self._free_slots, self._memory, self._free_memory = self.slots, memory, memory
        self._has_said_full = False
        self._used: Counter[str] = Counter()  # jobs on each GPU

    def check(self, config: StageConfig) -> None:
        """Refuse a job that this machine can never run.

        Raises:
            ConfigError: it wants more GPUs than there are.
        """
        devices = devices_of(config)
        if self._on_gpu(config) and devices > len(self._gpus):
            raise ConfigError(
                f"stage={config.stage} asks for {devices} GPUs, but a job can have {len(self._gpus)} here. Set "
                "trainer.devices, trainer=cpu, or evaluation.accelerator=auto."
            )

    def take(self, config: StageConfig) -> Share | None:
        """The share of a job, which is then no longer free; None if too little is."""
        devices, memory, at_once = devices_of(config), 0, self.slots
        if self._on_gpu(config):
            at_most = self._settings.jobs_per_gpu
            free = sorted((gpu for gpu in self._gpus if self._used[gpu] < at_most), key=lambda gpu: self._used[gpu])
            if len(free) < devices or (self._settings.jobs and not self._free_slots):
                return None
            gpus, slots = tuple(free[:devices]), 1 if self._settings.jobs else 0
        else:
            gpus, slots = (), min(devices, self.slots)  # a process for each device
            if slots > self._free_slots:
                return None
            if not self._settings.jobs:
                each = self._bytes_of(config)
                memory, at_once = each * devices, max(1, min(self.slots, self._memory // each))
            if memory > self._free_memory < self._memory:  # a job that is too large for all of it runs by itself
                self._say_full(memory)
                return None
        self._free_slots -= slots
        self._free_memory -= memory
        self._used.update(gpus)
        each_job = self._settings.threads or max(1, self._cores // at_once)
        environment = {"OMP_NUM_THREADS": str(max(1, each_job * min(devices, at_once) // devices))}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return Share(gpus, slots, memory, environment)

    def give_back(self, share: Share) -> None:
        self._free_slots += share.slots
        self._free_memory += share.memory
        self._used.subtract(share.gpus)

    def _say_full(self, memory: int) -> None:
        if not self._has_said_full:
            said = "fewer jobs run at once than there are cores: the next is to take %.1f GB of the %.1f GB of memory"
            log.info(f"{said}. hydra.launcher.jobs sets how many", memory / 1e9, self._memory / 1e9)
            self._has_said_full = True

    def _on_gpu(self, config: StageConfig) -> bool:
        accelerator = accelerator_of(config)
        return accelerator is Accelerator.gpu or (accelerator is Accelerator.auto and bool(self._gpus))


def present_gpus() -> list[str]:
    """The GPUs that jobs may have, as CUDA_VISIBLE_DEVICES names them; asked without touching CUDA.

    A process that has used CUDA cannot fork others that do.
    """
    visible = visible_gpus()
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):  # no driver here
        return []
    return listed.stdout.split() if listed.returncode == 0 else []


def accelerator_of(config: StageConfig) -> Accelerator:
    """Where a job's model computes: the CPU, too, of a stage that does not say."""
    settings: Any = getattr(config, "trainer", None) or getattr(config, "evaluation", None)
    return settings.accelerator if settings else Accelerator.cpu


def devices_of(config: StageConfig) -> int:
    """As many as a job computes on, of each node."""
    trainer: Any = getattr(config, "trainer", None)
    return trainer.devices if trainer else 1
