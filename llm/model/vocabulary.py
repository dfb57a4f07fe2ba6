"""A model and the tokens that its tokenizer was given since -> the model with a row for each."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def grow(model: PreTrainedModel, vocab_size: int, new_ids: Sequence[int]) -> None:
    """Give the embeddings, and the head where it is not tied to them, `vocab_size` rows at least; in place.

    The rows of `new_ids` become the mean of the old ones, which foretells a new token neither more nor less than the
    others are (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
    """
    words = model.get_input_embeddings()
    if vocab_size > words.weight.shape[0]:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
        words = model.get_input_embeddings()
    head = model.get_output_embeddings()
    ends = [words] if head is None or head.weight is words.weight else [words, head]
    for end in ends:
        _fill(end.weight, new_ids)
        if isinstance(bias := getattr(end, "bias", None), torch.Tensor):
            _fill(bias, new_ids)


def _fill(rows: torch.Tensor, new_ids: Sequence[int]) -> None:
    is_old = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    is_old[list(new_ids)] = False
    rows[list(new_ids)] = rows[is_old].float().mean(dim=0).to(rows.dtype)
