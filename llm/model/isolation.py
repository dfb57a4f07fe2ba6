"""A model -> the certainty that documents which share a row do not see each other, asked of the model itself."""

import torch
from torch import nn

from llm.errors import ConfigError
from llm.model.loss import IGNORED, next_token_nats

DOCUMENTS = (7, 11)  # tokens of the two documents in the row that is tried
TOLERANCE = (
    1e-5  # of the loss: kernels may add up in another order. Neighbours that were seen moved it by 1.7e-4 or more
)


def require_isolation(model: nn.Module, *, vocab_size: int, architecture: str) -> None:
    """Change one document of a row, and refuse a model for which its neighbour's loss is then another.

    It is the loss that training takes, so that whatever the model is called with is what is tried.

    Raises:
        ConfigError: the loss of a document depends on its neighbour.
    """
    was_training = model.training
    model.eval()
    try:
        before, *changed = (_neighbours_nats(model, vocab_size, seed=seed) for seed in range(3))
    finally:
        model.train(was_training)
    if any(abs(nats - before) > TOLERANCE * before for nats in changed):
        raise ConfigError(
            f"model.architecture={architecture}: documents that share a row see each other, for this model does not "
            "part them by their positions. Choose another model."
        )


@torch.no_grad()
def _neighbours_nats(model: nn.Module, vocab_size: int, *, seed: int) -> float:
    """The loss of the second document, which stays the same, after a first one drawn by `seed`."""
    device = next(model.parameters()).device
    tokens = [
        torch.randint(vocab_size, (size,), generator=torch.Generator().manual_seed(draw))
        for size, draw in zip(DOCUMENTS, (seed + 1, 0), strict=True)
    ]
    input_ids = torch.cat(tokens)
    labels = torch.cat([torch.full_like(tokens[0], IGNORED), tokens[1].roll(-1)])
    position_ids = torch.cat([torch.arange(size) for size in DOCUMENTS])
    row = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    return float(next_token_nats(model, {name: value[None].to(device) for name, value in row.items()}))
