"""Rows and texts -> the nats that a model gives them: many in one forward pass, each as if it were alone."""

from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from llm.data.conversations import ConversationRows
from llm.data.order import EvaluationBatches
from llm.data.rows import TokenRows
from llm.errors import DivergedError
from llm.model.loss import IGNORED
from llm.tokenizer import Special
from llm.trainer.validation import Evaluation, evaluate


class Scorer:
    """A model that scores held-out rows, and texts, each after bos as a document of its own."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, special: Special, *, positions: int, batch_tokens: int
    ) -> None:
        self.model, self.tokenizer, self.special, self.positions = model, tokenizer, special, positions
        self.batch_tokens = batch_tokens

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
        found = evaluate(self.model, unchanged, rows, device=next(self.model.parameters()).device)
        if not isfinite(found.loss):
            raise DivergedError(f"the held-out loss of this model is {found.loss}. Train it again with a lower rate.")
        return found

    @torch.inference_mode()
    def nats(self, texts: Iterable[str]) -> dict[str, float]:
        """The nats of all tokens of each text, each different text once.

        Rows of like length go together and are padded on the right, where a causal model does not look, and positions
        count from 0 in each: what a row costs does not depend on its neighbours, but for the last bits of floats.
        """
        encoded = {text: self.encode(text) for text in texts}
        found: dict[str, float] = {}
        device = next(self.model.parameters()).device
        for chosen in self._batches(encoded):
            input_ids, labels = (part.to(device) for part in self._padded([encoded[text] for text in chosen]))
            position_ids = torch.arange(input_ids.shape[1], device=device).expand_as(input_ids)
            logits = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits.float()
            nats = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            sums = nats.double().sum(1) if device.type != "mps" else nats.sum(1)  # (rows,)
            found |= dict(zip(chosen, sums.tolist(), strict=True))
        return {text: found[text] for text in encoded}

    def _padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(input_ids, labels), each (rows, seq); labels[t] is the token after input_ids[t]."""
        width = max(map(len, rows)) - 1
        input_ids = torch.full((len(rows), width), self.special.pad_id)
        labels = torch.full((len(rows), width), IGNORED)
        for line, ids in enumerate(rows):
            input_ids[line, : len(ids) - 1] = torch.tensor(ids[:-1])
            labels[line, : len(ids) - 1] = torch.tensor(ids[1:])
        return input_ids, labels

    def _batches(self, encoded: dict[str, list[int]]) -> Iterator[list[str]]:
        """Texts that go together, the longest first; at least one, and batch_tokens with the padding."""
        chosen: list[str] = []
        for text in sorted(encoded, key=lambda text: -len(encoded[text])):
            if chosen and (len(chosen) + 1) * (len(encoded[chosen[0]]) - 1) > self.batch_tokens:
                yield chosen
                chosen = []
            chosen.append(text)
        if chosen:
            yield chosen
