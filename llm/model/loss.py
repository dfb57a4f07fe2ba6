"""The next-token loss, and how a model must be called for it."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

IGNORED = -100  # torch's default: such labels cost nothing


def next_token_nats(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The sum of -ln p(label) over a batch's labels, a scalar in fp32.

    `labels[t]` is the token that follows `input_ids[t]`. Positions that start again at each document, no attention mask
    and no cache: only so do Hugging Face models keep packed documents apart.
    """
    return _nats(_outputs(model, batch).logits, batch["labels"])


def next_token_loss(model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(next_token_nats, what is minimised): for a mixture of experts with its load-balancing term for each label.

    Without that term a few experts come to take all tokens (Fedus et al. 2021, arXiv:2101.03961, section 2.2).
    """
    weight = getattr(getattr(model, "config", None), "router_aux_loss_coef", None)
    if weight is None:
        nats = next_token_nats(model, batch)
        return nats, nats
    outputs = _outputs(model, batch, output_router_logits=True)
    nats = _nats(outputs.logits, batch["labels"])
    return nats, nats + weight * outputs.aux_loss * (batch["labels"] != IGNORED).sum()


def _outputs(model: nn.Module, batch: dict[str, Any], **more: bool) -> Any:
    return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **more)


def _nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of logits (batch, seq, vocab), summed."""
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
