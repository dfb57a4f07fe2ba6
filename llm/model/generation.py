"""Prompts -> texts, many at once or piece by piece: whole characters at every moment, each as it would be alone.

A row's draw depends on its prompt and seed alone: the largest of scores to which each adds noise of Gumbel's
distribution is a draw from their softmax (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030). The library draws all
rows from one stream of numbers, and counts padding as text.
"""

import hashlib
import inspect
import re
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers.generation.logits_process import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm.config.evaluation import Sampling
from llm.model.pretrained import unpadded

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
LAST_CONSONANT = "\u11a8"  # ㄱ under a syllable: a tokenizer that takes Hangul apart has it as a token


@dataclass(slots=True)
class Answer:
    """What a model writes after a prompt, filled as it comes along."""

    text: str = ""  # without special tokens; cut for want of tokens, without half a character at its end
    ids: list[int] = field(default_factory=list)  # the token that ended it included
    end: str = "length"  # or eos, stop (a stop string), closed (nobody read on)
    started_at: float = field(default=0.0, compare=False)
    first_at: float | None = field(default=None, compare=False)
    ended_at: float | None = field(default=None, compare=False)

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def seconds_to_first(self) -> float | None:
        return None if self.first_at is None else self.first_at - self.started_at

    @property
    def tokens_per_second(self) -> float | None:
        """From the first token on, which the prompt is read for."""
        if self.first_at is None or self.ended_at is None or self.num_tokens < 2:
            return None
        return (self.num_tokens - 1) / max(1e-9, self.ended_at - self.first_at)


def generate(
    model: Any,
    prompts: Sequence[list[int]],
    tokenizer: Tokenizer,
    *,
    sampling: Sampling,
    pad_id: int,
    eos_ids: Sequence[int] = (),
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> list[Answer]:
    """The continuations of prompts of token ids, up to `batch_size` of them at once, all where it is None.

    `eos_ids` end a text beside those that the model's own settings name; `seeds` are of each prompt, in place of
    sampling.seed.
    """
    ends, size = _end_ids(model, eos_ids), batch_size or max(1, len(prompts))
    rows = [
        _Row(model, prompt, Answer(), tokenizer, sampling, ends, seed)
        for prompt, seed in zip(prompts, seeds or [sampling.seed] * len(prompts), strict=True)
    ]
    for start in range(0, len(rows), size):
        for _ in _steps(model, rows[start : start + size], pad_id=pad_id):
            pass
    return [row.answer for row in rows]


def stream(
    model: Any,
    prompt: list[int],
    tokenizer: Tokenizer,
    *,
    sampling: Sampling,
    pad_id: int,
    eos_ids: Sequence[int] = (),
    answer: Answer | None = None,
) -> Generator[str, None, None]:
    """The same continuation in pieces, each as soon as it is whole characters; closing the iterator ends it."""
    answer, shown = answer or Answer(), 0
    row = _Row(model, prompt, answer, tokenizer, sampling, _end_ids(model, eos_ids), sampling.seed)
    try:
        for _ in _steps(model, [row], pad_id=pad_id):
            if len(answer.text) > shown:
                yield answer.text[shown:]
                shown = len(answer.text)
    except GeneratorExit:
        answer.end = "closed"
        raise


def _steps(model: Any, rows: Sequence["_Row"], *, pad_id: int) -> Iterator[None]:
    """Go on with each row by one token at a time."""
    width = max(len(row.prompt) for row in rows)
    paddings = torch.tensor([width - len(row.prompt) for row in rows])
    input_ids = torch.tensor([[pad_id] * (width - len(row.prompt)) + row.prompt for row in rows], device=model.device)
    mask = (torch.arange(width) >= paddings[:, None]).long().to(model.device)  # (rows, seq)
    position_ids, cache = (mask.cumsum(1) - 1).clamp(min=0), None
    while True:
        scores, cache = _next_scores(model, input_ids, mask, position_ids, cache)
        tokens = [pad_id if row.is_done else row.take(here) for row, here in zip(rows, scores, strict=True)]
        yield
        if all(row.is_done for row in rows):
            return
        input_ids = torch.tensor(tokens, device=model.device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        last = model.config.max_position_embeddings - 1  # of a row that is done, which goes on
        position_ids = (position_ids[:, -1:] + 1).clamp(max=last)


@torch.inference_mode()
def _next_scores(
    model: Any, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: Any
) -> tuple[torch.Tensor, Any]:
    """(the scores of the next token, (rows, vocab) in fp32; the cache of what was read)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
    outputs = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
        **last,
    )
    return outputs.logits[:, -1, : unpadded(model)].float(), outputs.past_key_values


def _end_ids(model: Any, more: Sequence[int]) -> tuple[int, ...]:
    """The tokens that end a text: those that the model's settings name, and `more`."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = [] if named is None else [named] if isinstance(named, int) else list(named)
    return tuple(dict.fromkeys([*own, *more]))


def _warpers(sampling: Sampling) -> list[LogitsProcessor]:
    """What changes the scores of a token before one is chosen."""
    made: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        made.append(TemperatureLogitsWarper(sampling.temperature))
        made += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        made += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    return made


def drawn(scores: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scores (1, vocab) with the noise that makes the highest one a draw."""
    waits = torch.empty(scores.shape[1]).exponential_(generator=generator)
    return scores - waits.clamp_min(1e-30).log().to(scores.device)


def _draw_of(seed: int, prompt: Sequence[int]) -> int:
    """The seed of one prompt's draw, so that other prompts are drawn independently under the same one."""
    return int.from_bytes(hashlib.sha256(f"{seed} {list(prompt)}".encode()).digest()[:8], "big") >> 1


class _Row:
    """The answer to one prompt while it is written: scores -> a token -> text that later tokens cannot change."""

    def __init__(
        self,
        model: Any,
        prompt: list[int],
        answer: Answer,
        tokenizer: Tokenizer,
        sampling: Sampling,
        ends: Sequence[int],
        seed: int,
    ) -> None:
        positions = model.config.max_position_embeddings
        self._limit = min(sampling.max_new_tokens, max(positions - len(prompt), positions // 2))
        self.prompt, self.answer, self.is_done = prompt[self._limit - positions :], answer, False
        self._draws = torch.Generator().manual_seed(_draw_of(seed, prompt))  # on the CPU: the same on every device
        self._sampling, self._ends, self._warpers = sampling, ends, _warpers(sampling)
        # Tokens that end a text are not penalised: where one is the beginning and the end of a document, it stands in
        # every prompt, and the model would be kept from ending.
        self._penalised = [token for token in self.prompt if token not in ends]
        self._text = Detokenizer(tokenizer, prompt)
        self._held = ""  # what may be the beginning of a stop string
        answer.started_at = time.monotonic()

    def take(self, scores: torch.Tensor) -> int:
        """The token that is chosen by its scores (vocab,), and what it adds to the text."""
        token, answer = self._choose(scores[None]), self.answer
        is_end = token in self._ends
        answer.ended_at = time.monotonic()
        answer.first_at = answer.first_at or answer.ended_at
        answer.ids.append(token)
        self._penalised += [] if is_end else [token]
        answer.end = "eos" if is_end else "length"
        self.is_done = is_end or answer.num_tokens >= self._limit
        piece = "" if is_end else self._text.add(token)
        if self.is_done:
            rest = self._text.rest()
            piece += rest if is_end else rest.rstrip("\ufffd")
        self._say(piece)
        return token

    @torch.inference_mode()
    def _choose(self, scores: torch.Tensor) -> int:
        """Of scores (1, vocab) that are penalised and cut, the likeliest, or one that is drawn."""
        seen: Any = torch.tensor([self._penalised], dtype=torch.long, device=scores.device)
        for warp in self._warpers:
            scores = warp(seen, scores)
        return int((drawn(scores, self._draws) if self._sampling.temperature > 0 else scores).argmax())

    def _say(self, piece: str) -> None:
        """More text, up to the first stop string; what may be the beginning of one is held back until it is known."""
        stops, self._held = self._sampling.stop, self._held + piece
        if found := [place for stop in stops if (place := self._held.find(stop)) >= 0]:
            self.answer.end, self.is_done, self._held = "stop", True, self._held[: min(found)]
        sizes = (size for stop in stops for size in range(1, len(stop)) if self._held.endswith(stop[:size]))
        known = len(self._held) - (0 if self.is_done else max(sizes, default=0))
        self.answer.text, self._held = self.answer.text + self._held[:known], self._held[known:]


class Detokenizer:
    """Tokens -> text in pieces, each as soon as later tokens cannot change it, decoding a window of them at a time.

    The prompt's last token tells whether the first word goes on with it, and later the tokens of the last piece do. The
    library's DecodeStream does not do: it raises on bytes that make no character, and holds back what stands unfinished
    at the end.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._begin(list(prompt[-1:]))
        if self._is_unfinished(self._shown, self._window):
            self._begin([])

    def add(self, token: int) -> str:
        """What is certain by one more token."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if len(text) <= len(self._shown) or self._is_unfinished(text, self._window):
            return ""
        piece = text[len(self._shown) :]
        self._begin(self._window[self._num_shown :])
        return piece

    def rest(self) -> str:
        """What is left where no token follows."""
        return self._tokenizer.decode(self._window)[len(self._shown) :]

    def _begin(self, window: list[int]) -> None:
        self._window, self._num_shown = window, len(window)
        self._shown = self._tokenizer.decode(window)

    def _is_unfinished(self, text: str, ids: list[int]) -> bool:
        """Whether more tokens could change the text: its last character lacks bytes, or a run of bytes may go on.

        Or its last syllable may be given a vowel or a last consonant, by a tokenizer that has these as tokens.
        """
        return (
            text.endswith("\ufffd")
            or (bool(ids) and bool(BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(ids[-1]) or "")))
            or (_is_open_syllable(text[-1:]) and self._tokenizer.token_to_id(LAST_CONSONANT) is not None)
        )


def _is_open_syllable(character: str) -> bool:
    """Whether a conjoining letter can join a character: a first consonant, or a syllable that ends in its vowel."""
    is_syllable = "가" <= character <= "힣" and (ord(character) - ord("가")) % 28 == 0  # Unicode, section 3.12
    return is_syllable or "\u1100" <= character <= "\u1112"
