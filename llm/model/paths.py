"""Any causal model of transformers -> the certainty that the quicker ways to its loss are its own loss.

An architecture may scale its logits, cap its attention's scores or hide tokens in ways that the kernels here do not
know. So each quicker way is tried on a row of two documents beside the plain one, and where it gives another loss, the
plain one is taken from then on.
"""

from typing import Any

import torch
from torch import nn

from llm.model import loss
from llm.model.attention import PARTS_BY_MASKS, document_bounds
from llm.model.loss import WITH_ALL_LOGITS

SIZES = (7, 11)  # tokens of the two documents
TOLERANCE = 1e-4  # relative, of the loss: sums in another order give 1e-6


@torch.no_grad()
def take_plain_paths_where_needed(model: nn.Module, *, vocab_size: int) -> list[str]:
    """What had to be switched off, in words; the model remembers it."""
    was_training, limit = model.training, loss.CHUNK_LOGITS
    model.eval()
    switched_off = []
    try:
        setattr(model, PARTS_BY_MASKS, True)
        setattr(model, WITH_ALL_LOGITS, True)
        row = _row(vocab_size, device=next(model.parameters()).device)
        expected = float(loss.next_token_nats(model, row))
        setattr(model, PARTS_BY_MASKS, False)
        if not _is_near(float(loss.next_token_nats(model, row)), expected):
            setattr(model, PARTS_BY_MASKS, True)
            switched_off.append("attention by the bounds of documents")
        loss.CHUNK_LOGITS = vocab_size * 5  # tokens at a time
        setattr(model, WITH_ALL_LOGITS, False)
        if not _is_near(float(loss.next_token_nats(model, row)), expected):
            setattr(model, WITH_ALL_LOGITS, True)
            switched_off.append("logits by chunks")
    finally:
        loss.CHUNK_LOGITS = limit
        model.train(was_training)
    return switched_off


def _is_near(value: float, expected: float) -> bool:
    return abs(value - expected) <= TOLERANCE * abs(expected)


def _row(vocab_size: int, *, device: torch.device) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (1, sum(SIZES) + 1), generator=draw)
    positions = torch.cat([torch.arange(size) for size in SIZES])[None]
    row = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:], "position_ids": positions}
    return {name: value.to(device) for name, value in row.items()} | {"document_bounds": document_bounds(positions)}
