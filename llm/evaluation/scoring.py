"""Texts -> the nats that a model gives them: many rows in one forward pass, each as if it were alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from llm.model.loss import IGNORED
from llm.tokenizer import Special


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model makes of the tokens that were asked about."""

    nats: float  # the sum of -ln p
    is_greedy: bool  # whether each was the likeliest


class Scorer:
    """A model that scores texts, each after bos as a document of its own."""

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, special: Special, *, positions: int, batch_tokens: int
    ) -> None:
        self.model, self.tokenizer, self.special, self.positions = model, tokenizer, special, positions
        self._batch_tokens = batch_tokens

    def encode(self, text: str) -> list[int]:
        """bos and the tokens of a text."""
        return [self.special.bos_id, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def nats(self, texts: Iterable[str]) -> dict[str, float]:
        """The nats of all tokens of each text, each different text once."""
        different = list(dict.fromkeys(texts))
        scored = self.score([(self.encode(text), 1) for text in different])
        return {text: line.nats for text, line in zip(different, scored, strict=True)}

    @torch.inference_mode()
    def score(self, sequences: Sequence[tuple[list[int], int]]) -> list[Scored]:
        """For each (token ids, place of the first that counts): what the tokens from there on cost.

        Rows of like length go together and are padded on the right, where a causal model does not look, and positions
        count from 0 in each: what a row costs does not depend on its neighbours, but for the last bits of floats.
        """
        scored: dict[int, Scored] = {}
        device = next(self.model.parameters()).device
        for chosen in self._batches([len(ids) - 1 for ids, _ in sequences]):
            input_ids, labels = (part.to(device) for part in self._pad([sequences[place] for place in chosen]))
            position_ids = torch.arange(input_ids.shape[1], device=device).expand_as(input_ids)
            logits = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits.float()
            nats = functional.cross_entropy(
                logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
            )  # (rows, seq)
            greedy = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1)
            sums = nats.double().sum(1).tolist() if device.type != "mps" else nats.sum(1).tolist()
            scored |= {p: Scored(*line) for p, *line in zip(chosen, sums, greedy.tolist(), strict=True)}
        return [scored[place] for place in range(len(sequences))]

    def _pad(self, rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(input_ids, labels), each (rows, seq); labels[t] is the token after input_ids[t], where it counts."""
        width = max(len(ids) - 1 for ids, _ in rows)
        input_ids = torch.full((len(rows), width), self.special.pad_id)
        labels = torch.full((len(rows), width), IGNORED)
        for line, (ids, first) in enumerate(rows):
            input_ids[line, : len(ids) - 1] = torch.tensor(ids[:-1])
            labels[line, first - 1 : len(ids) - 1] = torch.tensor(ids[first:])
        return input_ids, labels

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """The places of rows that go together, the longest first; at least one, and batch_tokens with the padding."""
        chosen: list[int] = []
        for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
            if chosen and (len(chosen) + 1) * lengths[chosen[0]] > self._batch_tokens:
                yield chosen
                chosen = []
            chosen.append(place)
        if chosen:
            yield chosen
