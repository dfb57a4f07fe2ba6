"""Two models that should be one -> how far apart their logits are, and whether they write the same text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from llm.errors import UnequalError
from llm.tokenizer import Special

NEW_TOKENS = 24  # that are written after each prompt
MOST_TOKENS = 256  # of a row: its logits take 4 bytes x vocabulary for each


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a model wrote after a prompt, its likeliest token each time."""

    ids: list[int]
    logits: torch.Tensor  # (len(ids), vocab), fp32


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a run's own model makes of its prompts: what an export of it is measured against."""

    prompts: list[list[int]]  # that leave room to write
    written: list[Written]  # after each
    rows: list[list[int]]  # the same with what was written, and one row of every added token
    logits: list[torch.Tensor]  # of each row, (seq, vocab) in fp32

    @property
    def num_positions(self) -> int:
        return sum(map(len, self.rows))


def try_out(
    model: Any, prompts: Sequence[list[int]], special: Special, added_ids: Sequence[int], *, most: int
) -> Trial:
    """A trial of the run's model on prompts of token ids; a text may take `most` tokens."""
    fitting = [prompt for prompt in prompts if len(prompt) + NEW_TOKENS <= most]
    end(model, special)
    written = write(model, fitting)
    rows = [[*prompt, *text.ids] for prompt, text in zip(fitting, written, strict=True)]
    rows.append([special.bos_id, *added_ids, special.eos_id])
    rows = [row[: min(most, MOST_TOKENS)] for row in rows]
    return Trial(prompts=fitting, written=written, rows=rows, logits=logits(model, rows))


def end(model: Any, special: Special) -> None:
    """Have a model end its texts where its tokenizer does, here and where its generation config goes."""
    model.generation_config = GenerationConfig(
        bos_token_id=special.bos_id, eos_token_id=special.eos_id, pad_token_id=special.pad_id
    )


@torch.inference_mode()
def logits(model: Any, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    """The logits of each row, (seq, vocab) in fp32."""
    return [model(input_ids=torch.tensor([row], device=model.device)).logits[0].float().cpu() for row in rows]


def difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """The most by which a logit differs; infinite where a value is not a number, or the vocabularies are not one."""
    most = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return float("inf")
        apart = float((a - b).abs().max())
        most = max(most, apart if apart == apart else float("inf"))
    return most


def require_within(found: float, bound: float, *, what: str) -> None:
    """Refuse what is further away than it may be.

    Raises:
        UnequalError: it is.
    """
    if not found <= bound:
        raise UnequalError(
            f"{what} gives other logits than the run: {found:.3g} apart at most, and {bound:.3g} is allowed. Nothing "
            "was exported. Raise export.max_logit_difference if that will do, or export.merge=false keeps them apart."
        )


@torch.inference_mode()
def write(model: Any, prompts: Sequence[list[int]]) -> list[Written]:
    """The likeliest continuation of each prompt, by the model's own generation config."""
    return [_continue(model, prompt, NEW_TOKENS) for prompt in prompts]


def _continue(model: Any, prompt: list[int], count: int) -> Written:
    input_ids = torch.tensor([prompt], device=model.device)  # (1, seq)
    made = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = [int(token) for token in made.sequences[0, len(prompt) :]]
    return Written(ids=ids, logits=torch.cat(made.logits).float().cpu())


def require_same_text(one: Sequence[Written], other: Sequence[Written], *, within: float, what: str) -> int:
    """The number of texts that part at a tie: where the tokens chosen are no more than 2 x `within` apart.

    Logits that differ by at most `within` cannot change a choice that is clearer than that.

    Raises:
        UnequalError: a text parts elsewhere.
    """
    ties = 0
    for number, (a, b) in enumerate(zip(one, other, strict=True), 1):
        if a.ids == b.ids:
            continue
        place = next((i for i, pair in enumerate(zip(a.ids, b.ids, strict=False)) if pair[0] != pair[1]), None)
        gap = float("inf") if place is None else float(a.logits[place, a.ids[place]] - a.logits[place, b.ids[place]])
        if not gap <= 2 * within:
            raise UnequalError(
                f"{what} writes another text after held-out prompt {number} than the run does. Nothing was exported."
            )
        ties += 1
    return ties
