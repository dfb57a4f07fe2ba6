"""A run's model -> its files in Hugging Face format, read back, and compared with the run at every position."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

from llm import model as models
from llm.config.evaluation import ExportConfig, Sampling, WeightType
from llm.errors import UnequalError
from llm.run.console import log
from llm.run.files import write_json
from llm.run.models import ADAPTER, BASE, read_json
from llm.tokenizer.folder import Special, load_tokenizer, read_special

ADAPTER_FILES = ("adapter_model.safetensors", ADAPTER)
CHAT_TEMPLATE = "chat_template.jinja"
NEW_TOKENS = 24  # that the run writes after each prompt
MOST_TOKENS = 256  # of a row: its logits take 4 bytes x vocabulary for each
ROUNDINGS = 8  # of a layer: the weights and the inputs of four products, one after the other
# Rounding moved the median position by 0.15 to 0.5 of what is worked out, over five architectures, 2 and 8 layers; one
# mixture of experts with random weights in fp16 came to 4 times it. In fp32 the largest of all positions counts: layers
# of width 16 on AVX-512 came to 2.8 times it. A weight that passed through fp16 by mistake comes to some 500.
SLACK, SLACK_IN_FP32 = 2, 8


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a run's own model makes of its prompts: what an export of it is measured against."""

    rows: list[list[int]]  # prompts with what the run wrote after them, and one row of every added token
    logits: list[torch.Tensor]  # of each row, (seq, vocab) in fp32


def reference_of(model: Any, prompts: Sequence[list[int]], tokenizer_folder: Path, *, positions: int) -> Reference:
    """What the run's model, in fp32, makes of prompts of token ids; a text may take `positions` tokens."""
    special, vocabulary = read_special(tokenizer_folder), load_tokenizer(tokenizer_folder)
    fitting = [prompt for prompt in prompts if len(prompt) + NEW_TOKENS <= positions]
    likeliest, ends = Sampling(max_new_tokens=NEW_TOKENS, repetition_penalty=1.0), [special.eos_id]
    how: dict[str, Any] = {"sampling": likeliest, "pad_id": special.pad_id, "eos_ids": ends, "batch_size": 1}
    answers = models.generate(model, fitting, vocabulary, **how)
    rows = [[*prompt, *answer.ids] for prompt, answer in zip(fitting, answers, strict=True)]
    rows.append([special.bos_id, *sorted(vocabulary.get_added_tokens_decoder()), special.eos_id])
    rows = [row[: min(positions, MOST_TOKENS)] for row in rows]
    return Reference(rows=rows, logits=logits_of(model, rows))


@torch.inference_mode()
def logits_of(model: Any, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    """The logits of each row, (seq, vocab) in fp32."""
    return [model(input_ids=torch.tensor([row], device=model.device)).logits[0].float().cpu() for row in rows]


def require_close(model: Any, reference: Reference, config: ExportConfig, *, what: str) -> dict[str, float]:
    """What was measured of a model's logits against those of the run; refused where they are further than they may be.

    No text is compared: a token that the run chose and that is clearer than twice the difference is chosen here too.

    Raises:
        UnequalError: they are.
    """
    both = list(zip(logits_of(model, reference.rows), reference.logits, strict=True))
    apart = torch.cat([(a - b).abs().amax(-1) for a, b in both]).nan_to_num(nan=math.inf)  # (positions,)
    measured = {
        "max_logit_difference": float(apart.max()),
        "median_logit_difference": float(apart.median()),
        "rounding": rounding(reference.logits, model.config, getattr(torch, config.dtype.value)),
        "positions_compared": apart.numel(),
    }
    distance, allowed = config.judged(measured)
    if not distance <= allowed or not apart.isfinite().all():
        raise UnequalError(
            f"{what} gives other logits than the run: {distance:.3g} apart, and {allowed:.3g} is allowed. Nothing was "
            "exported. Raise export.max_logit_difference if that will do, or export.merge=false keeps them apart."
        )
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in both])
    return measured | {"same_likeliest_token": float(same.float().mean())}


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


# A whole model


def export_model(
    model: Any, folder: Path, reference: Reference, special: Special, config: ExportConfig
) -> dict[str, float]:
    """Write a whole model in Hugging Face format, an adapter merged into its base; gives what was proved of it.

    `model` is that of the run, in fp32, which `reference` was made with; it is of no use afterwards.

    Raises:
        UnequalError: the merged model, or the one that is read back from the files, is not the run's.
    """
    merged = models.merge(model) if hasattr(model, "merge_and_unload") else model
    merging = require_close(merged, reference, replace(config, dtype=WeightType.fp32), what="the merged model")
    _say_whether_tied(merged)
    ends = {"bos_token_id": special.bos_id, "eos_token_id": special.eos_id, "pad_token_id": special.pad_id}
    merged.generation_config = GenerationConfig(**ends)
    merged.config.update(ends)
    merged = merged.to(getattr(torch, config.dtype.value))
    merged.save_pretrained(folder)
    read = models.load(folder, dtype="auto").eval()
    proof = require_close(read, reference, config, what=f"the exported model in {config.dtype.name}")
    of_merge = {"max_logit_difference_of_merge": merging["max_logit_difference"]}
    return proof | of_merge | {"parameters": models.count_parameters(read)}


def _say_whether_tied(model: Any) -> None:
    """Have the config say what the weights are: by it, readers such as vLLM take the head from the embeddings."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if not model.config.tie_word_embeddings or head.weight is embeddings.weight:
        return
    if torch.equal(head.weight, embeddings.weight):
        head.weight = embeddings.weight
    else:
        model.config.tie_word_embeddings = False
        log.info("the head was trained apart from the embeddings that it was tied to: they are exported untied")


# An adapter


def export_adapter(
    source: Path, base: Path, folder: Path, reference: Reference, config: ExportConfig
) -> dict[str, float]:
    """Write the adapter of folder `source` on the base of another in PEFT format; gives what was proved of it.

    Raises:
        UnequalError: with its base it is not the run's model.
    """
    weights, settings = (source / name for name in ADAPTER_FILES)
    tensors = {name: tensor.to(getattr(torch, config.dtype.value)) for name, tensor in load_file(weights).items()}
    save_file(tensors, folder / weights.name, metadata={"format": "pt"})
    named = {BASE: config.base_model or str(base.resolve())}
    write_json(folder / settings.name, read_json(settings) | named)
    read = models.load(base, adapter=folder).eval()
    proof = require_close(read, reference, config, what=f"the exported adapter in {config.dtype.name}")
    return proof | {"parameters": models.count_parameters(read)}


# The tokenizer


def write_tokenizer(source: Path, folder: Path, *, positions: int) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template of a run, for use without it.

    In training the packer puts the beginning-of-document token before a text; here the tokenizer does, for nobody else
    would. A chat template has it already, and is encoded without what a tokenizer adds.
    """
    config, vocabulary = read_json(source / "tokenizer_config.json"), load_tokenizer(source)
    begin = config["bos_token"]
    vocabulary.post_processor = TemplateProcessing(
        single=[begin, "$A"], pair=[begin, "$A", "$B:1"], special_tokens=[(begin, vocabulary.token_to_id(begin))]
    )
    vocabulary.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config | {"model_max_length": positions})
    if (source / CHAT_TEMPLATE).is_file():
        shutil.copyfile(source / CHAT_TEMPLATE, folder / CHAT_TEMPLATE)
