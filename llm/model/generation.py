"""A prompt -> text, as it is made: whole Korean syllables at every moment."""

from collections.abc import Iterator
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest."""

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
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def stream(
    model: PreTrainedModel, prompt_ids: list[int], tokenizer: Tokenizer, *, sampling: Sampling, pad_id: int
) -> Iterator[str]:
    """The same continuation in pieces, as soon as each is a whole character.

    Tokens are decoded with the library's DecodeStream: decoding one at a time gives broken syllables.
    """
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
    decoder = DecodeStream(ids=prompt_ids, skip_special_tokens=True)
    while (token := streamer.tokens.get()) is not None:
        if piece := decoder.step(tokenizer, token):
            yield piece
    thread.join()
    if error:
        raise error[0]


def _generate_ids(
    model: PreTrainedModel,
    prompt_ids: list[int],
    *,
    sampling: Sampling,
    pad_id: int,
    streamer: BaseStreamer | None = None,
) -> list[int]:
    room = model.config.max_position_embeddings - sampling.max_new_tokens
    prompt = torch.tensor([prompt_ids[-max(room, 1) :]], device=model.device)  # (1, seq)
    chosen: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        chosen |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(sampling.seed)
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=sampling.max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            pad_token_id=pad_id,
            streamer=streamer,
            **chosen,
        )
    return [int(token) for token in output[0, prompt.shape[1] :]]


class _TokenQueue(BaseStreamer):
    """Hands the tokens over as they are made; None is the end."""

    def __init__(self) -> None:
        self.tokens: Queue[int | None] = Queue()
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:  # the first call repeats the prompt
            self._is_prompt = False
            return
        for token in value.flatten().tolist():
            self.tokens.put(int(token))

    def end(self) -> None:
        self.tokens.put(None)
