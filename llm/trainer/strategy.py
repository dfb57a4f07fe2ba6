"""The devices of a run -> Lightning's strategy: one device, a copy of the model on each, or the model shared out."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from llm.config.training import Precision, Strategy, TrainerConfig
from llm.environment import complete_srun, launch_id, of_srun
from llm.errors import ConfigError
from llm.model import blocks_of
from llm.run.launch import LOOPBACK


def strategy_of(config: TrainerConfig) -> "ParallelStrategy | str":
    """What Lightning's trainer takes for it."""
    if config.world_size == 1:
        return "auto"
    if is_shared_out(config):
        return SharedOutStrategy(world_size=config.world_size)
    # Buffers are the same everywhere: a broadcast in each forward pass would only cost time.
    return DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True)


def is_shared_out(config: TrainerConfig) -> bool:
    """Whether no process has the whole model."""
    return config.world_size > 1 and config.strategy is Strategy.fsdp


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Where passes are in bf16: of forward alone, whose backward follows it; weights and losses stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is Precision.bf16)


def environment() -> ClusterEnvironment:
    """Who started the processes, and so which variables say which one this is."""
    if launch_id() is None:
        return LightningEnvironment()
    if not of_srun():
        return TorchElasticEnvironment()
    complete_srun(LOOPBACK)  # how many there are has been checked against the config
    slurm = SLURMEnvironment(auto_requeue=False)
    _require_address(slurm.main_address)
    return slurm


def _require_address(name: str) -> None:
    """Refuse a name of the first node that means nothing here: the ranks would look for it for half an hour.

    Raises:
        ConfigError: it has no address.
    """
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ConfigError(
            f"the first node, {name}, has no address on this one ({error.strerror}). Set MASTER_ADDR=<its address> "
            "before srun."
        ) from None


class SharedOutStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are those of one process: whole tensors, with the optimizer's states by number.

    So a run goes on under any strategy. The cost: at a save each tensor in turn is put together on every device, and
    rank zero has the whole state in its host memory; at a load every process does.
    """

    def __init__(self, *, world_size: int) -> None:
        super().__init__(data_parallel_size=world_size, tensor_parallel_size=1)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters(remove_duplicate=False))
        made: dict[int, Any] = {}  # so that tied weights stay one tensor
        state = self.lightning_module.state_dict()
        for name, value in state.items():
            key = id(parameters.get(name, value))
            made[key] = self._kept(value) if key not in made else made[key]
            state[name] = made[key]
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = super(ModelParallelStrategy, self).optimizer_state(optimizer)
        of_parameters = {
            index: {key: self._kept(value) for key, value in values.items()} for index, values in state["state"].items()
        }
        return state | {"state": of_parameters}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        super(ModelParallelStrategy, self).save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        mine = self.lightning_module.state_dict()
        for name, value in checkpoint["state_dict"].items():
            mine[name].copy_(shared_as(mine[name], value))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            states = {
                index: {
                    key: shared_as(parameters[index], value) if value.shape == parameters[index].shape else value
                    for key, value in values.items()
                }
                for index, values in saved["state"].items()
            }
            optimizer.load_state_dict(dict(saved) | {"state": states})

    def _kept(self, value: Any) -> Any:
        """A tensor put together, in which every rank takes part; rank zero keeps it, in its host's memory."""
        if not isinstance(value, DTensor):
            return value
        together = whole(value)
        return together.cpu() if self.is_global_zero else together.new_empty(0)


def share_out(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model over all devices, block by block, so that one block at a time is put together."""
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor itself; or the whole of which this process has a part, and then every rank must take part."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shared_as(like: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A whole tensor, shared out as `like` is."""
    if not isinstance(like, DTensor):
        return value
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def gather(shared_out: nn.Module, *, into: nn.Module) -> None:
    """Copy the weights of a sharded model into its like in one process; every rank must take part."""
    parts = shared_out.state_dict()
    for name, value in into.state_dict().items():
        value.copy_(whole(parts[name]))


@contextmanager
def gathered(shared_out: nn.Module, *, into: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The whole model on the device for as long as the block runs: each rank may call it without the others."""
    gather(shared_out, into=into)
    into.to(device)
    yield into
    into.cpu()
