"""A prompt -> text, as it is made: whole Korean syllables at every moment."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import Queue
from threading import Thread

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from llm.model.drawing import Stops, end_ids, processors
from llm.model.vocabulary import unpadded

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
LAST_CONSONANT = "\u11a8"  # ㄱ under a syllable: a tokenizer that takes Hangul apart has it as a token


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest.

    A prompt that leaves no room for max_new_tokens loses its beginning, but keeps half of the model's positions.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 0.95
    top_k: int | None = 50  # the likeliest that are drawn from; None: all
    repetition_penalty: float = 1.1  # of the tokens that stand already, those that end a text not among them
    stop: tuple[str, ...] = ()  # texts that end the answer, themselves left out
    seed: int = 0


@dataclass(slots=True)
class Pace:
    """How an answer comes along: filled while it is read."""

    started_at: float = 0.0
    first_at: float | None = None
    ended_at: float | None = None
    num_tokens: int = 0  # the token that ended it included
    end: str = "length"  # or eos, stop (a stop string), closed (nobody read on)

    @property
    def seconds_to_first(self) -> float | None:
        return None if self.first_at is None else self.first_at - self.started_at

    @property
    def tokens_per_second(self) -> float | None:
        """From the first token on, which the prompt is read for."""
        if self.first_at is None or self.ended_at is None or self.num_tokens < 2:
            return None
        return (self.num_tokens - 1) / max(1e-9, self.ended_at - self.first_at)


@dataclass(frozen=True, slots=True)
class Answer:
    """The text that a model went on with."""

    text: str
    num_tokens: int
    end: str  # as in Pace


def generate(
    model: PreTrainedModel, prompt_ids: list[int], tokenizer: Tokenizer, *, sampling: Sampling, pad_id: int
) -> str:
    """The continuation of a prompt, without special tokens."""
    return generate_batch(model, [prompt_ids], tokenizer, sampling=sampling, pad_id=pad_id, seeds=[sampling.seed])[
        0
    ].text


def generate_batch(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    tokenizer: Tokenizer,
    *,
    sampling: Sampling,
    pad_id: int,
    seeds: Sequence[int],
    eos_ids: Sequence[int] = (),
) -> list[Answer]:
    """The continuations of several prompts, made at once; each is what it would be alone, drawn by a seed of its own.

    `eos_ids` end a text beside those that the model's own settings name.
    """
    ends = end_ids(model, eos_ids)
    lines = _generate_ids(model, prompts, tokenizer, sampling=sampling, pad_id=pad_id, seeds=seeds, ends=ends)
    return [_read(ids, prompt, tokenizer, sampling, ends) for ids, prompt in zip(lines, prompts, strict=True)]


def _read(ids: list[int], prompt: list[int], tokenizer: Tokenizer, sampling: Sampling, ends: Sequence[int]) -> Answer:
    stop_at = next((place for place, token in enumerate(ids) if token in ends), None)
    ids = ids if stop_at is None else ids[: stop_at + 1]
    pace = Pace(end="length" if stop_at is None else "eos")
    text = "".join(_until(_pieces(ids, prompt, tokenizer), sampling.stop, pace))
    return Answer(text, len(ids), pace.end)


def stream(
    model: PreTrainedModel,
    prompt_ids: list[int],
    tokenizer: Tokenizer,
    *,
    sampling: Sampling,
    pad_id: int,
    eos_ids: Sequence[int] = (),
    pace: Pace | None = None,
) -> Iterator[str]:
    """The same continuation in pieces, each as soon as it is whole characters; closing the iterator ends it."""
    ends, pace = end_ids(model, eos_ids), pace or Pace()
    streamer = _TokenQueue(pace, ends)
    error: list[BaseException] = []

    def work() -> None:
        try:
            _generate_ids(
                model,
                [prompt_ids],
                tokenizer,
                sampling=sampling,
                pad_id=pad_id,
                seeds=[sampling.seed],
                ends=ends,
                streamer=streamer,
            )
        except BaseException as caught:  # handed over to the reader, below
            error.append(caught)
        finally:
            streamer.end()

    thread = Thread(target=work, daemon=True)
    pace.started_at = time.monotonic()
    thread.start()
    is_read = False
    try:
        yield from _until(_pieces(iter(streamer.tokens.get, None), prompt_ids, tokenizer), sampling.stop, pace)
        is_read = True
    finally:
        streamer.is_closed = True
        thread.join()
        if not is_read:
            pace.end = "closed"
    if error and not isinstance(error[0], _Closed):
        raise error[0]


def _until(pieces: Iterator[str], stops: Sequence[str], pace: Pace) -> Iterator[str]:
    """The text before the first of `stops`; what may be the beginning of one is held back until it is known."""
    held = ""
    for piece in pieces:
        held += piece
        found = [place for stop in stops if (place := held.find(stop)) >= 0]
        if found:
            pace.end = "stop"
            held = held[: min(found)]
            break
        longest = max((size for stop in stops for size in range(1, len(stop)) if held.endswith(stop[:size])), default=0)
        if len(held) > longest:
            yield held[: len(held) - longest]
            held = held[len(held) - longest :]
    if held:
        yield held


def _pieces(ids: Iterable[int | None], prompt_ids: list[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of `ids`, each piece as soon as later tokens cannot change it, and what is left at the end.

    The prompt's last token tells whether the first word goes on with it. The library's DecodeStream does not do: it
    raises on bytes that make no character, and holds back what stands unfinished at the end.
    """
    decoded = prompt_ids[-1:]
    shown = tokenizer.decode(decoded)
    if _is_unfinished(shown, decoded, tokenizer):
        decoded, shown = [], ""
    for token in ids:
        assert token is not None
        decoded = [*decoded, token]
        text = tokenizer.decode(decoded)
        if len(text) > len(shown) and not _is_unfinished(text, decoded, tokenizer):
            yield text[len(shown) :]
            shown = text
    if rest := tokenizer.decode(decoded)[len(shown) :]:
        yield rest


def _is_unfinished(text: str, ids: list[int], tokenizer: Tokenizer) -> bool:
    """Whether more tokens could change the text: its last character lacks bytes, or a run of byte tokens may go on.

    Or its last syllable may be given a vowel or a last consonant, by a tokenizer that has these as tokens.
    """
    return (
        text.endswith("\ufffd")
        or (bool(ids) and bool(BYTE_TOKEN.fullmatch(tokenizer.id_to_token(ids[-1]) or "")))
        or (_is_open_syllable(text[-1:]) and tokenizer.token_to_id(LAST_CONSONANT) is not None)
    )


def _is_open_syllable(character: str) -> bool:
    """Whether a conjoining letter can join a character: a first consonant, or a syllable that ends in its vowel."""
    is_syllable = "가" <= character <= "힣" and (ord(character) - ord("가")) % 28 == 0  # Unicode, section 3.12
    return is_syllable or "\u1100" <= character <= "\u1112"


def _generate_ids(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    tokenizer: Tokenizer,
    *,
    sampling: Sampling,
    pad_id: int,
    seeds: Sequence[int],
    ends: Sequence[int],
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt; a row that ended before the others goes on with pad_id."""
    positions = model.config.max_position_embeddings
    longest = max(map(len, prompts))
    max_new_tokens = min(sampling.max_new_tokens, max(positions - longest, positions // 2))
    kept = [ids[max_new_tokens - positions :] for ids in prompts]
    width = max(map(len, kept))
    input_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in kept], device=model.device)  # (rows, seq)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in kept], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the draw is among the processors, each row by numbers of its own
            repetition_penalty=1.0,
            logits_processor=processors(
                sampling,
                paddings=[width - len(ids) for ids in kept],
                seeds=seeds,
                ends=ends,
                num_words=unpadded(model),
            ),
            stopping_criteria=[Stops(tokenizer, sampling.stop, width)] if sampling.stop else None,
            eos_token_id=list(ends) or None,
            pad_token_id=pad_id,
            use_cache=True,
            streamer=streamer,
        )
    return [line.tolist() for line in output[:, width:]]


class _Closed(Exception):
    """Nobody reads on."""


class _TokenQueue(BaseStreamer):
    """Hands the tokens over as they are made; None is the end. Once closed, it ends the generation."""

    def __init__(self, pace: Pace, ends: Sequence[int]) -> None:
        self.is_closed = False
        self.tokens: Queue[int | None] = Queue()
        self._pace, self._ends = pace, ends
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self.is_closed:
            raise _Closed
        if self._is_prompt:  # the first call repeats the prompt
            self._is_prompt = False
            return
        for token in value.flatten().tolist():
            self._count(int(token))
            self.tokens.put(int(token))

    def _count(self, token: int) -> None:
        self._pace.ended_at = time.monotonic()
        self._pace.first_at = self._pace.first_at or self._pace.ended_at
        self._pace.num_tokens += 1
        if token in self._ends:
            self._pace.end = "eos"

    def end(self) -> None:
        self.tokens.put(None)
