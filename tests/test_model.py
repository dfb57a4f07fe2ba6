"""The model: its sizes, its loss, what keeps packed documents apart, LoRA, and text from a prompt."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llm.config.compose import composed
from llm.config.training import Architecture, ModelConfig
from llm.config.tuning import LoraConfig
from llm.model import (
    add_lora,
    build,
    count_parameters,
    load,
    next_token_nats,
    save,
)
from llm.model.loss import IGNORED
from llm.tokenizer.folder import Special
from tests.rounding import assert_same_but_for_rounding, rounding

VOCAB = 50
SPECIAL = Special(bos_id=0, eos_id=0, pad_id=1, tokens=("<|endoftext|>", "<|pad|>"))
SUMS = (16, 64, 16, 64, VOCAB)  # the width of two layers and of what is between, and the vocabulary
ARCHITECTURES = list(Architecture)  # which has no shape of its own


def config(architecture: str, **changes: object) -> ModelConfig:
    small = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "max_position_embeddings": 64}
    return ModelConfig(name="small", architecture=architecture, **(small | changes))


def model_of(architecture: str, *, vocab_size: int = VOCAB, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build(config(architecture, **changes), vocab_size=vocab_size, special=SPECIAL)
    with torch.no_grad():  # what starts at zero or one would hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def preset(name: str) -> ModelConfig:
    return ModelConfig(**composed([f"model={name}"])["model"])


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def logits(model: torch.nn.Module, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits


# Size


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("inner", [None, 24])
def test_gpt2_has_the_parameters_of_its_formula(tie: bool, inner: int | None) -> None:
    layers, h, positions, f = 2, 16, 64, inner or 64
    block = (h * 3 * h + 3 * h) + (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    expected = VOCAB * h * (1 if tie else 2) + positions * h + layers * block + 2 * h
    model = model_of(Architecture.gpt2, tie_word_embeddings=tie, intermediate_size=inner)
    assert count_parameters(model) == expected


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(("key_value_heads", "inner"), [(None, None), (1, 40)])
def test_llama_has_the_parameters_of_its_formula(tie: bool, key_value_heads: int | None, inner: int | None) -> None:
    layers, heads, h = 2, 2, 16
    f = inner or 64  # 8/3 x 16 = 42.7, rounded up to a multiple of 32
    block = 2 * h * h + 2 * h * (h // heads) * (key_value_heads or heads) + 3 * h * f + 2 * h
    expected = VOCAB * h * (1 if tie else 2) + layers * block + h
    model = model_of(
        Architecture.llama, tie_word_embeddings=tie, num_key_value_heads=key_value_heads, intermediate_size=inner
    )
    assert count_parameters(model) == expected


# Loss


def batch_of(input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nats_are_minus_the_log_probability_of_each_label(architecture: Architecture) -> None:
    model = model_of(architecture)
    input_ids, labels = ids(2, 9), ids(2, 9, seed=1)
    labels[0, 3:6] = labels[1, 0] = IGNORED
    scores = logits(model, input_ids).double()
    expected = 0.0
    for row in range(2):
        for place in range(9):
            if labels[row, place] != IGNORED:
                expected -= float(torch.log_softmax(scores[row, place], 0)[labels[row, place]])
    assert next_token_nats(model, batch_of(input_ids, labels)).item() == pytest.approx(expected, rel=rounding(*SUMS))


# Folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_model_scores_the_same_under_transformers(
    architecture: Architecture, tie: bool, tmp_path: Path
) -> None:
    model = model_of(architecture, tie_word_embeddings=tie)
    save(model, tmp_path)
    assert torch.equal(logits(load(tmp_path).eval(), ids(2, 12)), logits(model, ids(2, 12)))
    for again in (load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)):
        sums = SUMS if architecture is Architecture.gpt2 else ()  # of its GELU, which torch has in one operator
        assert_same_but_for_rounding(logits(again.eval(), ids(2, 12)), logits(model, ids(2, 12)), *sums)
        assert count_parameters(again) == count_parameters(model)
        assert (again.config.eos_token_id, again.generation_config.pad_token_id) == (0, 1)


# LoRA


def lora(base: PreTrainedModel, **settings: object) -> torch.nn.Module:
    torch.manual_seed(1)
    return add_lora(base, LoraConfig(**({"rank": 2, "alpha": 4} | settings)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lora_changes_nothing_at_first(architecture: Architecture) -> None:
    base = model_of(architecture)
    before = logits(base, ids(2, 8))
    assert torch.equal(logits(lora(base), ids(2, 8)), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_adapters_are_trained(architecture: Architecture) -> None:
    base = model_of(architecture)
    frozen = count_parameters(base)
    model = lora(base)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert count_parameters(model) - count_parameters(model, trainable=True) == frozen


ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
MLP = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("architecture", "targets", "expected"),
    [
        (Architecture.gpt2, None, {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        *((architecture, None, ATTENTION | MLP) for architecture in (Architecture.llama, Architecture.qwen3)),
        (Architecture.gemma3, None, ATTENTION | MLP),
        (Architecture.qwen3_moe, None, ATTENTION),
        (Architecture.gpt2, ["c_attn"], {"attn.c_attn"}),
        (Architecture.llama, ["q_proj", "v_proj"], {"self_attn.q_proj", "self_attn.v_proj"}),
    ],
)
def test_adapters_lie_on_every_linear_layer_or_on_those_named(
    architecture: Architecture, targets: list[str] | None, expected: set[str], tied: bool
) -> None:
    model = lora(model_of(architecture, tie_word_embeddings=tied), target_modules=targets)
    names = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert {".".join(name.split(".lora_A")[0].split(".")[-2:]) for name in names} == expected
    assert len(names) == 2 * len(expected)  # in both layers
