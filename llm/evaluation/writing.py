"""Prompts -> what a model writes after each, several at once, and whether it came to an end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from llm.tokenizer import Special

ROWS = 20  # prompts that are written on at once: part of what is drawn, so no setting of how


@dataclass(frozen=True, slots=True)
class Written:
    """A text that a model wrote."""

    text: str
    num_tokens: int  # eos included
    has_ended: bool  # by eos, not for want of tokens


def write(
    model: Any,
    prompts: Sequence[list[int]],
    words: Tokenizer,
    special: Special,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[Written]:
    """What the model writes after each prompt of token ids, without any penalty on repeating itself."""
    chosen: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        chosen |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    written: list[Written] = []
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for rows in _batches(prompts):
            width = max(map(len, rows))
            input_ids = torch.tensor([[special.pad_id] * (width - len(ids)) + ids for ids in rows])  # (rows, seq)
            attention_mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows])
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                max_new_tokens=max_new_tokens,
                repetition_penalty=1.0,
                eos_token_id=special.eos_id,
                pad_token_id=special.pad_id,
                **chosen,
            )
            written += [_read(ids, words, special) for ids in output[:, width:].tolist()]
    return written


def _batches(prompts: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    for start in range(0, len(prompts), ROWS):
        yield list(prompts[start : start + ROWS])


def _read(ids: list[int], words: Tokenizer, special: Special) -> Written:
    """Up to eos; a last character that lacks bytes is the fault of the end where there is none."""
    has_ended = special.eos_id in ids
    ids = ids[: ids.index(special.eos_id)] if has_ended else ids
    text = words.decode(ids)
    return Written(text if has_ended else text.rstrip("\ufffd"), len(ids) + has_ended, has_ended)
