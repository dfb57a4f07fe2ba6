"""Scores of the next token -> the scores that the highest is taken of: penalised, cut, and drawn row by row.

A row's draw depends on its seed alone: the largest of scores to which each adds noise of Gumbel's distribution is a
draw from their softmax (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030), so that rows which are written together
are what each would be alone. The library draws all rows from one stream of numbers, and counts padding as text.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import StoppingCriteria

if TYPE_CHECKING:
    from llm.model.generation import Sampling

TAIL = 64  # tokens that a stop string is looked for in, after each new one


def processors(
    sampling: "Sampling",
    *,
    paddings: Sequence[int],
    seeds: Sequence[int],
    ends: Sequence[int],
    num_words: int | None = None,
) -> LogitsProcessorList:
    """What a token's scores go through; `paddings` are the tokens on the left that are no text, of each row.

    `num_words` are the tokens of a vocabulary that is padded; None: it is not.
    """
    chosen = LogitsProcessorList()
    if num_words is not None:
        chosen.append(WithoutPadding(num_words))
    if sampling.repetition_penalty != 1:
        chosen.append(RepetitionPenalty(sampling.repetition_penalty, paddings, ends))
    if sampling.temperature > 0:
        chosen.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k is not None:
            chosen.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            chosen.append(TopPLogitsWarper(sampling.top_p))
        chosen.append(RowDraw(seeds))
    return chosen


def end_ids(model: Any, more: Sequence[int]) -> tuple[int, ...]:
    """The tokens that end a text: those that the model's settings name, and `more`."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = [] if named is None else [named] if isinstance(named, int) else list(named)
    return tuple(dict.fromkeys([*own, *more]))


class RepetitionPenalty(LogitsProcessor):
    """Lowers the tokens that a row has already (Keskar et al. 2019, arXiv:1909.05858, section 4.1).

    Padding is no text of the row; and what ends a text is never lowered: with one token for the beginning and the end
    of a document it would stand in every prompt, and the model would be kept from ending.
    """

    def __init__(self, penalty: float, paddings: Sequence[int], ends: Sequence[int]) -> None:
        self._penalty, self._paddings, self._ends = penalty, paddings, list(ends)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        padding = torch.tensor(self._paddings, device=input_ids.device)[:, None]  # (rows, 1)
        is_text = torch.arange(input_ids.shape[1], device=input_ids.device) >= padding  # (rows, seq)
        seen = torch.where(is_text, input_ids, input_ids.gather(1, padding))  # (rows, seq)
        found = scores.gather(1, seen)
        lowered = torch.where(found < 0, found * self._penalty, found / self._penalty)
        penalised = scores.scatter(1, seen, lowered)
        penalised[:, self._ends] = scores[:, self._ends]
        return penalised


class WithoutPadding(LogitsProcessor):
    """Leaves the scores of the tokens that there are, and none of a vocabulary's padding."""

    def __init__(self, num_words: int) -> None:
        self._num_words = num_words

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores[:, : self._num_words]


class RowDraw(LogitsProcessor):
    """Adds the noise that makes the highest score a draw, of each row from numbers of its own."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [
            torch.Generator().manual_seed(seed) for seed in seeds
        ]  # on the CPU: the same on every device

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        size = scores.shape[1]
        waits = [torch.empty(size).exponential_(generator=generator) for generator in self._generators]
        return scores - torch.stack(waits).clamp_min(1e-30).log().to(scores.device)  # (rows, vocabulary)


class Stops(StoppingCriteria):
    """Ends a row whose new text has a stop string; the text is cut afterwards."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], prompt_length: int) -> None:
        self._tokenizer, self._stops, self._prompt_length = tokenizer, stops, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        tails = input_ids[:, self._prompt_length :][:, -TAIL:].tolist()
        texts = [self._tokenizer.decode(tail) for tail in tails]
        is_done = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(is_done, device=input_ids.device)
