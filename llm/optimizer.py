"""A model's parameters -> an optimizer, with decay on its matrices, and the learning rate of each step."""

import math
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from llm.config.training import Algorithm, DecayShape, OptimizerConfig, Schedule


def build(model: nn.Module, config: OptimizerConfig, *, max_steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """(optimizer, schedule) over the parameters that require gradients; the schedule counts optimizer steps."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed = [p for p in trainable if p.ndim >= 2 and p not in embeddings]
    others = [p for p in trainable if p.ndim < 2 or p in embeddings]  # biases, norms, embeddings (and a head tied to)
    if config.algorithm is Algorithm.muon:
        head = model.get_output_embeddings()  # type: ignore[operator]  # of every Hugging Face model
        matrices = [p for p in decayed if p.ndim == 2 and (head is None or p is not head.weight)]
        rest = [p for p in decayed if p not in set(matrices)]
        muon = Muon(
            matrices,
            fused=frozenset(p for name, p in model.named_parameters() if name.endswith(".c_attn.weight")),
            lr=config.muon_learning_rate or config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.muon_momentum,
            adjust_lr_fn="match_rms_adamw",  # so that AdamW's learning rate serves (Liu et al. 2025, arXiv:2502.16982)
        )
        optimizer: torch.optim.Optimizer = MuonWithAdamW(muon, _adamw(model, rest, others, config))
    else:
        optimizer = _adamw(model, decayed, others, config)
    return optimizer, LambdaLR(optimizer, lambda step: schedule(step, config, max_steps=max_steps))


def _embedding_parameters(model: Any) -> set[nn.Parameter]:
    """What has a row for each token, or for each new one: the embeddings' and the head's."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return {parameter for end in ends if end is not None for parameter in end.parameters()}


def _with_own_rate(groups: list[dict[str, Any]], own: set[nn.Parameter], rate: float) -> list[dict[str, Any]]:
    """The groups of the others, and behind them those of `own` at their rate."""
    others = [group | {"params": [p for p in group["params"] if p not in own]} for group in groups]
    of_own = [group | {"params": [p for p in group["params"] if p in own], "lr": rate} for group in groups]
    return [group for group in (*others, *of_own) if group["params"]]


def schedule(step: int, config: OptimizerConfig, *, max_steps: int) -> float:
    """The share of the peak learning rate for optimizer step `step`, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    decay_from = _first_decaying_step(config, max_steps=max_steps)
    progress = min(1.0, max(0.0, (step - decay_from) / max(1, max_steps - 1 - decay_from)))
    left = 1 - progress  # of the way down: linear, or wsd in a line
    if config.schedule is Schedule.constant:
        left = 1.0
    elif config.schedule is Schedule.cosine:
        left = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule is Schedule.wsd and config.decay_shape is DecayShape.one_minus_sqrt:
        left = 1 - math.sqrt(progress)
    return config.min_learning_rate_ratio + (1 - config.min_learning_rate_ratio) * left


def extension_step(config: OptimizerConfig, *, max_steps: int) -> int | None:
    """The steps after which a run goes on as a longer one would: the end of its stable phase, if it has one."""
    if config.schedule is not Schedule.wsd:
        return None
    step = _first_decaying_step(config, max_steps=max_steps)
    return step if 0 < step < max_steps else None


def _first_decaying_step(config: OptimizerConfig, *, max_steps: int) -> int:
    if config.schedule is Schedule.wsd:
        return max(config.warmup_steps, max_steps - round(config.decay_share * max_steps))
    return config.warmup_steps


class MuonWithAdamW(torch.optim.Optimizer):
    """Both as one optimizer, as Lightning and learning rate schedules take it.

    Muon (Jordan et al. 2024) steps along a matrix's momentum with its singular values evened out; AdamW takes the rest.
    Parameters, state and groups are those of the two.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self._muon, self._adamw = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the two work on the state and the groups of this one."""
        number = len(self._muon.param_groups)
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:number], self.param_groups[number:]
        self._muon.state = self._adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also the end of load_state_dict, which makes new groups and a new state."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure else None
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()
        return loss


class Muon(torch.optim.Muon):
    """torch's, for which a weight of GPT-2's queries, keys and values is the three matrices that it holds."""

    def __init__(self, matrices: list[nn.Parameter], *, fused: frozenset[nn.Parameter], **settings: Any) -> None:
        super().__init__(matrices, **settings)
        self._fused = fused  # queries, keys and values side by side, of shape (inputs, 3 x outputs)

    def _init_group(self, group: MutableMapping[str, Any], *collected: list[torch.Tensor]) -> bool:
        """torch's step works on the weights, gradients and momenta that this collects: here, on views of them."""
        whole: tuple[list[torch.Tensor], ...] = ([], [], [])
        has_complex = super()._init_group(group, *whole)
        for weight, *others in zip(*whole, strict=True):
            parts = 3 if weight in self._fused else 1
            for tensors, tensor in zip(collected, (weight, *others), strict=True):
                tensors += tensor.detach().chunk(parts, dim=1)
        return has_complex


def _adamw(model: nn.Module, decayed: list[nn.Parameter], others: list[nn.Parameter], config: OptimizerConfig) -> Any:
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.embedding_learning_rate is not None:
        groups = _with_own_rate(groups, _embedding_parameters(model), config.embedding_learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
