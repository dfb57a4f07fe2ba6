"""The devices that a run asks for -> a refusal, before any work, of what this machine or this launch cannot give it."""

import os

from llm.config import Accelerator, Precision, TrainerConfig
from llm.errors import ConfigError
from llm.run.environment import is_launched

LEAST_FOR_BF16 = 8  # compute capability: Ampere. Older GPUs make bf16 of other instructions, slower than fp32


def require_devices(config: TrainerConfig) -> None:
    """Look only as far as the config asks: torch takes seconds to load.

    Raises:
        ConfigError: GPUs that are not there, a precision that they lack, or a launch of another size.
    """
    _require_launch(config)
    if config.accelerator is Accelerator.cpu:
        return
    if config.accelerator is Accelerator.gpu or config.devices > 1 or config.precision is Precision.bf16:
        _require_gpus(config)


def _require_launch(config: TrainerConfig) -> None:
    size = os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS"))
    if not is_launched() and config.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.num_nodes}, but this is one process on one machine. Start it on every machine: "
            f"srun --nodes={config.num_nodes} --ntasks-per-node={config.devices} python train.py ..., or on each "
            f"python -m torch.distributed.run --nnodes={config.num_nodes} --nproc-per-node={config.devices} "
            "--rdzv-backend=c10d --rdzv-endpoint=<one of them>:29500 --rdzv-id=<any> train.py ..."
        )
    if is_launched() and size is not None and int(size) != config.world_size:
        raise ConfigError(
            f"this launch has {size} processes, but trainer.devices={config.devices} on trainer.num_nodes="
            f"{config.num_nodes} takes {config.world_size}. Make them the same."
        )


def _require_gpus(config: TrainerConfig) -> None:
    import torch

    present = torch.cuda.device_count()
    if config.accelerator is Accelerator.auto and not present:
        return  # a CPU it is, with as many processes as are asked for
    if config.devices > present:
        raise ConfigError(
            f"trainer.accelerator={config.accelerator.value} with trainer.devices={config.devices}, but this machine "
            f"has {present} GPUs that torch can use. Choose trainer=cpu, or fewer devices."
        )
    for index in range(config.devices):
        name, (major, _) = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        if config.precision is Precision.bf16 and major < LEAST_FOR_BF16:
            raise ConfigError(
                f"trainer.precision=bf16, but {name} (GPU {index}) has no bf16 arithmetic. Set trainer.precision=fp32."
            )
