"""A model, an optimizer and a micro-batch's shape -> the memory that training takes, found without taking it.

Two optimizer steps, the second as every later one, are carried out on tensors that have a shape and no memory (torch's
FakeTensorMode), by the very functions that train. What is alive at once is counted as it is made and freed. So a change
to a model, a loss or an optimizer is in the estimate by itself.
"""

import weakref
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from llm import optimizer
from llm.config.training import OptimizerConfig, Precision
from llm.model import EAGER, checkpoint_blocks, halve_residual, next_token_loss
from llm.model.loss import GPU_CHUNK_LOGITS

# Of a process on a CPU, beside its tensors; benchmarks.memory measured both, docs/numbers.md has the table.
HEAP_SHARE = 0.5  # of the activations: freed blocks that glibc keeps, and cannot give to the next tensor of their size
FIRST_STEP_BYTES = 45_000_000  # what libraries load and set aside from the building of the model to the first step


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device when most is held."""

    weights: int  # with buffers, and what does not train
    gradients: int
    optimizer: int
    logits: int  # and what the loss makes of them: every tensor of (..., vocab), where that is no other layer's width
    activations: int  # the rest: what backward needs, and what a layer needs for itself
    heap: int = 0  # of a process on a CPU: what its allocator keeps of freed tensors
    libraries: int = 0  # of a process on a CPU: Python, torch and the others

    @property
    def total(self) -> int:
        tensors = self.weights + self.gradients + self.optimizer + self.logits + self.activations
        return tensors + self.heap + self.libraries

    def in_a_process(self, before: int) -> "Memory":
        """On a CPU, whose memory is that of the process: `before` is what it holds before there is a model."""
        return replace(self, heap=round(HEAP_SHARE * self.activations), libraries=before + FIRST_STEP_BYTES)

    def shared_out(self, devices: int) -> "Memory":
        """What each holds under trainer.strategy=fsdp, but for the block that is put together at the time."""
        shares = {name: getattr(self, name) // devices for name in ("weights", "gradients", "optimizer")}
        return replace(self, **shares)


def rehearse(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    precision: Precision,
    rows: int,
    sequence_length: int,
    accumulation: int,
    checkpointing: bool = False,
    is_residual_halved: bool = False,
    compile: bool = False,
    on_gpu: bool = False,
) -> Memory:
    """The peak of a training step of `model`, which is on the meta device and is used up.

    Each row is taken for one document. torch.compile keeps less of the activations than is counted: of llama a fifth of
    it all, of gpt2 nothing. Where there is no GPU, kernels are chosen as on a CPU; `compile` and `on_gpu` are what
    training has, by which its logits are taken by larger chunks.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained: Any = model.train()
    if checkpointing:
        checkpoint_blocks(trained)
    if is_residual_halved:
        halve_residual(trained)
    vocab_size = _telling_vocab_size(trained)
    passes = replace(EAGER, is_compiled=compile or on_gpu)
    if compile and on_gpu:
        fused: dict[str, Any] = {"nats": _fused_nats, "balanced": _fused_balanced, "chunk": _fused_chunk}
        passes = replace(passes, chunk_logits=GPU_CHUNK_LOGITS, **fused)
    with FakeTensorMode(), torch.device(device), _Alive(model, vocab_size) as alive:
        _leave_meta(model)
        built, _ = optimizer.build(model, config, max_steps=2)
        batch = _batch(rows, sequence_length)
        for _ in range(2):
            for _ in range(min(2, accumulation)):  # the second comes while there are gradients of the first
                with torch.autocast(device, dtype=torch.bfloat16, enabled=precision is Precision.bf16):
                    loss = next_token_loss(model, batch, passes=passes)[1]
                loss.backward()  # type: ignore[no-untyped-call]
                del loss
            _clip(model, config)
            built.step()
            built.zero_grad()
        return alive.memory(sum(_bytes(value) for state in built.state.values() for value in state.values()))


def _fused_chunk(states: torch.Tensor, weight: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a compiled chunk of the loss writes down: its logits and their gradient, each in half precision."""
    logits = states @ weight.T
    return torch.zeros((), dtype=torch.float32), torch.empty_like(logits)


class _FusedNats(torch.autograd.Function):
    """Of all logits likewise."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits)
        return torch.zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> torch.Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


def _fused_nats(model: Any, inputs: dict[str, Any], *_: Any) -> Any:
    return _FusedNats.apply(model(**inputs, use_cache=False).logits)  # type: ignore[no-untyped-call]


def _fused_balanced(model: Any, inputs: dict[str, Any], _: torch.Tensor, weight: float) -> tuple[Any, Any]:
    outputs = model(**inputs, use_cache=False, output_router_logits=True)
    nats: Any = _FusedNats.apply(outputs.logits)  # type: ignore[no-untyped-call]
    return nats, nats + weight * outputs.aux_loss


def _telling_vocab_size(model: Any) -> int | None:
    """The last dimension by which logits are known; None where a layer is as wide, and they count as activations."""
    ends = {id(model.get_output_embeddings().weight), id(model.get_input_embeddings().weight)}
    widths = {size for weight in model.parameters() if id(weight) not in ends for size in weight.shape}
    size = model.get_output_embeddings().weight.shape[0]
    return None if size in widths else size


def _leave_meta(model: nn.Module) -> None:
    """Give every parameter and buffer a fake tensor on the device, tied ones the same."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if old not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    made[old] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                tensors[name] = made[old]  # type: ignore[assignment]  # a parameter for a parameter


def _batch(rows: int, sequence_length: int) -> dict[str, Any]:
    names = ("input_ids", "labels", "position_ids")
    return {name: torch.zeros(rows, sequence_length, dtype=torch.long) for name in names} | {"document_bounds": None}


def _clip(model: nn.Module, config: OptimizerConfig) -> None:
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], config.gradient_clip_norm)


def _bytes(value: Any) -> int:
    return value.untyped_storage().nbytes() if isinstance(value, torch.Tensor) else 0


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that an operator makes, until it is freed; keeps what was held at the most."""

    def __init__(self, model: nn.Module, vocab_size: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model, self._vocab_size = model, vocab_size
        self._known: set[int] = set()
        self._held: Counter[bool] = Counter()  # by whether it is of logits
        self._peak = (0, 0, 0)  # total, of logits, of gradients

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype is torch.float32:
            # of experts: kernels take fp32, and what torch knows of their shapes without running them takes bf16 alone
            out = func(args[0].bfloat16(), args[1].bfloat16(), *args[2:], **(kwargs or {})).float()
        else:
            out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, out)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        size, is_logits = storage.nbytes(), tensor.ndim > 1 and tensor.shape[-1] == self._vocab_size
        self._known.add(storage._cdata)
        self._held[is_logits] += size
        weakref.finalize(storage, self._forget, storage._cdata, size, is_logits)
        if (total := self._held.total()) > self._peak[0]:
            self._peak = total, self._held[True], sum(_bytes(p.grad) for p in self._model.parameters())

    def _forget(self, storage: int, size: int, is_logits: bool) -> None:
        self._known.discard(storage)
        self._held[is_logits] -= size

    def memory(self, optimizer_bytes: int) -> Memory:
        total, logits, gradients = self._peak
        tensors = {*self._model.parameters(), *self._model.buffers()}
        weights = sum(map(_bytes, tensors))
        rest = total - logits - gradients - weights - optimizer_bytes
        return Memory(weights=weights, gradients=gradients, optimizer=optimizer_bytes, logits=logits, activations=rest)
