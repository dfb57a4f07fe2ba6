"""Two models that should be one -> how far apart their logits are, and whether they write the same text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from llm.config.export import ExportConfig
from llm.config.sampling import Sampling
from llm.errors import UnequalError
from llm.model import Answer, steps
from llm.tokenizer import Special

NEW_TOKENS = 24  # that are written after each prompt
MOST_TOKENS = 256  # of a row: its logits take 4 bytes x vocabulary for each
ROUNDINGS = 8  # of a layer: the weights and the inputs of four products, one after the other
# Rounding moved the median position by 0.15 to 0.5 of what is worked out, over five architectures, 2 and 8 layers; one
# mixture of experts with random weights in fp16 came to 4 times it. In fp32 the largest of all positions counts: layers
# of width 16 on AVX-512 came to 2.8 times it. A weight that passed through fp16 by mistake comes to some 500.
SLACK, SLACK_IN_FP32 = 2, 8


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


def differences(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """The most by which a logit of each position differs, (positions,); infinite where one is not a number."""
    if [a.shape for a in one] != [b.shape for b in other]:
        return torch.tensor([math.inf])
    return torch.cat([(a - b).abs().amax(-1) for a, b in zip(one, other, strict=True)]).nan_to_num(nan=math.inf)


def rounding(logits: Sequence[torch.Tensor], config: Any, dtype: torch.dtype) -> float:
    """How far a model's logits may move where its weights and its sums are rounded to `dtype`, and nothing else is.

    A product of n terms in fp32 is off by about sqrt(n) units (Higham and Mary 2019, doi:10.1137/18M1226312); weights
    and inputs of fewer bits by one unit each, whatever n, for such sums are in fp32 too. The errors of all products
    add up as the root of their number, in proportion to the spread of the logits; the largest of a vocabulary of v is
    sqrt(2 ln v) of the usual one. `config` is the model's, from transformers.
    """
    config = config.get_text_config()
    unit = torch.finfo(torch.float32).eps / 2 * math.sqrt(config.hidden_size)
    if dtype is not torch.float32:
        unit += torch.finfo(dtype).eps / 2
    slack = SLACK_IN_FP32 if dtype is torch.float32 else SLACK
    spread = max(float(row.std(-1).max()) for row in logits)
    products = ROUNDINGS * config.num_hidden_layers + 2
    return slack * unit * math.sqrt(products) * spread * math.sqrt(2 * math.log(logits[0].shape[-1]))


def require_close(model: Any, trial: Trial, config: ExportConfig, *, what: str) -> dict[str, float]:
    """What was measured of a model's logits against those of the run; refused where they are further than they may be.

    Raises:
        UnequalError: they are.
    """
    apart = differences(logits(model, trial.rows), trial.logits)
    measured = {
        "max_logit_difference": float(apart.max()),
        "median_logit_difference": float(apart.median()),
        "rounding": rounding(trial.logits, model.config, getattr(torch, config.dtype.value)),
    }
    found, allowed = config.judged(measured)
    if not found <= allowed or not apart.isfinite().all():
        raise UnequalError(
            f"{what} gives other logits than the run: {found:.3g} apart, and {allowed:.3g} is allowed. Nothing was "
            "exported. Raise export.max_logit_difference if that will do, or export.merge=false keeps them apart."
        )
    return measured


def write(model: Any, prompts: Sequence[list[int]]) -> list[Written]:
    """The likeliest continuation of each prompt, up to the end that the model's generation config names."""
    return [_continue(model, prompt) for prompt in prompts]


def _continue(model: Any, prompt: list[int]) -> Written:
    answer, likeliest = Answer(), Sampling(max_new_tokens=NEW_TOKENS, repetition_penalty=1.0)
    scores = [row[0].cpu() for row in steps(model, [prompt], None, [answer], sampling=likeliest, pad_id=0)]
    return Written(ids=answer.ids, logits=torch.stack(scores))


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
