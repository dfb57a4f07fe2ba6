"""Every way of tuning, on every architecture: what is trained is what is saved, what is loaded, and what is merged."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from llm import optimizer
from llm.config import Architecture, LoraConfig, Method, ModelConfig, OptimizerConfig, WeightPrecision
from llm.model import (
    add_lora,
    build,
    count_parameters,
    load,
    load_adapter,
    merge,
    next_token_nats,
    save,
    save_adapter,
    targets,
)
from llm.tokenizer import Special

VOCAB, NEW = 40, [40, 41]
SPECIAL = Special(bos_id=0, eos_id=0, pad_id=1, tokens=("<|endoftext|>", "<|pad|>"))
ARCHITECTURES = [Architecture.gpt2, Architecture.llama, Architecture.qwen3]
METHODS = [Method.lora, Method.rslora, Method.dora, Method.pissa]
ADAMW = OptimizerConfig(learning_rate=2e-2, warmup_steps=0, weight_decay=0.0)


def base_of(architecture: Architecture, *, tie: bool = True, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = ModelConfig(
        name="small",
        architecture=architecture,
        num_layers=2,
        num_heads=2,
        hidden_size=16,
        max_position_embeddings=32,
        tie_word_embeddings=tie,
        **changes,
    )
    model = build(config, vocab_size=VOCAB, special=SPECIAL)
    with torch.no_grad():  # what starts at zero or one would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def grown(model: PreTrainedModel) -> PreTrainedModel:
    """The model with a row for each new token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(VOCAB + len(NEW), mean_resizing=False)
    return model


def ids(rows: int, length: int, *, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=input_ids, use_cache=False).logits.float()


def written(model: PreTrainedModel) -> list[int]:
    """What a model goes on with after a prompt, the likeliest token each time."""
    with torch.no_grad():
        made = model.generate(input_ids=ids(1, 4, seed=3), max_new_tokens=12, do_sample=False, eos_token_id=-1)
    return made[0].tolist()


def trained(model: torch.nn.Module, *, vocab: int = VOCAB, steps: int = 5) -> torch.nn.Module:
    """The model after that many steps, on tokens of all the vocabulary."""
    model.train()
    adamw, schedule = optimizer.build(model, ADAMW, max_steps=steps)
    for step in range(steps):
        tokens = ids(4, 17, vocab=vocab, seed=step)
        tokens[:, ::5] = vocab - 1 - torch.arange(4)[:, None] % 2  # the new tokens, where there are, in every row
        positions = torch.arange(16).expand(4, 16)
        batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:], "position_ids": positions}
        (next_token_nats(model, batch) / 64).backward()
        adamw.step()
        adamw.zero_grad()
        schedule.step()
    return model.eval()


@pytest.mark.parametrize("new", [[], NEW], ids=["old tokens", "new tokens"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.value)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.value)
def test_trained_reloaded_and_merged_are_one_model(
    architecture: Architecture, tie: bool, method: Method, new: list[int], tmp_path: Path
) -> None:
    base, vocab = base_of(architecture, tie=tie), VOCAB + len(new)
    save(base, tmp_path / "base")
    plain = logits(base, ids(2, 8))
    config = LoraConfig(method=method, rank=3, alpha=4)
    model = trained(add_lora(grown(base) if new else base, config, architecture, new_token_ids=new), vocab=vocab)
    scores, text = logits(model, tokens := ids(2, 24, vocab=vocab, seed=9)), written(model)
    assert (logits(model, ids(2, 8))[..., :VOCAB] - plain).abs().max() > 0.05  # it has learned something

    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, tokens), scores, rtol=0, atol=1e-4)
    assert written(again) == text

    merged = merge(again)
    torch.testing.assert_close(logits(merged, tokens), scores, rtol=0, atol=1e-4)
    assert written(merged) == text
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == tie

    save(merged, tmp_path / "merged")
    reloaded = load(tmp_path / "merged").eval()
    assert torch.equal(logits(reloaded, tokens), logits(merged, tokens))
    assert written(reloaded) == text
