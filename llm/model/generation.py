"""A prompt -> text, as it is made: whole Korean syllables at every moment."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

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
    repetition_penalty: float = 1.1
    seed: int = 0


def generate(
    model: PreTrainedModel, prompt_ids: list[int], tokenizer: Tokenizer, *, sampling: Sampling, pad_id: int
) -> str:
    """The continuation of a prompt, without special tokens."""
    ids = _generate_ids(model, prompt_ids, sampling=sampling, pad_id=pad_id)
    return "".join(_pieces(ids, prompt_ids, tokenizer))


def stream(
    model: PreTrainedModel, prompt_ids: list[int], tokenizer: Tokenizer, *, sampling: Sampling, pad_id: int
) -> Iterator[str]:
    """The same continuation in pieces, each as soon as it is whole characters; closing the iterator ends it."""
    streamer = _TokenQueue()
    error: list[BaseException] = []

    def work() -> None:
        try:
            _generate_ids(model, prompt_ids, sampling=sampling, pad_id=pad_id, streamer=streamer)
        except BaseException as caught:  # handed over to the reader, below
            error.append(caught)
        finally:
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from _pieces(iter(streamer.tokens.get, None), prompt_ids, tokenizer)
    finally:
        streamer.is_closed = True
        thread.join()
    if error:
        raise error[0]


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
    prompt_ids: list[int],
    *,
    sampling: Sampling,
    pad_id: int,
    streamer: BaseStreamer | None = None,
) -> list[int]:
    positions = model.config.max_position_embeddings
    max_new_tokens = min(sampling.max_new_tokens, max(positions - len(prompt_ids), positions // 2))
    prompt = torch.tensor([prompt_ids[max_new_tokens - positions :]], device=model.device)  # (1, seq)
    chosen: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        chosen |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(sampling.seed)
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=pad_id,
            streamer=streamer,
            **chosen,
        )
    return [int(token) for token in output[0, prompt.shape[1] :]]


class _TokenQueue(BaseStreamer):
    """Hands the tokens over as they are made; None is the end. Once closed, it ends the generation."""

    def __init__(self) -> None:
        self.is_closed = False
        self.tokens: Queue[int | None] = Queue()
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self.is_closed:
            raise InterruptedError("nobody reads on")
        if self._is_prompt:  # the first call repeats the prompt
            self._is_prompt = False
            return
        for token in value.flatten().tolist():
            self.tokens.put(int(token))

    def end(self) -> None:
        self.tokens.put(None)
