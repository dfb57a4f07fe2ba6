"""A model and the tokens that its tokenizer was given since -> the model with a row for each; and rows of padding.

Kernels of GPUs want sizes that divide by 64 or 128, and a vocabulary is what it is: 50,257. So a model may be trained
with rows for tokens that there are not. They begin at zero and stay there, for the loss leaves their logits out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

UNPADDED = "ttukttak_unpadded_vocabulary"  # of a model with padding: its rows without


def grow(model: PreTrainedModel, vocab_size: int, new_ids: Sequence[int]) -> None:
    """Give the embeddings `vocab_size` rows at least, those of `new_ids` by the rule of `take_rows`; in place."""
    rows = model.get_input_embeddings().weight.shape[0]
    if new_ids:
        take_rows(model, max(rows, vocab_size), {row: row for row in range(rows) if row not in set(new_ids)})


@torch.no_grad()
def take_rows(model: PreTrainedModel, vocab_size: int, kept: Mapping[int, int]) -> None:
    """Give the embeddings, and the head where it is not tied to them, `vocab_size` rows; in place.

    Row n is what row kept[n] was. Any other is the mean of the rows that are kept, which predicts a new token neither
    more nor less than the others are (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
    """
    new, old = list(kept), list(kept.values())
    before = [tensor.clone() for tensor in _with_a_row_a_token(model)]
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    for tensor, values in zip(_with_a_row_a_token(model), before, strict=True):
        tensor[:] = (values[old] if old else values).float().mean(dim=0).to(tensor.dtype)
        tensor[new] = values[old]


@torch.no_grad()
def pad(model: PreTrainedModel, multiple: int | None) -> None:
    """Raise the rows of the embeddings and of the head to a multiple; in place. The new ones are zero."""
    rows = model.get_input_embeddings().weight.shape[0]
    if multiple is None or rows % multiple == 0:
        return
    model.resize_token_embeddings(-(-rows // multiple) * multiple, mean_resizing=False)
    setattr(model, UNPADDED, rows)
    for tensor in _with_a_row_a_token(model):
        tensor[rows:] = 0


def unpad(model: PreTrainedModel) -> None:
    """Take the padding away; in place."""
    if (rows := unpadded(model)) is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
        delattr(model, UNPADDED)


def unpadded(model: Any) -> int | None:
    """The tokens that a model with padding has; None of one without."""
    size: int | None = getattr(model, UNPADDED, None)
    return size


def padding_of(model: Any) -> dict[nn.Parameter, int]:
    """The values of each parameter that are padding, where there are some."""
    if (rows := unpadded(model)) is None:
        return {}
    return {tensor: tensor[rows:].numel() for tensor in _with_a_row_a_token(model)}


def _with_a_row_a_token(model: PreTrainedModel) -> list[nn.Parameter]:
    """The embeddings', and the head's, tied ones once."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    tensors = [getattr(end, name, None) for end in ends for name in ("weight", "bias")]
    return list(dict.fromkeys(tensor for tensor in tensors if isinstance(tensor, nn.Parameter)))
