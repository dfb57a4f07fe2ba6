"""What autocast leaves in fp32, taken in its half precision: the residual stream, and on a GPU a mixture's experts."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

EXPERTS = "ttukttak_half_experts"  # among the experts' functions of transformers
HALVES_EXPERTS = {"cuda"}  # a CPU's product of fp32 experts is the faster one


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a Hugging Face model, by what it says may not be parted."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def halve_residual(model: nn.Module) -> None:
    """Have every block take its states in half precision, where autocast is on; twice is as once."""
    for block in blocks_of(model):
        if _halved not in block._forward_pre_hooks.values():
            block.register_forward_pre_hook(_halved)


def halve_experts(model: nn.Module) -> None:
    """Have experts multiply in half precision, where autocast is on: of fp32 the host reads their shares."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "_experts_implementation", None) == "grouped_mm":
        config._experts_implementation = EXPERTS


def _halved(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    states, *others = inputs
    kind = states.device.type
    return (states.to(torch.get_autocast_dtype(kind)), *others) if torch.is_autocast_enabled(kind) else inputs


def _experts(module: nn.Module, states: torch.Tensor, *routes: torch.Tensor) -> torch.Tensor:
    """States (tokens, width), and of each token the experts and their weights (tokens, experts per token)."""
    kind = states.device.type
    if kind in HALVES_EXPERTS and torch.is_autocast_enabled(kind):
        dtype, weights = torch.get_autocast_dtype(kind), dict(module.named_parameters())
        if any(weight.dtype is not dtype for weight in weights.values()):
            halved = {name: weight.to(dtype) for name, weight in weights.items()}
            return functional_call(module, halved, (states.to(dtype), *routes))  # which comes here again
    return grouped_mm_experts_forward(module, states, *routes)


ALL_EXPERTS_FUNCTIONS[EXPERTS] = _experts
