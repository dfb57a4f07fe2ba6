"""Rows and texts -> the nats that a model gives them: many in one forward pass, each as if it were alone."""

from collections.abc import Iterable
from math import isfinite
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from llm.data.conversations import ConversationRows
from llm.data.order import EvaluationBatches
from llm.data.rows import TokenRows
from llm.errors import DivergedError
from llm.model.loss import IGNORED
from llm.tokenizer.folder import Special
from llm.trainer.validation import Evaluation, evaluate


class Scorer:
    """A model that scores held-out rows, and texts, each after bos as a document of its own."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, special: Special, *, positions: int, batch_tokens: int
    ) -> None:
        self.model, self.tokenizer, self.special, self.positions = model, tokenizer, special, positions
        self.batch_tokens, self.device = batch_tokens, next(model.parameters()).device

    def encode(self, text: str) -> list[int]:
        """bos and the tokens of a text."""
        return [self.special.bos_id, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def loss(self, rows: TokenRows | ConversationRows) -> Evaluation:
        """What training validates.

        Raises:
            DivergedError: it is not finite.
        """
        size = max(1, self.batch_tokens // rows.sequence_length)
        edges = rows.first_rows if isinstance(rows, TokenRows) else (0,)
        batches: Any = EvaluationBatches(rows.num_labels, batch_size=size, edges=edges)
        unchanged = DataLoader[Any](rows, batch_sampler=batches, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
        found = evaluate(self.model, unchanged, rows, device=self.device)
        if not isfinite(found.loss):
            raise DivergedError(f"the held-out loss of this model is {found.loss}. Train it again with a lower rate.")
        return found

    @torch.inference_mode()
    def nats(self, texts: Iterable[str]) -> dict[str, float]:
        """The nats of all tokens of each text, each different text once.

        Rows of like length go together, up to batch_tokens, and are padded on the right, where a causal model does not
        look, and positions count from 0 in each: what a row costs does not depend on its neighbours, but for the last
        bits of floats.
        """
        encoded = {text: self.encode(text) for text in texts}
        left, found = sorted(encoded, key=lambda text: -len(encoded[text])), dict[str, float]()
        while left:
            size = max(1, self.batch_tokens // (len(encoded[left[0]]) - 1))
            chosen, left = left[:size], left[size:]
            rows = [torch.tensor(encoded[text], device=self.device) for text in chosen]
            input_ids = pad_sequence([row[:-1] for row in rows], True, self.special.pad_id)  # (rows, seq)
            labels = pad_sequence([row[1:] for row in rows], True, IGNORED)  # the token after each of input_ids
            position_ids = torch.arange(input_ids.shape[1], device=self.device).expand_as(input_ids)
            logits = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits.float()
            nats = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            found |= dict(zip(chosen, nats.sum(1, dtype=torch.float64).tolist(), strict=True))
        return {text: found[text] for text in encoded}
