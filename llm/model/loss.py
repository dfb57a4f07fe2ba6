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
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits  # (batch, seq, vocab)
    return functional.cross_entropy(
        logits.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
    )
