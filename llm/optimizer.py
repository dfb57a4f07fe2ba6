"""A model's parameters -> AdamW with decay on its matrices, and a warmup and cosine schedule."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from llm.config import OptimizerConfig


def build(model: nn.Module, config: OptimizerConfig, *, max_steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """(optimizer, schedule) over the parameters that require gradients; the schedule counts optimizer steps."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed = [p for p in trainable if p.ndim >= 2 and p not in embeddings]
    others = [p for p in trainable if p.ndim < 2 or p in embeddings]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},  # biases, norms, embeddings (and a head that is tied to them)
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    return optimizer, LambdaLR(optimizer, lambda step: schedule(step, config, max_steps=max_steps))


def schedule(step: int, config: OptimizerConfig, *, max_steps: int) -> float:
    """The share of the peak learning rate for optimizer step `step`, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_learning_rate_ratio + (1 - config.min_learning_rate_ratio) * cosine
